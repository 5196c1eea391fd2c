"""Coverage of 90 % intervals of models larger than any that was fitted, over all labs at hand.

    python benchmarks/coverage.py            # some five minutes on one core

Other labs, one recipe of each laboratory, are adapted to: from at most 32 of their runs up to each of a few sizes, all
larger runs are forecast. A lab is in no prior of its own: the labs' shape leaves its laboratory out, and the interval's
quantile is that of the other laboratories' held-out runs (`results/adaptation.json`). So is its drift: that of the
other laboratories whose coverage comes nearest the level; the shipped one is that of all. StepLaw's and Marin's largest
size in train is forecast by the law and the calibration of everything else. A cell is a lab, size and data size, and
counts once in each band of (size / largest fitted size).
"""

import argparse
import json
import sys
import warnings
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

from adaptation import (  # type: ignore[import-not-found]
    as_run,
    beliefs_without,
    group,
    lab_shape,
    pooled_quantiles,
)
from common import RESULTS, data_folder  # type: ignore[import-not-found]
from labs import Row, read_labs  # type: ignore[import-not-found]

from calibration_ncpl import DRIFT, Calibration, envelope
from datasets_scripts.divergence import cell
from datasets_scripts.runs import load_runs
from ncpl import fitting
from ncpl.adapt import Beliefs, adapt_law
from ncpl.files import write_json
from ncpl.forecaster import Forecaster
from ncpl.record import provenance

LEVEL = 0.9
BANDS = (2.0, 4.0, 10.0, 30.0)
# Fits of a lab, and the runs of one.
CUTS, RUNS, FEWEST = 4, 32, 6
# Nats for a log unit beyond the fitted runs, among which the drift is fitted; the bands that it is fitted to.
DRIFTS = (0.0, 0.005, 0.01, 0.015, 0.02, 0.025, 0.03, 0.04)
FITTED = ("2x", "4x", "10x")
HOME = ("steplaw", "marin")
LABS = [
    "olmo",
    "gadre c4_original",
    "gadre grid",
    "formll OpenWebText2 base-shortwarmup-chinchilla",
    "xlstm isoflop_llama_ctx2048",
    "chinchilla",
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=RESULTS / "coverage.json", help="JSON file to write")
    parser.add_argument("--labs", nargs="*", default=LABS, help="labs whose names begin so")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    law = Forecaster.from_pretrained().law
    labs = {lab: rows for lab, rows in read_labs(data_folder()).items() if lab.startswith(tuple(args.labs))}
    shapes = {name: lab_shape(law, rows) for name, rows in labs.items()}
    cells = json.loads((RESULTS / "adaptation.json").read_text(encoding="utf-8"))["cells"]
    found: list[dict[str, Any]] = []
    for lab, rows in labs.items():
        others = [other for other in cells if group(other["lab"]) != group(lab)]
        reach = float(pooled_quantiles(others, "ratios", np.array([LEVEL]))[0])
        beliefs = beliefs_without(shapes, group(lab))
        own = [case for largest in cuts(rows) for case in adapted_cases(law, beliefs, lab, rows, largest, reach)]
        found += own
        print(lab, len(own), {band: round(c["cells"], 3) for band, c in coverage(own, 0.0).items()}, flush=True)
    names = list(dict.fromkeys(group(case["lab"]) for case in found))
    drifts = [fitted_drift([case for case in found if group(case["lab"]) != name]) for name in names]
    result: dict[str, Any] = {
        **provenance(),
        "level": LEVEL,
        "adapted labs, by drift": {f"{drift:g}": coverage(found, drift) for drift in DRIFTS},
        "drift of all labs": fitted_drift(found),
        "drift of the other laboratories": dict(zip(names, drifts, strict=True)),
        "by laboratory": {
            name: coverage([case for case in found if group(case["lab"]) == name], drift)
            for name, drift in zip(names, drifts, strict=True)
        },
        "adapted labs, each by the others' drift": coverage(
            found, np.array([drifts[names.index(group(case["lab"]))] for case in found])
        ),
    }
    write_json(args.output, result, 1)
    print(json.dumps({name: result[name] for name in list(result)[-5:]}, indent=1), flush=True)
    result["fitted sources"] = fitted_sources(data_folder())
    write_json(args.output, result, 1)
    print(json.dumps(result["fitted sources"], indent=1))


def size_of(row: Row) -> float:
    return float(row["conf"].get("active size", row["conf"]["model size"]))


def cuts(rows: Sequence[Row]) -> list[float]:
    """Largest fitted sizes: two sizes and `FEWEST` runs or more lie at or below, and one 1.5 times as large above."""
    sizes = sorted({size_of(row) for row in rows})
    allowed = [
        size
        for i, size in enumerate(sizes)
        if i and sum(size_of(row) <= size for row in rows) >= FEWEST and sizes[-1] >= 1.5 * size
    ]
    return sorted({allowed[int(i)] for i in np.linspace(0, len(allowed) - 1, CUTS).round()}) if allowed else []


