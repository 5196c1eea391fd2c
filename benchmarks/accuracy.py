"""Accuracy of final-loss forecasts on held-out runs, beside the baselines and the published NCPL.

    python benchmarks/accuracy.py --output benchmarks/results/accuracy.json

Everything is fitted to the train splits; `in_val` holds models of sizes seen in training, `ood_val` larger ones.
The shipped checkpoint's figures are its own `evaluation.json`; what to choose by is `benchmarks/choice.py`.
"""

import argparse
import csv
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

from calibration_ncpl import Calibration
from datasets_scripts.reading import SPLITS
from datasets_scripts.runs import load_runs
from laws_ncpl import ConfigurationLaw
from ncpl import fitting
from ncpl.files import write_json
from ncpl.metrics import regression_metrics
from ncpl.record import provenance
from published_ncpl import ChinchillaLaw

DENSE = ("steplaw", "marin")
SOURCES = (*DENSE, "steplaw_moe")
LEVEL = 0.9
LEARNERS = ("gradient-boosted trees", "gaussian process")
Row = Mapping[str, Any]
Method = Callable[[Sequence[Row]], np.ndarray]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--data-dir", type=Path, default=Path("../shared/data"), help="folder with steplaw/ and marin/")
    parser.add_argument("--seeds", type=int, default=3, help="seeds of every method that has randomness")
    args = parser.parse_args()

    splits = {source: read_splits(args.data_dir, source) for source in SOURCES}
    unstable = [row for source in DENSE for row in splits[source]["unstable"]]
    train = [row for source in SOURCES for row in splits[source]["train"]]
    cells = {f"{s} {k}": splits[s][k] for s in SOURCES for k in ("in_val", "ood_val")}

    started = time.perf_counter()
    # The first as it ships, from the prior's means; the others from random starts.
    fits = [fitting.fit(train, seed=seed or None) for seed in range(args.seeds)]
    fit_s = (time.perf_counter() - started) / args.seeds
    laws = [fit.law() for fit in fits]
    started = time.perf_counter()
    largest = {s: max(row["conf"]["model size"] for row in splits[s]["train"]) for s in DENSE}
    calibration = fitting.calibrate(
        fits[0], [row for row in unstable if row["conf"]["model size"] <= largest[row["source"]]]
    )
    calibration_s = time.perf_counter() - started

    result: dict[str, Any] = {
        **provenance(),
        "seeds": list(range(args.seeds)),
        "fit_s": fit_s,
        "calibration_s": calibration_s,
        "predict_one_ms": predict_one_ms(laws[0], train[0]["conf"]),
        "methods": {},
    }
    methods = result["methods"]
    dense = {name: rows for name, rows in cells.items() if rows[0]["source"] in DENSE}
    for name, forecasts in baselines(train, args.seeds).items():
        # Laws of one size cannot tell mixtures of experts of one total size apart.
        methods[name] = evaluate(forecasts, cells if name in LEARNERS else dense)
    methods["prior alone"] = evaluate([closed(law) for law in laws], cells)
    methods["ours"] = evaluate([whole(law) for law in laws], cells)
    for name, column in (("NCPL-1.7B, published", "ncpl_1p7b"), ("Chinchilla, published with NCPL", "chinchilla")):
        published = {s: read_published(args.data_dir, s, column) for s in DENSE}
        methods[name] = evaluate([lookup(published)], dense)
    intervals = {name: interval_figures(laws[0], calibration, rows) for name, rows in cells.items()}
    result["intervals"] = {"ours": intervals}
    result["divergence"] = divergence_figures(laws[0], splits, unstable, args.seeds)
    result["held_out_size"] = largest_size_figures(fits[0], train)
    result["noise"] = {s: noise_floor(fits[0], s, observations(splits[s]["ood_val"])) for s in SOURCES}
    args.output.parent.mkdir(parents=True, exist_ok=True)
    write_json(args.output, result, 1)
    print(table_text(result))


def read_splits(folder: Path, source: str) -> dict[str, list[Row]]:
    """Runs under `train`, `in_val`, `ood_val` and `unstable`."""
    return {split: list(rows) for split, rows in load_runs(source, folder).items()}


def read_published(folder: Path, source: str, column: str) -> dict[str, float]:
    with (folder / source / f"{source}_ncpl_paper_predictions.csv").open() as file:
        return {line["name"]: float(line[column]) for line in csv.DictReader(file)}


def observations(rows: Sequence[Row]) -> np.ndarray:
    return np.array([row["final_loss"] for row in rows])


def configs(rows: Sequence[Row]) -> list[Mapping[str, Any]]:
    return [row["conf"] for row in rows]


def whole(law: Any) -> Method:
    return lambda rows: law(configs(rows))


def closed(law: ConfigurationLaw) -> Method:
    return lambda rows: law.closed_form(configs(rows))


def lookup(published: Mapping[str, Mapping[str, float]]) -> Method:
    return lambda rows: np.array([published[row["source"]][row["name"]] for row in rows])


def learner(name: str, train: Sequence[Row], seed: int) -> Method:
    return lambda rows: fitting.baseline_forecasts(name, train, rows, seed=seed)


