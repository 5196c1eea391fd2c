"""Which learning rate a forecast says to choose, against what was logged: where it lies, and what choosing by it costs.

    python benchmarks/choice.py --output benchmarks/results/choice.json

Of every cell (optimizer, size, data size) of all splits: the rate with the lowest forecast, the other fields as in the
best logged run. What choosing costs: on train by laws that have not seen any run of that size and data size, on
`in_val` and `ood_val` by the checkpoint. `ood_val` is read for its logged rates alone; its regret chooses nothing.
"""

import argparse
import csv
import json
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

from datasets_scripts.runs import load_runs
from ncpl import Forecaster, fitting
from ncpl.files import write_json
from ncpl.record import provenance
from published_ncpl import StepLaw

SOURCES = ("marin", "steplaw")
SPLITS = ("train", "in_val", "ood_val")
RATES = np.geomspace(5e-5, 0.3, 88)
# A second minimum counts from this depth, in nats.
DEPTH = 0.002


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--data-dir", type=Path, default=Path("../shared/data"), help="folder with steplaw/ and marin/")
    parser.add_argument("--checkpoint", help="folder, name or Hub id; the embedded default when absent")
    args = parser.parse_args()
    forecaster = Forecaster.from_pretrained(args.checkpoint)
    result: dict[str, Any] = provenance()
    logged = {source: load_runs(source, args.data_dir) for source in SOURCES}
    left_out = left_out_forecasts([row for source in SOURCES for row in logged[source]["train"]])
    for source, splits in logged.items():
        rows, train = [row for split in SPLITS for row in splits[split]], list(splits["train"])
        result[source] = {"cells": recommended(forecaster, rows), "grid": grid_minima(forecaster, rows, source)}
        result[source]["regret"] = {"left-out cells": regrets(train, left_out[source], train)}
        published = read_published(args.data_dir, source)
        for split in ("in_val", "ood_val"):
            own = list(splits[split])
            forecast = forecasts(forecaster, own)
            forecast["NCPL-1.7B, published"] = np.array([published[row["name"]] for row in own])
            result[source]["regret"][split] = regrets(own, forecast, train)
    write_json(args.output, result, 1)
    print(json.dumps({source: result[source] for source in SOURCES}, indent=1))


def left_out_forecasts(train: Sequence[Any]) -> dict[str, dict[str, np.ndarray]]:
    """Source -> `forecasts` of its train runs by laws that have seen no run of the same size and data size."""
    fit = fitting.fit(train)
    found, sources = fit.held_out_cells, np.array([row["source"] for row in fit.rows])
    return {
        source: {
            "ours": found["loss"][sources == source],
            "ours, loss to expect": (found["loss"] + found["risk"])[sources == source],
        }
        for source in SOURCES
    }


def forecasts(forecaster: Forecaster, rows: Sequence[Any]) -> dict[str, np.ndarray]:
    """What the checkpoint forecasts for runs: the loss, and the loss to expect where the best rate is not known."""
    confs = [row["conf"] for row in rows]
    losses = forecaster.predict_checked(confs)["loss"].to_numpy()
    return {"ours": losses, "ours, loss to expect": losses + forecaster.law.risk(confs)}


def cells(rows: Sequence[Any]) -> dict[tuple[Any, ...], list[Any]]:
    found: dict[tuple[Any, ...], list[Any]] = defaultdict(list)
    for row in rows:
        conf = row["conf"]
        found[conf["optimizer"], conf["model size"], conf["data size"]].append(row)
    return found


def best_run(rows: Sequence[Any]) -> Any:
    return min(rows, key=lambda row: row["final_loss"])


def second_minimum(losses: np.ndarray) -> float:
    """How far the curve falls again on its way out from its lowest point, in nats."""
    foot = int(losses.argmin())
    sides = losses[foot:], losses[: foot + 1][::-1]
    return float(max((np.maximum.accumulate(side) - side).max() for side in sides))


def recommended(forecaster: Forecaster, rows: Sequence[Any]) -> dict[str, int]:
    """Cells whose recommended rate lies outside the logged ones by 1.5x, or 2x off the best; with two minima."""
    outside, far, double, groups = 0, 0, 0, cells(rows)
    for own in groups.values():
        conf = best_run(own)["conf"]
        losses = forecaster.predict_checked([{**conf, "learning rate": float(rate)} for rate in RATES])["loss"]
        chosen, logged = RATES[int(losses.to_numpy().argmin())], [row["conf"]["learning rate"] for row in own]
        outside += max(min(logged) / chosen, chosen / max(logged)) > 1.5
        far += abs(np.log(chosen / conf["learning rate"])) > np.log(2)
        double += second_minimum(losses.to_numpy()) > DEPTH
    return {"cells": len(groups), "outside by 1.5x": int(outside), "2x off": int(far), "two minima": int(double)}


