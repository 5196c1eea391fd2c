"""The loss along a run: its shape under any learning-rate schedule, and how uncertain that is.

A curve is `final loss + shape(share) - shape(1)`: the configuration law forecasts the end, this module the way there,
so that its last point is the forecast final loss. Shares of the run go from 0 to 1. numpy alone.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, Self

import numpy as np

try:
    from .fields_ncpl import DEFAULT_VOCAB_SIZE, SOURCES, max_step, sequence_length
    from .schedules_ncpl import Schedule
except ImportError:
    from fields_ncpl import DEFAULT_VOCAB_SIZE, SOURCES, max_step, sequence_length
    from schedules_ncpl import Schedule

# Power of the relative learning rate in the clock of a run's progress: the root fits the curves of three labs better
# than the rate itself, because early progress hardly depends on the rate (docs/experiments-curves.md).
CLOCK_POWER = 0.5
# Where the logarithms of `shape_terms` are zero.
REFERENCE = {"model size": 300.0, "batch tokens": 2.0**19, "learning rate": 1e-3, "data size": 20.0, "steps": 300.0}
# Share of the output head's parameters that counts as model size.
HEAD_SHARE = 0.3
# Shares of a run at which residuals and their covariance are held.
KNOTS = (0.01, 0.02, 0.04, 0.07, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.96, 1.0)
# Learning rates outside these bounds are another optimizer's units; annealing reads the nearest.
RATES = (1e-4, 5e-3)
# Nats within which a final loss counts as well known before its run is seen.
_WELL_KNOWN = 0.02
# Coordinates between which residuals of runs of one source resemble each other.
COORDINATES = ("size", "data", "batch", "rate", "length")


@dataclass(frozen=True)
class RunShape:
    """What the law of a curve reads of a configuration.

    Args:
        source: whose curves it resembles.
        size, batch, rate: logarithms of the effective size, batch tokens and peak learning rate over `REFERENCE`.
        tokens: billion tokens of the whole run.
        steps: of the whole run.
        seq_len: tokens a sequence.
        schedule: of its learning rate.
        chance: nats per token of a model that gives every token of the vocabulary the same probability.
    """

    source: str
    size: float
    batch: float
    rate: float
    tokens: float
    steps: int
    seq_len: float
    schedule: Schedule
    chance: float

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Self:
        """Reads a configuration.

        Raises:
            ValueError: `max step` is neither given nor derivable, or the schedule is not one.
        """
        steps = max_step(config)
        active = float(config.get("active size") or config["model size"])
        source = str(config.get("source"))
        known = SOURCES.get(source)
        vocabulary = float(config.get("vocab size") or (known.vocab_size if known else DEFAULT_VOCAB_SIZE))
        width = float(config.get("hidden dim") or 1024 * math.sqrt(active / REFERENCE["model size"]))
        size = active + HEAD_SHARE * vocabulary * width / 1e6
        batch = float(config["data size"]) * 1e9 / steps
        rate = min(max(float(config.get("learning rate") or REFERENCE["learning rate"]), RATES[0]), RATES[1])
        return cls(
            source=source,
            size=math.log(size / REFERENCE["model size"]),
            batch=math.log(batch / REFERENCE["batch tokens"]),
            rate=math.log(rate / REFERENCE["learning rate"]),
            tokens=float(config["data size"]),
            steps=steps,
            seq_len=sequence_length(config),
            schedule=Schedule.of(config, steps),
            chance=math.log(vocabulary),
        )

    def below_chance(self, losses: np.ndarray) -> np.ndarray:
        """Losses no higher than those of a model that knows nothing."""
        return np.minimum(losses, self.chance)

    @property
    def coordinates(self) -> list[float]:
        """Values of `COORDINATES`."""
        return [self.size, math.log(self.tokens), self.batch, self.rate, math.log(self.seq_len)]


def places(runs: Sequence[RunShape], shares: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """What `shape_terms` reads at shares of runs, all runs' points behind each other.

    Returns:
        (points,) arrays `size`, `batch`, `rate`, `clock` (log tokens of the clock over `REFERENCE`), `start` (log steps
        of the clock over `REFERENCE`), and `fall`, `after`, `since`, (points, nodes).
    """
    columns: dict[str, list[np.ndarray]] = {}
    widest = 0
    for run, share in zip(runs, shares, strict=True):
        x = np.asarray(share, dtype=float)
        log_clock = np.log(np.maximum(run.schedule.clock(x, CLOCK_POWER), 1e-9))
        fall, after, since = run.schedule.drops(x)
        peak = REFERENCE["learning rate"] * math.exp(run.rate)
        ones = np.ones(len(x))
        values = {
            "size": run.size * ones,
            "batch": run.batch * ones,
            "rate": run.rate * ones,
            "clock": log_clock + math.log(run.tokens / REFERENCE["data size"]),
            "start": log_clock + math.log(run.steps / REFERENCE["steps"]),
            "fall": fall,
            "after": np.log(after),
            "since": since * run.steps * peak,
        }
        widest = max(widest, fall.shape[1])
        for name, value in values.items():
            columns.setdefault(name, []).append(value)
    padded = {
        name: [np.pad(a, ((0, 0), (0, widest - a.shape[1]))) if a.ndim == 2 else a for a in arrays]
        for name, arrays in columns.items()
    }
    return {name: np.concatenate(arrays) for name, arrays in padded.items()}


def shape_terms(c: Mapping[str, Any], at: Mapping[str, np.ndarray]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The loss along a run up to a constant, in nats per token, and its derivatives by the coefficients.

        B e^(growth n - (beta + beta_n n) tau) + K e^(K_n n - kappa s) - h sum over falls of fall [1 - (1 + z)^-p]

    Progress in tokens and the start of training in steps, both on the clock of the root of the learning rate; and the
    annealing of the multi-power law (Luo et al. 2025, arXiv 2503.12811, eq. 5), with z the sum of learning rates since
    each fall times `speed after^-gamma`.

    Args:
        c: coefficient -> its value for each point.
        at: `places`.
    """
    data = np.exp(c["logB"] + c["growth"] * at["size"] + c["B_b"] * at["batch"] - _slope(c, at) * at["clock"])
    start = np.exp(c["logK"] + c["K_n"] * at["size"] - c["kappa"] * at["start"])
    height = np.exp(c["logh"] + c["h_n"] * at["size"] + c["h_rate"] * at["rate"])
    speed = np.broadcast_to(c["speed"] + c["speed_rate"] * at["rate"], data.shape)[:, None]
    gamma, log_power = (np.broadcast_to(c[name], data.shape)[:, None] for name in ("gamma", "power"))
    z, power = np.exp(speed - gamma * at["after"]) * at["since"], np.exp(log_power)
    grown = np.log1p(z)
    left = at["fall"] * np.exp(-power * grown)
    gain = (at["fall"] - left).sum(1)
    faster = left * power * z / (1 + z)
    by_speed = -height * faster.sum(1)
    return data + start - height * gain, {
        "logB": data,
        "growth": data * at["size"],
        "B_b": data * at["batch"],
        "beta": -data * at["clock"],
        "beta_n": -data * at["size"] * at["clock"],
        "logK": start,
        "K_n": start * at["size"],
        "kappa": -start * at["start"],
        "logh": -height * gain,
        "h_n": -height * gain * at["size"],
        "h_rate": -height * gain * at["rate"],
        "speed": by_speed,
        "speed_rate": by_speed * at["rate"],
        "gamma": height * (faster * at["after"]).sum(1),
        "power": -height * (left * power * grown).sum(1),
    }


