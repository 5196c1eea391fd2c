"""How far to trust a forecast: intervals, the probability to diverge, and the distance from the training runs."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Self

import numpy as np

try:
    from .adapted_ncpl import AdaptedLaw
    from .fields_ncpl import FIELDS, sequence_length
    from .forms_ncpl import REFERENCE
    from .laws_ncpl import ConfigurationLaw, Evaluation, law_from_dict
    from .residual_ncpl import COORDINATES
    from .text_ncpl import check_level
except ImportError:
    from adapted_ncpl import AdaptedLaw
    from fields_ncpl import FIELDS, sequence_length
    from forms_ncpl import REFERENCE
    from laws_ncpl import ConfigurationLaw, Evaluation, law_from_dict
    from residual_ncpl import COORDINATES
    from text_ncpl import check_level

# Nats by which a lab's larger models drift off its law for each log unit beyond the runs it is known by; fitted over
# labs, each judged by the drift of the others (`benchmarks/coverage.py`). The last run of that gives 0.010; the 0.015
# of the run before it is kept, which is on the wide side.
DRIFT = 0.015
# Deviation between labs of the log odds to diverge, by the likelihood of 12 runs of each of Marin's optimizers under
# trees fitted to Step Law's, and the other way round: 1 and 1.5 are within a nat, 0.5 and 2 worse by 3 and 5.
LAB_ODDS = 1.5
# Logarithm of how far apart the learning rates are at which the trees of divergence are read.
_RATES_APART = 0.5
# From this probability to diverge, and this many times the best learning rate, a forecast is spoken of with a warning.
_RISKY, _FAR_OFF = 0.5, 4.0
# Distance from the training runs, in log units, up to which a forecast is called so.
DISTANCES = {"inside": 0.01, "near": 0.7, "far": 2.3, "guess": math.inf}


def distance_in_words(extrapolation: float) -> str:
    """How far a configuration lies from the training runs: `inside`, `near` (2x), `far` (10x), or `guess`.

    >>> distance_in_words(0.0), distance_in_words(1.2), distance_in_words(9.0)
    ('inside', 'far', 'guess')
    """
    return next(word for word, most in DISTANCES.items() if extrapolation <= most)


def size_in_words(millions: float) -> str:
    """Parameters from millions of them, as people write them.

    >>> size_in_words(10.6), size_in_words(7000), size_in_words(2e6)
    ('10.6M', '7,000M', '2,000B')
    """
    return f"{millions:,.6g}M" if millions < 1e5 else f"{millions / 1e3:,.6g}B"


def envelope(configs: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    """field -> the lowest and highest value among configurations, of sizes and tuned fields; a batch in tokens.

    >>> envelope([{"model size": 50, "data size": 2}, {"model size": 100, "data size": 1}])
    {'model size': [50.0, 100.0], 'data size': [1.0, 2.0]}
    """
    found: dict[str, list[float]] = {}
    for config in configs:
        values = {name: config.get(name) for name in ("model size", "active size", "data size", "learning rate")}
        values |= {name: config.get(name) for name in ("weight decay", "warmup")}
        if config.get("batch size"):
            values["batch tokens"] = float(config["batch size"]) * sequence_length(config)
        for name, value in values.items():
            if value is not None and float(value) > 0:
                low, high = found.get(name, [math.inf, 0.0])
                found[name] = [min(low, float(value)), max(high, float(value))]
    return found


def forecast_columns(
    law: Any,
    calibration: "Calibration | None",
    configs: Sequence[Mapping[str, Any]],
    residuals: np.ndarray | float = 0.0,
    level: float = 0.9,
) -> dict[str, np.ndarray]:
    """The columns of a forecast, for the pipeline and `Forecaster` alike.

    Args:
        law: the prior law; configurations -> losses in nats per token.
        calibration: of the checkpoint; None where it has none.
        configs: checked configurations.
        residuals: what the network adds to the law, in nats, one for each configuration.
        level: coverage of the interval.

    Returns:
        `loss` and, with a calibration, the interval's `lower` and `upper` in nats per token, the probability of
        `divergence`, and `extrapolation`, the distance from the training runs.

    >>> from published_ncpl import ChinchillaLaw
    >>> config = {"source": "marin", "model size": 300, "data size": 6}
    >>> forecast_columns(ChinchillaLaw(), None, [config])["loss"].round(3).tolist()
    [3.214]
    """
    if calibration is None:
        return {"loss": law(configs) + residuals}
    evaluation = calibration.law.evaluate(configs)
    losses = (law.losses(evaluation) if law is calibration.law else law(configs)) + residuals
    lower, upper = calibration.interval(evaluation, losses, level)
    return {
        "loss": losses,
        "lower": lower,
        "upper": upper,
        "divergence": calibration.divergence(evaluation),
        "extrapolation": calibration.extrapolation(configs),
    }


@dataclass(frozen=True, eq=False)
class Trees:
    """A boosted ensemble of binary trees on a logistic scale, as parallel arrays over all nodes.

    Args:
        start: log odds before the first tree.
        roots: the first node of each tree.
        feature, threshold: of a node's question, value <= threshold; feature -1 marks a leaf.
        left, right: nodes that answer yes and no.
        value: a leaf's log odds.
    """

    start: Any
    roots: np.ndarray
    feature: np.ndarray
    threshold: np.ndarray
    left: np.ndarray
    right: np.ndarray
    value: np.ndarray

    def log_odds(self, features: np.ndarray) -> np.ndarray:
        """Logarithms of the odds, one for each row of features."""
        rows = np.arange(len(features))[:, None]
        node = np.tile(self.roots, (len(features), 1))
        while (inner := self.feature[node] >= 0).any():
            yes = features[rows, np.maximum(self.feature[node], 0)] <= self.threshold[node]
            node = np.where(inner, np.where(yes, self.left[node], self.right[node]), node)
        return np.asarray(self.start + self.value[node].sum(1))

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """Probabilities, one for each row of features."""
        return 1 / (1 + np.exp(-self.log_odds(features)))


@dataclass(frozen=True, eq=False)
class Calibration:
    """How far to trust a forecast: intervals, the probability to diverge, and the distance from the training runs.

    A loss's standard deviation is the root of the sum of four squares: scale["known"] times the law's own
    `uncertainty`, which grows outside the training runs; scale["excess"] times how far the configuration lies above the
    best run of its size and data size; scale["noise"]; and scale["drift"] times the distance from the training runs. An
    interval is the loss plus and minus that standard deviation times the quantile of the same ratio over runs that were
    forecast while held out (split conformal, Papadopoulos et al. 2002), so its coverage does not rest on the normal
    law.

    Args:
        law: a fitted `ConfigurationLaw`, adapted to further sources or not.
        envelope: source -> field -> (lowest, highest) of the training runs; "source optimizer" -> the same of the
            learning rates and batches of that optimizer's own.
        scale: source -> the standard deviation's constants.
        scores: source -> ascending quantiles of |error| / standard deviation, evenly spaced from 0 to 1.
        trees: divergence, over `divergence_features`.
        optimizers: optimizer -> its usual learning rate's logarithm.
        shifts: adapted source -> optimizer -> mean and deviation of the lab's shift of the log odds to diverge, after
            its own runs; 0 and `LAB_ODDS` before them.

    `source` `""` stands in for any other source.
    """

    law: ConfigurationLaw | AdaptedLaw
    envelope: Mapping[str, Mapping[str, Sequence[float]]]
    scale: Mapping[str, Mapping[str, float]]
    scores: Mapping[str, Sequence[float]]
    trees: Trees
    optimizers: Mapping[str, float]
    shifts: Mapping[str, Mapping[str, Sequence[float]]] = field(default_factory=dict)

    def interval(
        self, configs: Sequence[Mapping[str, Any]] | Evaluation, loss: np.ndarray, level: float = 0.9
    ) -> tuple[np.ndarray, np.ndarray]:
        """The lower and upper ends of the interval around each loss that covers `level` of such runs, in nats per
        token.

        Raises:
            ValueError: a level that is not between 0 and 1.
        """
        level = check_level(level)
        evaluation = self.law.evaluate(configs)
        half = self.deviation(evaluation) * self.score(evaluation, level)
        if self.law.form == 1:
            return loss - half, loss + half
        # Above nothing and below chance, whatever the width; a narrow interval is the loss plus and minus its half.
        room = np.maximum(evaluation.chance - loss, 1e-9)
        return loss * np.exp(-half / loss), loss + room * -np.expm1(-half / room)

    def level(
        self, configs: Sequence[Mapping[str, Any]] | Evaluation, loss: np.ndarray, observed: np.ndarray
    ) -> np.ndarray:
        """Coverage of the narrowest interval around each loss that holds the observed one.

        Of runs that the calibration describes, a share p lies at or below p.
        """
        evaluation = self.law.evaluate(configs)
        ratios = self._half_width(evaluation, loss, observed) / self.deviation(evaluation)
        coverages = [
            np.interp(ratio, scores, np.linspace(0, 1, len(scores)))
            for ratio, scores in zip(ratios, map(self._scores, evaluation.sources.tolist()), strict=True)
        ]
        return np.array(coverages)

    def _half_width(self, evaluation: Evaluation, loss: np.ndarray, observed: np.ndarray) -> np.ndarray:
        """Half the width, before `interval` bends it, of the narrowest interval that holds the observed losses."""
        if self.law.form == 1:
            return np.abs(observed - loss)
        room = np.maximum(evaluation.chance - loss, 1e-9)
        below = -loss * np.log(np.clip(observed / loss, 1e-9, 1.0))
        return np.where(observed < loss, below, -room * np.log1p(-np.clip((observed - loss) / room, 0.0, 1 - 1e-9)))

    def _scores(self, source: str) -> np.ndarray:
        return np.asarray(self.scores.get(source, self.scores[""]))

    def score(self, configs: Sequence[Mapping[str, Any]] | Evaluation, level: float) -> np.ndarray:
        """Half-widths, in standard deviations, of intervals that cover `level`: one for each configuration."""
        sources = self.law.evaluate(configs).sources.tolist()
        quantiles = {
            source: float(np.interp(level, np.linspace(0, 1, len(self._scores(source))), self._scores(source)))
            for source in set(sources)
        }
        return np.array([quantiles[source] for source in sources])

    def deviation(self, configs: Sequence[Mapping[str, Any]] | Evaluation) -> np.ndarray:
        """Standard deviations of the losses, in nats per token."""
        evaluation = self.law.evaluate(configs)
        uncertainty, drift = self.law.uncertainty(evaluation), self._scale(evaluation, "drift")
        distance = self.extrapolation(evaluation.configs) if drift.any() else 0.0
        return np.sqrt(
            (self._scale(evaluation, "known") * uncertainty["known"]) ** 2
            + (self._scale(evaluation, "excess") * uncertainty["excess"]) ** 2
            + self._scale(evaluation, "noise") ** 2
            + (drift * distance) ** 2
        )

    def difference(self, configs: Sequence[Mapping[str, Any]], level: float = 0.9) -> tuple[float, float]:
        """Uncertainty of the difference of two losses: half the interval that covers `level`, and its deviation.

        What both configurations share (their source's level, an optimizer's efficiency) cancels. Each run's own noise
        does not, with what the law misses of a run far from the best of its cell: between runs that differ in one
        field no more than half of that is shared (docs/experiments-adaptation.md). A configuration differs from itself
        by nothing.

        Args:
            configs: two configurations.
            level: coverage of the interval.

        Returns:
            Nats per token; the deviation is that of a normal law with the interval's quantile.
        """
        evaluation = self.law.evaluate(configs)
        if evaluation.configs[0] == evaluation.configs[1]:
            return 0.0, 0.0
        spread, noise = self.spread(evaluation), self.noise(evaluation)
        total = np.outer(spread, spread) * self.law.covariance(evaluation) + np.diag(noise**2) + self.drifts(evaluation)
        variance = max(float(total[0, 0] + total[1, 1] - 2 * total[0, 1]), 1e-12)
        half = math.sqrt(variance) * float(self.score(evaluation, level).max())
        return half, half / statistics.NormalDist().inv_cdf(0.5 + level / 2)

    def drifts(self, evaluation: Evaluation) -> np.ndarray:
        """Joint covariance of what the losses drift off the law outside the training runs, whose diagonal is that of
        `deviation`: configurations of one source that lie as far out in the same fields drift alike.
        """
        drift = self._scale(evaluation, "drift")
        if not drift.any():
            return np.zeros((len(drift),) * 2)
        far = self.extrapolation_by_field(evaluation.configs)
        names = sorted({name for fields in far for name in fields})
        moved = drift[:, None] * np.array([[fields.get(name, 0.0) for name in names] for fields in far])
        return (evaluation.sources[:, None] == evaluation.sources[None]) * (moved @ moved.T)

    def spread(self, configs: Sequence[Mapping[str, Any]] | Evaluation) -> np.ndarray:
        """Factors on each configuration's `known` deviation, from held-out errors."""
        return self._scale(self.law.evaluate(configs), "known")

    def noise(self, configs: Sequence[Mapping[str, Any]] | Evaluation) -> np.ndarray:
        """Standard deviations of a run's own noise, which no law can forecast, in nats per token."""
        evaluation = self.law.evaluate(configs)
        excess = self._scale(evaluation, "excess") * self.law.uncertainty(evaluation)["excess"]
        return np.sqrt(excess**2 + self._scale(evaluation, "noise") ** 2)

    def _scale(self, evaluation: Evaluation, name: str) -> np.ndarray:
        """One of the standard deviation's constants, 0 where a source has none, for each configuration."""
        scales = [self.scale.get(source, self.scale[""]) for source in evaluation.sources.tolist()]
        return np.array([scale.get(name, 0.0) for scale in scales])

    def divergence(self, configs: Sequence[Mapping[str, Any]] | Evaluation) -> np.ndarray:
        """Probabilities to end without a loss, or more than 0.3 nats above the best run of that size and data size.

        Of an adapted source, the log odds are a lab's at its shift's mean and deviation, `shifts`, averaged over the
        shift (MacKay 1992, The evidence framework applied to classification networks, equation 13).
        """
        evaluation = self.law.evaluate(configs)
        odds = divergence_odds(self.trees, self.law, evaluation, self.optimizers)
        if self.shifts:
            names = zip(evaluation.sources.tolist(), evaluation.optimizers.tolist(), strict=True)
            before = 0.0, LAB_ODDS
            mean, deviation = np.array([self.shifts.get(source, {}).get(name, before) for source, name in names]).T
            odds = (widened(odds) + mean) / np.sqrt(1 + np.pi / 8 * deviation**2)
        return np.asarray(1 / (1 + np.exp(-odds)))

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
            own = self.envelope.get(f"{source} {config.get('optimizer')}", {})
            for name, (low, high) in {**self.envelope.get(source, self.envelope[""]), **own}.items():
                value = config.get(name)
                if name == "batch tokens" and config.get("batch size") is not None:
                    value = config["batch size"] * sequence_length(config)
                if value is None or float(value) <= 0:
                    continue
                # Towards a value of 0, which has no logarithm and counts as inside, nothing lies outside.
                below = 0.0 if name in FIELDS and FIELDS[name].zero else math.log(low / float(value))
                distance = max(below, math.log(float(value) / high), 0.0)
                if distance > 1e-6:
                    far["batch size" if name == "batch tokens" else name] = distance
            distances.append(far)
        return distances

    def farthest(self, configs: Sequence[Mapping[str, Any]], extrapolation: Sequence[float] | np.ndarray) -> list[str]:
        """A note on the configurations outside the training runs, with the fields of the farthest; no note if none are.

        Args:
            configs: the configurations.
            extrapolation: of each.
        """
        # Less rounds to 0.00, which is inside.
        outside, farthest = int((np.asarray(extrapolation) >= 0.005).sum()), int(np.argmax(extrapolation))
        if not outside:
            return []
        distances = self.extrapolation_by_field([configs[farthest]])[0]
        fields = [f"{name}{_how_far(name, log_factor)}" for name, log_factor in distances.items()]
        which = f"{outside} of {len(configs)} configurations lie outside the training runs, the farthest"
        distance = float(extrapolation[farthest])
        return [
            f"{which if len(configs) > 1 else 'the configuration lies outside the training runs'} in "
            f"{', '.join(fields)}: extrapolation {distance:.2f}, {distance_in_words(distance)}"
        ]

    def warnings(self, configs: Sequence[Mapping[str, Any]], divergence: np.ndarray) -> list[str]:
        """Says what a loss leaves out: that runs may diverge, and that a learning rate does not suit a size.

        Args:
            configs: the configurations; of very many, a thousand are asked for their learning rates.
            divergence: the probability of each.
        """
        found, risky = [], int((divergence >= _RISKY).sum())
        if risky:
            which = f"{risky} of {len(configs)} runs are" if len(configs) > 1 else "the run is"
            found.append(
                f"{which} likely to diverge (probability up to {float(divergence.max()):.2f}): loss and interval are "
                "those of a run that does not"
            )
        return found + self._far_off(configs)

    def _far_off(self, configs: Sequence[Mapping[str, Any]]) -> list[str]:
        """A note on the configuration whose learning rate is farthest from the best, where that is far, by the losses
        that are forecast: best rate and cost are those of the law, whichever it is, along the learning rate.
        """
        asked = np.unique(np.linspace(0, len(configs) - 1, 1000).astype(int))
        some = [configs[int(i)] for i in asked]
        valley = self.law.valley(some)
        i = int(np.argmax(np.abs(valley)))
        config = some[i]
        if abs(valley[i]) <= math.log(_FAR_OFF) or config.get("learning rate") is None:
            return []
        rate, cost = float(config["learning rate"]), float(self.law.losses(self.law.evaluate([config]))[0])
        best, reach = rate * math.exp(-float(valley[i])), math.log(8)
        # One valley lies between the neighbours of the lowest of 17 rates; 3 % are finer than what is printed.
        for _ in range(2):
            rates = best * np.exp(np.linspace(-reach, reach, 17))
            losses = self.law.losses(self.law.evaluate([{**config, "learning rate": float(r)} for r in rates]))
            best, reach = float(rates[int(np.argmin(losses))]), reach / 8
        cost, off = cost - float(losses.min()), rate / best
        if abs(math.log(off)) <= math.log(_FAR_OFF):
            return []
        said = f"learning rate {off:.2g} times the best of about {best:.2g}"
        size = size_in_words(float(config["model size"]))
        if len(configs) == 1:
            return [f"{said} at {size} parameters, which costs {cost:.2g} nats"]
        which = f"{size} parameters, {float(config['data size']):.4g}B tokens"
        if config.get("batch size") is not None:
            which += f", batch size {config['batch size']:g}"
        larger = off > 1 and len({float(other["model size"]) for other in some}) > 1
        return [
            f"{said}, which costs {cost:.2g} nats, in configuration [{asked[i]}] of {len(configs)} ({which}, learning "
            f"rate {rate:.2g}), the farthest off"
            + ("; the best falls with size, so that at a fixed rate a larger model may be worse" if larger else "")
        ]

    def to_dict(self, with_law: bool = True) -> dict[str, Any]:
        """Its state, which `from_dict` reads; without the law where that is kept elsewhere."""
        state = {name: getattr(self, name) for name in ("envelope", "scale", "scores", "optimizers")}
        state |= {"shifts": self.shifts} if self.shifts else {}
        return {**state, "trees": asdict(self.trees)} | ({"law": self.law.to_dict()} if with_law else {})

    @classmethod
    def from_dict(cls, state: Mapping[str, Any], law: ConfigurationLaw | None = None) -> Self:
        """The calibration that `to_dict` wrote; of `law` where the state leaves it out."""
        own = law_from_dict(state["law"]) if "law" in state else law
        trees = Trees(**{name: np.asarray(value) for name, value in state["trees"].items()})
        return cls(**{**state, "law": own, "trees": trees})


