"""What the runs of one source differ by from the closed-form law: a Gaussian process over their hyper-parameters.

(Rasmussen & Williams 2006, chapter 2.) numpy alone; the kernel runs on torch tensors too, where its scales are fitted.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Self

import numpy as np


def _log_one_minus(value: Any) -> float:
    return math.log10(max(1.0 - float(value), 1e-6))


def _log_epsilon(value: Any) -> float:
    return math.log10(max(float(value), 1e-38)) / 10


def _log2(unit: float, octaves: float = 1.0) -> Callable[[Any], float]:
    return lambda value: math.log2(max(float(value), 1e-9) / unit) / octaves


def _flag(value: Any) -> float:
    return float(str(value).lower() in ("true", "1", "1.0"))


# Hyper-parameters that the residual reads besides size, data, batch and learning rate: field -> coordinate, in which
# a unit is about the largest step of an ablation. `warmup` comes as a share of the run, `adam_lr` as a share of the
# peak rate.
COORDINATES: dict[str, Callable[[Any], float]] = {
    "weight decay": float,
    "warmup": lambda share: math.log(share + 0.02),
    "beta1": _log_one_minus,
    "beta2": _log_one_minus,
    "epsilon": _log_epsilon,
    # 0 switches clipping off, which lies beyond the loosest clip.
    "max_grad_norm": lambda norm: float(norm) or 3.0,
    "block_size": _log2(256, 2),
    "gamma": _log2(0.025, 2),
    "decay": lambda share: 2.0 * float(share),
    "adam_lr": lambda share: math.log(max(share, 1e-6)),
    "momentum": _log_one_minus,
    "muon_epsilon": _log_epsilon,
    "scion_epsilon": _log_epsilon,
    "precondition_frequency": _log2(10, 3.3),
    "shampoo_beta": _log_one_minus,
    "preconditioner_lr": _log2(0.1),
    "preconditioner_update_probability": _log2(0.1),
    "update_prob_flat_start": _log2(1000, 2),
    "normalize_grads": _flag,
    "partition_grads_into_blocks": _flag,
    "nesterov": _flag,
}


@dataclass(frozen=True)
class Scale:
    """One scale of the kernel: what it means, its unit, and the log-normal prior under which it is fitted.

    Args:
        meaning: for the reader.
        unit: `"nats"`, `"1"` or `"log units"`; of a length, the coordinate that it divides.
        median: of the prior.
        sd: of the logarithm.
    """

    meaning: str
    unit: str
    median: float
    sd: float


SCALES: dict[str, Scale] = {
    "s0": Scale("noise of one run at the best rate and batch", "nats", 0.0012, 0.3),
    "s1": Scale("growth of that noise with the excess over the best run", "1", 0.08, 0.5),
    "g0": Scale("height of the rate and batch surface at the best run", "nats", 0.003, 0.7),
    "g1": Scale("growth of that height with the excess", "1", 0.07, 0.5),
    "v1": Scale("weight of the surface that all sizes share", "1", 1.0, 0.5),
    "lu": Scale("length of the shared surface in learning rate", "log units", 0.7, 0.4),
    "lb": Scale("length of the shared surface in batch size", "log units", 1.1, 0.4),
    "v2": Scale("weight of the surface of one size and data size", "1", 1.0, 0.5),
    "lu2": Scale("length of that surface in learning rate", "log units", 0.6, 0.4),
    "lb2": Scale("length of that surface in batch size", "log units", 0.9, 0.4),
    "ln": Scale("length in model size over which surfaces and interactions change", "log units", 0.8, 0.4),
    "ld": Scale("length in data size over which they change", "log units", 1.0, 0.4),
    "vc": Scale("height of what a cell of size and data size has in common", "nats", 0.003, 0.5),
    "lnc": Scale("length of the cells' common part in model size", "log units", 0.7, 0.3),
    "ldc": Scale("length of the cells' common part in data size", "log units", 1.0, 0.3),
    "rho": Scale("covariance of two optimizers' surfaces, over the optimizer's own part", "1", 1.0, 0.5),
    "vo": Scale("height of an optimizer's own deviation, by size and data size", "nats", 0.002, 0.5),
    "vx": Scale("height of the interaction of all hyper-parameters of one optimizer", "nats", 0.004, 0.7),
}
# Those with a value for each hyper-parameter.
FIELD_SCALES: dict[str, Scale] = {
    "vf": Scale("height of a hyper-parameter's effect within one optimizer", "nats", 0.003, 0.8),
    "vfs": Scale("height of its effect that all optimizers share", "nats", 0.002, 0.8),
    "lf": Scale("length of its effect in its coordinate", "log units", 0.7, 0.4),
    "lfx": Scale("length of the interaction in its coordinate", "log units", 0.8, 0.4),
}


def distinct_values(fields: Any, xp: Any = np) -> list[tuple[Any, Any]]:
    """The distinct values of each hyper-parameter, and which of them each run has.

    Args:
        fields: (runs, hyper-parameters) coordinates.
        xp: numpy or torch.

    Returns:
        For each hyper-parameter (values,) and the indicator (values, runs). Ablations repeat few values, so the kernel
        computes exponentials at these alone.
    """
    tables = []
    for i in range(fields.shape[1]):
        values, place = xp.unique(fields[:, i], return_inverse=True)
        tables.append((values, (place.reshape(1, -1) == xp.arange(len(values))[:, None]) * 1.0))
    return tables


def residual_kernel(k: Mapping[str, Any], a: Mapping[str, Any], b: Mapping[str, Any], xp: Any = np) -> Any:
    """Covariance of two sets of runs' residuals around the closed form, in squared nats, for numpy and torch alike.

    A sum of: the surface over learning rate and batch, whose height grows with the excess over the best run, in part
    common to all sizes and optimizers; what a cell of size and data has in common; each hyper-parameter's own effect;
    and the interaction of all of them.

    Args:
        k: the kernel's scales, `SCALES` and `FIELD_SCALES`.
        a, b: coordinate -> values, as `ConfigurationLaw.evaluate` gives them; `distinct` of b may hold its
            `distinct_values`.
        xp: numpy or torch.
    """

    def squared(of_a: Any, of_b: Any) -> Any:
        return (_once(of_a)[:, None] - of_b[None]) ** 2

    rate, batch, size, data = (squared(a[name], b[name]) for name in ("rate", "batch", "size", "data"))
    same = (_once(a["optimizer"])[:, None] == b["optimizer"][None]) * 1.0
    alike = (k["rho"] + same) / (k["rho"] + 1)
    height = (k["g0"] + k["g1"] * a["excess"])[:, None] * (k["g0"] + k["g1"] * b["excess"])[None]
    cell = size / k["ln"] ** 2 + data / k["ld"] ** 2
    near = rate / k["lu2"] ** 2 + batch / k["lb2"] ** 2 + cell
    surface = k["v1"] ** 2 * xp.exp(-0.5 * (rate / k["lu"] ** 2 + batch / k["lb"] ** 2))
    surface = surface + k["v2"] ** 2 * xp.exp(-0.5 * near)
    total = height * alike * surface + k["vc"] ** 2 * xp.exp(-0.5 * (size / k["lnc"] ** 2 + data / k["ldc"] ** 2))
    if a["fields"].shape[1]:
        shared, own, far = _field_effects(k, a["fields"], b, xp)
        own = own + k["vo"] ** 2 * xp.exp(-0.5 * cell) + k["vx"] ** 2 * xp.exp(-0.5 * (near + far))
        total = total + shared + same * own
    return xp.broadcast_to(total, (len(a["rate"]), len(b["rate"])))


def _field_effects(k: Mapping[str, Any], fields: Any, b: Mapping[str, Any], xp: Any) -> tuple[Any, Any, Any]:
    """The hyper-parameters' effects that optimizers share, those within one, and the interaction's squared distance."""
    tables = b["distinct"] if "distinct" in b else distinct_values(b["fields"], xp)
    near = [
        xp.exp(-0.5 * ((fields[:, i, None] - values[None]) / k["lf"][i]) ** 2) for i, (values, _) in enumerate(tables)
    ]
    runs = xp.concatenate([indicator for _, indicator in tables], 0)
    shared = xp.concatenate([k["vfs"][i] ** 2 * table for i, table in enumerate(near)], 1) @ runs
    own = xp.concatenate([k["vf"][i] ** 2 * table for i, table in enumerate(near)], 1) @ runs
    x, y = fields / k["lfx"], b["fields"] / k["lfx"]
    far = (x**2).sum(1)[:, None] + (y**2).sum(1)[None] - 2 * x @ y.T
    return shared, own, far


def kernel_variance(k: Mapping[str, Any], a: Mapping[str, Any]) -> np.ndarray:
    """The diagonal of `residual_kernel(k, a, a)`, in squared nats."""
    total = (k["g0"] + k["g1"] * a["excess"]) ** 2 * (k["v1"] ** 2 + k["v2"] ** 2) + k["vc"] ** 2
    if a["fields"].shape[1]:
        total = total + k["vo"] ** 2 + (k["vfs"] ** 2 + k["vf"] ** 2).sum() + k["vx"] ** 2
    return total


def _once(values: Any) -> Any:
    """Values that are all the same as one, which broadcasts: a sweep changes few coordinates, and only those cost."""
    return values[:1] if (values == values[:1]).all() else values


@dataclass(frozen=True, eq=False)
class KernelResidual:
    """The residual of one source: the Gaussian process's mean (Rasmussen & Williams 2006, eq. 2.25).

    Far from the fitted runs it falls to zero.

    Args:
        fields: the hyper-parameters it reads.
        scales: `SCALES` and `FIELD_SCALES` -> value.
        optimizers: names of the runs' optimizers.
        runs: coordinate -> values of the fitted runs; `optimizer` as places in `optimizers`.
        weights: of the fitted runs.
        noise: variance of each fitted run's own noise, in squared nats.
        inputs: the closed form's inputs of the fitted runs, before the coordinates were clipped.
    """

    fields: Sequence[str]
    scales: Mapping[str, Any]
    optimizers: Sequence[str]
    runs: Mapping[str, np.ndarray]
    weights: np.ndarray
    noise: np.ndarray
    inputs: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __call__(self, points: Mapping[str, np.ndarray]) -> np.ndarray:
        """Residuals in nats per token at an `Evaluation`'s points."""
        return np.concatenate(
            [residual_kernel(self._scales, own, self._runs) @ self.weights for _, own in self._slices(points)]
        )

    def gains(self, points: Mapping[str, np.ndarray]) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
        """What each fitted run's residual adds to those at `points`, and the variance that this leaves.

        Yields:
            Rows, their gains (rows, fitted runs), and their variances in squared nats (R & W, eq. 2.26).
        """
        for rows, own in self._slices(points):
            across = residual_kernel(self._scales, own, self._runs)
            gain = across @ self._inverse
            yield rows, gain, kernel_variance(self._scales, own) - (gain * across).sum(1)

    def _slices(self, points: Mapping[str, np.ndarray]) -> Iterator[tuple[slice, dict[str, np.ndarray]]]:
        columns = [list(COORDINATES).index(name) for name in self.fields]
        places = {name: i for i, name in enumerate(self.optimizers)}
        optimizers = np.array([places.get(name, -1) for name in points["optimizer"].tolist()])
        return _few({**points, "optimizer": optimizers, "fields": points["fields"][:, columns]})

    @cached_property
    def _scales(self) -> dict[str, np.ndarray]:
        return {name: np.asarray(value) for name, value in self.scales.items()}

    @cached_property
    def _runs(self) -> dict[str, Any]:
        return {**self.runs, "distinct": distinct_values(self.runs["fields"])}

    @cached_property
    def _inverse(self) -> np.ndarray:
        kernel = np.concatenate([residual_kernel(self._scales, own, self._runs) for _, own in _few(self.runs)])
        return np.linalg.inv(kernel + np.diag(self.noise))

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Self:
        """The residual that `dataclasses.asdict` gave, lists or arrays."""
        runs = {name: np.asarray(values) for name, values in state["runs"].items()}
        runs["fields"] = runs["fields"].reshape(len(state["weights"]), len(state["fields"]))
        inputs = {name: np.asarray(values) for name, values in state["inputs"].items()}
        arrays = {name: np.asarray(state[name]) for name in ("weights", "noise")}
        return cls(**{**state, **arrays, "runs": runs, "inputs": inputs})


def _few(points: Mapping[str, np.ndarray]) -> Iterator[tuple[slice, dict[str, np.ndarray]]]:
    """So few rows at a time that their kernel stays in a core's cache."""
    for i in range(0, len(points["rate"]), 32):
        yield slice(i, i + 32), {name: values[i : i + 32] for name, values in points.items()}
