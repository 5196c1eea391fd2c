"""What the end of a learning-rate schedule gains: `forms_ncpl`'s constants, from runs that differ in their schedule.

    python benchmarks/schedules.py            # half a minute on one core

Final losses of groups of runs alike but for their schedule: nine schedules of three sizes (Luo et al. 2025), Marin's
ablations of decay and of the final rate by optimizer. A group's level is left open. The annealing's speed, exponents
and growth with size are common; its height is each lab's and optimizer's own around a common one. Labs whose runs share
one schedule are weighed by the height that their curves have (`curves_ncpl`), relative to the first lab's.
"""

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.optimize import least_squares

sys.path.insert(0, str(Path(__file__).parent.parent))

from common import RESULTS, data_folder  # type: ignore[import-not-found]

from datasets_scripts.runs import load_runs
from forms_ncpl import REFERENCE
from ncpl.curves import read_law
from ncpl.files import write_json
from ncpl.record import provenance
from schedules_ncpl import Schedule, final_annealing

MINI = Path(__file__).parent.parent / "ncpl" / "checkpoints" / "ncpl-mini"
# Common coefficients with their prior's mean and deviation: growth of the height with size, logarithms of speed and
# power, exponent of the rate, logarithm of the data term at the reference; from the study of curves.
COMMON = {"size": (0.07, 0.1), "speed": (2.9, 0.7), "gamma": (0.55, 0.3), "power": (-0.35, 0.5), "data": (-1.6, 0.05)}
# Nats by which one run's loss lies off, and the prior deviation of the logarithm of a height.
NOISE, WIDE = 0.005, 0.8
BETA, GROWTH, CLOCK_POWER = 0.38, 0.11, 0.5


@dataclass(frozen=True)
class Group:
    """Runs that differ in their schedule alone: whose, log size and data over `REFERENCE`, steps."""

    name: str
    size: float
    data: float
    steps: float
    schedules: list[Schedule]
    losses: np.ndarray


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=RESULTS / "schedules.json", help="JSON file to write")
    args = parser.parse_args()
    groups = [*published(data_folder() / "multipowerlaw"), *ablations(data_folder())]
    names = sorted({group.name for group in groups})
    start = np.concatenate([[mean for mean, _ in COMMON.values()], np.full(len(names), np.log(0.2))])
    z = least_squares(lambda z: residuals(z, groups, names), start, loss="soft_l1").x
    heights = dict(zip(names, np.exp(z[len(COMMON) :]).round(3).tolist(), strict=True))
    labs = by_lab(heights)
    logs = np.log(list(labs.values()))
    result = {
        **provenance(),
        "common": dict(zip(COMMON, z.round(3).tolist(), strict=False)),
        "heights": heights,
        "labs": labs,
        "mean": float(np.exp(logs.mean()).round(3)),
        "spread": float(logs.std(ddof=1).round(2)),
        "mae": errors(z, groups, names),
        "final rate": final_rate(z, groups, names, labs["marin"]),
    }
    write_json(args.output, result, 1)
    print(json.dumps(result, indent=1))


def published(folder: Path) -> Iterator[Group]:
    """Runs of the multi-power law, whose tokens are taken as half a million a step."""
    runs, curves = pd.read_csv(folder / "runs.csv"), pd.read_csv(folder / "curves.csv")
    for size in (25, 100, 400):
        for kind in ("24000", "72000", "wsdcon"):
            schedules, losses, steps = [], [], 0.0
            for run in runs.to_dict("records"):
                name = str(run["run"])
                if not name.startswith(f"mpl-{size}M-") or kind != ("wsdcon" if "wsdcon" in name else name[-5:]):
                    continue
                own = curves[(curves["run"] == name) & (curves["step"] > 2176)].sort_values("step")
                points = [(0, 0.0), (2160, 3e-4), *zip(own["step"], own["lr"], strict=True)]
                steps = float(own["step"].max())
                schedules.append(Schedule.of({"lr points": points}, steps))
                losses.append(float(run["final_loss"]))
            data = np.log(steps * 0.5e6 / 1e9 / REFERENCE["data size"])
            yield Group(
                "multipowerlaw", np.log(size / REFERENCE["model size"]), data, steps, schedules, np.array(losses)
            )