def _how_far(name: str, log_factor: float) -> str:
    """How far outside the training runs a field lies, behind its name; less than 1.05 times is not worth a number."""
    if name in ("source", "optimizer"):
        return " (unknown)"
    return f" ({math.exp(log_factor):.2g} times)" if math.exp(log_factor) >= 1.05 else ""


def widened(odds: np.ndarray) -> np.ndarray:
    """A lab's log odds at its shift 0; averaged over labs, whose shifts are normal, they give all labs' `odds`."""
    return np.asarray(odds * math.sqrt(1 + math.pi / 8 * LAB_ODDS**2))


def divergence_odds(
    trees: Trees,
    law: ConfigurationLaw,
    configs: Sequence[Mapping[str, Any]] | Evaluation,
    usual: Mapping[str, float],
) -> np.ndarray:
    """Log odds to diverge, continuous in the learning rate.

    Runs are made at rates far apart, and a tree steps somewhere between two of them. The trees are therefore read at
    rates `_RATES_APART` from each other alone and interpolated between them, which forecasts left-out cells better
    (docs/experiments.md).

    Args:
        trees: over `divergence_features`.
        law, configs, usual: as `divergence_features` takes them.
    """
    evaluation = law.evaluate(configs)
    rate = evaluation.inputs["rate"]
    above = np.where(np.isnan(rate), 0.0, np.mod(rate, _RATES_APART))
    below, beyond = (
        trees.log_odds(divergence_features(law, evaluation, usual, shift)) for shift in (-above, _RATES_APART - above)
    )
    return np.asarray(below + (beyond - below) * above / _RATES_APART)


