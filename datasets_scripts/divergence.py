"""Which runs diverged: the one rule, of run logs, fits and imported runs alike.

A row is a mapping as the builders give it: `source`, `conf` (field -> value), `final_loss` (nats per token, None where
the run has none).
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]

DIVERGED_NATS = 0.3
"""Nats above the best run of the same cell from which a run counts as diverged."""


def cell(row: Row) -> tuple[str, float, float, float]:
    """What runs of one comparison share: source, model size, of which active, and data size (within rounding).

    >>> cell({"source": "mine", "conf": {"model size": 100, "data size": 2.001}})
    ('mine', 100.0, 100.0, 2.0)
    """
    conf = row["conf"]
    size = float(conf["model size"])
    active = float(conf.get("active size") or size)
    return str(row["source"]), _rounded(size, 1), _rounded(active, 1), _rounded(float(conf["data size"]), 2)


def _rounded(value: float, decimals: int) -> float:
    """As logs round a size: to so many decimals, what is below 10 to three digits."""
    return round(value, decimals) if value >= 10 else float(f"{value:.3g}")


def diverged(rows: Sequence[Row]) -> list[bool]:
    """Which runs diverged: no loss, or more than `DIVERGED_NATS` above the best run of the same cell.

    >>> conf = {"model size": 100, "data size": 2}
    >>> diverged([{"source": "mine", "conf": conf, "final_loss": loss} for loss in (3.0, 3.2, 3.4, None)])
    [False, False, True, True]
    """
    best: dict[Any, float] = {}
    for row in rows:
        if _has_loss(row):
            best[cell(row)] = min(best.get(cell(row), math.inf), row["final_loss"])
    return [not _has_loss(row) or row["final_loss"] > best[cell(row)] + DIVERGED_NATS for row in rows]


def _has_loss(row: Row) -> bool:
    return row["final_loss"] is not None and math.isfinite(row["final_loss"])
