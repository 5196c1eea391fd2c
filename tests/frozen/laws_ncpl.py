"""Closed-form scaling laws: what a run's final loss is before any network has seen it.

Every law maps configurations (mappings of the prompt's fields) to losses in nats per token, and is plain data:
`to_dict` writes it into a processor's JSON, `law_from_dict` reads it back. `N` is the model size in million non-
embedding parameters and `D` the data size in billion tokens, as in the configurations themselves.
"""

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from difflib import get_close_matches
from functools import cached_property
from typing import Any, Self

import numpy as np

# a N^-alpha + b D^-beta + c, as published with NCPL (arXiv 2602.10300): N in million parameters, D in billion tokens.
PUBLISHED_CHINCHILLA: dict[str, tuple[float, float, float, float, float]] = {
    "marin": (3.997941824442712, 0.44174138432888976, 0.8251456329446542, 0.1676451054204669, 2.2814165287450208),
    "steplaw": (1.85240120191131, 0.12576480455477607, 0.7308261081070557, 0.3337389553968635, 1.2122888212135527),
}


@dataclass(frozen=True)
class ChinchillaLaw:
    """`a N^-alpha + b D^-beta + c` for each source (Hoffmann et al. 2022, eq. 2; coefficients of arXiv 2602.10300).

    Args:
        coefficients: source -> (a, alpha, b, beta, c), for N in million parameters and D in billion tokens; the value
            is a loss in nats per token.

    >>> law = ChinchillaLaw()
    >>> law([{"source": "steplaw", "model size": 214.66368, "data size": 11.4}]).round(4).tolist()
    [2.4796]
    """

    coefficients: Mapping[str, Sequence[float]] = field(default_factory=lambda: dict(PUBLISHED_CHINCHILLA))

    def __call__(self, configs: Sequence[Mapping[str, Any]]) -> np.ndarray:
        """Losses in nats per token, one for each configuration.

        Raises:
            ValueError: a configuration's source has no coefficients.
        """
        losses = np.empty(len(configs))
        for i, config in enumerate(configs):
            a, alpha, b, beta, c = self._of_source(config["source"])
            losses[i] = a * config["model size"] ** -alpha + b * config["data size"] ** -beta + c
        return losses

    def _of_source(self, source: str) -> Sequence[float]:
        if source not in self.coefficients:
            near = get_close_matches(str(source), self.coefficients, 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(
                f"source: {source!r} has no Chinchilla coefficients, known: {sorted(self.coefficients)}{hint}"
            )
        return self.coefficients[source]

    def to_dict(self) -> dict[str, Any]:
        return {"law": "chinchilla", **asdict(self)}


# Kaplan et al. 2020 (arXiv 2001.08361, eq. 1.5): N_c in million non-embedding parameters, alpha_N, D_c in billion
# tokens, alpha_D.
PUBLISHED_KAPLAN: tuple[float, float, float, float] = (8.8e7, 0.076, 5.4e4, 0.095)


@dataclass(frozen=True)
class KaplanLaw:
    """`((N_c / N)^(alpha_N / alpha_D) + D_c / D)^alpha_D` (Kaplan et al. 2020, arXiv 2001.08361, eq. 1.5).

    Args:
        coefficients: source -> (N_c in million parameters, alpha_N, D_c in billion tokens, alpha_D); any other source
            gets the paper's own, whose data and tokenizer are WebText2's.

    >>> KaplanLaw()([{"source": "mine", "model size": 1000, "data size": 20}]).round(2).tolist()
    [2.44]
    """

    coefficients: Mapping[str, Sequence[float]] = field(default_factory=dict)

    def __call__(self, configs: Sequence[Mapping[str, Any]]) -> np.ndarray:
        """Losses in nats per token, one for each configuration."""
        losses = np.empty(len(configs))
        for i, config in enumerate(configs):
            n_c, alpha_n, d_c, alpha_d = self.coefficients.get(str(config.get("source")), PUBLISHED_KAPLAN)
            size, data = (n_c / config["model size"]) ** (alpha_n / alpha_d), d_c / config["data size"]
            losses[i] = (size + data) ** alpha_d
        return losses

    def to_dict(self) -> dict[str, Any]:
        return {"law": "kaplan", **asdict(self)}


@dataclass(frozen=True)
class StepLaw:
    """The best learning rate and batch size of AdamW (Li et al. 2025, arXiv 2503.04715): power laws in size and data.

    Args:
        rate: (factor, exponent of parameters, exponent of tokens) of the peak learning rate.
        batch: (factor, exponent of tokens) of the batch in tokens.

    >>> config = {"source": "steplaw", "model size": 429.26, "data size": 50}
    >>> StepLaw().learning_rate([config]).round(5).tolist(), StepLaw().batch_size([config]).round().tolist()
    ([0.00241], [364.0])
    """

    rate: Sequence[float] = (1.79, -0.713, 0.307)
    batch: Sequence[float] = (0.58, 0.571)

    def learning_rate(self, configs: Sequence[Mapping[str, Any]]) -> np.ndarray:
        """Best peak learning rates."""
        factor, size, data = self.rate
        return np.array([factor * (c["model size"] * 1e6) ** size * (c["data size"] * 1e9) ** data for c in configs])

    def batch_size(self, configs: Sequence[Mapping[str, Any]]) -> np.ndarray:
        """Best batch sizes in sequences."""
        factor, data = self.batch
        return np.array([factor * (c["data size"] * 1e9) ** data / sequence_length(c) for c in configs])


# Tokens a sequence in each source's runs, which no log states.
SEQ_LEN = {"marin": 4096, "steplaw": 2048, "steplaw_moe": 2048}
# Entries of each source's vocabulary, which no log states either, and of any other's.
VOCABULARY = {"marin": 128_256, "steplaw": 65_536, "steplaw_moe": 65_536, "": 65_536}
# Where the logarithms of the configuration-aware law are zero.
REFERENCE = {"model size": 300.0, "data size": 20.0, "batch tokens": 2.0**19, "learning rate": 2e-3}
# Residual width of a model of the reference size where nothing is known of it; it goes with the root of the size.
WIDTH = 1024.0
# Source -> one whose lab, data and evaluation set it shares: its deviations start from that one's.
KIN = {"steplaw_moe": "steplaw"}


def sequence_length(config: Mapping[str, Any]) -> float:
    """Tokens a sequence: the configuration's own, else its source's, else 2048."""
    return float(config.get("seq len") or SEQ_LEN.get(str(config.get("source")), 2048))


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


# Nats that the rough side of the learning rate costs a run that finishes, at most.
_SATURATION = 0.4


def closed_form(c: Mapping[str, Any], n: Any, d: Any, b: Any, rate: Any, xp: Any = np) -> dict[str, Any]:
    """The configuration-aware law, for numpy and torch alike.

        L = E + A e^(-alpha n) + B e^(growth n - (beta + beta_n n) (d + eff))
            + valley(x) + edge(u) + setback(rate) + floor(b) + waste(b)

    The data term grows with size, as in every lab's runs at hand (docs/experiments.md). `valley` is zero at the best
    learning rate (hyperbola below it, exponential above), `edge` rises where training turns rough, `setback` is the
    data that runs lose which blow up early and recover (a step in the learning rate), `floor` is the noise of small
    batches, and `waste` the data that batches over the critical size throw away. Their positions and heights are power
    laws of size, data and batch.

    Args:
        c: coefficient -> its value for each run.
        n, d, b, rate: logarithms of `effective_size`, data size, batch tokens and peak learning rate over `REFERENCE`.
        xp: numpy or torch.

    Returns:
        `loss` and its part `excess` (valley, edge, setback, floor, waste) in nats per token, and where the rate lies:
        `valley`, log over the best one, and `edge`, log over the one where training turns rough.
    """

    def power(name: str) -> Any:
        return c[name] + c[f"{name}_n"] * n + c[f"{name}_d"] * d + c[f"{name}_b"] * b

    x = xp.clip(rate - power("lr"), -6.0, 5.0)
    u = rate - power("edge")
    width, steep = xp.exp(c["width"]), xp.exp(c["steep"])
    low = xp.exp(power("low")) * (xp.sqrt(x * x + width * width) - width)
    high = xp.exp(power("high")) * (xp.exp(xp.clip(steep * x, -40.0, 6.0)) - 1 - steep * x)
    edge = xp.exp(xp.clip(xp.exp(c["rough"]) * u - 4, -60.0, 0.5))
    seen = d + c["eff"] + c["eff_n"] * n + c["eff_d"] * d
    data = xp.exp(c["logB"] + c["growth"] * n - (c["beta"] + c["beta_n"] * n) * seen)
    over = b - (c["crit"] + c["crit_n"] * n + c["crit_d"] * d)
    doubled = xp.log1p(xp.exp(-abs(over))) + (over + abs(over)) / 2
    waste = data * (xp.exp(c["beta"] * doubled) - 1)
    blown = 1 / (1 + xp.exp(-xp.clip(xp.exp(c["sharp"]) * (rate - power("blow")), -40.0, 40.0)))
    lost = xp.exp(c["lost"] + c["lost_d"] * d + c["lost_b"] * b) * blown
    setback = data * (xp.exp(c["beta"] * lost) - 1)
    # A run that goes on rising diverges and has no loss: what finishes saturates.
    rough = _SATURATION * (1 - xp.exp(-(high + edge + setback) / _SATURATION))
    excess = low + rough + xp.exp(power("floor")) + waste
    loss = c["E"] + c["offset"] + xp.exp(c["logA"] - c["alpha"] * n) + data + excess
    return {"loss": loss, "excess": excess, "valley": x, "edge": u}


def effective_size(c: Mapping[str, Any], active: Any, idle: Any, head: Any, xp: Any = np) -> Any:
    """Logarithm over `REFERENCE` of the size that a model is worth.

    The output head counts in part (Porian et al. 2024; docs/experiments.md), idle experts by a power (Clark et al.
    2022).

    Args:
        c: coefficient -> its value for each run.
        active: logarithm of the active parameters over `REFERENCE`.
        idle: logarithm of all parameters over the active ones, 0 of a dense model.
        head: parameters of the output head over the active ones.
        xp: numpy or torch.
    """
    return active + c["experts"] * idle + xp.log1p(c["head"] * head)


# What `law_terms` reads of a run: `effective_size`'s arguments and `closed_form`'s.
INPUTS = ("active", "idle", "head", "d", "b", "rate")


def law_terms(c: Mapping[str, Any], runs: Mapping[str, Any], xp: Any = np) -> dict[str, Any]:
    """`closed_form` at runs, with their effective `size`; a rate that is NaN is the best one.

    Args:
        c: coefficient -> its value for each run.
        runs: `INPUTS` -> values.
        xp: numpy or torch.
    """
    n, d, b = effective_size(c, runs["active"], runs["idle"], runs["head"], xp), runs["d"], runs["b"]
    best = c["lr"] + c["lr_n"] * n + c["lr_d"] * d + c["lr_b"] * b
    return closed_form(c, n, d, b, xp.where(xp.isnan(runs["rate"]), best, runs["rate"]), xp) | {"size": n}


def gradient(c: Mapping[str, Any], runs: Mapping[str, Any]) -> Any:
    """Derivatives of the closed form by its coefficients.

    Args:
        c: coefficient -> its value for each run, tensors.
        runs: `INPUTS` -> values, tensors.

    Returns:
        (runs, coefficients), tensor.
    """
    import torch

    with torch.inference_mode(False), torch.enable_grad():
        table = torch.stack([value.expand(len(runs["d"])) for value in c.values()], 1).detach().requires_grad_(True)
        # A run's loss hangs on its own coefficients alone, so one pass backward gives the derivatives of all runs.
        losses = law_terms(dict(zip(c, table.unbind(1), strict=True)), runs, torch)["loss"]
        return torch.autograd.grad(losses.sum(), table)[0]


def residual_kernel(k: Mapping[str, Any], a: Mapping[str, Any], b: Mapping[str, Any], xp: Any = np) -> Any:
    """Covariance of two sets of runs' residuals around the closed form, in squared nats, for numpy and torch alike.

    A sum of: the surface over learning rate and batch, whose height grows with the excess over the best run, in part
    common to all sizes and optimizers; what a cell of size and data has in common; each hyper-parameter's own effect;
    and the interaction of all of them.

    Args:
        k: the kernel's scales, see `KernelResidual`.
        a, b: coordinate -> values, as `ConfigurationLaw.points` gives them.
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
        own, far = same * k["vo"] ** 2 * xp.exp(-0.5 * cell), 0.0
        for i in range(a["fields"].shape[1]):
            step = squared(a["fields"][:, i], b["fields"][:, i])
            own = own + (k["vfs"][i] ** 2 + same * k["vf"][i] ** 2) * xp.exp(-0.5 * step / k["lf"][i] ** 2)
            far = far + step / k["lfx"][i] ** 2
        total = total + own + same * k["vx"] ** 2 * xp.exp(-0.5 * (near + far))
    return xp.broadcast_to(total, (len(a["rate"]), len(b["rate"])))


def _once(values: Any) -> Any:
    """Values that are all the same as one, which broadcasts: a sweep changes few coordinates, and only those cost."""
    return values[:1] if (values == values[:1]).all() else values


@dataclass(frozen=True)
class KernelResidual:
    """What the runs of one source differ by from the closed form: a Gaussian process's mean.

    (Rasmussen & Williams 2006, eq. 2.25.) Far from the fitted runs it falls to zero.

    Args:
        fields: the hyper-parameters it reads.
        scales: the kernel's heights (nats) and lengths (log units).
        runs: coordinate -> values of the fitted runs.
        weights: of the fitted runs.
        noise: variance of each fitted run's own noise, in squared nats.
    """

    fields: Sequence[str]
    scales: Mapping[str, Any]
    runs: Mapping[str, Sequence[Any]]
    weights: Sequence[float]
    noise: Sequence[float]

    def __call__(self, points: Mapping[str, np.ndarray]) -> np.ndarray:
        """Residuals in nats per token at `ConfigurationLaw.points`."""
        scales, runs = self._arrays
        weights = np.asarray(self.weights)
        return np.concatenate([residual_kernel(scales, own, runs) @ weights for _, own in self._slices(points)])

    def gains(self, points: Mapping[str, np.ndarray]) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
        """What each fitted run's residual adds to those at `points`, and the variance that this leaves.

        Yields:
            Rows, their gains (rows, fitted runs), and their variances in squared nats (R & W, eq. 2.26).
        """
        scales, runs = self._arrays
        for rows, own in self._slices(points):
            across = residual_kernel(scales, own, runs)
            gain = across @ self._inverse
            yield rows, gain, np.diagonal(residual_kernel(scales, own, own)) - (gain * across).sum(1)

    def _slices(self, points: Mapping[str, np.ndarray]) -> Iterator[tuple[slice, dict[str, np.ndarray]]]:
        columns = [list(COORDINATES).index(name) for name in self.fields]
        return _few({**points, "fields": points["fields"][:, columns]})

    @cached_property
    def _arrays(self) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        runs = {name: np.asarray(values) for name, values in self.runs.items()}
        runs["fields"] = runs["fields"].reshape(len(self.weights), len(self.fields))
        return {name: np.asarray(value) for name, value in self.scales.items()}, runs

    @cached_property
    def _inverse(self) -> np.ndarray:
        scales, runs = self._arrays
        kernel = np.concatenate([residual_kernel(scales, own, runs) for _, own in _few(runs)])
        return np.linalg.inv(kernel + np.diag(self.noise))


def _few(points: Mapping[str, np.ndarray]) -> Iterator[tuple[slice, dict[str, np.ndarray]]]:
    """So few rows at a time that their kernel stays in a core's cache."""
    for i in range(0, len(points["rate"]), 32):
        yield slice(i, i + 32), {name: values[i : i + 32] for name, values in points.items()}


@dataclass(frozen=True)
class ConfigurationLaw:
    """A scaling law that reads the whole configuration: a closed form and, where fitted, a residual for each source.

    Every coefficient is a common value plus the source's and the optimizer's deviation from it, so that an unknown
    source or optimizer gets the common value; that is warned of once, and `fallbacks` says it for a configuration.

    Args:
        common: coefficient -> value.
        sources: source -> coefficient -> deviation.
        optimizers: optimizer -> coefficient -> deviation.
        typical: source -> optimizer -> field -> value that stands in where a configuration leaves the field out;
            optimizer `""` holds the source's own. A learning rate that is left out is the law's best.
        residuals: source -> its residual.
        posterior: rows of the lower Cholesky factor of the coefficients' covariance, in the order of `columns`.

    >>> law = ConfigurationLaw.example()
    >>> config = {"source": "mine", "model size": 300, "data size": 20, "optimizer": "adamw", "learning rate": 2e-3,
    ...           "batch size": 256}
    >>> law.closed_form([config, config | {"data size": 40}]).round(3).tolist()
    [2.816, 2.751]
    """

    common: Mapping[str, float]
    sources: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    optimizers: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    typical: Mapping[str, Mapping[str, Mapping[str, Any]]] = field(default_factory=dict)
    residuals: Mapping[str, KernelResidual] = field(default_factory=dict)
    posterior: Sequence[Sequence[float]] = ()

    @classmethod
    def example(cls) -> Self:
        """The law with every coefficient at its prior mean and no data behind it."""
        return cls({name: prior.mean for name, prior in PRIORS.items()})

    def __call__(self, configs: Sequence[Mapping[str, Any]]) -> np.ndarray:
        """Losses in nats per token, one for each configuration.

        Raises:
            ValueError: a configuration without model size or data size.
        """
        for note in {note: None for config in configs for note in self.fallbacks(config)}:
            warnings.warn(note, stacklevel=2)
        return self._losses(configs, self._inputs(configs))

    def _losses(self, configs: Sequence[Mapping[str, Any]], inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        terms = law_terms(self._coefficients(configs), inputs)
        points, losses = self._points(configs, inputs, terms), terms["loss"].copy()
        for rows, residual, own in self._by_source(configs, points):
            losses[rows] += residual(own)
        return losses

    def closed_form(self, configs: Sequence[Mapping[str, Any]]) -> np.ndarray:
        """Losses without the residual, in nats per token."""
        return self.points(configs)[1]["loss"]

    def uncertainty(self, configs: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
        """What the losses' uncertainty is made of, in nats per token.

        Returns:
            `known`, the standard deviation under the fit's posterior, of coefficients and residual together but
            without the runs' own noise (universal kriging, R & W, eq. 2.42): it grows away from the fitted runs, and
            what is not known of another source or optimizer is as wide as its prior. `excess`, how far the
            configuration lies above the best run of its size and data size.
        """
        inputs, c = self._inputs(configs), self._coefficients(configs)
        by_coefficient = _slopes(c, inputs)
        slopes, variance = self._spread(by_coefficient, configs), np.zeros(len(configs))
        for name, known in (("source", self.sources), ("optimizer", self.optimizers)):
            strange = np.array([str(config.get(name)) not in known for config in configs], dtype=bool)
            spread = np.array([getattr(PRIORS[coefficient], name) for coefficient in c])
            variance += strange * ((by_coefficient * spread) ** 2).sum(1)
        points = self._points(configs, inputs, law_terms(c, inputs))
        for rows, residual, own in self._by_source(configs, points):
            fitted = self._fitted_slopes[str(configs[int(rows[0])].get("source"))]
            for some, gain, left in residual.gains(own):
                slopes[rows[some]] -= gain @ fitted
                variance[rows[some]] += left
        known = np.sqrt(np.maximum(variance, 1e-10) + ((slopes @ self._root) ** 2).sum(1))
        return {"known": known, "excess": points["excess"]}

    def risk(self, configs: Sequence[Mapping[str, Any]]) -> np.ndarray:
        """What not knowing the best learning rate's place exactly adds to the losses to expect, in nats per token.

        To within its standard error that is, by three points of Gauss-Hermite quadrature. The valley of the learning
        rate is steeper on its high side, so that the run with the lowest forecast is not quite the one to bet on.
        """
        inputs, c = self._inputs(configs), self._coefficients(configs)
        n, ones = law_terms(c, inputs)["size"], np.ones(len(configs))
        moved = {"lr": ones, "lr_n": n, "lr_d": inputs["d"], "lr_b": inputs["b"]}
        place = np.stack([moved.get(name, 0 * ones) for name in c], 1)
        error = np.sqrt(((self._spread(place, configs) @ self._root) ** 2).sum(1))
        low, middle, high = (
            self._losses(configs, inputs | {"rate": inputs["rate"] + shift * error}) for shift in (-(3**0.5), 0, 3**0.5)
        )
        return (low - 2 * middle + high) / 6

    @property
    def columns(self) -> list[tuple[str, str, str]]:
        """(kind, group, coefficient) of what was fitted: common values, deviations by source, by optimizer."""
        groups = [("common", "common", self.common)]
        groups += [("source", name, self.sources[name]) for name in sorted(self.sources)]
        groups += [("optimizer", name, self.optimizers[name]) for name in sorted(self.optimizers)]
        return [(kind, group, name) for kind, group, names in groups for name in sorted(names)]

    @property
    def standard_errors(self) -> dict[str, dict[str, float]]:
        """`"common"`, source or optimizer -> coefficient -> standard error."""
        errors: dict[str, dict[str, float]] = {}
        for (_, group, name), error in zip(self.columns, np.sqrt((self._root**2).sum(1)), strict=True):
            errors.setdefault(group, {})[name] = float(error)
        return errors

    @cached_property
    def _root(self) -> np.ndarray:
        root = np.zeros((len(self.posterior), len(self.posterior)))
        for i, row in enumerate(self.posterior):
            root[i, : i + 1] = row
        return root

    def _spread(self, by_coefficient: np.ndarray, configs: Sequence[Mapping[str, Any]]) -> np.ndarray:
        """(configurations, columns) from (configurations, coefficients): a run moves with its own groups alone."""
        kinds = [(str(config.get("source")), str(config.get("optimizer"))) for config in configs]
        order, columns = list(self.common), self.columns
        moves = {
            (source, optimizer): [
                {"common": True, "source": group in own, "optimizer": group == optimizer}[kind]
                for kind, group, _ in columns
            ]
            for source, optimizer in set(kinds)
            # The deviations of a source that was not fitted are not its kin's but nought.
            for own in [(source, KIN.get(source)) if source in self.sources else ()]
        }
        mine = np.array([moves[kind] for kind in kinds]).reshape(len(kinds), len(columns))
        return by_coefficient[:, [order.index(name) for _, _, name in columns]] * mine

    @cached_property
    def _fitted_slopes(self) -> dict[str, np.ndarray]:
        """`uncertainty`'s slopes at each source's fitted runs."""
        slopes = {}
        for source, residual in self.residuals.items():
            runs = {name: np.asarray(values) for name, values in residual.runs.items() if name != "fields"}
            kinds = [{"source": source, "optimizer": name} for name in runs["optimizer"]]
            c = self._coefficients(kinds)
            n, d, b = runs["size"], runs["data"], runs["batch"] + 0.4 * runs["data"]
            active = n - effective_size(c, 0.0, runs["idle"], runs["head"])
            rate = runs["rate"] + c["edge"] + c["edge_n"] * n + c["edge_d"] * d + c["edge_b"] * b
            inputs = dict(zip(INPUTS, (active, runs["idle"], runs["head"], d, b, rate), strict=True))
            slopes[source] = self._spread(_slopes(c, inputs), kinds)
        return slopes

    def fallbacks(self, config: Mapping[str, Any]) -> list[str]:
        """Says where a configuration gets common values because its source or optimizer is not among the fitted."""
        return [
            f"{name}: {config.get(name)!r} is not among the fitted ({', '.join(sorted(known))}); common values stand in"
            for name, known in (("source", self.sources), ("optimizer", self.optimizers))
            if known and str(config.get(name)) not in known
        ]

    def points(self, configs: Sequence[Mapping[str, Any]]) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """The residual's coordinates and `law_terms`, a value for each configuration."""
        inputs = self._inputs(configs)
        terms = law_terms(self._coefficients(configs), inputs)
        return self._points(configs, inputs, terms), terms

    def _inputs(self, configs: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
        """`INPUTS` and `COORDINATES` of configurations."""
        rows = [self._row(config) for config in configs]
        columns = np.array([row[:-1] for row in rows]).reshape(-1, len(INPUTS)).T
        fields = np.array([row[-1] for row in rows]).reshape(len(rows), len(COORDINATES))
        return dict(zip(INPUTS, columns, strict=True)) | {"fields": fields}

    def _points(
        self, configs: Sequence[Mapping[str, Any]], inputs: Mapping[str, np.ndarray], terms: Mapping[str, np.ndarray]
    ) -> dict[str, np.ndarray]:
        optimizers = np.array([str(config.get("optimizer")) for config in configs])
        return locate(terms, inputs) | {"optimizer": optimizers, "fields": inputs["fields"]}

    def _by_source(
        self, configs: Sequence[Mapping[str, Any]], points: Mapping[str, np.ndarray]
    ) -> Iterator[tuple[np.ndarray, KernelResidual, dict[str, np.ndarray]]]:
        """The configurations of each source with a residual: which they are, the residual, their coordinates."""
        sources = np.array([str(config.get("source")) for config in configs])
        for source, residual in self.residuals.items():
            rows = np.flatnonzero(sources == source)
            if len(rows):
                yield rows, residual, {name: values[rows] for name, values in points.items()}

    def _coefficients(self, configs: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
        kinds = [(str(config.get("source")), str(config.get("optimizer"))) for config in configs]
        values = {
            (source, optimizer): [
                value + self.sources.get(source, {}).get(name, 0.0) + self.optimizers.get(optimizer, {}).get(name, 0.0)
                for name, value in self.common.items()
            ]
            for source, optimizer in set(kinds)
        }
        return dict(
            zip(self.common, np.array([values[kind] for kind in kinds]).reshape(-1, len(self.common)).T, strict=True)
        )

    def _row(self, config: Mapping[str, Any]) -> tuple[float, float, float, float, float, float, list[float]]:
        """A configuration's `INPUTS` and `COORDINATES`."""
        for name in ("model size", "data size"):
            if config.get(name) is None:
                raise ValueError(
                    f"{name}: missing, the law needs it (million non-embedding parameters, billion tokens)"
                )
        source = str(config.get("source"))
        usual, coordinates = self._usual(source, str(config.get("optimizer")))
        read = {name: value for name, value in config.items() if value is not None}
        data = float(read["data size"])
        tokens = float(read.get("batch size", usual.get("batch size", 256))) * sequence_length(read)
        rate = float(read.get("learning rate", math.nan))
        fields = coordinates | {name: COORDINATES[name](value) for name, value in read.items() if name in COORDINATES}
        if "warmup" in fields:
            steps = float(read.get("warmup", usual.get("warmup", 0)))
            fields["warmup"] = COORDINATES["warmup"](steps * tokens / (data * 1e9))
        if "adam_lr" in fields:
            # Without a learning rate the Adam part keeps its usual share of it.
            whole = float(usual.get("learning rate", math.nan)) if math.isnan(rate) else rate
            own = float(read.get("adam_lr", usual.get("adam_lr", 0)))
            fields["adam_lr"] = COORDINATES["adam_lr"](own / whole if whole > 0 else 0.3)
        size = float(read["model size"])
        active = float(read.get("active size", size))
        width = float(read.get("hidden dim") or _usual_width(self.typical.get(source, {}), active))
        return (
            math.log(active / REFERENCE["model size"]),
            math.log(size / active),
            VOCABULARY.get(source, VOCABULARY[""]) * width / (active * 1e6),
            math.log(data / REFERENCE["data size"]),
            math.log(tokens / REFERENCE["batch tokens"]),
            math.log(rate / REFERENCE["learning rate"]),
            [fields.get(name, 0.0) for name in COORDINATES],
        )

    def _usual(self, source: str, optimizer: str) -> tuple[Mapping[str, Any], dict[str, float]]:
        """What stands in where a configuration of this kind leaves fields out: values, and `COORDINATES`."""
        if (source, optimizer) not in self._usuals:
            typical = self.typical.get(source, {})
            usual = typical.get(optimizer, typical.get("", {}))
            coordinates = {name: to(usual[name]) for name, to in COORDINATES.items() if name in usual}
            self._usuals[source, optimizer] = usual, coordinates
        return self._usuals[source, optimizer]

    @cached_property
    def _usuals(self) -> dict[tuple[str, str], tuple[Mapping[str, Any], dict[str, float]]]:
        return {}

    def to_dict(self) -> dict[str, Any]:
        return {"law": "configuration", **asdict(self)}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Self:
        residuals = {source: KernelResidual(**values) for source, values in state.get("residuals", {}).items()}
        return cls(**{**state, "residuals": residuals})


def _usual_width(typical: Mapping[str, Mapping[str, Any]], active: float) -> float:
    """Residual width of a model of so many million active parameters where the configuration does not say."""
    at_reference = typical.get("", {}).get("hidden dim", WIDTH)
    return float(at_reference) * math.sqrt(active / REFERENCE["model size"])


def _slopes(c: Mapping[str, np.ndarray], inputs: Mapping[str, np.ndarray]) -> np.ndarray:
    """`gradient` of arrays."""
    import torch

    return gradient(
        {name: torch.tensor(values) for name, values in c.items()},
        {name: torch.tensor(inputs[name]) for name in INPUTS},
    ).numpy()


def locate(terms: Mapping[str, Any], runs: Mapping[str, Any], xp: Any = np) -> dict[str, Any]:
    """The residual's coordinates: rate over the rough edge, batch over its drift with data, size, data, excess.

    Beside them what else of a run its size is made of.
    """
    return {
        "rate": xp.clip(terms["edge"], -5.0, 3.0),
        "batch": runs["b"] - 0.4 * runs["d"],
        "size": terms["size"],
        "data": runs["d"],
        "excess": xp.clip(terms["excess"], 0.0, 0.5),
        "idle": runs["idle"],
        "head": runs["head"],
    }


@dataclass(frozen=True)
class Prior:
    """A Gaussian prior of one coefficient: mean and standard deviation of the common value, and of the deviations."""

    mean: float
    sd: float
    source: float = 0.0
    optimizer: float = 0.0


def _power(
    name: str, mean: float, n: Prior, d: Prior, b: Prior, spread: float = 1.0, optimizer: float = 0.0
) -> dict[str, Prior]:
    return {name: Prior(mean, spread, spread, optimizer), f"{name}_n": n, f"{name}_d": d, f"{name}_b": b}


# What is believed before the fit. `alpha` and `beta` centre on what other labs' runs give alone
# (docs/experiments.md); exponents with size are held tighter than the rest, because two or three sizes hardly
# identify them and they decide the extrapolation.
PRIORS: dict[str, Prior] = {
    "E": Prior(2.0, 1.0, 0.5),
    "logA": Prior(-0.6, 0.5, 0.3),
    "alpha": Prior(0.28, 0.05, 0.03),
    "logB": Prior(-1.4, 0.5, 0.4),
    "beta": Prior(0.38, 0.06, 0.05),
    # How the data term grows with size, by its height and by its exponent: the means of other labs' fits.
    "growth": Prior(0.11, 0.12, 0.05),
    "beta_n": Prior(0.035, 0.05, 0.02),
    # What the idle experts are worth, and the share of the output head that counts: the mean of other labs' fits.
    "experts": Prior(0.3, 0.15),
    "head": Prior(0.3, 0.3),
    # Optimizers: data efficiency (log), its drift with size and data, and an offset in nats.
    "eff": Prior(0.0, 0.01, 0.0, 0.4),
    "eff_n": Prior(0.0, 0.01, 0.0, 0.1),
    "eff_d": Prior(0.0, 0.01, 0.0, 0.12),
    "offset": Prior(0.0, 0.001, 0.0, 0.02),
    **_power(
        "lr", 0.0, Prior(-0.4, 0.15, 0.15, 0.05), Prior(0.1, 0.2, 0.2, 0.05), Prior(0.4, 0.2, 0.2, 0.05), 1.0, 1.0
    ),
    **_power("low", -4.0, Prior(0.0, 0.05, 0.03), Prior(-0.1, 0.1, 0.1), Prior(0.1, 0.2, 0.2), 1.0, 0.5),
    "width": Prior(0.0, 0.3, 0.3),
    **_power("high", -4.0, Prior(0.0, 0.05, 0.03), Prior(-0.1, 0.1, 0.1), Prior(0.0, 0.2, 0.2), 1.0, 0.5),
    "steep": Prior(-0.2, 0.3, 0.3),
    **_power("edge", 1.5, Prior(-0.6, 0.2, 0.1), Prior(0.1, 0.2, 0.2), Prior(0.2, 0.2, 0.2), 1.0, 1.0),
    "rough": Prior(0.5, 0.4, 0.3),
    # Where runs blow up early, how sharply that sets in, and the logarithm of data (in log units) that they lose.
    **_power("blow", 0.8, Prior(-0.6, 0.2, 0.1), Prior(0.0, 0.2, 0.1), Prior(0.0, 0.2, 0.1), 0.7, 0.7),
    "sharp": Prior(1.8, 0.5, 0.3),
    "lost": Prior(-1.2, 0.7, 0.5),
    "lost_d": Prior(0.0, 0.2, 0.1),
    "lost_b": Prior(0.0, 0.2, 0.1),
    **_power("floor", -5.0, Prior(0.0, 0.05, 0.03), Prior(0.2, 0.1, 0.1), Prior(-1.0, 0.2, 0.2), 0.5),
    "crit": Prior(1.5, 0.7, 0.7, 0.4),
    "crit_n": Prior(0.0, 0.1, 0.05),
    "crit_d": Prior(0.3, 0.15, 0.15),
}


@dataclass(frozen=True)
class Trees:
    """A boosted ensemble of binary trees on a logistic scale, as parallel arrays over all nodes.

    Args:
        start: log odds before the first tree.
        roots: the first node of each tree.
        feature, threshold: of a node's question, value <= threshold; feature -1 marks a leaf.
        left, right: nodes that answer yes and no.
        value: a leaf's log odds.
    """

    start: float
    roots: Sequence[int]
    feature: Sequence[int]
    threshold: Sequence[float]
    left: Sequence[int]
    right: Sequence[int]
    value: Sequence[float]

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """Probabilities, one for each row of features."""
        roots, feature, threshold, left, right, value = self._arrays
        rows = np.arange(len(features))[:, None]
        at = np.tile(roots, (len(features), 1))
        while (asking := feature[at] >= 0).any():
            yes = features[rows, np.maximum(feature[at], 0)] <= threshold[at]
            at = np.where(asking, np.where(yes, left[at], right[at]), at)
        return 1 / (1 + np.exp(-self.start - value[at].sum(1)))

    @cached_property
    def _arrays(self) -> tuple[np.ndarray, ...]:
        return tuple(map(np.asarray, (self.roots, self.feature, self.threshold, self.left, self.right, self.value)))


@dataclass(frozen=True)
class Calibration:
    """How far to trust a forecast: intervals, the probability to diverge, and the distance from the training runs.

    A loss's standard deviation is the root of the sum of three squares: scale["known"] times the law's own
    `uncertainty`, which grows outside the training runs; scale["excess"] times how far the configuration lies above the
    best run of its size and data size; and scale["noise"]. An interval is the loss plus and minus that standard
    deviation times the quantile of the same ratio over runs that were forecast while held out (split conformal,
    Papadopoulos et al. 2002), so its coverage does not rest on the normal law.

    Args:
        law: a fitted `ConfigurationLaw`.
        envelope: source -> field -> (lowest, highest) of the training runs.
        scale: source -> the standard deviation's constants.
        scores: source -> ascending quantiles of |error| / standard deviation, evenly spaced from 0 to 1.
        trees: divergence, over `divergence_features`.
        optimizers: optimizer -> its usual learning rate's logarithm.

    `source` `""` stands in for any other source.
    """

    law: ConfigurationLaw
    envelope: Mapping[str, Mapping[str, Sequence[float]]]
    scale: Mapping[str, Mapping[str, float]]
    scores: Mapping[str, Sequence[float]]
    trees: Trees
    optimizers: Mapping[str, float]

    def interval(
        self, configs: Sequence[Mapping[str, Any]], loss: np.ndarray, level: float = 0.9
    ) -> tuple[np.ndarray, np.ndarray]:
        """The lower and upper ends of the interval around each loss that covers `level` of such runs, in nats per
        token.

        Raises:
            ValueError: a level that is not between 0 and 1.
        """
        if not 0 < level < 1:
            raise ValueError(f"level: got {level!r}, expected a coverage between 0 and 1")
        sources = [str(config.get("source")) for config in configs]
        scores = {source: self._score(source, level) for source in set(sources)}
        half = self.deviation(configs) * np.array([scores[source] for source in sources])
        return loss - half, loss + half

    def level(self, configs: Sequence[Mapping[str, Any]], loss: np.ndarray, observed: np.ndarray) -> np.ndarray:
        """Coverage of the narrowest interval around each loss that holds the observed one.

        Of runs that the calibration describes, a share p lies at or below p.
        """
        ratios = np.abs(observed - loss) / self.deviation(configs)
        sources = [str(config.get("source")) for config in configs]
        scores = [np.asarray(self.scores.get(source, self.scores[""])) for source in sources]
        reached = [
            np.interp(ratio, own, np.linspace(0, 1, len(own))) for ratio, own in zip(ratios, scores, strict=True)
        ]
        return np.array(reached)

    def _score(self, source: str, level: float) -> float:
        scores = np.asarray(self.scores.get(source, self.scores[""]))
        return float(np.interp(level, np.linspace(0, 1, len(scores)), scores))

    def deviation(self, configs: Sequence[Mapping[str, Any]]) -> np.ndarray:
        """Standard deviations of the losses, in nats per token."""
        scales = [self.scale.get(str(config.get("source")), self.scale[""]) for config in configs]
        known, excess, noise = (np.array([scale[name] for scale in scales]) for name in ("known", "excess", "noise"))
        found = self.law.uncertainty(configs)
        return np.sqrt((known * found["known"]) ** 2 + (excess * found["excess"]) ** 2 + noise**2)

    def divergence(self, configs: Sequence[Mapping[str, Any]]) -> np.ndarray:
        """Probabilities to end without a loss, or more than 0.3 nats above the best run of that size and data size."""
        return self.trees(divergence_features(self.law, configs, self.optimizers))

    def extrapolation(self, configs: Sequence[Mapping[str, Any]]) -> np.ndarray:
        """Distances from the training runs' envelope, 0 inside: the norm of `extrapolation_by_field`."""
        return np.array([math.sqrt(sum(v * v for v in far.values())) for far in self.extrapolation_by_field(configs)])

    def extrapolation_by_field(self, configs: Sequence[Mapping[str, Any]]) -> list[dict[str, float]]:
        """For each configuration the fields that lie outside the training runs: field -> |log(value / nearest end)|.

        An unknown source or optimizer counts 1.
        """
        distances = []
        for config in configs:
            source = str(config.get("source"))
            far = {"source": 1.0} if source not in self.envelope else {}
            if str(config.get("optimizer")) not in self.law.optimizers:
                far["optimizer"] = 1.0
            for name, (low, high) in self.envelope.get(source, self.envelope[""]).items():
                value = config.get(name)
                if name == "batch tokens" and config.get("batch size") is not None:
                    value = config["batch size"] * sequence_length(config)
                if value is None or float(value) <= 0:
                    continue
                distance = max(math.log(low / float(value)), math.log(float(value) / high), 0.0)
                if distance > 1e-6:
                    far["batch size" if name == "batch tokens" else name] = distance
            distances.append(far)
        return distances

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "law": self.law.to_dict()}

    @classmethod
    def from_dict(cls, state: Mapping[str, Any], law: ConfigurationLaw | None = None) -> Self:
        """The calibration that `to_dict` wrote; of `law` where the state leaves it out."""
        own = law_from_dict(state["law"]) if "law" in state else law
        return cls(**{**state, "law": own, "trees": Trees(**state["trees"])})


def divergence_features(
    law: ConfigurationLaw, configs: Sequence[Mapping[str, Any]], usual: Mapping[str, float]
) -> np.ndarray:
    """What the probability to diverge is read from, a row for each configuration.

    Args:
        law: gives the learning rate's place over the valley and the rough edge.
        configs: the configurations.
        usual: optimizer -> logarithm of its usual learning rate.
    """
    points, terms = law.points(configs)
    batch = points["batch"] + 0.4 * points["data"]
    rows = []
    for i, config in enumerate(configs):
        tokens = math.exp(batch[i]) * REFERENCE["batch tokens"]
        steps, warmup = (
            math.log(float(config["data size"]) * 1e9 / tokens),
            math.log1p(float(config.get("warmup") or 0)),
        )
        optimizer, source = str(config.get("optimizer")), str(config.get("source"))
        usually = usual.get(optimizer, math.log(REFERENCE["learning rate"]))
        rate = math.log(config["learning rate"]) if config.get("learning rate") else usually
        clip = config.get("max_grad_norm")
        numbers = [rate, rate - usually, steps, warmup, steps - warmup, 1.0 if clip is None else float(clip)]
        kinds = [optimizer == name for name in usual] + [source == name for name in law.sources]
        rows.append(numbers + [float(kind) for kind in kinds])
    own = np.column_stack([points["size"], points["data"], batch, terms["edge"], terms["valley"], points["fields"]])
    return np.hstack([own, np.array(rows).reshape(len(rows), -1)])


LAWS: dict[str, Any] = {"chinchilla": ChinchillaLaw, "kaplan": KaplanLaw, "configuration": ConfigurationLaw}


def law_from_dict(state: Mapping[str, Any]) -> Any:
    """The law that `to_dict` wrote.

    Raises:
        ValueError: `state["law"]` names no known law.

    >>> law_from_dict(ChinchillaLaw().to_dict()) == ChinchillaLaw()
    True
    """
    kind = state.get("law")
    if kind not in LAWS:
        raise ValueError(f"law: {kind!r} is not a known law, accepted: {sorted(LAWS)}")
    values = {name: value for name, value in state.items() if name != "law"}
    return LAWS[kind].from_state(values) if kind == "configuration" else LAWS[kind](**values)