def divergence_features(
    law: ConfigurationLaw,
    configs: Sequence[Mapping[str, Any]] | Evaluation,
    usual: Mapping[str, float],
    shift: np.ndarray | float = 0.0,
) -> np.ndarray:
    """What the probability to diverge is read from, a row for each configuration.

    Args:
        law: gives the learning rate's place over the valley and the rough edge.
        configs: the configurations.
        usual: optimizer -> logarithm of its usual learning rate.
        shift: added to the logarithm of each configuration's learning rate.
    """
    evaluation = law.evaluate(configs)
    points, terms, batch = evaluation.points, evaluation.terms, evaluation.inputs["b"]
    reference = math.log(REFERENCE["learning rate"])
    usual_rate = np.array([usual.get(name, reference) for name in evaluation.optimizers.tolist()])
    rate = evaluation.inputs["rate"] + reference
    rate = np.where(np.isnan(rate), usual_rate, rate) + shift
    steps = (
        np.log([float(config["data size"]) * 1e9 for config in evaluation.configs])
        - batch
        - math.log(REFERENCE["batch tokens"])
    )
    warmup = np.log1p([_warmup(law, config) for config in evaluation.configs])
    # Fields that a source's law does not read move no forecast, this probability included.
    read = [law.residuals[source].fields if source in law.residuals else () for source in evaluation.sources.tolist()]
    clips = [
        config.get("max_grad_norm") if "max_grad_norm" in names else None
        for config, names in zip(evaluation.configs, read, strict=True)
    ]
    clip = np.array([1.0 if value is None else float(value) for value in clips])
    numbers = [rate, rate - usual_rate, steps, warmup, steps - warmup, clip]
    kinds = [evaluation.optimizers == name for name in usual] + [evaluation.sources == name for name in law.sources]
    # The length of a sequence says nothing of how steady a run is, beside its batch in tokens.
    fields = points["fields"][:, [name != "seq len" for name in COORDINATES]]
    fields = fields * np.array([bool(names) for names in read])[:, None]
    own = [points["size"], points["data"], batch, terms["edge"] + shift, terms["valley"] + shift, fields]
    return np.column_stack([*own, *numbers, *(kind.astype(float) for kind in kinds)])


def _warmup(law: ConfigurationLaw, config: Mapping[str, Any]) -> float:
    """Steps of warmup: the configuration's own, else those of its source's and optimizer's runs, else none."""
    kinds = law.typical.get(str(config.get("source")), {})
    usual = kinds.get("", {}).get("usual warmup", 0)
    if law.form > 1:
        usual = kinds.get(str(config.get("optimizer")), {}).get("warmup", usual)
    return float(usual if config.get("warmup") is None else config["warmup"])
