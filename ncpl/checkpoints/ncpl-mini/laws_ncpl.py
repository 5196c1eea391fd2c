"""Closed-form scaling laws: what a run's final loss is before any network has seen it.

Every law maps configurations (mappings of the prompt's fields) to losses in nats per token, and is plain data:
`to_dict` writes it into a processor's JSON, `law_from_dict` reads it back. `N` is the model size in million non-
embedding parameters and `D` the data size in billion tokens, as in the configurations themselves.
"""

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, Self

import numpy as np

try:
    from .fields_ncpl import DEFAULT_SEQ_LEN, DEFAULT_VOCAB_SIZE, FIELDS, SOURCES
    from .forms_ncpl import (
        ANNEALED,
        ANNEALED_SPREAD,
        FORM,
        INPUTS,
        PRIORS,
        REFERENCE,
        SCHEDULE_FIELDS,
        Prior,
        below_chance,
        gradient,
        law_terms,
        locate,
        schedule_effect,
        schedules_of,
        stated_decay,
        stated_schedule,
    )
    from .names_ncpl import not_fitted
    from .published_ncpl import PUBLISHED_CHINCHILLA, ChinchillaLaw, KaplanLaw, StepLaw
    from .residual_ncpl import COORDINATES, NODES, KernelResidual, onto_valley
    from .upgrade_ncpl import upgrade_law
except ImportError:
    from fields_ncpl import DEFAULT_SEQ_LEN, DEFAULT_VOCAB_SIZE, FIELDS, SOURCES
    from forms_ncpl import (
        ANNEALED,
        ANNEALED_SPREAD,
        FORM,
        INPUTS,
        PRIORS,
        REFERENCE,
        SCHEDULE_FIELDS,
        Prior,
        below_chance,
        gradient,
        law_terms,
        locate,
        schedule_effect,
        schedules_of,
        stated_decay,
        stated_schedule,
    )
    from names_ncpl import not_fitted
    from published_ncpl import PUBLISHED_CHINCHILLA, ChinchillaLaw, KaplanLaw, StepLaw
    from residual_ncpl import COORDINATES, NODES, KernelResidual, onto_valley
    from upgrade_ncpl import upgrade_law

# The laws of others belong to this module's public names too.
__all__ = (
    "LAWS",
    "PUBLISHED_CHINCHILLA",
    "ChinchillaLaw",
    "ConfigurationLaw",
    "Evaluation",
    "KaplanLaw",
    "StepLaw",
    "law_from_dict",
)


def no_effect(config: Mapping[str, Any], idle: Sequence[str]) -> list[str]:
    """The note that fields of a configuration move no forecast of its source; none where there are none.

    Args:
        config: the configuration.
        idle: the fields.

    >>> no_effect({"source": "marin", "beta1": 0.9}, ["beta1"])
    ["no effect on this forecast: beta1 (not read by the law of source 'marin')"]
    """
    reader = f"not read by the law of source {str(config.get('source'))!r}"
    return [f"no effect on this forecast: {', '.join(idle)} ({reader})"] if idle else []


@dataclass(frozen=True, eq=False)
class Evaluation:
    """The closed form at configurations, computed once for losses, uncertainty and calibration alike.

    Args:
        configs: the configurations.
        sources, optimizers: (configurations,) names.
        inputs: `INPUTS` -> (configurations,), and `fields`, (configurations, hyper-parameters) `COORDINATES`.
        coefficients: coefficient -> (configurations,).
        terms: `law_terms`.
        points: the residual's coordinates, see `locate`.
    """

    configs: Sequence[Mapping[str, Any]]
    sources: np.ndarray
    optimizers: np.ndarray
    inputs: dict[str, np.ndarray]
    coefficients: Mapping[str, np.ndarray]
    terms: Mapping[str, np.ndarray]
    points: Mapping[str, np.ndarray]

    @cached_property
    def chance(self) -> np.ndarray:
        """(configurations,) losses of a model that knows nothing, log of the vocabulary, in nats per token."""
        sizes = [
            config.get("vocab size") or _unsaid(str(config.get("source")))["vocab size"] for config in self.configs
        ]
        return np.log(np.array(sizes, dtype=float))


