"""What the runs of one source differ by from the closed-form law: a Gaussian process over their hyper-parameters.

(Rasmussen & Williams 2006, chapter 2.) numpy alone. What it says of the learning rate is kept to one valley.
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
    "seq len": _log2(2048, 2),
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

# Scales that are not fitted: over how many log units of size and data the shared surface fades, so that far from the
# runs the closed form alone is left; and how far the interaction reaches over the learning rate (everywhere: all that
# the kernel says of the rate is in the surface, which `one_valley` can see whole).
FIXED_SCALES = {"wide": 1.5, "lux": 1e9}
# Scale of an adapted source alone (`ncpl.adapt`): growth of its cells' common height with the reducible loss.
MISFIT = "vr"
# Where a surface is looked at over the learning rate, in log units over the best one.
STEP = 0.2
NODES = np.arange(-6.0, 5.0 + STEP / 2, STEP)


def distinct_values(fields: Any) -> list[tuple[Any, Any]]:
    """The distinct values of each hyper-parameter, and which of them each run has.

    Args:
        fields: (runs, hyper-parameters) coordinates.

    Returns:
        For each hyper-parameter (values,) and the indicator (values, runs). Ablations repeat few values, so the kernel
        computes exponentials at these alone.
    """
    tables = []
    for i in range(fields.shape[1]):
        values, place = np.unique(fields[:, i], return_inverse=True)
        tables.append((values, (place.reshape(1, -1) == np.arange(len(values))[:, None]) * 1.0))
    return tables


def residual_kernel(k: Mapping[str, Any], a: Mapping[str, Any], b: Mapping[str, Any]) -> np.ndarray:
    """Covariance of two sets of runs' residuals around the closed form, in squared nats.

    A sum of: the surface over learning rate and batch, whose height grows with the excess over the best run, in part
    common to all sizes and optimizers; what a cell of size and data has in common; each hyper-parameter's own effect;
    and the interaction of all of them.

    Args:
        k: the kernel's scales, `SCALES`, `FIELD_SCALES` and `FIXED_SCALES`.
        a, b: coordinate -> values, as `ConfigurationLaw.evaluate` gives them; `distinct` of b may hold its
            `distinct_values`.
    """
    rate, (shared, own) = _squared(a["rate"], b["rate"]), surfaces(k, a, b)
    surface = shared * np.exp(-0.5 * rate / k["lu"] ** 2) + own * np.exp(-0.5 * rate / k["lu2"] ** 2)
    batch, size, data = (_squared(a[name], b[name]) for name in ("batch", "size", "data"))
    common = np.exp(-0.5 * (size / k["lnc"] ** 2 + data / k["ldc"] ** 2))
    common = _cell_height(k, a)[:, None] * _cell_height(k, b)[None] * common
    total = surface_height(k, a)[:, None] * surface_height(k, b)[None] * surface + common
    if a["fields"].shape[1]:
        same = (_once(a["optimizer"])[:, None] == b["optimizer"][None]) * 1.0
        cell = size / k["ln"] ** 2 + data / k["ld"] ** 2
        effects, within, far = _field_effects(k, a["fields"], b)
        near = rate / k["lux"] ** 2 + batch / k["lb2"] ** 2 + cell
        within = within + k["vo"] ** 2 * np.exp(-0.5 * cell) + k["vx"] ** 2 * np.exp(-0.5 * (near + far))
        total = total + effects + same * within
    return np.broadcast_to(total, (len(a["rate"]), len(b["rate"])))


def surface_height(k: Mapping[str, Any], points: Mapping[str, Any]) -> Any:
    """Standard deviation of the surface over learning rate and batch, before its weights, in nats."""
    return k["g0"] + k["g1"] * points["excess"]


def _cell_height(k: Mapping[str, Any], points: Mapping[str, Any]) -> Any:
    """Standard deviation of what a cell of size and data has in common, in nats.

    What a law gets wrong of a lab that it hardly knows grows with the loss that training removes.
    """
    if MISFIT not in k:
        return np.broadcast_to(k["vc"], 1)
    return k["vc"] + k[MISFIT] * points["reducible"]


def surfaces(k: Mapping[str, Any], a: Mapping[str, Any], b: Mapping[str, Any]) -> tuple[Any, Any]:
    """Correlations of the shared surface and of that of one size and data size, the learning rate aside."""
    batch, size, data = (_squared(a[name], b[name]) for name in ("batch", "size", "data"))
    same = (_once(a["optimizer"])[:, None] == b["optimizer"][None]) * 1.0
    alike = (k["rho"] + same) / (k["rho"] + 1)
    shared = k["v1"] ** 2 * np.exp(-0.5 * (batch / k["lb"] ** 2 + (size + data) / k["wide"] ** 2))
    cell = size / k["ln"] ** 2 + data / k["ld"] ** 2
    return alike * shared, alike * k["v2"] ** 2 * np.exp(-0.5 * (batch / k["lb2"] ** 2 + cell))


def _squared(a: Any, b: Any) -> Any:
    return (_once(a)[:, None] - b[None]) ** 2


def _field_effects(k: Mapping[str, Any], fields: Any, b: Mapping[str, Any]) -> tuple[Any, Any, Any]:
    """The hyper-parameters' effects that optimizers share, those within one, and the interaction's squared distance."""
    tables = b["distinct"] if "distinct" in b else distinct_values(b["fields"])
    near = [
        np.exp(-0.5 * ((fields[:, i, None] - values[None]) / k["lf"][i]) ** 2) for i, (values, _) in enumerate(tables)
    ]
    runs = np.concatenate([indicator for _, indicator in tables], 0)
    shared = np.concatenate([k["vfs"][i] ** 2 * table for i, table in enumerate(near)], 1) @ runs
    own = np.concatenate([k["vf"][i] ** 2 * table for i, table in enumerate(near)], 1) @ runs
    x, y = fields / k["lfx"], b["fields"] / k["lfx"]
    far = (x**2).sum(1)[:, None] + (y**2).sum(1)[None] - 2 * x @ y.T
    return shared, own, far


def one_valley(profile: np.ndarray) -> np.ndarray:
    """The nearest profiles with one valley: they fall to the lowest point, then rise.

    On either side of the lowest point, the mean of the running maximum outward and the running minimum inward.

    Args:
        profile: (rows, points).

    >>> one_valley(np.array([[3.0, 1.0, 0.0, 2.0, 1.0, 4.0]])).tolist()
    [[3.0, 1.0, 0.0, 1.5, 1.5, 4.0]]
    """
    foot, at = profile.argmin(1)[:, None], np.arange(profile.shape[1])[None]
    right, left = np.where(at >= foot, profile, -np.inf), np.where(at <= foot, profile, -np.inf)
    outward = np.where(at >= foot, np.maximum.accumulate(right, 1), np.maximum.accumulate(left[:, ::-1], 1)[:, ::-1])
    right, left = np.where(at >= foot, profile, np.inf), np.where(at <= foot, profile, np.inf)
    inward = np.where(at >= foot, np.minimum.accumulate(right[:, ::-1], 1)[:, ::-1], np.minimum.accumulate(left, 1))
    return (outward + inward) / 2


def onto_valley(profile: np.ndarray, x: np.ndarray, value: np.ndarray) -> np.ndarray:
    """Values at x moved as far as `one_valley` moves the profile there.

    Between two nodes that the same value is left at, so is the result; beyond the nodes nothing moves.

    Args:
        profile: (rows, `NODES`).
        x: (rows,) places over the nodes.
        value: (rows,) of the profile's own function.
    """
    valley, rows = one_valley(profile), np.arange(len(x))
    at = np.clip((x - NODES[0]) / STEP, 0, len(NODES) - 1 - 1e-9)
    node = at.astype(int)
    share = at - node
    moved = valley - profile
    result = value + (1 - share) * moved[rows, node] + share * moved[rows, node + 1]
    ends = valley[rows, node], valley[rows, node + 1]
    foot = valley.argmin(1)
    # The lowest point lies between nodes, as a rule.
    low = np.where((foot == node) | (foot == node + 1), -np.inf, np.minimum(*ends))
    inside = (x > NODES[0]) & (x < NODES[-1])
    return np.where(inside, np.clip(result, low, np.maximum(*ends)), value)


def kernel_variance(k: Mapping[str, Any], a: Mapping[str, Any]) -> np.ndarray:
    """The diagonal of `residual_kernel(k, a, a)`, in squared nats."""
    total = (k["g0"] + k["g1"] * a["excess"]) ** 2 * (k["v1"] ** 2 + k["v2"] ** 2) + _cell_height(k, a) ** 2
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

    def profile(self, points: Mapping[str, np.ndarray], excess: np.ndarray) -> np.ndarray:
        """The surface over the learning rate at `NODES`, in nats: (rows, nodes).

        Args:
            points: an `Evaluation`'s points.
            excess: (rows, nodes) of the closed form there.
        """
        k, runs, over = self._scales, self._runs, self._at_nodes
        found = [
            # Points of one sweep share rows of the kernel, which broadcast.
            np.broadcast_to(
                sum(part @ table for part, table in zip(surfaces(k, own, runs), over, strict=True)),
                (len(own["rate"]), len(NODES)),
            )
            for _, own in self._slices(points)
        ]
        return (k["g0"] + k["g1"] * np.clip(excess, 0.0, 0.5)) * np.concatenate(found)

    def surface(self, points: Mapping[str, np.ndarray]) -> np.ndarray:
        """The surface over learning rate and batch at the points themselves, in nats."""
        k, runs = self._scales, self._runs
        weights, found = surface_height(k, runs) * self.weights, []
        for _, own in self._slices(points):
            rate = _squared(own["rate"], runs["rate"])
            shared, cell = surfaces(k, own, runs)
            sums = (shared * np.exp(-0.5 * rate / k["lu"] ** 2) + cell * np.exp(-0.5 * rate / k["lu2"] ** 2)) @ weights
            found.append(surface_height(k, own) * sums)
        return np.concatenate(found)

    def gains(self, points: Mapping[str, np.ndarray]) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
        """What each fitted run's residual adds to those at `points`, and the variance that this leaves.

        Yields:
            Rows, their gains (rows, fitted runs), and their variances in squared nats (R & W, eq. 2.26).
        """
        for rows, own in self._slices(points):
            across = residual_kernel(self._scales, own, self._runs)
            gain = across @ self._inverse
            yield rows, gain, kernel_variance(self._scales, own) - (gain * across).sum(1)

    def joint(self, points: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """`gains` of all rows at once, with their joint covariance: (rows, fitted runs) and (rows, rows)."""
        own = self._own(points)
        across = residual_kernel(self._scales, own, self._runs)
        gain = across @ self._inverse
        return gain, residual_kernel(self._scales, own, own) - gain @ across.T

    def _slices(self, points: Mapping[str, np.ndarray]) -> Iterator[tuple[slice, dict[str, np.ndarray]]]:
        return _few(self._own(points))

    def _own(self, points: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """An `Evaluation`'s points with the optimizers' places and the fields that this residual reads."""
        columns = [list(COORDINATES).index(name) for name in self.fields]
        places = {name: i for i, name in enumerate(self.optimizers)}
        optimizers = np.array([places.get(name, -1) for name in points["optimizer"].tolist()])
        return {**points, "optimizer": optimizers, "fields": points["fields"][:, columns]}

    @cached_property
    def shortest_decay(self) -> float:
        """The least decay of a fitted run, a share of the run; what a shorter one gains is not known here."""
        decays = self.runs["fields"][:, list(self.fields).index("decay")] if "decay" in self.fields else np.zeros(1)
        whole = COORDINATES["decay"](1.0)
        return float(decays[decays > 0].min(initial=whole)) / whole

    @cached_property
    def _scales(self) -> dict[str, np.ndarray]:
        return {name: np.asarray(value) for name, value in self.scales.items()}

    @cached_property
    def _runs(self) -> dict[str, Any]:
        return {**self.runs, "distinct": distinct_values(self.runs["fields"])}

    @cached_property
    def _at_nodes(self) -> list[np.ndarray]:
        """The fitted runs' weights times both surfaces' kernels over the learning rate, (fitted runs, nodes) each."""
        k, runs = self._scales, self._runs
        weights = surface_height(k, runs) * self.weights
        rate = _squared(runs["rate"], np.clip(NODES, -5.0, 4.0))
        return [weights[:, None] * np.exp(-0.5 * rate / k[name] ** 2) for name in ("lu", "lu2")]

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