def _slope(c: Mapping[str, Any], at: Mapping[str, np.ndarray]) -> Any:
    return c["beta"] + c["beta_n"] * at["size"]


def early(step: Any) -> np.ndarray:
    """How much wider losses scatter at a training step than late in a run.

    >>> early([10, 1000, 100000]).round(1).tolist()
    [22.5, 3.3, 1.0]
    """
    return 1 + 22 * np.exp(-np.asarray(step, dtype=float) / 440)


def resemblance(a: np.ndarray, b: np.ndarray, lengths: Sequence[float]) -> np.ndarray:
    """Correlation of residuals between runs of one source at `RunShape.coordinates`, (runs of a, runs of b)."""
    scaled = (a[:, None] - b[None]) / np.asarray(lengths)
    return np.exp(-0.5 * (scaled**2).sum(2))


@dataclass(frozen=True)
class CurveResidual:
    """What the curves of one source differ by from the law: kriging over runs at each of `KNOTS`.

    (Rasmussen & Williams 2006, eq. 2.25.) It falls to zero away from the fitted runs, and beyond twice their largest
    size by itself, where it does more harm than good.

    Args:
        runs: `RunShape.coordinates` of the fitted runs, (runs, coordinates).
        weights: of each run at each knot, (runs, knots), over `early` at the knots' steps.
        lengths: of `resemblance`, one for each coordinate.
        noise: variance of a run's own part over that of what runs share.
    """

    runs: np.ndarray
    weights: np.ndarray
    lengths: Sequence[float]
    noise: float

    def __call__(self, run: RunShape) -> tuple[np.ndarray, float]:
        """Residuals at `KNOTS` in nats, and the share of the variance that the fitted runs leave, from 0 to 1."""
        across = resemblance(np.array([run.coordinates]), self.runs, self.lengths)[0]
        over = max(run.size - self.runs[:, 0].max() - math.log(2), 0.0)
        across = across * math.exp(-0.5 * (over / math.log(2)) ** 2)
        return early(np.array(KNOTS) * run.steps) * (across @ self.weights), float(1 - across @ self._inverse @ across)

    @cached_property
    def _inverse(self) -> np.ndarray:
        kernel = resemblance(self.runs, self.runs, self.lengths)
        return np.linalg.inv(kernel + self.noise * np.eye(len(kernel)))