def baselines(train: Sequence[Row], seeds: int) -> dict[str, list[Method]]:
    """Method -> one forecaster for each seed it depends on."""
    return {
        "Kaplan, refitted": [whole(fitting.fit_kaplan(train))],
        "Chinchilla, coefficients as published": [whole(ChinchillaLaw())],
        "Chinchilla, refitted": [whole(fitting.fit_chinchilla(train))],
        LEARNERS[0]: [learner(LEARNERS[0], train, seed) for seed in range(seeds)],
        LEARNERS[1]: [learner(LEARNERS[1], train, 0)],
    }


def evaluate(methods: Sequence[Method], cells: Mapping[str, Sequence[Row]]) -> dict[str, dict[str, float]]:
    return {
        name: summarise([regression_metrics(method(rows), observations(rows)) for method in methods])
        for name, rows in cells.items()
    }


def summarise(figures: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Means over seeds, with the standard deviation of the MAE where there are several."""
    mean = {name: float(np.mean([figure[name] for figure in figures])) for name in figures[0]}
    return mean | ({"mae_sd": float(np.std([figure["mae"] for figure in figures], ddof=1))} if len(figures) > 1 else {})


def coverage(lower: np.ndarray, upper: np.ndarray, observed: np.ndarray, loss: np.ndarray) -> dict[str, float]:
    width = float((upper - lower).mean())
    return {
        "level": LEVEL,
        "coverage": float(((lower <= observed) & (observed <= upper)).mean()),
        "mean_width": width,
        "width_over_mae": width / float(np.abs(loss - observed).mean()),
    }


def interval_figures(law: ConfigurationLaw, calibration: Calibration, rows: Sequence[Row]) -> dict[str, float]:
    loss = law(configs(rows))
    lower, upper = calibration.interval(configs(rows), loss, LEVEL)
    return coverage(lower, upper, observations(rows), loss)


def auroc(labels: np.ndarray, scores: np.ndarray) -> float:
    """The probability that a run that diverged scores above one that did not."""
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(labels, scores))


def divergence_figures(
    law: ConfigurationLaw, splits: Mapping[str, Mapping[str, Sequence[Row]]], unstable: Sequence[Row], seeds: int
) -> dict[str, Any]:
    """Five-fold cross-validation over (source, size, data size) groups, all dense runs."""
    rows = [row for source in DENSE for split in SPLITS for row in splits[source][split]]
    found = [fitting.cross_validate_divergence(law, rows, unstable, seed=seed) for seed in range(seeds)]
    sources = np.array([row["source"] for row in [*rows, *unstable]])
    values = [auroc(labels, scores) for labels, scores in found]
    own = {s: float(np.mean([auroc(y[sources == s], p[sources == s]) for y, p in found])) for s in DENSE}
    return {
        "runs": len(sources),
        "diverged": int(found[0][0].sum()),
        "auroc": float(np.mean(values)),
        "by_seed": values,
        **own,
    }


def largest_size_figures(fit: fitting.Fit, train: Sequence[Row]) -> dict[str, Any]:
    """The largest size of each source in train, forecast by a fit without it."""
    figures = {}
    for source in DENSE:
        largest = max(row["conf"]["model size"] for row in train if row["source"] == source)
        out = np.array([row["source"] == source and row["conf"]["model size"] == largest for row in train])
        forecasts = fit.held_out(["held" if held else "kept" for held in out], only="held")
        rows = [row for row, held in zip(train, out, strict=True) if held]
        figures[f"{source} {largest:g}M"] = regression_metrics(forecasts[out], observations(rows))
    return figures


def noise_floor(fit: fitting.Fit, source: str, larger: np.ndarray, draws: int = 500) -> dict[str, Any]:
    """Errors of each train run forecast from all others: what is left even between neighbours on the same grid.

    And how well such errors, drawn at random, would rank the larger models' losses: the mean Spearman, and the 5th and
    95th percentile.
    """
    from scipy.stats import spearmanr

    errors, rng = fit.left_out_errors(source), np.random.default_rng(0)
    ranks = [spearmanr(larger, larger + rng.choice(errors, len(larger)))[0] for _ in range(draws)]
    return {
        "mae": float(np.abs(errors).mean()),
        "median": float(np.median(np.abs(errors))),
        "spearman_ood_val": [float(value) for value in (np.mean(ranks), *np.quantile(ranks, (0.05, 0.95)))],
    }


def predict_one_ms(law: ConfigurationLaw, conf: Mapping[str, Any], times: int = 50) -> float:
    """Median time of one forecast by the law, in milliseconds."""
    law([conf])
    taken = []
    for _ in range(times):
        started = time.perf_counter()
        law([conf])
        taken.append(time.perf_counter() - started)
    return 1000 * float(np.median(taken))


def table_text(result: Mapping[str, Any]) -> str:
    cells = list(result["methods"]["Kaplan, refitted"])
    lines = ["| MAE / bias / Spearman | " + " | ".join(cells) + " |", "|---" * (len(cells) + 1) + "|"]
    for name, figures in result["methods"].items():
        own = [f"{figures[c]['mae']:.4f} / {figures[c]['bias']:+.4f} / {figures[c]['spearman']:.4f}" for c in cells]
        lines.append(f"| {name} | " + " | ".join(own) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
