"""A law that has learnt further sources from a few of their own runs (`ncpl.adapt`). numpy alone.

An adapted source is a Bayesian model average (Hoeting et al. 1999): several `ConfigurationLaw`s, each fitted to the
source's runs under another prior or misfit height, weighed by their evidence.
"""

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Self

import numpy as np

try:
    from .laws_ncpl import LAWS, ConfigurationLaw, Evaluation, law_from_dict, no_effect
    from .residual_ncpl import KernelResidual
except ImportError:
    from laws_ncpl import LAWS, ConfigurationLaw, Evaluation, law_from_dict, no_effect
    from residual_ncpl import KernelResidual

Configs = Sequence[Mapping[str, Any]]
# What a run of an adapted source is taken to be trained with where its log does not say.
DEFAULT_OPTIMIZER = "adamw"
# So many times the FLOPs of the dearest run a forecast has been checked (benchmarks/adaptation.py).
RANGE = 20.0
# A forecast of more FLOPs than the dearest run's has a deviation wider by their ratio to this power
# (docs/experiments-adaptation.md, "Wider intervals").
WIDENING = 0.15


def flops(config: Mapping[str, Any]) -> float:
    """6 N D, of the active parameters without embeddings.

    >>> flops({"model size": 100, "data size": 2})
    1.2e+18
    """
    return 6e15 * float(config.get("active size") or config["model size"]) * float(config["data size"])


def one_ratio(runs: Configs) -> float | None:
    """Tokens a parameter where all of three or more runs of several sizes have the same, else None.

    >>> one_ratio([{"model size": n, "data size": n / 50} for n in (50, 100, 200)])
    20.0
    """
    n, d = (np.array([float(run[name]) for run in runs]) for name in ("model size", "data size"))
    ratios = np.log(1e3 * d / n)
    if len(runs) < 3 or np.ptp(np.log(n * d)) < 0.1 or np.ptp(np.log(n)) == 0 or np.ptp(ratios) >= 0.1:
        return None
    return float(np.exp(ratios).mean().round(1))