@dataclass(frozen=True)
class CurveLaw:
    """The shape of loss curves, fitted jointly on several labs' runs (`ncpl.fitting.curves`).

    Args:
        common: coefficient -> value.
        sources: source -> coefficient -> deviation; another source has none.
        residuals: source -> its residual.
        errors: covariance of the shape's errors at `KNOTS` in squared nats, measured on what was held out; its last row
            is zero. `"known"`: runs of fitted sources, over `early` at the knots' steps; `"other"`: other labs.
        coupling: at each knot of a fitted source, by how much the shape errs per nat that the final loss errs: the
            same unknown traits of a run move both.
        left: mean share of the variance that the fitted runs left to the runs behind `errors["known"]`.
        scores: `"before"` a run and where a share of it is seen (`"0.3"`) -> ascending quantiles of |error| / standard
            deviation of held-out runs, evenly spaced from 0 to 1.
        trust: (share of the run that is seen, part of the update by it that is taken), ascending, measured on held-out
            runs.
        recovered: (nats above the forecast, runs that stood so far above it and recovered, all such runs), ascending;
            none of four runs 2.4 nats above recovered in xLSTM's logs.

    >>> law = CurveLaw.example()
    >>> config = {"source": "mine", "model size": 300, "data size": 6, "learning rate": 1e-3, "batch size": 128,
    ...           "max step": 20000, "warmup": 500}
    >>> law.shape(RunShape.of(config), [0.1, 0.5, 1.0]).round(2).tolist()
    [0.71, 0.15, 0.0]
    """

    common: Mapping[str, float]
    sources: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    residuals: Mapping[str, CurveResidual] = field(default_factory=dict)
    errors: Mapping[str, np.ndarray] = field(default_factory=dict)
    coupling: Sequence[float] = (0.0,) * len(KNOTS)
    left: float = 1.0
    scores: Mapping[str, Sequence[float]] = field(default_factory=dict)
    trust: Sequence[Sequence[float]] = ((1.0, 1.0),)
    recovered: Sequence[Sequence[float]] = ((0.3, 0.0, 0.0), (2.4, 0.0, 4.0))

    @classmethod
    def example(cls) -> Self:
        """The law at its prior's mean, with no data behind it."""
        return cls(dict(_EXAMPLE))

    def coefficients(self, source: str) -> dict[str, float]:
        """Of a source; the common ones of a source that was not fitted, or its parent's."""
        own = self.sources.get(self._fitted(source) or "", {})
        return {name: value + own.get(name, 0.0) for name, value in self.common.items()}

    def _fitted(self, source: str) -> str | None:
        parent = SOURCES[source].parent if source in SOURCES else None
        return next((name for name in (source, parent) if name in self.sources), None)

    def shape(self, run: RunShape, shares: Any, final: float = 2.0) -> np.ndarray:
        """Losses over the final one at shares of a run, in nats per token; 0 at its end.

        Args:
            run: which run.
            shares: of it.
            final: loss at its end, over which no loss lies by more than `RunShape.chance` does.
        """
        return run.below_chance(final + self.path(run, shares).with_residual(self.residual(run))) - final

    def path(self, run: RunShape, shares: Any, knots: Sequence[float] | np.ndarray = KNOTS) -> "Path":
        """The law's own losses at shares of a run, without residuals, and at knots of residuals, whose last is 1."""
        x, at = np.asarray(shares, dtype=float), np.asarray(knots, dtype=float)
        losses, _ = shape_terms(self.coefficients(run.source), places([run], [np.append(x, at)]))
        losses -= losses[-1]
        return Path(losses[: len(x)], losses[len(x) :], run.schedule.falls(at), x, at)

    def progress(self, run: RunShape, shares: Any) -> tuple[np.ndarray, np.ndarray]:
        """Steps of the clock up to shares of a run, and the nats that one takes off the loss there, annealing aside."""
        c, at = self.coefficients(run.source), places([run], [np.asarray(shares, dtype=float)])
        _, slopes = shape_terms(c, at)
        clock = REFERENCE["steps"] * np.exp(at["start"])
        return clock, (_slope(c, at) * slopes["logB"] + c["kappa"] * slopes["logK"]) / clock

    def residual(self, run: RunShape) -> np.ndarray:
        """What the run's source differs by from the law at `KNOTS`, in nats; 0 at the end."""
        return self.residuals[run.source](run)[0] if run.source in self.residuals else np.zeros(len(KNOTS))

    def covariance(self, run: RunShape, final: float = 0.0) -> np.ndarray:
        """Of a curve's errors at `KNOTS`, in squared nats, where the final loss has this standard deviation."""
        if run.source not in self.residuals:
            return np.asarray(self.errors.get("other", _prior_errors(0.05))) + final**2
        left = self.residuals[run.source](run)[1]
        moved = 1 + np.asarray(self.coupling)
        wide = early(np.array(KNOTS) * run.steps)
        # Part of a run's error is its own, and does not shrink however many runs resemble it.
        own = np.outer(wide, wide) * np.asarray(self.errors["known"]) * (0.5 + 0.5 * left / max(self.left, 0.05))
        return own + np.outer(moved, moved) * final**2

    def trusted(self, share: float, deviation: float) -> float:
        """Part of the update that is taken where this share of a run is seen.

        It was measured where final losses are known to about 0.01 nats. The less is known of this run's, as in a lab
        without fitted runs, the more of the update is taken.
        """
        shares, parts = np.array(self.trust).T
        left = 1 - np.interp(np.log(share), np.log(shares), parts)
        return float(1 - left * min(1.0, (_WELL_KNOWN / max(deviation, 1e-9)) ** 2))

    def scored(self, share: float) -> Sequence[float] | None:
        """Of `scores`, those where this share of a run is seen, between those measured; None where none were.

        Up to the first of `KNOTS` nothing is seen of a run, and those before it hold.
        """
        first = {"before": KNOTS[0]}
        measured = sorted((first.get(name) or float(name), values) for name, values in self.scores.items())
        if not measured:
            return None
        shares, quantiles = np.log([part for part, _ in measured]), np.array([values for _, values in measured])
        return [float(np.interp(np.log(share), shares, column)) for column in quantiles.T]

    def recovery(self, above: float) -> float:
        """Probability that a run recovers whose loss stands so many nats above its forecast (Laplace's rule)."""
        least = [row for row in self.recovered if row[0] <= above] or [self.recovered[0]]
        _, good, total = least[-1]
        return (good + 1) / (total + 2)

    def to_dict(self) -> dict[str, Any]:
        """Nested mappings, lists and numpy arrays."""
        return asdict(self)

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> Self:
        """The law that `to_dict` wrote, lists or arrays."""
        residuals = {
            source: CurveResidual(
                **{**values, "runs": np.asarray(values["runs"]), "weights": np.asarray(values["weights"])}
            )
            for source, values in state.get("residuals", {}).items()
        }
        errors = {name: np.asarray(values) for name, values in state.get("errors", {}).items()}
        return cls(**{**state, "residuals": residuals, "errors": errors})


