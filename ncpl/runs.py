"""Logged runs: which of them belong together, and which diverged.

A row is a mapping as the dataset builders give it: `source`, `conf` (field -> value), `final_loss` (nats per token,
None where the run has none).
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

Row = Mapping[str, Any]

# Nats above the best run of the same source, size and data size from which a run counts as diverged.
DIVERGED = 0.3


def cell(row: Row) -> tuple[str, float, float, float]:
    """What runs of one comparison share: source, model size, of which active, and data size (within rounding)."""
    conf = row["conf"]
    size = float(conf["model size"])
    active = float(conf.get("active size", size))
    return str(row["source"]), round(size, 1), round(active, 1), round(float(conf["data size"]), 2)


def diverged(rows: Sequence[Row]) -> np.ndarray:
    """Which runs diverged: no loss, or more than `DIVERGED` nats above the best run of the same cell.

    >>> conf = {"model size": 100, "data size": 2}
    >>> diverged([{"source": "mine", "conf": conf, "final_loss": loss} for loss in (3.0, 3.2, 3.4, None)]).tolist()
    [False, False, True, True]
    """
    best: dict[Any, float] = {}
    for row in rows:
        if row["final_loss"] is not None and math.isfinite(row["final_loss"]):
            best[cell(row)] = min(best.get(cell(row), math.inf), row["final_loss"])
    return np.array(
        [
            row["final_loss"] is None
            or not math.isfinite(row["final_loss"])
            or row["final_loss"] > best[cell(row)] + DIVERGED
            for row in rows
        ],
        dtype=bool,
    )
