"""Forecasts of a new lab's large runs from a few of its small ones, beside what people would use instead.

    python benchmarks/adaptation.py                             # all labs; ten minutes on one core
    python benchmarks/adaptation.py --labs olmo chinchilla --draws 1
    python benchmarks/adaptation.py --beliefs                   # renews ncpl/adaptation.json too, after all labs' cells
    python benchmarks/adaptation.py --suggest                   # the protocol of suggested runs alone
    python benchmarks/adaptation.py --compare                   # differences in labs that are not adapted to alone
    python benchmarks/adaptation.py --packages PYTHON           # the packages of adaptation_packages.py alone

A cell is a lab, k runs and a design: the k cheapest by 6ND, or k at random of the cheaper half (mean over draws). The
targets are all runs of at least twice the FLOPs of the dearest chosen one. A lab is never in its own prior: the labs'
shape prior leaves its laboratory out, and the hierarchy is refitted without StepLaw and Marin where these are the lab.
"""

import argparse
import itertools
import json
import math
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

import adaptation_baselines as baselines  # type: ignore[import-not-found]
from common import RESULTS, data_folder  # type: ignore[import-not-found]
from labs import Row, flops, group, home_labs, read_labs  # type: ignore[import-not-found]

from calibration_ncpl import DRIFT, Calibration, envelope
from datasets_scripts.runs import load_runs
from laws_ncpl import ConfigurationLaw
from ncpl.adapt import SHAPE, Beliefs, adapt_law, single_lab_shape
from ncpl.files import write_json
from ncpl.fitting import fit
from ncpl.forecaster import Forecaster
from ncpl.record import provenance
from ncpl.suggest import choose

ROOT = Path(__file__).parent.parent
SIZES = (8, 16, 32)
# So many targets and runs of a lab are looked at, drawn once.
TARGETS, RUNS_OF_A_FIT = 150, 150
# Labs whose runs are all of 30M parameters or more, on which the shipped law's own forecasts are at home.
LARGE = ("olmo", "xlstm", "chinchilla", "steplaw", "marin")
# When an order of runs has reached an error, and the noise of a run in nats before the lab's first one.
WHEN, FIRST_NOISE = ("first", "for_good"), 0.01
# Least standard deviations over labs of `SHAPE`, and the share of the correlations that is believed.
FLOOR, BELIEVED = np.array([0.35, 0.35, 0.05, 0.4, 0.08, 0.1, 0.04]), 0.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=RESULTS / "adaptation.json", help="JSON file to write")
    parser.add_argument("--data-dir", type=Path, default=data_folder(), help="a folder a lab")
    parser.add_argument("--labs", nargs="*", default=[], help="labs whose names begin so; all when absent")
    parser.add_argument("--draws", type=int, default=5, help="random choices of a cell")
    parser.add_argument("--beliefs", action="store_true", help="renew ncpl/adaptation.json")
    parser.add_argument("--suggest", action="store_true", help="suggested runs against random ones alone")
    parser.add_argument("--compare", action="store_true", help="differences in labs that are not adapted to alone")
    parser.add_argument("--packages", metavar="PYTHON", help="a Python that has the packages: they alone, one draw")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    forecaster = Forecaster.from_pretrained()
    law, calibration = forecaster.law, forecaster.calibration
    assert calibration is not None
    labs = {**read_labs(args.data_dir), **home_labs(args.data_dir)}
    bases = {name: without(law, name, args.data_dir) for name in ("steplaw", "marin")}
    if args.compare:
        part = {"unknown_labs_compared": compared(calibration, labs, bases)}
        write_json(args.output, read(args.output) | part, 1)
        print(json.dumps(part, indent=1))
        return
    shapes = {name: lab_shape(bases.get(name, law), rows) for name, rows in labs.items()}
    asked = {lab: rows for lab, rows in labs.items() if not args.labs or lab.startswith(tuple(args.labs))}
    if args.suggest:
        found = {}
        for lab, rows in asked.items():
            found[lab] = suggested(bases.get(lab, law), beliefs_without(shapes, group(lab)), rows, args.draws)
            print(lab, found[lab], flush=True)
        write_json(args.output, read(args.output) | {"suggest": {**provenance(), **of_labs(found)}}, 1)
        return
    if args.packages:
        part = {"packages": by_packages(args.packages, law, asked, bases, shapes)}
        write_json(args.output, read(args.output) | part, 1)
        print(json.dumps({**part["packages"], "cells": None}, indent=1))
        return
    cells = all_cells(calibration, asked, bases, shapes, args.draws)
    result = {
        **provenance(),
        "seeds": list(range(args.draws)),
        "summary": summary(cells),
        "unknown_labs_compared": compared(calibration, labs, bases),
        "cells": cells,
    }
    write_json(args.output, read(args.output) | result, 1)
    if args.beliefs:
        write_beliefs(shapes, cells)
    print(json.dumps(result["summary"], indent=1))