_EXAMPLE = {
    "logB": -1.6, "growth": 0.2, "beta": 0.42, "beta_n": -0.01, "B_b": 0.0, "logK": -1.0, "K_n": 0.0, "kappa": 1.0,
    "logh": -1.9, "h_n": 0.07, "h_rate": 0.2, "speed": 3.2, "speed_rate": -0.2, "gamma": 0.6, "power": -0.2,
}  # fmt: skip


@dataclass(frozen=True)
class Path:
    """The law's losses along one run over its final one, and how residuals at knots are added to them.

    Between two knots a residual goes along with the law's own fall: the sum is a linear function of the law's loss
    there. So it never rises where the law falls and the sums at the knots do not rise.

    Args:
        losses: at `shares`, in nats per token over the final loss.
        knots: at the knots; the last is 0.
        falls: for each pair of neighbouring knots, whether the learning rate never rises between them.
        shares: of the run.
        at: the knots' shares of the run, ascending, the last is 1.
    """

    losses: np.ndarray
    knots: np.ndarray
    falls: np.ndarray
    shares: np.ndarray
    at: np.ndarray

    @cached_property
    def weights(self) -> np.ndarray:
        """Of each knot's residual at each share, (shares, knots)."""
        at = np.clip(np.searchsorted(self.at, self.shares, side="right") - 1, 0, len(self.at) - 2)
        logs, drop = np.log(self.at), self.knots[at] - self.knots[at + 1]
        in_log = (np.log(np.maximum(self.shares, self.at[0])) - logs[at]) / np.diff(logs)[at]
        along = self.falls[at] & (drop > 1e-9)
        part = np.where(along, (self.knots[at] - self.losses) / np.where(along, drop, 1.0), in_log)
        part = np.clip(part, 0.0, 1.0)
        weights = np.zeros((len(self.shares), len(self.at)))
        rows = np.arange(len(at))
        weights[rows, at], weights[rows, at + 1] = 1 - part, part
        return weights

    def with_residual(self, residual: np.ndarray, precision: np.ndarray | None = None) -> np.ndarray:
        """Losses at `shares` with residuals at the knots, which do not rise where the learning rate does not.

        Where the sums at the knots rise, they become their mean by `precision`; without one the end is certain.
        """
        certain = np.append(np.zeros(len(self.at) - 1), np.inf)
        level = never_rising(self.knots + residual, self.falls, certain if precision is None else precision)
        return self.losses + self.weights @ (level - self.knots)


