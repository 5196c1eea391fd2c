"""The runs of a recipe, and the residuals of their losses over the prior."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from datasets_scripts import SAMPLE_DIR
from datasets_scripts.runs import load_runs
from fields_ncpl import FIELDS, check_config, sequence_length
from ncpl.errors import short
from ncpl.packing import Run
from ncpl.recipe import DataBlock

LARGEST_LOSS = 100.0
"""Nats per token. Guessing costs the logarithm of the vocabulary, about 12: what is above this was not measured."""
BEYOND_RANGE = 1e3
"""A number that lies outside the registry's range by more than this factor is an error of the log, not a rare run."""
CURVE_POINTS = 15
"""Curves with more points keep every (length // 15)-th, as published."""


@dataclass(frozen=True)
class LoggedRun:
    """A run of a log, checked.

    Args:
        config: a checked configuration, with `max step`.
        final_loss: nats per token.
        steps, losses: points of its curve, training steps and nats per token.
        name: of the run in its log.
    """

    config: Mapping[str, Any]
    final_loss: float
    steps: Sequence[float] = ()
    losses: Sequence[float] = ()
    name: str = ""


Runs = dict[str, dict[str, list[LoggedRun]]]
"""Split -> source -> runs."""


def read_runs(data: DataBlock) -> Runs:
    """The runs of a recipe's splits and sources.

    Raises:
        ValueError: an unknown source or split, a malformed file, a configuration that is not accepted.

    >>> runs = read_runs(DataBlock(sources=["marin"], data_dir="sample", config="intermediate"))
    >>> {split: len(of["marin"]) for split, of in runs.items()}, len(runs["train"]["marin"][0].steps)
    ({'train': 66, 'in_val': 16, 'ood_val': 14}, 18)
    """
    names = [data.splits.train, data.splits.select, *data.splits.report]
    runs: Runs = {name: {} for name in names}
    for source in data.sources:
        log = own_log(data) if data.runs is not None else load_runs(source, data_folder(data), data.config)
        for name in names:
            if name not in log:
                raise ValueError(f"data.splits: {source} has no split {name!r}, it has {', '.join(log)}")
            runs[name][source] = [_logged_run(row) for row in log[name] if row["final_loss"] is not None]
            if lost := len(log[name]) - len(runs[name][source]):
                warnings.warn(f"{source} {name}: {lost} runs have no final loss and are left out", stacklevel=2)
            if problems := [problem for run in runs[name][source] for problem in absurd(run)]:
                more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
                raise ValueError(f"data: {source} {name}: {problems[0]}{more}")
            if not runs[name][source]:
                raise ValueError(f"data.splits: {source} has no run with a final loss in {name!r}")
    return runs


def own_log(data: DataBlock) -> dict[str, list[dict[str, Any]]]:
    """A lab's own runs in the form of a run log: every fourth by FLOPs, from the second on, is in the split `select`.

    Raises:
        ValueError: what `ncpl.own_runs.read_runs` refuses, or fewer than four runs.
    """
    # Only here, because it brings scipy and the reader of logs.
    from adapted_ncpl import flops
    from ncpl.own_runs import DEFAULTS
    from ncpl.own_runs import read_runs as read_own_runs

    rows = sorted(read_own_runs(Path(str(data.runs)), data.sources[0])[0], key=flops)
    if len(rows) < 4:
        raise ValueError(f"data.runs: got {len(rows)} finished runs, expected at least 4")
    log: dict[str, list[dict[str, Any]]] = {data.splits.train: [], data.splits.select: []}
    for i, row in enumerate(rows):
        conf = {**DEFAULTS, **{name: value for name, value in row.items() if name in FIELDS}}
        tokens = float(conf["batch size"]) * sequence_length(conf)
        steps = float(conf.get("max step") or max(1.0, conf["data size"] * 1e9 // tokens))
        name = str(row.get("name", f"run {i}"))
        run = {"name": name, "source": row["source"], "conf": conf, "max_step": steps, "final_loss": row["final_loss"]}
        log[data.splits.select if i % 4 == 1 else data.splits.train].append(run)
    return log


def data_folder(data: DataBlock) -> str | Path | None:
    """Folder of the recipe's run logs; None: the public ones are downloaded."""
    return SAMPLE_DIR if data.data_dir == "sample" else data.data_dir


def _logged_run(row: Mapping[str, Any]) -> LoggedRun:
    try:
        # Not strict: a log may hold fields of its own, and a run that went wrong is a run all the same.
        config = check_config({**row["conf"], "max step": row["max_step"]}, strict=False)
    except ValueError as error:
        raise ValueError(f"{row['source']} run {row['name']!r}: {error}") from None
    curve = row.get("curve") or {"steps": [], "losses": []}
    points = [
        (step, loss)
        for step, loss in zip(curve["steps"], curve["losses"], strict=True)
        if 0 < step <= row["max_step"] and loss is not None
    ]
    if lost := len(curve["steps"]) - len(points):
        warnings.warn(f"{row['source']} run {row['name']!r}: {lost} curve points lie outside the run", stacklevel=3)
    kept = thin(points)
    return LoggedRun(config, row["final_loss"], [step for step, _ in kept], [loss for _, loss in kept], row["name"])


def absurd(run: LoggedRun) -> list[str]:
    """What no run can have measured: fields and losses by name, with what came and what is accepted.

    >>> absurd(LoggedRun({"model size": 1e-300, "data size": 2.0}, 1e300, name="a"))[1]
    "run 'a': final_loss is 1e+300, expected 0 to 100 nats per token"
    """
    found = []
    for name, value in run.config.items():
        field = FIELDS.get(name)
        if field is None or field.kind not in ("number", "count") or (value == 0 and (field.zero or field.low == 0)):
            continue
        if not field.low / BEYOND_RANGE <= value <= field.high * BEYOND_RANGE:
            found.append(f"{name} is {short(value)}, expected {field.accepted}")
    losses = [("final_loss", run.final_loss)]
    losses += [(f"the curve at step {step:g}", loss) for step, loss in zip(run.steps, run.losses, strict=True)]
    for name, loss in losses:
        if not 0 < loss <= LARGEST_LOSS:
            found.append(f"{name} is {short(loss)}, expected 0 to {LARGEST_LOSS:g} nats per token")
    return [f"run {run.name!r}: {problem}" for problem in found]


def thin(points: Sequence[Any]) -> Sequence[Any]:
    """A curve's points for training: all, or every (length // 15)-th when there are more than 15 (NCPL, published).

    >>> len(thin(range(15))), list(thin(range(40)))[:3]
    (15, [0, 2, 4])
    """
    return points if len(points) <= CURVE_POINTS else points[:: len(points) // CURVE_POINTS]


def make_targets(runs: Sequence[LoggedRun], priors: Sequence[float] | np.ndarray) -> list[Run]:
    """Runs with the residuals to learn: their losses minus the prior's forecast of the final loss.

    >>> make_targets([LoggedRun({"source": "marin"}, 3.5, [10], [4.0])], [3.0])[0].curve
    [1.0]
    """
    return [
        Run(
            run.config,
            float(prior),
            run.final_loss - float(prior),
            run.steps,
            [loss - float(prior) for loss in run.losses],
            run.name,
        )
        for run, prior in zip(runs, priors, strict=True)
    ]


def pool(sources: Mapping[str, Sequence[LoggedRun]]) -> list[LoggedRun]:
    """All sources' runs, one after the other."""
    return [run for runs in sources.values() for run in runs]