def grid_minima(forecaster: Forecaster, rows: Sequence[Any], source: str) -> dict[str, int]:
    """How many cells of a grid beyond the logged ones have two minima over the learning rate."""
    names = sorted({row["conf"]["optimizer"] for row in rows})[:10]
    sizes = (134.2, 302.0, 536.9, 1000.0, 3000.0) if source == "marin" else (215.0, 268.0, 429.0, 537.0, 1e3, 3e3)
    data = (3.0, 20.0, 100.0) if source == "marin" else (5.0, 10.0, 25.0, 50.0, 100.0)
    double, count = 0, 0
    for optimizer in names:
        for size in sizes:
            for tokens in data:
                conf = {"source": source, "optimizer": optimizer, "model size": size, "data size": tokens}
                conf |= {"batch size": 128 if source == "marin" else 256}
                losses = forecaster.predict_checked([{**conf, "learning rate": float(rate)} for rate in RATES])["loss"]
                double, count = double + (second_minimum(losses.to_numpy()) > DEPTH), count + 1
    return {"cells": count, "two minima": int(double)}


def read_published(folder: Path, source: str) -> dict[str, float]:
    """Run -> the published NCPL-1.7B's forecast."""
    with (folder / source / f"{source}_ncpl_paper_predictions.csv").open(encoding="utf-8") as file:
        return {line["name"]: float(line["ncpl_1p7b"]) for line in csv.DictReader(file)}


def regrets(
    rows: Sequence[Any], forecast: Mapping[str, np.ndarray], train: Sequence[Any]
) -> dict[str, float | dict[str, float]]:
    """Mean over cells of three runs and more: the loss of the logged run that a rule chooses, over the cell's lowest.

    Runs that a rule cannot tell apart count by their mean.

    Args:
        rows: logged runs.
        forecast: rule -> what it forecasts for each run; the lowest is chosen.
        train: runs among which the nearest other cell of the same optimizer is looked for.

    Returns:
        Rule -> nats per token; `cells`, how many; `by optimizer`, the same means for each.
    """
    known, place = cells(train), {id(row): i for i, row in enumerate(rows)}
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for key, own in cells(rows).items():
        if len(own) < 3:
            continue
        losses, mine = np.array([row["final_loss"] for row in own]), [place[id(row)] for row in own]
        scores = {name: values[mine] for name, values in forecast.items()} | rules(key, own, known)
        for name, score in scores.items():
            found[name][key[0]].append(float(losses[score <= score.min() + 1e-9].mean() - losses.min()))
    means: dict[str, Any] = {name: float(np.mean(np.concatenate([*own.values()]))) for name, own in found.items()}
    means["cells"] = sum(map(len, found["ours"].values()))
    means["by optimizer"] = {
        optimizer: {name: float(np.mean(own[optimizer])) for name, own in found.items() if optimizer in own}
        for optimizer in sorted(found["ours"])
    }
    return means


def rules(key: tuple[Any, ...], own: Sequence[Any], known: Mapping[tuple[Any, ...], Sequence[Any]]) -> dict[str, Any]:
    """Rule -> how far each run of a cell lies from what the rule recommends: no forecast of a loss."""
    step, confs = StepLaw(), [row["conf"] for row in own]
    rates = np.log([conf["learning rate"] for conf in confs])
    batches = np.log([conf["batch size"] for conf in confs])
    found = {
        "Step Law": (rates - np.log(step.learning_rate(confs))) ** 2 + (batches - np.log(step.batch_size(confs))) ** 2,
        "middle of the logged range": np.abs(rates - (rates.min() + rates.max()) / 2),
    }
    near = min(
        (other for other in known if other[0] == key[0] and other != key),
        key=lambda other: abs(np.log(other[1] / key[1])) + abs(np.log(other[2] / key[2])),
        default=None,
    )
    if near is not None:
        conf = best_run(known[near])["conf"]
        rate, batch = np.log(conf["learning rate"]), np.log(conf["batch size"])
        found["nearest cell's best"] = (rates - rate) ** 2 + (batches - batch) ** 2
    return found


if __name__ == "__main__":
    main()
