"""Judges NSP leave-family-out on a public leaderboard, beside plain methods, and times it.

    python benchmarks/nsp.py --data_dir ../shared/data --figure docs/figures/nsp.png

Protocols: nothing of the family is known (`size`), the core scores of the next smaller model of the family
(`sibling`), or three other scores of the model itself, averaged over all 35 choices of them (`others`; beside it the
three that served best in each fold's training families). Every fit is blind to the families it is judged on.
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from nsp_baselines import baselines  # type: ignore[import-not-found]

from configuration_nsp import CHANCE, CORE_TASKS
from datasets_scripts.leaderboard import load_leaderboard
from modeling_nsp import NSPModel
from ncpl import record
from ncpl.blocks import check, read_yaml
from ncpl.figures import scores_over_compute
from ncpl.files import write_json
from ncpl.nsp.loss_link import load_links
from ncpl.nsp.protocols import cross_validate, summarize
from ncpl.nsp.scores import Scores
from ncpl.nsp.train import rounded
from ncpl.recipe import NSPRecipe

ROOT = Path(__file__).parent.parent
TARGETS = {"size": 0.048, "sibling": 0.030, "others": 0.030}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "nsp.json")
    parser.add_argument("--data_dir", help="folder of the leaderboards; default: download")
    parser.add_argument("--recipe", type=Path, default=ROOT / "recipes" / "nsp-base.yaml")
    parser.add_argument("--model", default="nsp-base", help="trained model that is timed and drawn")
    parser.add_argument("--judged", type=Path, help="nsp_record.json of a training run whose figures are taken over")
    parser.add_argument("--figure", type=Path, help="PNG of tasks x compute")
    given = parser.parse_args()
    recipe = check(NSPRecipe, read_yaml(given.recipe))
    table = load_leaderboard(recipe.data.leaderboard, given.data_dir or recipe.data.data_dir)
    model = NSPModel.from_pretrained(given.model).eval()
    if given.judged:
        metrics = json.loads(given.judged.read_text())["metrics"]
    else:
        tasks = [t for t in CHANCE if t in table and table[t].notna().sum() >= recipe.data.min_scores]
        scores = Scores.from_table(table, tasks)
        metrics = summarize(cross_validate(scores, recipe, progress=True), tasks, recipe)
    plain = baselines(Scores.from_table(table, CORE_TASKS), recipe.evaluation.folds)
    result: dict[str, Any] = {
        **record.provenance(),
        "seeds": recipe.evaluation.seeds,
        "unit": "mean absolute error of accuracy 0..1, mean over 8 core tasks, leave-family-out over 5 folds",
        "targets": TARGETS,
        "baselines": plain,
        "nsp": metrics,
        "loss_links": {name: {"errors": link.errors} for name, link in load_links().items()},
        "speed": speed(model),
    }
    for name in TARGETS:
        best = min(errors[name] for errors in plain.values() if name in errors)
        ratios = sorted(best / error for error in metrics[name]["mae_by_seed"])
        result["nsp"][name]["ratio"] = {"median": statistics.median(ratios), "min": ratios[0], "max": ratios[-1]}
    given.output.parent.mkdir(parents=True, exist_ok=True)
    write_json(given.output, rounded(result), 1)
    print(f"wrote {given.output}")
    if given.figure:
        given.figure.parent.mkdir(parents=True, exist_ok=True)
        scores_over_compute(model, real=table).save(given.figure)
        print(f"wrote {given.figure}")


@torch.no_grad()
def speed(model: NSPModel, repeats: int = 200, rows: int = 8192) -> dict[str, Any]:
    """Milliseconds of one prediction, from a mapping and from tensors, and rows a second in a batch; one CPU thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    described = {"params": 7e9, "tokens": 2e12}
    extracted = model.extractor(described)
    batch = {name: value.expand(rows, *value.shape[1:]).contiguous() for name, value in extracted.items()}
    jitter = torch.rand(rows, 1)
    batch["features"] = batch["features"] + torch.cat([jitter, jitter, torch.zeros(rows, 2)], 1)
    sibling = {**described, "siblings": [{"params": 1e9, "tokens": 1e12, "mmlu": 0.3, "arc_c": 0.4, "hellaswag": 0.6}]}
    extracted_sibling = model.extractor(sibling)
    extracted_own = model.extractor({**described, "scores": {"arc_c": 0.45, "hellaswag": 0.75, "gsm8k": 0.15}})
    seconds = {name: time_ms / 1000 for name, time_ms in _milliseconds(lambda: model(**batch), 50).items()}
    figures = {
        "one_prediction_ms": _milliseconds(lambda: model(**extracted), repeats),
        "one_prediction_from_mapping_ms": _milliseconds(lambda: model(described), repeats),
        "one_prediction_with_sibling_ms": _milliseconds(lambda: model(**extracted_sibling), repeats),
        "one_prediction_with_own_scores_ms": _milliseconds(lambda: model(**extracted_own), repeats),
        "batch_rows_per_s": {
            "median": rows / seconds["median"],
            "min": rows / seconds["max"],
            "max": rows / seconds["min"],
        },
        "batch_rows": rows,
        "threads": 1,
    }
    torch.set_num_threads(threads)
    return figures


def _milliseconds(call: Any, repeats: int) -> dict[str, float]:
    for _ in range(3):
        call()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(1000 * (time.perf_counter() - start))
    return {"median": statistics.median(times), "min": min(times), "max": max(times)}


if __name__ == "__main__":
    main()