def ablations(folder: Path) -> Iterator[Group]:
    """Marin's runs that differ in `decay` or `min_lr_ratio` alone, by optimizer."""
    splits = load_runs("marin", folder)
    alike: dict[str, dict[Any, Any]] = defaultdict(dict)
    for split in ("train", "unstable"):
        for row in splits[split]:
            if row["final_loss"] is not None:
                conf = {name: value for name, value in row["conf"].items() if name not in ("decay", "min_lr_ratio")}
                kind = row["conf"].get("decay"), row["conf"].get("min_lr_ratio")
                alike[json.dumps(conf, sort_keys=True)][kind] = row
    for rows in alike.values():
        own = list(rows.values())
        if len(own) > 1:
            conf, steps = own[0]["conf"], float(own[0]["max_step"])
            yield Group(
                f"marin {conf['optimizer']}",
                np.log(conf["model size"] / REFERENCE["model size"]),
                np.log(conf["data size"] / REFERENCE["data size"]),
                steps,
                [Schedule.of(row["conf"], steps) for row in own],
                np.array([row["final_loss"] for row in own]),
            )


def effect(z: np.ndarray, group: Group, height: float) -> np.ndarray:
    """`forms_ncpl.schedule_effect` over no schedule at all, of each of a group's."""
    c = dict(zip(COMMON, z, strict=False))
    gained = final_annealing(
        group.schedules, group.steps, REFERENCE["learning rate"], np.exp(c["speed"]), c["gamma"], np.exp(c["power"])
    )
    clocks = np.array([max(float(schedule.clock(1.0, CLOCK_POWER)), 1e-3) for schedule in group.schedules])
    data = np.exp(c["data"] + GROWTH * group.size - BETA * group.data)
    return data * (clocks**-BETA - 1) - height * np.exp(c["size"] * group.size) * gained


def misfits(z: np.ndarray, group: Group, names: Sequence[str]) -> np.ndarray:
    """Errors of a group's losses, its level left open."""
    off = effect(z, group, float(np.exp(z[len(COMMON) + names.index(group.name)]))) - group.losses
    return off - off.mean()


def residuals(z: np.ndarray, groups: Sequence[Group], names: Sequence[str]) -> np.ndarray:
    priors = [(value - mean) / sd for value, (mean, sd) in zip(z, COMMON.values(), strict=False)]
    heights = z[len(COMMON) :]
    spread = (heights - heights.mean()) / WIDE
    return np.concatenate([*(misfits(z, group, names) / NOISE for group in groups), priors, spread])


def by_lab(heights: Mapping[str, float]) -> dict[str, float]:
    """Lab -> height: the median of Marin's optimizers, and of labs with one schedule what their curves say."""
    marin = [np.log(height) for name, height in heights.items() if name.startswith("marin")]
    labs = {"multipowerlaw": heights["multipowerlaw"], "marin": float(np.exp(np.median(marin)).round(3))}
    curves = read_law(MINI).sources
    first = curves["multipowerlaw"]["logh"]
    for lab, sources in (("olmo", ["olmo_ladder"]), ("xlstm", ["xlstm_llama", "xlstm_mlstm"])):
        own = np.mean([curves[source]["logh"] for source in sources])
        labs[lab] = float((heights["multipowerlaw"] * np.exp(own - first)).round(3))
    return labs


def errors(z: np.ndarray, groups: Sequence[Group], names: Sequence[str]) -> dict[str, float]:
    """Mean absolute errors of the groups' losses, in nats."""
    return {
        name: round(float(np.abs(np.concatenate([misfits(z, g, names) for g in groups if g.name == name])).mean()), 4)
        for name in names
    }


def final_rate(z: np.ndarray, groups: Sequence[Group], names: Sequence[str], height: float) -> list[dict[str, Any]]:
    """Marin's runs that differ in their final rate: nats over the lowest, as fitted, and by the lab's height."""
    found = []
    for group in groups:
        ends = [schedule.end for schedule in group.schedules]
        if len(set(ends)) > 1 and group.name.startswith("marin"):
            own = effect(z, group, float(np.exp(z[len(COMMON) + names.index(group.name)])))
            lab = effect(z, group, height)
            found += [
                {"end": end, "logged": round(float(a), 4), "fitted": round(float(b), 4), "lab": round(float(c), 4)}
                for end, a, b, c in zip(
                    ends, group.losses - group.losses.min(), own - own.min(), lab - lab.min(), strict=True
                )
            ]
    return found


if __name__ == "__main__":
    main()
