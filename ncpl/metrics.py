"""How far forecasts are from what happened, as plain functions."""

import numpy as np
from numpy.typing import ArrayLike


def regression_metrics(predicted: ArrayLike, observed: ArrayLike) -> dict[str, float]:
    """Errors of predicted losses.

    Args:
        predicted: losses in nats per token.
        observed: losses in nats per token, one for each prediction.

    Returns:
        `n`, the number of runs; `mae`, `rmse` and `bias` (mean of predicted minus observed) in nats; `spearman`, the
        rank correlation, NaN where it is not defined (fewer than two runs, or all equal).

    Raises:
        ValueError: lengths that differ, no runs, or a value that is not a finite number.

    >>> regression_metrics([2.0, 3.1], [2.1, 3.0])["spearman"]
    1.0
    """
    p, o = np.asarray(predicted, np.float64), np.asarray(observed, np.float64)
    if p.shape != o.shape or p.ndim != 1 or not p.size:
        raise ValueError(f"predicted: got shape {p.shape} for observed {o.shape}, expected two equal, non-empty lists")
    for name, values in (("predicted", p), ("observed", o)):
        if not np.isfinite(values).all():
            at = int(np.flatnonzero(~np.isfinite(values))[0])
            raise ValueError(f"{name}[{at}]: got {values[at]}, expected a finite loss in nats per token")
    error = p - o
    return {
        "n": len(p),
        "mae": float(np.abs(error).mean()),
        "rmse": float(np.sqrt(np.square(error).mean())),
        "spearman": spearman(p, o),
        "bias": float(error.mean()),
    }


def spearman(a: ArrayLike, b: ArrayLike) -> float:
    """Spearman's rank correlation, ties at their mean rank; NaN where one side has a single value.

    >>> spearman([1, 2, 3], [10, 30, 20])
    0.5
    """
    # Only here: it brings all of scipy's statistics.
    from scipy.stats import rankdata

    x, y = (ranks - ranks.mean() for ranks in (rankdata(a), rankdata(b)))
    scale = np.sqrt((x @ x) * (y @ y))
    return float(x @ y / scale) if scale > 0 else float("nan")