def never_rising(values: np.ndarray, falls: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The nearest values that do not rise between neighbours that `falls` names: pooled adjacent violators.

    (Isotonic regression; Barlow et al. 1972.) A weight may be infinite; a neighbour of one that has weight 0 takes it.

    >>> never_rising(np.array([3.0, 1.0, 2.0, 0.5]), np.array([True, True, True]), np.array([1.0, 1.0, 3.0, 1.0]))
    array([3.  , 1.75, 1.75, 0.5 ])
    """
    pools: list[tuple[float, float, int]] = []
    for i, (value, weight) in enumerate(zip(values.tolist(), weights.tolist(), strict=True)):
        count = 1
        while pools and falls[i - count] and pools[-1][0] < value:
            other, before, size = pools.pop()
            if math.isfinite(weight) and before + weight > 0:
                value = (before * other + weight * value) / (before + weight)
            weight, count = weight + before, count + size
        pools.append((value, weight, count))
    return np.repeat([value for value, _, _ in pools], [count for _, _, count in pools])


def _prior_errors(height: float) -> np.ndarray:
    """Errors that grow towards the start of a run and vanish at its end, where none were measured."""
    logs = -np.log(KNOTS)
    deviation = height * logs
    return np.outer(deviation, deviation) * np.exp(-np.abs(logs[:, None] - logs) / 2)
