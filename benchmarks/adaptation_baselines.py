"""What people would use instead of adapting: laws and learners fitted to a lab's own runs alone."""

import tempfile
import warnings
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np

from laws_ncpl import ConfigurationLaw
from ncpl.own_fits import chinchilla

Run = Mapping[str, Any]


def forecasts(law: ConfigurationLaw, runs: Sequence[Run], held: Sequence[Run]) -> dict[str, np.ndarray]:
    """Method -> losses of the held runs."""
    found = {
        "chinchilla": chinchilla(runs, held),
        "gaussian process": gaussian_process(runs, held),
        "offset": offset(law, runs, held),
    }
    return found | packages(runs, held)


def offset(law: ConfigurationLaw, runs: Sequence[Run], held: Sequence[Run]) -> np.ndarray:
    """The law of an unknown source, moved by the median error on the runs."""
    unknown = [[{**run, "source": "new lab"} for run in some] for some in (runs, held)]
    own, asked = (law.closed_form(some) for some in unknown)
    return asked + np.median([run["final_loss"] for run in runs] - own)


def gaussian_process(runs: Sequence[Run], held: Sequence[Run]) -> np.ndarray:
    """On log losses, over logarithms of size, data, learning rate and batch, with a linear mean (scikit-learn)."""
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import RBF, ConstantKernel, DotProduct, WhiteKernel

    names = ("model size", "data size", "learning rate", "batch size")
    own, asked = (np.log([[float(run.get(name) or 1.0) for name in names] for run in some]) for some in (runs, held))
    moving = own.std(0) > 1e-9
    centre, scale = own[:, moving].mean(0), own[:, moving].std(0)
    own, asked = (own[:, moving] - centre) / scale, (asked[:, moving] - centre) / scale
    target = np.log([run["final_loss"] for run in runs])
    level, spread = target.mean(), target.std() + 1e-9
    kernel = ConstantKernel(1.0, (1e-3, 1e3)) * RBF(np.full(own.shape[1], 2.0), (0.3, 30))
    kernel += WhiteKernel(1e-2, (1e-6, 1)) + ConstantKernel(10.0, "fixed") * DotProduct(1.0, "fixed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = GaussianProcessRegressor(kernel, n_restarts_optimizer=1, random_state=0)
        return np.exp(model.fit(own, (target - level) / spread).predict(asked) * spread + level)


def packages(runs: Sequence[Run], held: Sequence[Run]) -> dict[str, np.ndarray]:
    """The packages `chinchilla` and `simple-scaling-laws`, where they are installed, as their documentation says."""
    found = {}
    for name, forecast in (("chinchilla", package_chinchilla), ("simple_scaling_laws", package_simple)):
        if find_spec(name) is not None:
            found[f"package {name}"] = forecast(runs, held)
    return found


def package_chinchilla(runs: Sequence[Run], held: Sequence[Run]) -> np.ndarray:
    """`chinchilla` (asymmetric absolute error, BFGS), from 32 starts in place of its example's 3,125.

    Those take minutes a fit; a median stands in where its best fit is not finite.
    """
    import pandas as pd
    from chinchilla import Chinchilla  # type: ignore[import-not-found]

    n, asked_n = (1e6 * np.array([run["model size"] for run in some]) for some in (runs, held))
    d, asked_d = (1e9 * np.array([run["data size"] for run in some]) for some in (runs, held))
    losses = np.array([run["final_loss"] for run in runs])
    spans = {"E": (1, 2), "a": (1, 10), "b": (1, 10), "alpha": (0.1, 0.7), "beta": (0.1, 0.7)}
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        pd.DataFrame({"C": 6 * n * d, "N": n, "D": d, "loss": losses}).to_csv(f"{folder}/df.csv", index=False)
        fit = Chinchilla(folder, {name: np.linspace(*span, 2) for name, span in spans.items()}, log_level=50)
        fit.fit(parallel=False)
        losses_asked = np.asarray(fit.predict_loss(asked_n, asked_d), dtype=float)
    return np.where(np.isfinite(losses_asked), losses_asked, np.median(losses))


def package_simple(runs: Sequence[Run], held: Sequence[Run]) -> np.ndarray:
    """`simple-scaling-laws`, its default law, medians."""
    import polars as pl  # type: ignore[import-not-found]
    from simple_scaling_laws import fit  # type: ignore[import-not-found]

    def columns(some: Sequence[Run]) -> dict[str, list[float]]:
        return {
            "model_size__params": [1e6 * run["model size"] for run in some],
            "dataset_size__tokens": [1e9 * run["data size"] for run in some],
        }

    own = {"training_run_id": [f"run-{i}" for i in range(len(runs))], "test_set_id": ["validation"] * len(runs)}
    table = pl.DataFrame({**own, **columns(runs), "test_loss__loss": [float(run["final_loss"]) for run in runs]})
    asked = pl.DataFrame({"point_id": [f"{i:06d}" for i in range(len(held))], **columns(held)})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = fit(table, n_draws=50, seed=0).predict(asked, quantiles=[0.5])
    return found.sort("point_id")["test_loss__loss__median"].to_numpy()