def all_cells(
    calibration: Calibration,
    labs: Mapping[str, Sequence[Row]],
    bases: Mapping[str, ConfigurationLaw],
    shapes: Mapping[str, np.ndarray],
    draws: int,
) -> list[dict[str, Any]]:
    """The cells of all labs, each judged as it is printed."""
    cells: list[dict[str, Any]] = []
    for lab, rows in labs.items():
        believed = beliefs_without(shapes, group(lab))
        for k, design, choices in designs(rows, draws):
            start = time.perf_counter()
            own = replace(calibration, law=bases.get(lab, calibration.law))
            judged = [judge(own, believed, rows, *choice) for choice in choices]
            cells.append({"lab": lab, "k": k, "design": design, **averaged(judged)})
            print(f"{lab} {k} {design} {cells[-1]['mae']} {time.perf_counter() - start:.0f} s", flush=True)
    return cells


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def without(law: ConfigurationLaw, source: str, folder: Path) -> ConfigurationLaw:
    """The hierarchy refitted without a source and the others of its lab, on about 300 runs of each other one."""
    rows: list[Row] = []
    for name in law.sources:
        if name != source and law.parents.get(name) != source:
            own = [dict(row) for row in load_runs(name, folder)["train"]]
            rows += own[:: max(1, len(own) // 300)]
    return fit(rows).law()


def lab_shape(law: ConfigurationLaw, rows: Sequence[Row]) -> np.ndarray:
    """The shape's coefficients of a fit to one lab's runs alone, weakly held."""
    chosen = np.random.default_rng(0).permutation(len(rows))[:RUNS_OF_A_FIT]
    return single_lab_shape(law, [as_run(rows[int(i)]) for i in sorted(chosen)])


def moments(shapes: Mapping[str, np.ndarray], left_out: str) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance of the shape over laboratories, each counted once: the median of its recipes'."""
    laboratories: dict[str, list[np.ndarray]] = {}
    for lab, shape in shapes.items():
        if group(lab) != left_out:
            laboratories.setdefault(group(lab), []).append(shape)
    table = np.array([np.median(own, axis=0) for own in laboratories.values()])
    spread = np.maximum(table.std(0, ddof=1), FLOOR)
    correlation = BELIEVED * np.corrcoef(table.T) + (1 - BELIEVED) * np.eye(len(SHAPE))
    return table.mean(0), correlation * np.outer(spread, spread)


def beliefs_without(shapes: Mapping[str, np.ndarray], laboratory: str) -> Beliefs:
    mean, covariance = moments(shapes, laboratory)
    return replace(Beliefs.shipped(), mean=mean, covariance=covariance)


def write_beliefs(shapes: Mapping[str, np.ndarray], cells: Sequence[Mapping[str, Any]]) -> None:
    """`ncpl/adaptation.json`: the shape of all laboratories, and the quantiles of their held-out errors."""
    path = ROOT / "ncpl" / "adaptation.json"
    mean, covariance = moments(shapes, "")
    state = json.loads(path.read_text(encoding="utf-8"))
    state |= {
        "coefficients": list(SHAPE),
        "mean": mean.round(4).tolist(),
        "covariance": covariance.round(6).tolist(),
        "scores": pooled_quantiles(cells, "ratios", np.linspace(0, 1, 201)).round(4).tolist(),
        "labs": {lab: dict(zip(SHAPE, shape.round(3).tolist(), strict=True)) for lab, shape in shapes.items()},
    }
    write_json(path, state, 1)


def designs(rows: Sequence[Row], draws: int) -> Iterator[tuple[int, str, list[tuple[np.ndarray, np.ndarray]]]]:
    """(k, design, choices of (chosen, targets)) of each cell with three targets or more."""
    costs = np.array([flops(row) for row in rows])
    order = sorted(range(len(rows)), key=lambda i: (costs[i], str(rows[i]["name"])))
    for k in SIZES:
        for design in ("cheapest", "random"):
            pool = order if design == "cheapest" else order[: len(order) // 2]
            if len(pool) < k:
                continue
            choices = []
            for draw in range(1 if design == "cheapest" else draws):
                rng = np.random.default_rng(1000 * draw + k)
                chosen = np.array(pool[:k]) if design == "cheapest" else np.sort(rng.choice(pool, k, replace=False))
                targets = np.flatnonzero(costs >= 2 * costs[chosen].max() * (1 - 1e-9))
                if len(targets) > TARGETS:
                    targets = np.sort(np.random.default_rng(0).choice(targets, TARGETS, replace=False))
                if len(targets) >= 3:
                    choices.append((chosen, targets))
            if choices:
                yield k, design, choices


def as_run(row: Row) -> dict[str, Any]:
    return {**row["conf"], "final_loss": row["final_loss"]}


def judge(
    calibration: Calibration, believed: Beliefs, rows: Sequence[Row], chosen: np.ndarray, targets: np.ndarray
) -> dict[str, Any]:
    """Errors of every method on one choice of runs."""
    runs, held = ([as_run(rows[int(i)]) for i in index] for index in (chosen, targets))
    observed = np.array([run["final_loss"] for run in held])
    start = time.process_time()
    law = calibration.law
    adapted = adapt_law(law, runs, "new lab", beliefs=believed)
    seconds = time.process_time() - start
    asked = [{**run, "source": "new lab"} for run in held]
    source = adapted.adapted["new lab"]
    found = source.forecast(asked)
    deviation = source.deviation(found)
    forecasts = {"adapted": found["loss"], **baselines.forecasts(law, runs, held)}
    errors = {name: float(np.abs(values - observed).mean()) for name, values in forecasts.items()}
    error = np.abs(found["loss"] - observed)
    # The shipped interval adds the drift beyond the runs to what the quantile is of.
    seen = envelope(source.read(source.runs))
    known = replace(calibration, law=adapted, envelope={**calibration.envelope, "new lab": seen})
    shipped = np.hypot(deviation, DRIFT * known.extrapolation(asked))
    pairs = pair_ratios(adapted, asked, observed, found["loss"])
    kinds: dict[str, float] = {}
    for label, weight in zip(source.labels, source.weights.tolist(), strict=True):
        kinds[label[0]] = kinds.get(label[0], 0.0) + weight
    return {
        "mae": errors,
        "ratios": np.quantile(error / deviation, np.linspace(0, 1, 41)).tolist(),
        "shipped_ratios": np.quantile(error / shipped, np.linspace(0, 1, 41)).tolist(),
        "deviation": float(deviation.mean()),
        "pairs": pairs,
        "seconds": seconds,
        "kinds": kinds,
        "sizes": len({round(run["model size"], 2) for run in runs}),
    }


def pair_ratios(adapted: Any, asked: Sequence[Row], observed: np.ndarray, losses: np.ndarray) -> dict[str, Any]:
    """Differences of neighbouring targets in cost: |error| / standard deviation, and widths against the losses'."""
    order = np.argsort([flops({"conf": run}) for run in asked])[:60]
    some = [asked[int(i)] for i in order]
    source = adapted.adapted["new lab"]
    covariance = source.covariance(some)
    noise = source.noise(source.forecast(some)["excess"]) ** 2
    first, second = np.arange(len(some) - 1), np.arange(1, len(some))
    variance = covariance[first, first] + covariance[second, second] - 2 * covariance[first, second]
    spread = np.sqrt(np.maximum(variance, 0) + noise[first] + noise[second])
    known = (losses - observed)[order]
    return {
        "ratios": np.quantile(np.abs(known[first] - known[second]) / spread, np.linspace(0, 1, 41)).tolist(),
        "width": float(np.mean(spread / np.sqrt(np.diagonal(covariance)[first] + noise[first]))),
    }


def unknown_pairs(calibration: Calibration, rows: Sequence[Row], count: int = 60) -> dict[str, float]:
    """Differences of neighbours in cost in a lab that was not adapted to, as `Forecaster.compare` gives them.

    Returns:
        Coverage of the 90 % intervals, and the median of their width over that of the loss's own interval.
    """
    order = sorted(range(len(rows)), key=lambda i: flops(rows[i]))
    chosen = [order[int(i)] for i in np.linspace(0, len(order) - 1, min(count, len(order)))]
    asked = [{**as_run(rows[i]), "source": "new lab"} for i in chosen]
    at = calibration.law.evaluate(asked)
    errors = calibration.law.losses(at) - [run["final_loss"] for run in asked]
    reach = [calibration.difference(pair)[0] for pair in itertools.pairwise(asked)]
    own = calibration.deviation(at) * calibration.score(at, 0.9)
    return {
        "coverage": round(float(np.mean(np.abs(np.diff(errors)) <= reach)), 3),
        "width_over_the_loss_s": round(float(np.median(reach / own[1:])), 3),
    }


def compared(calibration: Calibration, labs: Mapping[str, Sequence[Row]], bases: Mapping[str, Any]) -> dict[str, Any]:
    """`unknown_pairs` of every lab, StepLaw and Marin by a hierarchy refitted without them."""
    found = {
        lab: unknown_pairs(replace(calibration, law=bases.get(lab, calibration.law)), rows)
        for lab, rows in labs.items()
    }
    return {
        "coverage": round(float(np.mean([own["coverage"] for own in found.values()])), 3),
        "width_over_the_loss_s": round(float(np.median([own["width_over_the_loss_s"] for own in found.values()])), 3),
        "labs": found,
    }


def suggested(law: ConfigurationLaw, believed: Beliefs, rows: Sequence[Row], draws: int) -> dict[str, Any] | None:
    """FLOPs at which runs in some order reach the error of the whole pool, over the mean of those in random order.

    The pool is the cheaper half of a lab's runs, the targets are all runs of at least twice its dearest one's FLOPs
    (budget-aware experiment selection, arXiv 2604.22753). Every order starts from nothing: the first run is suggested
    by the shipped law, that of an unknown lab. The law is adapted anew whenever a third more runs are made. The error
    is reached where it is within a tenth of the pool's: for the first time, which an order may owe to luck, and for
    good, whatever runs follow.

    Returns:
        Of `suggested` and `cheapest` runs the FLOPs over random's, and random's own over the pool's; None where the
        pool has under 12 runs, or the lab under three targets.
    """
    costs = np.array([flops(row) for row in rows])
    order = np.argsort(costs, kind="stable")
    pool = [int(i) for i in order[: min(len(order) // 2, 64)]]
    targets = np.flatnonzero(costs >= 2 * costs[pool].max() * (1 - 1e-9))[:60]
    if len(pool) < 12 or len(targets) < 3:
        return None
    held = [{**as_run(rows[int(i)]), "source": "new lab"} for i in targets]
    observed = np.array([run["final_loss"] for run in held])

    def error(chosen: Sequence[int]) -> tuple[float, Any]:
        adapted = adapt_law(law, [as_run(rows[i]) for i in chosen], "new lab", beliefs=believed)
        return float(np.abs(adapted(held) - observed).mean()), adapted.adapted["new lab"]

    def by_variance(source: Any, left: Sequence[int], count: int) -> list[int]:
        asked = [{**as_run(rows[i]), "source": "new lab"} for i in left] + held
        covariance = (source or law).covariance(asked)
        noise = source.noise(source.forecast(asked)["excess"]) ** 2 if source else np.full(len(asked), FIRST_NOISE**2)
        wanted = list(range(len(left), len(asked)))
        prices = np.array([flops({"conf": run}) for run in asked])
        steps = choose(covariance, noise, prices, list(range(len(left))), wanted, float(prices.sum()), count)
        return [left[step.candidate] for step in steps]

    whole = error(pool)[0]

    def reached(suggest: Any) -> np.ndarray:
        path = [
            (costs[chosen].sum() / costs[pool].sum(), now <= 1.1 * whole) for chosen, now in made(suggest, pool, error)
        ]
        spent, inside = zip(*path, strict=True)
        return np.array([spent[inside.index(True)], spent[len(inside) - [*inside[::-1], False].index(False)]])

    random = []
    for draw in range(draws):
        rng = np.random.default_rng(draw)
        random.append(reached(lambda source, left, count, rng=rng: rng.permutation(left)[:count].tolist()))
    mean = np.mean(random, axis=0)
    orders = {"suggested": by_variance, "cheapest": lambda source, left, count: list(left[:count])}
    found = {
        name: dict(zip(WHEN, (reached(one) / mean).round(4).tolist(), strict=True)) for name, one in orders.items()
    }
    spread = {when: np.sort([own[i] / mean[i] for own in random]).round(3).tolist() for i, when in enumerate(WHEN)}
    return {
        "error_of_pool": round(whole, 4),
        **found,
        "random": spread,
        "random_over_pool": dict(zip(WHEN, mean.round(4).tolist(), strict=True)),
    }


def made(suggest: Any, pool: Sequence[int], error: Any) -> Iterator[tuple[list[int], float]]:
    """The runs made so far and their error, whenever a third more of the pool is made."""
    chosen: list[int] = []
    source = None
    while len(chosen) < len(pool):
        left = [i for i in pool if i not in set(chosen)]
        chosen = chosen + suggest(source, left, max(len(chosen) // 3, 1))
        now, source = error(chosen)
        yield chosen, now


def of_labs(found: Mapping[str, Mapping[str, Any] | None]) -> dict[str, Any]:
    """Median and quartiles over labs: an order's FLOPs over random's, and the dearest random order's over the least."""
    known = {lab: value for lab, value in found.items() if value}

    def over_labs(values: Sequence[float]) -> dict[str, float]:
        low, middle, high = np.quantile(values, [0.25, 0.5, 0.75]).round(3).tolist()
        return {"median": middle, "low": low, "high": high}

    return {
        **{
            order: {when: over_labs([own[order][when] for own in known.values()]) for when in WHEN}
            for order in ("suggested", "cheapest")
        },
        "random_dearest_over_cheapest": {
            when: over_labs([own["random"][when][-1] / own["random"][when][0] for own in known.values()])
            for when in WHEN
        },
        "labs": known,
    }


def by_packages(
    python: str,
    law: ConfigurationLaw,
    labs: Mapping[str, Sequence[Row]],
    bases: Mapping[str, ConfigurationLaw],
    shapes: Mapping[str, np.ndarray],
) -> dict[str, Any]:
    """Errors of the packages that `python` has, and of the adapted law beside them, on the first draw of every cell."""
    script = [python, str(Path(__file__).parent / "adaptation_packages.py")]
    cells: list[dict[str, Any]] = []
    with subprocess.Popen(script, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for lab, rows in labs.items():
            believed = beliefs_without(shapes, group(lab))
            for k, design, choices in designs(rows, 1):
                runs, held = ([as_run(rows[int(i)]) for i in index] for index in choices[0])
                observed = np.array([run["final_loss"] for run in held])
                sizes = [[[1e6 * run["model size"], 1e9 * run["data size"]] for run in some] for some in (runs, held)]
                own = [[*size, run["final_loss"]] for size, run in zip(sizes[0], runs, strict=True)]
                process.stdin.write(json.dumps({"runs": own, "held": sizes[1]}) + "\n")
                process.stdin.flush()
                adapted = adapt_law(bases.get(lab, law), runs, "new lab", beliefs=believed)
                found = {"adapted": adapted([{**run, "source": "new lab"} for run in held]).tolist()}
                found |= json.loads(process.stdout.readline())
                errors = {
                    name: float(np.abs(np.array(losses) - observed).mean()) if isinstance(losses, list) else losses
                    for name, losses in found.items()
                }
                cells.append({"lab": lab, "k": k, "design": design, "mae": errors})
                print(lab, k, design, errors, flush=True)
    return {**provenance(), "packages": of_packages(cells), "cells": cells}


def of_packages(cells: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Package -> the adapted law's error over its own, geometric mean over the cells that it forecasts; or why not."""
    found: dict[str, Any] = {}
    for name in (name for name in cells[0]["mae"] if name != "adapted"):
        pairs = [(cell["mae"]["adapted"], cell["mae"][name]) for cell in cells if isinstance(cell["mae"][name], float)]
        refused = [cell["mae"][name] for cell in cells if isinstance(cell["mae"][name], str)]
        if not pairs:
            found[name] = {"measured": refused[0] if refused else "not measured"}
            continue
        mine, theirs = np.array(pairs).T
        found[name] = {
            "cells": len(pairs),
            "refused": len(refused),
            "adapted_over": round(float(np.exp(np.log(mine / theirs).mean())), 3),
            "adapted_better": round(float((mine < theirs).mean()), 3),
            "median_error": round(float(np.median(theirs)), 4),
        }
    return found


def averaged(draws: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A cell's figures, means over its draws."""

    def mean(values: Sequence[Any]) -> Any:
        return {key: round(float(np.mean([v[key] for v in values if key in v])), 5) for key in values[0]}

    return {
        "draws": len(draws),
        "mae": mean([draw["mae"] for draw in draws]),
        "kinds": {
            key: round(float(np.mean([draw["kinds"].get(key, 0.0) for draw in draws])), 3)
            for key in ("hierarchy", "labs", "wide", "offset")
        },
        "ratios": np.mean([draw["ratios"] for draw in draws], axis=0).round(4).tolist(),
        "shipped_ratios": np.mean([draw["shipped_ratios"] for draw in draws], axis=0).round(4).tolist(),
        "pair_ratios": np.mean([draw["pairs"]["ratios"] for draw in draws], axis=0).round(4).tolist(),
        "pair_width": round(float(np.mean([draw["pairs"]["width"] for draw in draws])), 3),
        "deviation": round(float(np.mean([draw["deviation"] for draw in draws])), 5),
        "seconds": round(float(np.mean([draw["seconds"] for draw in draws])), 3),
        "sizes": draws[0]["sizes"],
    }


def pooled_quantiles(cells: Sequence[Mapping[str, Any]], name: str, levels: np.ndarray) -> np.ndarray:
    """Quantiles of |error| / standard deviation over laboratories, each counted once however many cells it has."""
    ratios, grid = np.linspace(0, 50, 20001), np.linspace(0, 1, 41)
    shares: dict[str, list[np.ndarray]] = {}
    for cell in cells:
        shares.setdefault(group(cell["lab"]), []).append(np.interp(ratios, cell[name], grid))
    return np.interp(levels, np.mean([np.mean(own, axis=0) for own in shares.values()], axis=0), ratios)


def coverage(
    cells: Sequence[Mapping[str, Any]], name: str, level: float = 0.9, quantiles: str | None = None
) -> dict[str, float]:
    """Coverage by lab of intervals that reach as many deviations as the other laboratories' runs ask.

    Intervals with the drift, and differences, take the `quantiles` of losses without it, as `Calibration` does.
    """
    covered: dict[str, list[float]] = {}
    for cell in cells:
        others = [other for other in cells if group(other["lab"]) != group(cell["lab"])]
        factor = pooled_quantiles(others, quantiles or name, np.array([level]))[0] if others else 1.645
        covered.setdefault(cell["lab"], []).append(float(np.interp(factor, cell[name], np.linspace(0, 1, 41))))
    return {lab: round(float(np.mean(own)), 3) for lab, own in covered.items()}


def summary(cells: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The figures by which the adaptation is judged."""
    errors = {name: np.array([cell["mae"].get(name, np.nan) for cell in cells]) for name in cells[0]["mae"]}
    mine = errors["adapted"]
    better = np.minimum(errors["chinchilla"], errors["gaussian process"])
    large = np.array([cell["lab"].split(" ")[0] in LARGE for cell in cells])
    against = {
        name: round(float(np.exp(np.nanmean(np.log(mine / values)))), 3)
        for name, values in {**errors, "better of chinchilla and gaussian process": better}.items()
        if name != "adapted"
    }
    share = mine / better
    covered, pairs = (
        coverage(cells, "shipped_ratios", quantiles="ratios"),
        coverage(cells, "pair_ratios", quantiles="ratios"),
    )
    return {
        "cells": len(cells),
        "geometric_mean_over": against,
        "cells_within_1.05": round(float(np.mean(share <= 1.05)), 3),
        "cells_within_1.5": round(float(np.mean(share <= 1.5)), 3),
        "worst_cell": round(float(share.max()), 2),
        "worst_over_offset_large": round(float((mine / errors["offset"])[large].max()), 2) if large.any() else math.nan,
        "cells_over_1.1_of_offset_large": round(float(np.mean((mine / errors["offset"])[large] > 1.1)), 3),
        "coverage": round(float(np.mean(list(covered.values()))), 3),
        "coverage_lowest": min(covered.values()),
        "coverage_by_lab": covered,
        "pair_coverage": round(float(np.mean(list(pairs.values()))), 3),
        "pair_width": round(float(np.median([cell["pair_width"] for cell in cells])), 3),
        "seconds": round(float(max(cell["seconds"] for cell in cells)), 2),
    }


if __name__ == "__main__":
    main()
