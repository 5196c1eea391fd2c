"""The laws and learners that the configuration-aware law is measured against."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from datasets_scripts.divergence import Row
from forms_ncpl import INPUTS
from laws_ncpl import ConfigurationLaw
from published_ncpl import ChinchillaLaw, KaplanLaw


def fit_chinchilla(rows: Sequence[Row]) -> ChinchillaLaw:
    """Hoffmann et al. 2022's law for each source, by their Huber loss on log losses, over all its runs."""
    return ChinchillaLaw(
        {source: _least(own, _chinchilla, _CHINCHILLA_STARTS) for source, own in _by_source(rows).items()}
    )


def fit_kaplan(rows: Sequence[Row]) -> KaplanLaw:
    """Kaplan et al. 2020's law for each source, by the same loss."""
    return KaplanLaw({source: _least(own, _kaplan, _KAPLAN_STARTS) for source, own in _by_source(rows).items()})


def _by_source(rows: Sequence[Row]) -> dict[str, list[Row]]:
    return {s: [row for row in rows if str(row["source"]) == s] for s in sorted({str(row["source"]) for row in rows})}


# Logarithms of the coefficients.
_CHINCHILLA_STARTS = [[math.log(v) for v in (a, alpha, 0.8, 0.3, 1.8)] for a in (2.0, 5.0) for alpha in (0.2, 0.4)]
_KAPLAN_STARTS = [[math.log(v) for v in (8.8e7, alpha, 5.4e4, 0.095)] for alpha in (0.05, 0.076, 0.12)]


def _chinchilla(log: np.ndarray, n: np.ndarray, d: np.ndarray) -> np.ndarray:
    a, alpha, b, beta, c = np.exp(log)
    return a * n**-alpha + b * d**-beta + c


def _kaplan(log: np.ndarray, n: np.ndarray, d: np.ndarray) -> np.ndarray:
    n_c, alpha_n, d_c, alpha_d = np.exp(log)
    return ((n_c / n) ** (alpha_n / alpha_d) + d_c / d) ** alpha_d


def _least(rows: Sequence[Row], law: Callable[..., np.ndarray], starts: Sequence[Sequence[float]]) -> list[float]:
    from scipy.optimize import least_squares

    n, d = (np.array([float(row["conf"][name]) for row in rows]) for name in ("model size", "data size"))
    target = np.log([row["final_loss"] for row in rows])
    found = [
        least_squares(lambda log: np.log(law(log, n, d)) - target, start, loss="huber", f_scale=1e-3, max_nfev=2000)
        for start in starts
    ]
    return np.exp(min(found, key=lambda result: result.cost).x).tolist()


def _features(rows: Sequence[Row]) -> np.ndarray:
    """Plain features for the baselines: logarithms of the four scales, hyper-parameters, one-hot optimizers and
    sources."""
    law = ConfigurationLaw.example()
    inputs = law._inputs([row["conf"] for row in rows])
    return np.column_stack([inputs[name] for name in (*INPUTS, "fields")])


def baseline_forecasts(name: str, rows: Sequence[Row], held: Sequence[Row], *, seed: int = 0) -> np.ndarray:
    """Losses that a general-purpose learner, fitted to each source and optimizer's names as one-hot columns, gives.

    Args:
        name: `"gradient-boosted trees"` or `"gaussian process"` (scikit-learn, log features).
        rows: runs to fit.
        held: runs to forecast.
        seed: of the learner.
    """
    from sklearn.ensemble import HistGradientBoostingRegressor
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel

    losses = np.empty(len(held))
    for source, own in _by_source(rows).items():
        mine = np.flatnonzero([str(row["source"]) == source for row in held])
        if not len(mine):
            continue
        names = sorted({str(row["conf"]["optimizer"]) for row in own})

        def columns(chosen: Sequence[Row], names: Sequence[str] = names) -> np.ndarray:
            hot = np.array([[str(row["conf"]["optimizer"]) == name for name in names] for row in chosen], dtype=float)
            return np.hstack([_features(chosen), hot])

        x, z = columns(own), columns([held[int(i)] for i in mine])
        keep = x.std(0) > 0
        x, z = (
            (x[:, keep] - x[:, keep].mean(0)) / x[:, keep].std(0),
            (z[:, keep] - x[:, keep].mean(0)) / x[:, keep].std(0),
        )
        y = np.array([row["final_loss"] for row in own])
        if name == "gradient-boosted trees":
            model: Any = HistGradientBoostingRegressor(
                loss="absolute_error",
                max_iter=500,
                learning_rate=0.05,
                max_leaf_nodes=15,
                random_state=seed,
                max_features=0.5,
            )
        elif name == "gaussian process":
            kernel = ConstantKernel(1.0) * RBF(np.full(x.shape[1], 3.0), (0.3, 100)) + WhiteKernel(1e-2, (1e-5, 1))
            model = GaussianProcessRegressor(kernel, normalize_y=True, optimizer=_few_steps, random_state=seed)
        else:
            raise ValueError(f"name: got {name!r}, accepted: 'gradient-boosted trees', 'gaussian process'")
        losses[mine] = model.fit(x, y).predict(z)
    return losses


def _few_steps(objective: Callable[..., Any], start: np.ndarray, bounds: np.ndarray) -> tuple[np.ndarray, float]:
    """scikit-learn's optimizer of kernels, stopped after 15 steps: the rest brings nothing and takes an hour."""
    from scipy.optimize import minimize

    found = minimize(objective, start, jac=True, bounds=bounds, method="L-BFGS-B", options={"maxiter": 15})
    return found.x, float(found.fun)
