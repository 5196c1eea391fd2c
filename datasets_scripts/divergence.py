"""Which runs diverged: the one rule, of run logs, fits and imported runs alike.

A row is a mapping as the builders give it: `source`, `conf` (field -> value), `final_loss` (nats per token, None where
the run has none).
"""

import math
from collections.abc import Container, Mapping, Sequence
from typing import Any

import numpy as np

Row = Mapping[str, Any]

DIVERGED_NATS = 0.3
"""Nats above the best run of the same cell from which a run counts as diverged."""


MOST_SUSPECTS = 10
"""Runs of one source whose losses may be too low; of more, their data are another."""


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


def diverged(rows: Sequence[Row], aside: Container[int] = ()) -> list[bool]:
    """Which runs diverged: no loss, or more than `DIVERGED_NATS` above the best run of the same cell.

    Args:
        rows: the runs.
        aside: positions of runs that are no cell's best, such as `suspects`.

    >>> conf = {"model size": 100, "data size": 2}
    >>> diverged([{"source": "mine", "conf": conf, "final_loss": loss} for loss in (3.0, 3.2, 3.4, None)])
    [False, False, True, True]
    """
    best: dict[Any, float] = {}
    for i, row in enumerate(rows):
        if _has_loss(row) and i not in aside:
            best[cell(row)] = min(best.get(cell(row), math.inf), row["final_loss"])
    return [not _has_loss(row) or row["final_loss"] > best.get(cell(row), math.inf) + DIVERGED_NATS for row in rows]


def suspects(rows: Sequence[Row]) -> dict[int, float]:
    """Runs whose loss is too low to be one: their position -> the nats by which it lies below what others of its source
    allow.

    The logarithm of each cell's best loss is forecast from the other cells', as linear in those of size and data with
    slopes of about -0.06; the one farthest below goes first, until none is below by more than a quarter and half a nat.

    >>> rows = [{"source": "mine", "conf": {"model size": n, "data size": n / 25}, "final_loss": loss}
    ...         for n, loss in ((50, 3.6), (100, 3.3), (200, 3.05), (400, 1.09))]
    >>> list(suspects(rows))
    [3]
    """
    usable = [i for i, row in enumerate(rows) if _has_loss(row) and min(cell(row)[1:]) > 0 < row["final_loss"]]
    # The lowest of a cell comes last.
    usable.sort(key=lambda i: -rows[i]["final_loss"])
    found: dict[int, float] = {}
    for source in dict.fromkeys(str(rows[i]["source"]) for i in usable):
        own = [i for i in usable if str(rows[i]["source"]) == source]
        for _ in range(MOST_SUSPECTS):
            best = {cell(rows[i]): i for i in own if i not in found}
            if len(best) < 4:
                break
            losses = np.array([float(rows[i]["final_loss"]) for i in best.values()])
            allowed = _from_the_others(list(best), losses)
            worst = int(np.argmin(losses / allowed))
            if losses[worst] > 0.75 * allowed[worst] or losses[worst] > allowed[worst] - 0.5:
                break
            found[list(best.values())[worst]] = float(allowed[worst] - losses[worst])
    return dict(sorted(found.items()))


def _from_the_others(cells: Sequence[tuple[str, float, float, float]], losses: np.ndarray) -> np.ndarray:
    """Each cell's loss from those of the others: ridge regression of logarithms, each left out in closed form."""
    points = np.log([[active, data] for _, _, active, data in cells])
    x = np.column_stack([np.ones(len(cells)), points - points.mean(0)])
    left = np.log(losses) + 0.06 * x[:, 1:].sum(1)
    inverse = np.linalg.inv(x.T @ x + np.diag([0.0, 0.5, 0.5]))
    residuals = (left - x @ (inverse @ (x.T @ left))) / (1 - np.einsum("ij,jk,ik->i", x, inverse, x))
    return np.asarray(losses * np.exp(-residuals))


def _has_loss(row: Row) -> bool:
    return row["final_loss"] is not None and math.isfinite(row["final_loss"])
