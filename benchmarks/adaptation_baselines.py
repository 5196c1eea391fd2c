"""What people would use instead of adapting: laws and learners fitted to a lab's own runs alone."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from laws_ncpl import ConfigurationLaw
from ncpl.own_fits import chinchilla

Run = Mapping[str, Any]


def forecasts(law: ConfigurationLaw, runs: Sequence[Run], held: Sequence[Run]) -> dict[str, np.ndarray]:
    """Method -> losses of the held runs."""
    return {
        "chinchilla": chinchilla(runs, held),
        "gaussian process": gaussian_process(runs, held),
        "offset": offset(law, runs, held),
    }


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
