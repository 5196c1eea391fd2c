"""Closed-form scaling laws: what a run's final loss is before any network has seen it.

Every law maps configurations (mappings of the prompt's fields) to losses in nats per token, and is plain data:
`to_dict` writes it into a processor's JSON, `law_from_dict` reads it back. `N` is the model size in million non-
embedding parameters and `D` the data size in billion tokens, as in the configurations themselves.
"""

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
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
# Where the logarithms of the configuration-aware law are zero.
REFERENCE = {"model size": 300.0, "data size": 20.0, "batch tokens": 2.0**19, "learning rate": 2e-3}


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


def effective_size(c: Mapping[str, Any], active: Any, idle: Any) -> Any:
    """Logarithm over `REFERENCE` of the dense size that a mixture of experts is worth (Clark et al. 2022).

    Args:
        c: coefficient -> its value for each run.
        active: logarithm of the active parameters over `REFERENCE`.
        idle: logarithm of all parameters over the active ones, 0 of a dense model.
    """
    return active + c["experts"] * idle


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
    """

    fields: Sequence[str]
    scales: Mapping[str, Any]
    runs: Mapping[str, Sequence[Any]]
    weights: Sequence[float]

    def __call__(self, points: Mapping[str, np.ndarray]) -> np.ndarray:
        """Residuals in nats per token at `ConfigurationLaw.points`."""
        scales, runs, weights = self._arrays
        columns = [list(COORDINATES).index(name) for name in self.fields]
        points = {**points, "fields": points["fields"][:, columns]}
        parts = [
            residual_kernel(scales, {name: values[i : i + 32] for name, values in points.items()}, runs) @ weights
            # Few rows at a time stay in a core's cache.
            for i in range(0, len(points["rate"]), 32)
        ]
        return np.concatenate(parts)

    @cached_property
    def _arrays(self) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], np.ndarray]:
        runs = {name: np.asarray(values) for name, values in self.runs.items()}
        runs["fields"] = runs["fields"].reshape(len(self.weights), len(self.fields))
        return {name: np.asarray(value) for name, value in self.scales.items()}, runs, np.asarray(self.weights)


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
        standard_errors: `"common"`, source or optimizer -> coefficient -> standard error.

    >>> law = ConfigurationLaw.example()
    >>> config = {"source": "mine", "model size": 300, "data size": 20, "optimizer": "adamw", "learning rate": 2e-3,
    ...           "batch size": 256}
    >>> law.closed_form([config, config | {"data size": 40}]).round(3).tolist()
    [2.824, 2.76]
    """

    common: Mapping[str, float]
    sources: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    optimizers: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    typical: Mapping[str, Mapping[str, Mapping[str, Any]]] = field(default_factory=dict)
    residuals: Mapping[str, KernelResidual] = field(default_factory=dict)
    standard_errors: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

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
        points, terms = self.points(configs)
        losses = terms["loss"].copy()
        sources = np.array([str(config.get("source")) for config in configs])
        for source, residual in self.residuals.items():
            rows = np.flatnonzero(sources == source)
            if len(rows):
                losses[rows] += residual({name: values[rows] for name, values in points.items()})
        return losses

    def closed_form(self, configs: Sequence[Mapping[str, Any]]) -> np.ndarray:
        """Losses without the residual, in nats per token."""
        return self.points(configs)[1]["loss"]

    def fallbacks(self, config: Mapping[str, Any]) -> list[str]:
        """Says where a configuration gets common values because its source or optimizer is not among the fitted."""
        return [
            f"{name}: {config.get(name)!r} is not among the fitted ({', '.join(sorted(known))}); common values stand in"
            for name, known in (("source", self.sources), ("optimizer", self.optimizers))
            if known and str(config.get(name)) not in known
        ]

    def points(self, configs: Sequence[Mapping[str, Any]]) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """The residual's coordinates and `closed_form`'s terms, a value for each configuration."""
        rows = [self._row(config) for config in configs]
        active, idle, d, b, rate = np.array([row[:5] for row in rows]).reshape(-1, 5).T
        c = self._coefficients(configs)
        n = effective_size(c, active, idle)
        best = c["lr"] + c["lr_n"] * n + c["lr_d"] * d + c["lr_b"] * b
        terms = closed_form(c, n, d, b, np.where(np.isnan(rate), best, rate))
        return locate(terms, n, d, b) | {
            "optimizer": np.array([str(config.get("optimizer")) for config in configs]),
            "fields": np.array([row[5] for row in rows]).reshape(len(rows), len(COORDINATES)),
        }, terms

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

    def _row(self, config: Mapping[str, Any]) -> tuple[float, float, float, float, float, list[float]]:
        for name in ("model size", "data size"):
            if config.get(name) is None:
                raise ValueError(
                    f"{name}: missing, the law needs it (million non-embedding parameters, billion tokens)"
                )
        typical = self.typical.get(str(config.get("source")), {})
        usual = typical.get(str(config.get("optimizer")), typical.get("", {}))
        filled = {**usual, **{name: value for name, value in config.items() if value is not None}}
        tokens = float(filled.get("batch size", 256)) * sequence_length(filled)
        rate = float(filled.get("learning rate", math.nan))
        values = dict(filled)
        if "warmup" in values:
            values["warmup"] = float(values["warmup"]) * tokens / (float(filled["data size"]) * 1e9)
        if "adam_lr" in values:
            # Without a learning rate the Adam part keeps its usual share of it.
            usual_rate = float(usual.get("learning rate", math.nan)) if math.isnan(rate) else rate
            values["adam_lr"] = float(values["adam_lr"]) / usual_rate if usual_rate > 0 else 0.3
        size = float(filled["model size"])
        active = float(filled.get("active size", size))
        return (
            math.log(active / REFERENCE["model size"]),
            math.log(size / active),
            math.log(float(filled["data size"]) / REFERENCE["data size"]),
            math.log(tokens / REFERENCE["batch tokens"]),
            math.log(rate / REFERENCE["learning rate"]),
            [to(values[name]) if name in values else 0.0 for name, to in COORDINATES.items()],
        )

    def to_dict(self) -> dict[str, Any]:
        return {"law": "configuration", **asdict(self)}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Self:
        residuals = {source: KernelResidual(**values) for source, values in state.get("residuals", {}).items()}
        return cls(**{**state, "residuals": residuals})


