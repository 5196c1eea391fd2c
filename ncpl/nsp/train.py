"""Training, evaluating, calibrating and saving NSP: the whole of `run_train.py recipes/nsp-base.yaml`."""

import json
import warnings
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from configuration_nsp import CHANCE
from datasets_scripts.leaderboard import load_leaderboard
from datasets_scripts.runs import load_runs
from fields_ncpl import SOURCES
from ncpl import record
from ncpl.nsp.fit import fit, set_families
from ncpl.nsp.loss_link import LINK_FILE, LINK_NOTES, RUN_LINK, LossLink, fit_loss_link, fit_offsets
from ncpl.nsp.protocols import calibration, cross_validate, summarize
from ncpl.nsp.recipe import NSPRecipe
from ncpl.nsp.scores import Scores


def train(recipe: Mapping[str, Any], output_dir: str | Path, progress: bool = True) -> dict[str, Any]:
    """Trains, judges, calibrates and saves a predictor: the whole of `run_train.py recipes/nsp-base.yaml`.

    Args:
        recipe: blocks `model`, `data`, `training`, `evaluation`, and `seed`; see `NSPRecipe`.
        output_dir: folder for the model, its extractor, the loss links and `nsp_record.json`.
        progress: show bars.

    Returns:
        the record: `recipe`, `metrics` (leave-family-out), `hardware`, `versions`, `commit`, `seeds`.

    Raises:
        ValueError: a key or value of the recipe, or files of the leaderboard.
    """
    plan, output = NSPRecipe.from_dict(recipe), Path(output_dir)
    table = load_leaderboard(plan.data.leaderboard, plan.data.data_dir)
    tasks = plan.model.get("tasks") or [
        t for t in CHANCE if t in table and table[t].notna().sum() >= plan.data.min_scores
    ]
    scores = Scores.from_table(table, tasks)
    judged = cross_validate(scores, plan, progress)
    everything = np.arange(len(scores.names))
    families = sorted(set(scores.families))
    plan.model = {**plan.model, "tasks": list(tasks), "families": families, **calibration(judged, tasks, plan)}
    model = fit(scores, everything, plan, plan.seed, progress)
    set_families(model, scores, everything)
    output.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(output)
    model.extractor.save_pretrained(output)
    links: dict[str, LossLink] = {}
    for source in LINK_NOTES:
        try:
            losses = load_leaderboard(source, plan.data.data_dir)
        except ValueError as error:
            warnings.warn(f"no link from loss to scores by {source}: {error}", stacklevel=2)
            continue
        links[source] = fit_loss_link(losses, source)
    if RUN_LINK in links:
        fit_offsets(links[RUN_LINK], _run_logs(plan.data.data_dir))
    if links:
        told = {source: asdict(link) for source, link in links.items()}
        (output / LINK_FILE).write_text(json.dumps(rounded(told), indent=1) + "\n")
    state = record.git_state()
    result = {
        "recipe": {k: v for k, v in recipe.items() if k != "data"} | {"leaderboard": plan.data.leaderboard},
        "metrics": summarize(judged, tasks, plan),
        "models": len(scores.names),
        "families": len(families),
        "seeds": plan.evaluation.seeds,
        "hardware": record.hardware(),
        "versions": record.versions(),
        "commit": state["commit"] if state else None,
    }
    (output / "nsp_record.json").write_text(json.dumps(rounded(result), indent=1) + "\n")
    return result


def _run_logs(data_dir: str | None) -> dict[str, list[tuple[Mapping[str, Any], float]]]:
    """Training runs of every source in a folder: (configuration, final loss in nats per token)."""
    found = {}
    for source in SOURCES:
        try:
            runs = load_runs(source, data_dir)["train"]
        except ValueError as error:
            warnings.warn(f"the losses of {source} get no place on the link's scale: {error}", stacklevel=3)
            continue
        found[source] = list(zip(runs["conf"], runs["final_loss"], strict=True))
    return found


def rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, Mapping):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(item) for item in value]
    return value