@dataclass(frozen=True, eq=False)
class ConfigurationLaw:
    """A scaling law that reads the whole configuration: a closed form and, where fitted, a residual for each source.

    Every coefficient is a common value plus the source's and the optimizer's deviation from it, so that an unknown
    source or optimizer gets the common value; that is warned of once, and `fallbacks` says it for a configuration.

    Args:
        common: coefficient -> value.
        sources: source -> coefficient -> deviation.
        optimizers: optimizer -> coefficient -> deviation.
        typical: source -> optimizer -> field -> value that stands in where a configuration leaves the field out;
            optimizer `""` holds the source's own (`seq len` and `vocab size` among them). A learning rate that is left
            out is the law's best.
        parents: source -> the source that its deviations start from.
        residuals: source -> its residual.
        posterior: the lower Cholesky factor of the coefficients' covariance, in the order of `columns`.
        priors: coefficient -> its prior; what is not known of another source or optimizer is as wide as this.
        form: of the closed form, `forms_ncpl.FORM`; 1 of a law saved by release 0.1.

    >>> law = ConfigurationLaw.example()
    >>> config = {"source": "mine", "model size": 300, "data size": 20, "optimizer": "adamw", "learning rate": 2e-3,
    ...           "batch size": 256}
    >>> law.closed_form([config, config | {"data size": 40}]).round(3).tolist()
    [2.814, 2.749]
    """

    common: Mapping[str, float]
    sources: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    optimizers: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    typical: Mapping[str, Mapping[str, Mapping[str, Any]]] = field(default_factory=dict)
    parents: Mapping[str, str] = field(default_factory=dict)
    residuals: Mapping[str, KernelResidual] = field(default_factory=dict)
    posterior: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)))
    priors: Mapping[str, Prior] = field(default_factory=lambda: dict(PRIORS))
    form: int = FORM

    @classmethod
    def example(cls) -> Self:
        """The law with every coefficient at its prior mean and no data behind it."""
        return cls({name: prior.mean for name, prior in PRIORS.items()})

    def __call__(self, configs: Sequence[Mapping[str, Any]] | Evaluation) -> np.ndarray:
        """Losses in nats per token, one for each configuration.

        Raises:
            ValueError: a configuration without model size or data size.
        """
        at = self.evaluate(configs)
        for note in {note: None for config in at.configs for note in self.fallbacks(config)}:
            warnings.warn(note, stacklevel=2)
        return self.losses(at)

    def losses(self, at: Evaluation) -> np.ndarray:
        """Losses in nats per token where the closed form is evaluated already."""
        losses = at.terms["loss"].copy()
        for rows, residual, own in self._by_source(at):
            losses[rows] += residual(own)
            if self.form > 1:
                losses[rows] += self._to_one_valley(at, rows, residual, own)
        return losses if self.form == 1 else below_chance(losses + self.schedule_effect(at), at.chance)

    def schedule_effect(self, at: Evaluation) -> np.ndarray:
        """What a schedule adds to the losses over the usual one of its source and optimizer, in nats per token.

        The final annealing of the multi-power law (Luo et al. 2025, arXiv 2503.12811, eq. 5), and the data term at the
        tokens weighed by their learning rate. Exactly 0 where nothing of `stated_schedule` differs from the usual one.
        """
        effect = np.zeros(len(at.sources))
        for i, config in enumerate(at.configs):
            source = str(at.sources[i])
            usual = self._usual(source, str(at.optimizers[i]))[0]
            read = self.residuals[source].fields if source in self.residuals else ()
            config = {**config, "decay": stated_decay(config)}
            own = stated_schedule(config, usual, read)
            known = [name for name in ("warmup", "decay") if name in read and name not in own]
            kept = {name: usual.get(name) if config.get(name) is None else config[name] for name in known}
            if kept.get("decay") is not None and kept["decay"] < self.residuals[source].shortest_decay:
                own["decay"], kept["decay"] = kept["decay"], self.residuals[source].shortest_decay
            if all(own[name] == usual.get(name) for name in own):
                continue
            rate = at.terms["best" if np.isnan(at.inputs["rate"][i]) else "rate"][i]
            steps = 1e9 * REFERENCE["data size"] / REFERENCE["batch tokens"]
            steps *= math.exp(at.inputs["d"][i] - at.inputs["b"][i])
            schedules = schedules_of(usual, own, kept, REFERENCE["learning rate"] * math.exp(rate), steps)
            c = {name: float(values[i]) for name, values in at.coefficients.items()}
            annealed = ANNEALED.get(source, ANNEALED[""])
            effect[i] = schedule_effect(c, at.terms["size"][i], at.inputs["d"][i], steps, schedules, annealed)
        return effect

    def idle_fields(self, config: Mapping[str, Any]) -> list[str]:
        """The fields of a configuration that move no forecast of its source, because its law does not read them."""
        read = self._varied(config) | set(_ALWAYS_READ) | (set(SCHEDULE_FIELDS) if self.form > 1 else set())
        # With a known sequence length the steps follow from tokens and batch.
        return [name for name, value in config.items() if name in FIELDS and value is not None and name not in read]

    def _varied(self, config: Mapping[str, Any]) -> set[str]:
        """The fields that the residual of a configuration's source reads, of those that its optimizer has there."""
        source, optimizer = str(config.get("source")), str(config.get("optimizer"))
        varied = set(self.residuals[source].fields) if source in self.residuals else set()
        own = self.typical.get(source, {}).get(optimizer) if self.form > 1 else None
        return varied if own is None else varied & {*own}

    def notes(self, configs: Sequence[Mapping[str, Any]]) -> list[str]:
        """What has to be known of forecasts of these configurations, a sentence each, once."""
        notes: dict[str, None] = {}
        for config in configs:
            notes |= dict.fromkeys(self.fallbacks(config))
            notes |= dict.fromkeys(no_effect(config, self.idle_fields(config)))
            source = str(config.get("source"))
            sparse = any(
                (residual.runs["idle"] > 0).any() for name, residual in self.residuals.items() if name == source
            )
            if config.get("active size") and source in self.residuals and not sparse:
                notes[f"source {source!r} has no mixtures of experts: what experts are worth comes from others"] = None
        return list(notes)

    def _to_one_valley(
        self, at: Evaluation, rows: np.ndarray, residual: KernelResidual, own: Mapping[str, np.ndarray]
    ) -> np.ndarray:
        """What keeps valley and residual together to one valley over the learning rate."""
        moved = np.empty(len(rows))
        # So many rows at a time that the nodes' terms stay small.
        for i in range(0, len(rows), 256):
            some, points = rows[i : i + 256], {name: values[i : i + 256] for name, values in own.items()}
            c = {name: np.repeat(values[some], len(NODES)) for name, values in at.coefficients.items()}
            inputs = {name: np.repeat(at.inputs[name][some], len(NODES)) for name in INPUTS}
            # The valley's place is linear in size, data and batch, so a rate of the best one times e^node.
            best = law_terms(c, inputs | {"rate": np.full(len(some) * len(NODES), np.nan)}, self.form)["best"]
            terms = law_terms(c, inputs | {"rate": best + np.tile(NODES, len(some))}, self.form)
            valley, excess = (terms[name].reshape(len(some), -1) for name in ("surface", "excess"))
            profile = valley + residual.profile(points, excess)
            before = at.terms["surface"][some] + residual.surface(points)
            moved[i : i + 256] = onto_valley(profile, at.terms["valley"][some], before) - before
        return moved

    def evaluate(self, configs: Sequence[Mapping[str, Any]] | Evaluation) -> Evaluation:
        """The closed form at configurations; an `Evaluation` is taken as it is."""
        if isinstance(configs, Evaluation):
            return configs
        sources, optimizers = (
            np.array([str(config.get(name)) for config in configs], dtype=object) for name in ("source", "optimizer")
        )
        return self._evaluate(configs, sources, optimizers, self._inputs(configs))

    def _evaluate(
        self,
        configs: Sequence[Mapping[str, Any]],
        sources: np.ndarray,
        optimizers: np.ndarray,
        inputs: dict[str, np.ndarray],
    ) -> Evaluation:
        coefficients = self._coefficients(sources, optimizers)
        terms = law_terms(coefficients, inputs, self.form)
        points = locate(terms, inputs, self.form) | {"optimizer": optimizers, "fields": inputs["fields"]}
        return Evaluation(configs, sources, optimizers, inputs, coefficients, terms, points)

    def closed_form(self, configs: Sequence[Mapping[str, Any]]) -> np.ndarray:
        """Losses without the residual, in nats per token."""
        return self.evaluate(configs).terms["loss"]

    def valley(self, configs: Sequence[Mapping[str, Any]] | Evaluation) -> np.ndarray:
        """Logarithms of the learning rates over the closed form's best; 0 where none is stated or read."""
        return np.asarray(self.evaluate(configs).terms["valley"])

    def uncertainty(self, configs: Sequence[Mapping[str, Any]] | Evaluation) -> dict[str, np.ndarray]:
        """What the losses' uncertainty is made of, in nats per token.

        Returns:
            `known`, the standard deviation under the fit's posterior, of coefficients and residual together but
            without the runs' own noise (universal kriging, R & W, eq. 2.42): it grows away from the fitted runs, and
            what is not known of another source or optimizer is as wide as its prior. `excess`, how far the
            configuration lies above the best run of its size and data size.
        """
        at = self.evaluate(configs)
        by_coefficient = gradient(at.coefficients, at.inputs, self.form)
        slopes, variance = self._spread(by_coefficient, at.sources, at.optimizers), np.zeros(len(at.sources))
        for name, names, known in (
            ("source", at.sources, self.sources),
            ("optimizer", at.optimizers, self.optimizers),
        ):
            unknown = np.array([group not in known for group in names], dtype=bool)
            spread = np.array([getattr(self.priors[coefficient], name) for coefficient in self.common])
            variance += unknown * ((by_coefficient * spread) ** 2).sum(1)
        for rows, residual, own in self._by_source(at):
            fitted = self._fitted_slopes[str(at.sources[rows[0]])]
            for some, gain, left in residual.gains(own):
                slopes[rows[some]] -= gain @ fitted
                variance[rows[some]] += left
        if self.form > 1:
            # Labs gain differently from the end of a schedule.
            variance += (ANNEALED_SPREAD * self.schedule_effect(at)) ** 2
        known = np.sqrt(np.maximum(variance, 1e-10) + ((slopes @ self.posterior) ** 2).sum(1))
        return {"known": known, "excess": at.points["excess"]}

    def covariance(self, configs: Sequence[Mapping[str, Any]] | Evaluation) -> np.ndarray:
        """Joint covariance of the losses, (configurations, configurations), whose diagonal is `known` squared.

        What two configurations share (a source's offset, an optimizer's efficiency) cancels in their difference.
        """
        at = self.evaluate(configs)
        by_coefficient = gradient(at.coefficients, at.inputs, self.form)
        slopes, total = self._spread(by_coefficient, at.sources, at.optimizers), np.zeros((len(at.sources),) * 2)
        for name, names, known in (
            ("source", at.sources, self.sources),
            ("optimizer", at.optimizers, self.optimizers),
        ):
            unknown = np.array([group not in known for group in names], dtype=bool)
            spread = np.array([getattr(self.priors[coefficient], name) for coefficient in self.common])
            moved = unknown[:, None] * by_coefficient * spread
            total += (names[:, None] == names[None]) * (moved @ moved.T)
        for rows, residual, own in self._by_source(at):
            gain, left = residual.joint(own)
            slopes[rows] -= gain @ self._fitted_slopes[str(at.sources[rows[0]])]
            total[np.ix_(rows, rows)] += left
        if self.form > 1:
            # A lab's gain is one unknown: of equal schedules it cancels.
            gained = ANNEALED_SPREAD * self.schedule_effect(at)
            total += (at.sources[:, None] == at.sources[None]) * np.outer(gained, gained)
        moved = slopes @ self.posterior
        return total + moved @ moved.T

    def risk(self, configs: Sequence[Mapping[str, Any]]) -> np.ndarray:
        """Expected excess loss from uncertainty in the optimal learning rate, in nats per token.

        3-point Gauss-Hermite quadrature over the standard error of the optimum's place. The valley of the learning
        rate is steeper on its high side, so that the run with the lowest forecast is not quite the one to choose.
        """
        at = self.evaluate(configs)
        n, ones = at.terms["size"], np.ones(len(at.sources))
        moved = {"lr": ones, "lr_n": n, "lr_d": at.inputs["d"], "lr_b": at.inputs["b"]}
        place = np.stack([moved.get(name, 0 * ones) for name in self.common], 1)
        slopes = self._spread(place, at.sources, at.optimizers)
        error = np.sqrt(((slopes @ self.posterior) ** 2).sum(1))
        low, middle, high = (
            self.losses(self._evaluate(at.configs, at.sources, at.optimizers, at.inputs | {"rate": rate}))
            for rate in (at.inputs["rate"] + shift * error for shift in (-(3**0.5), 0, 3**0.5))
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
        for (_, group, name), error in zip(self.columns, np.sqrt((self.posterior**2).sum(1)), strict=True):
            errors.setdefault(group, {})[name] = float(error)
        return errors

    def _spread(self, by_coefficient: np.ndarray, sources: np.ndarray, optimizers: np.ndarray) -> np.ndarray:
        """(configurations, columns) from (configurations, coefficients): a run moves with its own groups alone."""
        columns, order = self.columns, {name: i for i, name in enumerate(self.common)}
        pairs = list(zip(sources.tolist(), optimizers.tolist(), strict=True))
        moves = {pair: self._moved(*pair) for pair in set(pairs)}
        mine = np.array([moves[pair] for pair in pairs], dtype=bool).reshape(len(pairs), len(columns))
        return by_coefficient[:, [order[name] for _, _, name in columns]] * mine

    def _moved(self, source: str, optimizer: str) -> list[bool]:
        """Which columns a run of this source and optimizer moves with."""
        # The deviations of a source that was not fitted are not its parent's but zero.
        own = (source, self.parents.get(source)) if source in self.sources else ()
        return [
            {"common": True, "source": group in own, "optimizer": group == optimizer}[kind]
            for kind, group, _ in self.columns
        ]

    @cached_property
    def _fitted_slopes(self) -> dict[str, np.ndarray]:
        """`uncertainty`'s slopes at each source's fitted runs."""
        slopes = {}
        for source, residual in self.residuals.items():
            optimizers = np.array(residual.optimizers, dtype=object)[residual.runs["optimizer"]]
            sources = np.full(len(optimizers), source, dtype=object)
            by_coefficient = gradient(self._coefficients(sources, optimizers), residual.inputs, self.form)
            slopes[source] = self._spread(by_coefficient, sources, optimizers)
        return slopes

    def fallbacks(self, config: Mapping[str, Any]) -> list[str]:
        """Says where a configuration gets common values because its source or optimizer is not among the fitted."""
        kinds = (("source", self.sources), ("optimizer", self.optimizers))
        said = [note for name, known in kinds if (note := not_fitted(name, config.get(name), known))]
        source, optimizer = str(config.get("source")), str(config.get("optimizer"))
        runs_of = {name for name in self.typical.get(source, {}) if name}
        if not said and runs_of and optimizer not in runs_of:
            others = sorted(name for name, kinds in self.typical.items() if optimizer in kinds)
            said = [
                f"optimizer: source {source!r} has no runs of {optimizer!r} (only {', '.join(sorted(runs_of))}); what "
                f"it gains is taken from {', '.join(others)}"
            ]
        return said

    def _by_source(self, at: Evaluation) -> Iterator[tuple[np.ndarray, KernelResidual, dict[str, np.ndarray]]]:
        """The configurations of each source with a residual: which they are, the residual, their coordinates."""
        for source, residual in self.residuals.items():
            rows = np.flatnonzero(at.sources == source)
            if len(rows):
                yield rows, residual, {name: values[rows] for name, values in at.points.items()}

    def _coefficients(self, sources: np.ndarray, optimizers: np.ndarray) -> dict[str, np.ndarray]:
        kinds = list(zip(sources.tolist(), optimizers.tolist(), strict=True))
        values = {
            (source, optimizer): [
                value + self.sources.get(source, {}).get(name, 0.0) + self.optimizers.get(optimizer, {}).get(name, 0.0)
                for name, value in self.common.items()
            ]
            for source, optimizer in set(kinds)
        }
        table = np.array([values[kind] for kind in kinds]).reshape(-1, len(self.common))
        return dict(zip(self.common, table.T, strict=True))

    def _inputs(self, configs: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
        """`INPUTS` and `COORDINATES` of configurations."""
        rows = [self._row(config) for config in configs]
        columns = np.array([row[:-1] for row in rows]).reshape(-1, len(INPUTS)).T
        fields = np.array([row[-1] for row in rows]).reshape(len(rows), len(COORDINATES))
        return dict(zip(INPUTS, columns, strict=True)) | {"fields": fields}

    def _row(self, config: Mapping[str, Any]) -> tuple[float, float, float, float, float, float, list[float]]:
        """A configuration's `INPUTS` and `COORDINATES`."""
        for name in ("model size", "data size"):
            if config.get(name) is None:
                raise ValueError(
                    f"{name}: missing, the law needs it (million non-embedding parameters, billion tokens)"
                )
        usual, coordinates = self._usual(str(config.get("source")), str(config.get("optimizer")))
        read = {name: value for name, value in config.items() if value is not None}
        data = float(read["data size"])
        tokens = float(read.get("batch size", usual.get("batch size", 256))) * float(
            read.get("seq len") or usual["seq len"]
        )
        rate = float(read.get("learning rate", math.nan))
        # A field that the source's logs never vary stays as it was in all of them.
        own = self.residuals.get(str(config.get("source")))
        varied = self._varied(config) if own else COORDINATES
        fields = coordinates | {name: COORDINATES[name](value) for name, value in read.items() if name in varied}
        decay = stated_decay(read)
        if "decay" in fields and decay is not None:
            # What is shorter than any run's, or of an optimizer whose runs never had one, `schedule_effect` adds.
            known, least = usual.get("decay") is not None, own.shortest_decay if own else 0.0
            fields["decay"] = COORDINATES["decay"](max(decay, least)) if known else 0.0
        if "warmup" in fields:
            steps = float(read.get("warmup", usual.get("warmup", 0)))
            # Left out, it is the usual share of the run, whatever the batch.
            usually = None if "warmup" in read else usual.get("usual warmup share")
            fields["warmup"] = COORDINATES["warmup"](steps * tokens / (data * 1e9) if usually is None else usually)
        if "adam_lr" in fields:
            # Without a learning rate the Adam part keeps its usual share of it.
            whole = float(usual.get("learning rate", math.nan)) if math.isnan(rate) else rate
            own = float(read.get("adam_lr", usual.get("adam_lr", 0)))
            fields["adam_lr"] = COORDINATES["adam_lr"](own / whole if whole > 0 else 0.3)
        size = float(read["model size"])
        active = float(read.get("active size", size))
        # The usual width is that of a model of the reference size; width goes with the root of the size.
        width = float(read.get("hidden dim") or usual["hidden dim"] * math.sqrt(active / REFERENCE["model size"]))
        return (
            math.log(active / REFERENCE["model size"]),
            math.log(size / active),
            usual["vocab size"] * width / (active * 1e6),
            math.log(data / REFERENCE["data size"]),
            math.log(tokens / REFERENCE["batch tokens"]),
            math.log(rate / REFERENCE["learning rate"]),
            [fields.get(name, 0.0) for name in COORDINATES],
        )

    def _usual(self, source: str, optimizer: str) -> tuple[Mapping[str, Any], dict[str, float]]:
        """What stands in where a configuration of this kind leaves fields out: values, and `COORDINATES`."""
        if (source, optimizer) not in self._usuals:
            typical = self.typical.get(source, {})
            own = typical.get("", {})
            usual = {**_unsaid(source), **own, **typical.get(optimizer, {})}
            coordinates = {name: to(usual[name]) for name, to in COORDINATES.items() if name in usual}
            usual.setdefault("warmup", usual.get("usual warmup"))
            self._usuals[source, optimizer] = usual, coordinates
        return self._usuals[source, optimizer]

    @cached_property
    def _usuals(self) -> dict[tuple[str, str], tuple[Mapping[str, Any], dict[str, float]]]:
        return {}

    def to_dict(self) -> dict[str, Any]:
        state = {name: value for name, value in asdict(self).items() if name != "posterior"}
        return {"law": "configuration", **state, "posterior": self.posterior[np.tril_indices(len(self.posterior))]}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Self:
        """The law that `to_dict` wrote, lists or arrays, of this release or an older one."""
        state = upgrade_law(state)
        packed = np.asarray(state["posterior"], dtype=float)
        posterior = np.zeros((math.isqrt(2 * len(packed)),) * 2)
        posterior[np.tril_indices(len(posterior))] = packed
        residuals = {source: KernelResidual.from_state(values) for source, values in state["residuals"].items()}
        priors = {name: Prior(**values) for name, values in state["priors"].items()}
        return cls(**{**state, "residuals": residuals, "posterior": posterior, "priors": priors})


# Fields that every forecast reads, or that say what the others mean.
_ALWAYS_READ = (
    *("source", "optimizer", "model size", "active size", "data size", "learning rate", "batch size", "hidden dim"),
    *("seq len", "vocab size", "max step"),
)


def _unsaid(source: str) -> dict[str, Any]:
    """What stands in where neither a configuration nor a fitted law says."""
    known = SOURCES.get(source)
    return {
        "seq len": known.seq_len if known else DEFAULT_SEQ_LEN,
        "vocab size": known.vocab_size if known else DEFAULT_VOCAB_SIZE,
        # Residual width of a model of the reference size.
        "hidden dim": 1024.0,
        "lr_schedule": "cosine",
    }


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
    return LAWS[kind].from_state(values) if hasattr(LAWS[kind], "from_state") else LAWS[kind](**values)