def locate(terms: Mapping[str, Any], n: Any, d: Any, b: Any, xp: Any = np) -> dict[str, Any]:
    """The residual's coordinates: rate over the rough edge, batch over its drift with data, size, data, excess."""
    return {
        "rate": xp.clip(terms["edge"], -5.0, 3.0),
        "batch": b - 0.4 * d,
        "size": n,
        "data": d,
        "excess": xp.clip(terms["excess"], 0.0, 0.5),
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
    # What the idle experts are worth.
    "experts": Prior(0.3, 0.15),
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

    A loss's standard deviation is `sqrt(known^2 + (scale["excess"] x excess)^2 + scale["noise"]^2)`: `known` is that
    of the best run of a size and data size under the fit's own posterior, parameters and residual together, which
    grows outside the training runs; `excess` is how far the configuration lies above that best run. An interval is
    the loss plus and minus that standard deviation times the quantile of the same ratio over runs that were forecast
    while held out (split conformal, Papadopoulos et al. 2002), so its coverage does not rest on the normal law.

    Args:
        law: a `ConfigurationLaw` without residuals.
        envelope: source -> field -> (lowest, highest) of the training runs.
        known: source -> `size`, `data` (grid of logarithms over `REFERENCE`) and `sd` (nats; rows are sizes).
        scale: source -> the standard deviation's constants.
        scores: source -> ascending quantiles of |error| / standard deviation, evenly spaced from 0 to 1.
        trees: divergence, over `divergence_features`.
        optimizers: optimizer -> its usual learning rate's logarithm.

    `source` `""` stands in for any other source.
    """

    law: ConfigurationLaw
    envelope: Mapping[str, Mapping[str, Sequence[float]]]
    known: Mapping[str, Mapping[str, Any]]
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
        points, _ = self.law.points(configs)
        variance = np.empty(len(configs))
        named = [str(config.get("source")) for config in configs]
        sources = np.array([source if source in self.scale else "" for source in named])
        for source in set(sources.tolist()):
            rows, scale = sources == source, self.scale[source]
            sd = _bilinear(self.known[source], points["size"][rows], points["data"][rows])
            excess = points["excess"][rows] * scale["excess"]
            variance[rows] = sd**2 * scale["known"] ** 2 + excess**2 + scale["noise"] ** 2
        return np.sqrt(variance)

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
    def from_dict(cls, state: Mapping[str, Any]) -> Self:
        """The calibration that `to_dict` wrote."""
        return cls(**{**state, "law": law_from_dict(state["law"]), "trees": Trees(**state["trees"])})


def _bilinear(grid: Mapping[str, Any], n: np.ndarray, d: np.ndarray) -> np.ndarray:
    """The grid's values at points, at its border where they lie outside."""
    sd, place = np.asarray(grid["sd"]), []
    for axis, values in ((grid["size"], n), (grid["data"], d)):
        at = np.interp(values, axis, np.arange(len(axis)))
        low = np.minimum(at.astype(int), len(axis) - 2)
        place.append((low, at - low))
    (i, f), (j, g) = place
    return (1 - g) * ((1 - f) * sd[i, j] + f * sd[i + 1, j]) + g * ((1 - f) * sd[i, j + 1] + f * sd[i + 1, j + 1])


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