def adapted_cases(
    law: Any, beliefs: Beliefs, lab: str, rows: Sequence[Row], largest: float, reach: float
) -> list[dict[str, Any]]:
    """Every larger run forecast by the law adapted to runs up to a size: its error, and half its interval's parts."""
    small = [row for row in rows if size_of(row) <= largest]
    chosen = np.random.default_rng(0).permutation(len(small))[:RUNS]
    adapted = adapt_law(law, [as_run(small[int(i)]) for i in sorted(chosen)], "new lab", beliefs=beliefs)
    held = [row for row in rows if size_of(row) >= 1.41 * largest]
    source = adapted.adapted["new lab"]
    seen = envelope(source.read(source.runs))
    calibration = replace(default_calibration(), law=adapted, envelope={"": {}, "new lab": seen})
    far = calibration.extrapolation([{**as_run(row), "source": "new lab"} for row in held])
    forecast = source.forecast([{**as_run(row), "source": "new lab"} for row in held])
    deviation = source.deviation(forecast)
    return [
        {
            "lab": lab,
            "cell": (lab, size_of(row), float(row["conf"]["data size"])),
            "ratio": size_of(row) / largest,
            "error": float(forecast["loss"][i] - row["final_loss"]),
            "deviation": float(deviation[i]),
            "far": float(far[i]),
            "reach": reach,
        }
        for i, row in enumerate(held)
    ]


def fitted_drift(cases: Sequence[Mapping[str, Any]]) -> float:
    """The drift by which the laboratories' coverage, bands and laboratories alike, comes nearest the level.

    The mean and not each laboratory's own distance from the level: one whose errors are no drift would set it alone.
    """

    def off(drift: float) -> float:
        found = coverage(cases, drift)
        return abs(float(np.mean([found[band]["laboratories"] for band in FITTED if band in found])) - LEVEL)

    return min(DRIFTS, key=off)


@cache
def default_calibration() -> Calibration:
    """The default's calibration, for its distances."""
    calibration = Forecaster.from_pretrained().calibration
    assert calibration is not None
    return calibration


def coverage(cases: Sequence[Mapping[str, Any]], drift: float | np.ndarray) -> dict[str, dict[str, float]]:
    """For each band the share of cells inside, of laboratories' means, how many, the MAE and half the interval."""
    bands: dict[str, dict[tuple[Any, ...], list[tuple[float, ...]]]] = defaultdict(lambda: defaultdict(list))
    for case, own in zip(cases, np.broadcast_to(drift, len(cases)), strict=True):
        nearest = min(BANDS, key=lambda band: abs(np.log(case["ratio"] / band)))
        half = case["reach"] * np.hypot(case["deviation"], own * case["far"])
        bands[f"{nearest:g}x"][case["cell"]].append((abs(case["error"]) <= half, abs(case["error"]), half))
    found = {}
    for band in (f"{band:g}x" for band in BANDS):
        if not bands[band]:
            continue
        names = [group(name[0]) for name in bands[band]]
        inside, errors, halves = np.array([np.mean(own, axis=0) for own in bands[band].values()]).T
        shares = [inside[[name == one for name in names]].mean() for one in sorted(set(names))]
        found[band] = {
            "cells": round(float(inside.mean()), 3),
            "laboratories": round(float(np.mean(shares)), 3),
            "lowest laboratory": round(float(min(shares)), 3),
            "number of cells": len(inside),
            "mae": round(float(errors.mean()), 4),
            "half_width": round(float(halves.mean()), 4),
        }
    return found


def fitted_sources(folder: Path) -> dict[str, Any]:
    """StepLaw's and Marin's largest size in train, by law and calibration of everything else."""
    train = [dict(row) for source in HOME for row in load_runs(source, folder)["train"]]
    largest = {source: max(size_of(row) for row in train if row["source"] == source) for source in HOME}
    held = np.array([size_of(row) == largest[row["source"]] for row in train])
    calibration = fitting.calibrate(fitting.fit([row for row, out in zip(train, held, strict=True) if not out]))
    found: dict[str, Any] = {}
    for source in HOME:
        own = [row for row, out in zip(train, held, strict=True) if out and row["source"] == source]
        below = max(size_of(row) for row, out in zip(train, held, strict=True) if not out and row["source"] == source)
        found[source] = {"size / largest fitted": round(largest[source] / below, 2)}
        for drift in (0.0, DRIFT):
            scale = {name: {**parts, "drift": drift} for name, parts in calibration.scale.items()}
            found[source][f"drift {drift:g}"] = interval_figures(replace(calibration, scale=scale), own)
    return found


def interval_figures(calibration: Calibration, rows: Sequence[Row]) -> dict[str, float]:
    """The share of runs and of cells inside, how many cells, the MAE and half the interval."""
    confs, observed = [row["conf"] for row in rows], np.array([row["final_loss"] for row in rows])
    loss = calibration.law(confs)
    lower, upper = calibration.interval(confs, loss, LEVEL)
    inside: dict[Any, list[bool]] = defaultdict(list)
    for row, yes in zip(rows, (lower <= observed) & (observed <= upper), strict=True):
        inside[cell(row)].append(bool(yes))
    return {
        "runs": round(float(np.mean([yes for own in inside.values() for yes in own])), 3),
        "cells": round(float(np.mean([np.mean(own) for own in inside.values()])), 3),
        "number of cells": len(inside),
        "mae": round(float(np.abs(loss - observed).mean()), 4),
        "half_width": round(float((upper - lower).mean() / 2), 4),
    }


if __name__ == "__main__":
    main()
