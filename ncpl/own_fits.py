"""Scaling laws fitted to one lab's runs alone: what an adapted forecast is compared with."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.optimize import nnls

Run = Mapping[str, Any]
# Bounds of log a, alpha, log b, beta and the logarithm of the irreducible loss, whose upper bound is the lowest loss.
LOW, HIGH = np.array([-8.0, 0.05, -8.0, 0.05, -3.0]), np.array([8.0, 1.2, 8.0, 1.2, np.inf])
# Where the loss of a log error turns from square to absolute.
HUBER = 1e-3


def chinchilla(runs: Sequence[Run], held: Sequence[Run]) -> np.ndarray:
    """Losses by Hoffmann et al. 2022's law: Huber loss of log losses, bounded exponents, the best of 108 starts.

    All starts move at once, by Levenberg-Marquardt on reweighted least squares.

    Args:
        runs: configurations with `final_loss`, to which it is fitted.
        held: configurations to forecast.

    >>> runs = [{"model size": n, "data size": d, "final_loss": 2 + 8 / n**0.5 + d**-0.3}
    ...         for n in (50, 100, 200) for d in (1, 2, 4)]
    >>> chinchilla(runs, [{"model size": 400, "data size": 8}]).round(2).tolist()
    [2.94]
    """
    n, d = _sizes(runs)
    target = np.log([float(run["final_loss"]) for run in runs])
    x, y, level = np.log(n), np.log(d), float(target.min())
    high = np.where(np.isinf(HIGH), level, HIGH)
    starts = [
        (a, alpha, b, beta, level - gap)
        for a in (0.0, 2.0)
        for alpha in (0.15, 0.3, 0.6)
        for b in (-1.0, 1.0)
        for beta in (0.15, 0.3, 0.6)
        for gap in (0.15, 0.5, 1.2)
    ]
    found = np.clip(np.array(starts), LOW, high)
    damping = np.full(len(found), 1e-2)
    errors, slopes = _errors(found, x, y, target)
    for _ in range(250):
        weights = np.minimum(1, HUBER / np.maximum(np.abs(errors), 1e-12))
        hessian = np.einsum("sip,si,siq->spq", slopes, weights, slopes)
        uphill = np.einsum("sip,si,si->sp", slopes, weights, errors)
        diagonal = np.einsum("spp->sp", hessian)
        hessian = hessian + (damping[:, None] * (diagonal + 1e-9))[:, :, None] * np.eye(5)
        # A coefficient at its bound that would leave it stays there.
        held_back = ((found <= LOW) & (uphill > 0)) | ((found >= high) & (uphill < 0))
        hessian = np.where(held_back[:, :, None] | held_back[:, None, :], np.eye(5), hessian)
        step = np.linalg.solve(hessian, np.where(held_back, 0.0, uphill)[..., None])[..., 0]
        tried = np.clip(found - step, LOW, high)
        new_errors, new_slopes = _errors(tried, x, y, target)
        better = _huber(new_errors) < _huber(errors)
        found = np.where(better[:, None], tried, found)
        errors = np.where(better[:, None], new_errors, errors)
        slopes = np.where(better[:, None, None], new_slopes, slopes)
        damping = np.clip(np.where(better, damping / 3, damping * 4), 1e-9, 1e8)
    a, alpha, b, beta, level = found[_huber(errors).argmin()]
    n, d = _sizes(held)
    return np.exp(np.logaddexp(np.logaddexp(a - alpha * np.log(n), b - beta * np.log(d)), level))


def constant_exponents(runs: Sequence[Run], held: Sequence[Run]) -> np.ndarray:
    """Losses by the same law with Hoffmann et al. 2022's exponents, 0.34 and 0.28; heights and level by least squares.

    >>> runs = [{"model size": n, "data size": 1.0, "final_loss": 2 + n**-0.34} for n in (50, 100, 200)]
    >>> constant_exponents(runs, [{"model size": 400, "data size": 1.0}]).round(3).tolist()
    [2.13]
    """

    def columns(some: Sequence[Run]) -> np.ndarray:
        n, d = _sizes(some)
        return np.column_stack([np.ones(len(some)), n**-0.34, d**-0.28])

    heights, _ = nnls(columns(runs), np.array([float(run["final_loss"]) for run in runs]))
    return columns(held) @ heights


def _sizes(runs: Sequence[Run]) -> tuple[np.ndarray, np.ndarray]:
    n, d = (np.array([float(run[name]) for run in runs]) for name in ("model size", "data size"))
    return n, d


def _huber(errors: np.ndarray) -> np.ndarray:
    size = np.abs(errors)
    return np.where(size < HUBER, 0.5 * size**2, HUBER * (size - 0.5 * HUBER)).sum(1)


def _errors(found: np.ndarray, x: np.ndarray, y: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(starts, runs) errors of log losses and (starts, runs, 5) their derivatives."""
    terms = np.stack([found[:, :1] - found[:, 1:2] * x, found[:, 2:3] - found[:, 3:4] * y, found[:, 4:] + 0 * x])
    total = np.logaddexp.reduce(terms, 0)
    share = np.exp(terms - total)
    return total - target, np.stack([share[0], -share[0] * x, share[1], -share[1] * y, share[2]], 2)
