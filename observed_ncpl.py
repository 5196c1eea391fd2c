"""A run's loss curve forecast from what is known before it starts, and from its first part once there is one.

What is forecast of the end and of the shape errs jointly normally; the observed part conditions it. Where the log
disagrees with that by more than such errors explain, the run has an offset of its own, or goes its own way for a
while, each of an unknown height: `forecast` averages over heights by how well they explain the log. A run that stands
above its forecast for a while, as in a spike, makes less progress meanwhile and stays behind. numpy alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np

try:
    from .curves_ncpl import KNOTS, CurveLaw, RunShape, early
except ImportError:
    from curves_ncpl import KNOTS, CurveLaw, RunShape, early

# Quantiles of |error| / standard deviation of the normal law, where none were measured.
_NORMAL = (0.0, 0.126, 0.253, 0.385, 0.524, 0.674, 0.842, 1.036, 1.282, 1.645, 3.3)
# Standard deviations in nats that a run's own offset may have, the chance that it has one, and the scale of the
# half-Cauchy law that the others follow.
_OFFSETS, _OFFSET_CHANCE, _OFFSET_SCALE = np.array([0.0, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0]), 0.05, 0.03
# The same of what a run does for a while: a process in the logarithm of the step (Ornstein and Uhlenbeck's) with this
# length, over `early`; the heights' median and the standard deviation of their logarithm.
_WANDERS, _WANDER_LENGTH = np.array([0.0, 0.002, 0.005, 0.015, 0.05, 0.15, 0.5]), 1.0
_WANDER_MEDIAN, _WANDER_SPREAD = 0.005, 1.2
# Steps of progress that a run may lose for each step that it stands a nat above its forecast, each as likely. Both are
# counted on the learning rate's clock, so a spike costs a short run much, a long one little, one in warmup hardly any.
_LOST = np.array([0.0, 1.0])
# Degrees of freedom of a log's noise, and how often its weights are found anew.
_FREEDOM, _ITERATIONS = 4.0, 6
# Where less than all of an update is taken ahead, it fades over this many log units of the step.
_FADE = 0.1


@dataclass(frozen=True)
class Observed:
    """The first part of a real run, as `forecast` reads it: few bins, each with its noise, and the log itself.

    Args:
        shares: of the run, ascending, (bins,).
        losses: the bins' medians, (bins,).
        variance: of each bin's own noise, in squared nats.
        logged: share and loss of every logged point, (2, points), ascending.
    """

    shares: np.ndarray
    losses: np.ndarray
    variance: np.ndarray
    logged: np.ndarray

    @classmethod
    def of(cls, steps: Any, losses: Any, run: RunShape, window: float = 1.0, bins: int = 40) -> Self | None:
        """Bins of equal width in log steps; None where no finite loss lies within the run.

        Medians, and the spread within a bin as its noise, keep a spike from dragging the curve: it widens the band.

        Args:
            steps, losses: of the run.
            run: its shape.
            window: steps that each loss is the mean of, ending at its step.
            bins: at most so many.
        """
        s, y = np.asarray(steps, dtype=float) - (window - 1) / 2, np.asarray(losses, dtype=float)
        keep = np.isfinite(y) & (s > 0) & (s <= run.steps)
        if not keep.any():
            return None
        order = np.argsort(s[keep], kind="stable")
        x, y = s[keep][order] / run.steps, y[keep][order]
        edges = np.geomspace(x.min() * (1 - 1e-9), x.max() * (1 + 1e-9), bins + 1)
        at = np.clip(np.searchsorted(edges, x) - 1, 0, bins - 1)
        rows = []
        for i in np.unique(at):
            mine, own = x[at == i], y[at == i]
            spread = 1.48 * np.median(np.abs(own - np.median(own))) if len(own) > 3 else 0.0
            rows.append((np.median(mine), np.median(own), spread**2 * 1.6 / len(own)))
        shares, medians, noise = np.array(rows).T
        # How far each bin lies off the line through its neighbours says what noise is left.
        rough = _roughness(np.log(shares), medians)
        least = 0.0017 * early(shares * run.steps)
        return cls(shares, medians, noise + rough**2 + least**2, np.array([x, y]))

    def within(self, share: float) -> Self:
        """Its bins from a share of the run on, or all where it ends before."""
        if self.shares[-1] < share:
            return self
        kept = self.shares >= share
        return replace(self, shares=self.shares[kept], losses=self.losses[kept], variance=self.variance[kept])

    def noise(self, mean: np.ndarray, shares: np.ndarray) -> np.ndarray:
        """Standard deviation of logged losses around a curve at shares of the run, robust, in nats; 0 ahead.

        Where the curve misses a bin's median, as in the steep first steps, that counts too.

        Args:
            mean: of the curve at the bins.
            shares: where.
        """
        x, y = self.logged
        off = np.abs(y - np.interp(np.log(x), np.log(self.shares), mean))
        width = min(len(x), max(9, len(x) // 20))
        first = np.clip(np.searchsorted(x, self.shares) - width // 2, 0, len(x) - width)
        around = 1.48 * np.median(off[first[:, None] + np.arange(width)], axis=1)
        around = np.maximum(around, np.abs(self.losses - mean) / _NORMAL[9])
        found = np.interp(np.log(shares), np.log(self.shares), around)
        return np.where(shares <= x[-1], found, 0.0)


def _roughness(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Distance of each point from the line through its neighbours, less what is usual; 0 where there are too few."""
    if len(x) < 5:
        return np.zeros(len(x))
    part = (x[1:-1] - x[:-2]) / np.maximum(x[2:] - x[:-2], 1e-12)
    off = np.abs(y[1:-1] - (1 - part) * y[:-2] - part * y[2:])
    off = np.concatenate([[off[0]], off, [off[-1]]])
    # Around each point: a curve bends most at its start.
    width = min(len(x), 9)
    first = np.clip(np.arange(len(x)) - width // 2, 0, len(x) - width)
    usual = np.median(off[first[:, None] + np.arange(width)], axis=1)
    # A point next to a spike looks rough too, and is not believed much either.
    return np.where(off > 5 * usual + 1e-3, off, 0.5 * usual)


@dataclass(frozen=True)
class Curve:
    """A forecast curve.

    Args:
        loss: in nats per token, without a log's noise.
        deviation: its standard deviation.
        scores: quantiles of |error| over `deviation`.
        run: whose curve, above whose chance level no loss lies.
        noise: standard deviation of logged losses around it, over the observed part; 0 ahead.
    """

    loss: np.ndarray
    deviation: np.ndarray
    scores: Sequence[float]
    run: RunShape
    noise: np.ndarray | float = 0.0

    def interval(self, level: float, below: float = 1.0, above: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
        """The lower and upper ends of the interval around each loss that covers `level` of such runs.

        Args:
            level: coverage.
            below, above: factors on its two sides.
        """
        half = self.score(level) * self.deviation
        return self.loss - below * half, self.run.below_chance(self.loss + above * half)

    def logged(self, level: float) -> tuple[np.ndarray, np.ndarray]:
        """The interval that covers `level` of single logged losses, their noise included."""
        of_noise = float(np.interp(level, np.linspace(0, 1, len(_NORMAL)), _NORMAL))
        half = np.hypot(self.score(level) * self.deviation, of_noise * self.noise)
        return self.loss - half, self.loss + half

    def score(self, level: float) -> float:
        """Half the width of the interval that covers `level`, in standard deviations."""
        return float(np.interp(level, np.linspace(0, 1, len(self.scores)), self.scores))


def forecast(
    law: CurveLaw, run: RunShape, shares: Any, final: float, deviation: float, observed: Observed | None = None
) -> Curve:
    """The loss at shares of a run, given its first part if there is one.

    Args:
        law: of the shape.
        run: of which run.
        shares: where, ascending.
        final: forecast final loss, in nats per token.
        deviation: its standard deviation.
        observed: the run's first part.
    """
    x = np.asarray(shares, dtype=float)
    if observed is None:
        path, covariance = law.path(run, x), law.covariance(run, deviation)
        mean = run.below_chance(final + path.with_residual(law.residual(run)))
        return Curve(mean, _spread(path.weights, covariance), law.scores.get("before", _NORMAL), run)
    observed = observed.within(KNOTS[0])
    # Knots at the observed bins too, so that the curve passes through them.
    last = float(observed.logged[0, -1])
    knots = np.union1d(KNOTS, [*observed.shares, last])
    seen = np.searchsorted(knots, observed.shares)
    own, path = law.path(run, knots), law.path(run, x, knots)
    residual, covariance = own.weights @ law.residual(run), own.weights @ law.covariance(run, deviation) @ own.weights.T
    error = observed.losses - run.below_chance(final + law.path(run, observed.shares, knots).with_residual(residual))
    clock, gain = law.progress(run, knots)
    follows = np.eye(len(knots)) + _behind(clock, gain, np.arange(len(knots)))
    wanders = follows @ _wander(knots, run) @ follows.transpose(0, 2, 1)
    moved, after, taken = _conditional(covariance, wanders, _behind(clock, gain, seen), seen, error, observed.variance)
    # Of the update less may be taken ahead; what is left out stays unknown.
    trust = law.trusted(last, deviation)
    part = trust + (1 - trust) * np.exp(-np.maximum(np.log(knots / last), 0.0) / _FADE)
    after = after + np.outer(1 - part, 1 - part) * taken
    level = residual + part * moved, 1 / np.maximum(np.diag(after), 1e-8)
    mean = run.below_chance(final + path.with_residual(*level))
    at_bins = run.below_chance(final + law.path(run, observed.shares, knots).with_residual(*level))
    noise = observed.noise(at_bins, x)
    return Curve(mean, _spread(path.weights, after), law.scored(last) or _NORMAL, run, noise)


def _spread(weights: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    return np.sqrt(np.maximum(np.einsum("ij,jk,ik->i", weights, covariance, weights), 1e-6))


def _wander(knots: np.ndarray, run: RunShape) -> np.ndarray:
    """Covariance of what a run of height 1 does for a while, relative to its end."""
    wide, logs = early(knots * run.steps), np.log(knots) / _WANDER_LENGTH
    fades = np.exp(-np.abs(logs[:, None] - logs)) - np.exp(logs[:, None] + logs)
    return np.outer(wide, wide) * fades


def _behind(clock: np.ndarray, gain: np.ndarray, at: np.ndarray) -> np.ndarray:
    """How far a run stays behind at every knot for each nat that it stands above its forecast at some, in nats.

    The steps that it loses (the trapezoid rule) are each worth `gain`.

    Args:
        clock, gain: `CurveLaw.progress` at the knots, (knots,).
        at: which knots, ascending.

    Returns:
        For each of `_LOST`, (losses, knots, knots at which it stands above).

    >>> _behind(np.array([100.0, 300.0, 400.0]), np.array([1e-3, 5e-4, 4e-4]), np.array([0, 1]))[1].round(3).tolist()
    [[0.1, 0.0], [0.1, 0.05], [0.08, 0.04]]
    """
    half = np.diff(clock[at], prepend=0.0) / 2
    past = np.arange(len(clock))[:, None] >= at
    steps = past * np.append(2 * half[0], half[1:])
    steps[:, :-1] += past[:, 1:] * half[1:]
    return _LOST[:, None, None] * gain[:, None] * steps


def _conditional(
    covariance: np.ndarray,
    wanders: np.ndarray,
    behind: np.ndarray,
    seen: np.ndarray,
    error: np.ndarray,
    variance: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean and covariance of errors at knots given those at some of them, and how much of the covariance that explains.

    A mixture over heights of the run's own offset and of what it does for a while, and over what it loses by that, each
    a Gaussian conditional (Rasmussen & Williams 2006, eq. 2.23) under Student-t noise, weighed by evidence. A loss far
    off its neighbours is noise to the curve; the run may have been there nevertheless, and stay behind by it.

    Args:
        covariance: of the errors, (knots, knots).
        wanders: `_wander` with how far the run stays behind by it, (losses, knots, knots).
        behind: `_behind` of the observed knots, (losses, knots, observed).
        seen: which knots are observed.
        error: observed there.
        variance: of the noise, in squared nats.
    """
    offset, height, which = (a.ravel() for a in np.meshgrid(_OFFSETS, _WANDERS, range(len(_LOST)), indexing="ij"))
    behind = behind[which]
    chance = np.where(offset == 0, 1 - _OFFSET_CHANCE, _OFFSET_CHANCE / 4 / (1 + (offset / _OFFSET_SCALE) ** 2))
    unusual = np.log(np.maximum(height, 1e-4) / _WANDER_MEDIAN) / _WANDER_SPREAD
    whole = covariance + offset[:, None, None] ** 2 + height[:, None, None] ** 2 * wanders[which]
    across, inner = whole[:, seen], whole[:, seen][:, :, seen]
    errors = np.broadcast_to(error[None, :, None], (len(offset), len(seen), 1))
    weights, moves_seen = np.ones((len(offset), len(seen))), np.eye(len(seen)) + behind[:, seen]
    for _ in range(_ITERATIONS):
        noise = (variance / weights)[:, None, :] * moves_seen
        solved = np.linalg.solve(inner + noise @ moves_seen.transpose(0, 2, 1), errors)
        off = (noise.transpose(0, 2, 1) @ solved)[..., 0] ** 2 / variance
        weights = np.minimum((_FREEDOM + 1) / (_FREEDOM + off), 1.0)
    noise = (variance / weights)[:, None, :] * moves_seen
    noisy = inner + noise @ moves_seen.transpose(0, 2, 1)
    across = across + noise @ behind.transpose(0, 2, 1)
    gain = np.linalg.solve(noisy, across)
    moves = np.einsum("csk,s->ck", gain, error)
    fits = np.einsum("s,cs->c", error, np.linalg.solve(noisy, errors)[..., 0]) + np.linalg.slogdet(noisy)[1]
    # The log density of the weights under which normal noise is Student's.
    weighed = (_FREEDOM / 2 * (np.log(weights) - weights + 1)).sum(1)
    evidence = np.log(chance) - 0.5 * unusual**2 - 0.5 * fits + weighed
    parts = np.exp(evidence - evidence.max())
    parts /= parts.sum()
    mean = parts @ moves
    explained = np.tensordot(parts, np.transpose(across, (0, 2, 1)) @ gain, 1)
    between = (parts[:, None] * (moves - mean)).T @ (moves - mean)
    lost = (behind * (variance / weights)[:, None]) @ behind.transpose(0, 2, 1)
    prior = np.tensordot(parts, whole + lost, 1)
    return mean, prior - explained + between, explained