@dataclass(frozen=True, eq=False)
class AdaptedSource:
    """What is known of one source from its own runs.

    Args:
        laws: each knows this source alone: its coefficients are the common ones, its misfit is the residual.
        weights: (laws,) posterior probabilities.
        labels: what each law assumes: its prior, the height of its misfit, and its noise.
        noise_floor, noise_slope: standard deviation of one run's noise in nats, and its growth with the excess.
        unread: fields that the runs tie to model size or never vary, so that their effect is part of size's.
        usual: what a configuration of this source need not say: the unread fields, sequence length, vocabulary, and
            the optimizer where there is one alone.
        runs: the runs themselves, configurations with `final_loss` in nats per token: with more runs the source is
            adapted anew from all of them.
        parent: source whose posterior was the prior, None where that was the base law's.
        diverged: configurations of its runs that ended without a loss: the probability to diverge learns from them.
    """

    laws: Sequence[ConfigurationLaw]
    weights: np.ndarray
    labels: Sequence[Sequence[Any]]
    noise_floor: float
    noise_slope: float
    unread: Sequence[str]
    usual: Mapping[str, Any]
    runs: Sequence[Mapping[str, Any]]
    parent: str | None = None
    diverged: Sequence[Mapping[str, Any]] = ()

    def read(self, configs: Configs) -> list[dict[str, Any]]:
        """Configurations without the unread fields; one without an optimizer gets the source's own."""
        usual = {"optimizer": self.usual.get("optimizer", DEFAULT_OPTIMIZER)}
        rows = [{name: value for name, value in config.items() if name not in self.unread} for config in configs]
        return [row if row.get("optimizer") else {**row, **usual} for row in rows]

    def forecast(self, configs: Configs) -> dict[str, np.ndarray]:
        """`loss`; `known`, its standard deviation without a run's own noise; and `excess`, all in nats per token."""
        losses, known, excess = [], [], []
        for law, at in self._evaluations(configs):
            found = law.uncertainty(at)
            losses.append(law.losses(at))
            known.append(found["known"])
            excess.append(found["excess"])
        mean = self.weights @ np.array(losses)
        spread = self.weights @ (np.array(known) ** 2 + (np.array(losses) - mean) ** 2)
        deviation = self.widening(configs) * np.sqrt(spread)
        return {"loss": mean, "known": deviation, "excess": self.weights @ np.array(excess)}

    def loss(self, configs: Configs) -> np.ndarray:
        """Losses in nats per token."""
        return self.weights @ np.array([law.losses(at) for law, at in self._evaluations(configs)])

    def valley(self, configs: Configs) -> np.ndarray:
        """See `ConfigurationLaw.valley`: the mean over the laws."""
        return self.weights @ np.array([law.valley(at) for law, at in self._evaluations(configs)])

    def covariance(self, configs: Configs) -> np.ndarray:
        """Joint covariance of the losses without the runs' own noise, (configurations, configurations)."""
        losses = np.array([law.losses(at) for law, at in self._evaluations(configs)])
        within = [law.covariance(at) for law, at in self._evaluations(configs)]
        off = losses - self.weights @ losses
        wider = self.widening(configs)
        total = np.tensordot(self.weights, np.array(within), 1) + (self.weights[:, None] * off).T @ off
        return np.outer(wider, wider) * total

    def widening(self, configs: Configs) -> np.ndarray:
        """How much wider the deviations of these are than the laws say: 1 up to the FLOPs of the dearest run."""
        return np.maximum([flops(config) / self._dearest for config in configs], 1.0) ** WIDENING

    @cached_property
    def _dearest(self) -> float:
        return max(flops(run) for run in self.runs)

    def risk(self, configs: Configs) -> np.ndarray:
        """See `ConfigurationLaw.risk`."""
        return self.weights @ np.array([law.risk(at) for law, at in self._evaluations(configs)])

    def noise(self, excess: np.ndarray) -> np.ndarray:
        """Standard deviation of one run's own noise at so much excess, in nats."""
        return np.hypot(self.noise_floor, self.noise_slope * excess)

    def deviation(self, forecast: Mapping[str, np.ndarray]) -> np.ndarray:
        """Standard deviation of a run's loss, its own noise included, in nats."""
        return np.sqrt(forecast["known"] ** 2 + self.noise(forecast["excess"]) ** 2)

    @property
    def believed_up_to(self) -> float:
        """FLOPs up to which a forecast of the source may be believed."""
        return RANGE * max(flops(run) for run in self.runs)

    def limits(self, config: Mapping[str, Any]) -> list[str]:
        """What the runs cannot say of a configuration: of far more compute, or of another ratio of tokens."""
        found, ratio = [], one_ratio(self.runs)
        if flops(config) > self.believed_up_to:
            found.append(
                f"believe forecasts up to about {self.believed_up_to:.2g} FLOPs, {RANGE:g} times the dearest run's"
            )
        size, data = float(config["model size"]), float(config["data size"])
        if ratio is not None and abs(math.log(1e3 * data / size / ratio)) > math.log(1.5):
            found.append(f"all runs have {ratio:g} tokens a parameter: believe no forecast of another ratio")
        return found

    def _evaluations(self, configs: Configs) -> Iterator[tuple[ConfigurationLaw, Evaluation]]:
        rows = self.read(configs)
        for law in self.laws:
            yield law, law.evaluate(rows)

    def to_dict(self) -> dict[str, Any]:
        return {
            "laws": {f"{i}": law.to_dict() for i, law in enumerate(self.laws)},
            "weights": self.weights.tolist(),
            "labels": [list(label) for label in self.labels],
            "noise_floor": self.noise_floor,
            "noise_slope": self.noise_slope,
            "unread": list(self.unread),
            "usual": dict(self.usual),
            "runs": [dict(run) for run in self.runs],
            "parent": self.parent,
            "diverged": [dict(run) for run in self.diverged],
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Self:
        laws = [law_from_dict(state["laws"][f"{i}"]) for i in range(len(state["laws"]))]
        return cls(**{**state, "laws": laws, "weights": np.asarray(state["weights"])})


@dataclass(frozen=True, eq=False)
class AdaptedLaw:
    """A `ConfigurationLaw` and the sources that were adapted to, which it forecasts by their own laws.

    Args:
        base: the law of all other sources.
        adapted: source -> what is known of it.

    >>> law = AdaptedLaw(ConfigurationLaw.example(), {})
    >>> config = {"source": "mine", "model size": 300, "data size": 20, "optimizer": "adamw"}
    >>> bool(law([config]) == law.base([config]))
    True
    """

    base: ConfigurationLaw
    adapted: Mapping[str, AdaptedSource]

    @property
    def sources(self) -> Mapping[str, Mapping[str, float]]:
        """The base law's: what the divergence model and the prompts know."""
        return self.base.sources

    @property
    def form(self) -> int:
        return self.base.form

    @property
    def typical(self) -> Mapping[str, Mapping[str, Mapping[str, Any]]]:
        return self.base.typical

    @property
    def residuals(self) -> Mapping[str, KernelResidual]:
        return self.base.residuals

    @property
    def optimizers(self) -> Mapping[str, Mapping[str, float]]:
        return self.base.optimizers

    def __call__(self, configs: Configs | Evaluation) -> np.ndarray:
        """Losses in nats per token, one for each configuration; warns of sources and optimizers that are not known."""
        at = self.evaluate(configs)
        for note in {note: None for config in at.configs for note in self.fallbacks(config)}:
            warnings.warn(note, stacklevel=2)
        return self.losses(at)

    def losses(self, at: Evaluation) -> np.ndarray:
        """Losses in nats per token where the base law's closed form is evaluated already."""
        losses = np.empty(len(at.configs))
        for rows, source, own in self._split(at):
            losses[rows] = self.base.losses(self.base.evaluate(own)) if source is None else source.loss(own)
        return losses

    def evaluate(self, configs: Configs | Evaluation) -> Evaluation:
        """The base law's closed form at configurations."""
        return self.base.evaluate(configs)

    def closed_form(self, configs: Configs) -> np.ndarray:
        """Losses without the residual, in nats per token; an adapted source's, with it."""
        losses = self.base.closed_form(configs)
        for rows, source, own in self._split(self.evaluate(configs)):
            if source is not None:
                losses[rows] = source.loss(own)
        return losses

    def uncertainty(self, configs: Configs | Evaluation) -> dict[str, np.ndarray]:
        """See `ConfigurationLaw.uncertainty`."""
        at = self.evaluate(configs)
        found = {name: np.empty(len(at.configs)) for name in ("known", "excess")}
        for rows, source, own in self._split(at):
            part = self.base.uncertainty(own) if source is None else source.forecast(own)
            for name, values in found.items():
                values[rows] = part[name]
        return found

    def covariance(self, configs: Configs | Evaluation) -> np.ndarray:
        """See `ConfigurationLaw.covariance`; losses of an adapted source are taken as independent of all others'."""
        at = self.evaluate(configs)
        total = np.zeros((len(at.configs),) * 2)
        for rows, source, own in self._split(at):
            total[np.ix_(rows, rows)] = self.base.covariance(own) if source is None else source.covariance(own)
        return total

    def risk(self, configs: Configs) -> np.ndarray:
        """See `ConfigurationLaw.risk`."""
        found = np.empty(len(configs))
        for rows, source, own in self._split(self.evaluate(configs)):
            found[rows] = self.base.risk(own) if source is None else source.risk(own)
        return found

    def valley(self, configs: Configs | Evaluation) -> np.ndarray:
        """See `ConfigurationLaw.valley`."""
        at = self.evaluate(configs)
        found = np.empty(len(at.configs))
        for rows, source, own in self._split(at):
            found[rows] = self.base.valley(own) if source is None else source.valley(own)
        return found

    def fallbacks(self, config: Mapping[str, Any]) -> list[str]:
        """See `ConfigurationLaw.fallbacks`."""
        return [] if str(config.get("source")) in self.adapted else self.base.fallbacks(config)

    def idle_fields(self, config: Mapping[str, Any]) -> list[str]:
        """See `ConfigurationLaw.idle_fields`; of an adapted source, what its own laws do not read."""
        own = self.adapted.get(str(config.get("source")))
        if own is None:
            return self.base.idle_fields(config)
        unread = [name for name in config if name in own.unread and config[name] is not None]
        left = {name: value for name, value in config.items() if name not in unread}
        idle = [law.idle_fields(left) for law in own.laws]
        # What the runs leave unsaid stands in the configuration too.
        return [
            name
            for name in (*unread, *idle[0])
            if (name in unread or all(name in other for other in idle)) and config[name] != own.usual.get(name)
        ]

    def notes(self, configs: Configs) -> list[str]:
        """See `ConfigurationLaw.notes`."""
        found = self.base.notes([config for config in configs if str(config.get("source")) not in self.adapted])
        for config in configs:
            source = str(config.get("source"))
            if source not in self.adapted:
                continue
            found += no_effect(config, self.idle_fields(config))
            found += [f"source {source!r}: {limit}" for limit in self.adapted[source].limits(config)]
        return list(dict.fromkeys(found))

    def _split(self, at: Evaluation) -> Iterator[tuple[np.ndarray, AdaptedSource | None, list[Mapping[str, Any]]]]:
        """The configurations by what forecasts them: which they are, the adapted source or None, and themselves."""
        names = np.array([name if name in self.adapted else "" for name in at.sources.tolist()], dtype=object)
        for name in sorted(set(names.tolist())):
            rows = np.flatnonzero(names == name)
            yield rows, self.adapted[name] if name else None, [at.configs[int(i)] for i in rows]

    def with_source(self, name: str, source: AdaptedSource) -> "AdaptedLaw":
        """This law, knowing one source more."""
        return replace(self, adapted={**self.adapted, name: source})

    def to_dict(self) -> dict[str, Any]:
        adapted = {name: source.to_dict() for name, source in self.adapted.items()}
        return {"law": "adapted", "base": self.base.to_dict(), "adapted": adapted}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Self:
        """The law that `to_dict` wrote."""
        adapted = {name: AdaptedSource.from_state(own) for name, own in state["adapted"].items()}
        return cls(law_from_dict(state["base"]), adapted)


# `law_from_dict` reads it wherever a calibration, which may be of such a law, is read.
LAWS["adapted"] = AdaptedLaw
