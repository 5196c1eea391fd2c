"""Fits the law of loss curves (`curves_ncpl`) to runs of several labs jointly, and measures its errors on what is held
out.

The coefficients are the maximum a posteriori under `PRIORS`: common values and deviations by source. Curves enter
relative to their own mean, since the configuration law forecasts the end. Final losses enter beside them, so that a
source whose runs have no curves has a data term of its own too.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np

from curves_ncpl import (
    KNOTS,
    CurveLaw,
    CurveResidual,
    RunShape,
    early,
    places,
    resemblance,
    shape_terms,
)
from fields_ncpl import SOURCES
from observed_ncpl import Observed, forecast


@dataclass(frozen=True)
class Prior:
    """A Gaussian prior: mean and standard deviation of the common value, and of the deviations by source."""

    mean: float
    sd: float
    source: float = 0.0


# Centred on what published studies of single labs give (Luo et al. 2025; Porian et al. 2024) and on a clock of the root
# of the rate; exponents with size are held tighter than the rest, because few sizes identify them.
PRIORS: dict[str, Prior] = {
    "logB": Prior(-1.4, 0.5, 0.3),
    "growth": Prior(0.1, 0.15, 0.05),
    "beta": Prior(0.45, 0.15, 0.08),
    "beta_n": Prior(0.0, 0.03, 0.015),
    "B_b": Prior(0.0, 0.1),
    # The start of training is the lab's own: tokenizer, initialisation, warmup.
    "logK": Prior(-1.5, 1.5, 1.0),
    "K_n": Prior(0.0, 0.3, 0.2),
    "kappa": Prior(1.5, 0.5, 0.3),
    "logh": Prior(-1.8, 0.4, 0.3),
    "h_n": Prior(0.07, 0.1),
    "h_rate": Prior(0.0, 0.15),
    "speed": Prior(3.5, 0.7),
    "speed_rate": Prior(-0.5, 0.5),
    "gamma": Prior(0.55, 0.15),
    "power": Prior(-0.35, 0.2),
}
# What final losses add, which tie a source's data term to its runs' data sizes: the loss that no data removes.
LEVELS: dict[str, Prior] = {
    "E": Prior(2.0, 1.0, 0.5),
    "logA": Prior(-0.6, 0.5, 0.3),
    "alpha": Prior(0.33, 0.08, 0.03),
}
# Points of a run in the fit, evenly in log step, from this share and step on.
_POINTS, _FIRST_SHARE, _FIRST_STEP = 14, 0.03, 100
# A run's points err together: they weigh as so many independent ones.
_RUN_WEIGHT = 3.0
# Student-t degrees of freedom of losses around the law, their scale in nats, and that of the end.
_FREEDOM, _SPREAD, _END_SPREAD = 4.0, 0.004, 0.003
# Scale of final losses around the law's own level, in nats.
_LEVEL_SPREAD = 0.01
_ITERATIONS = 30
# Of the residual: lengths of `curves_ncpl.COORDINATES` in log units, and height and own noise of a run, in nats.
_LENGTHS, _HEIGHT, _NOISE = (2.0, 0.8, 1.0, 1.5, 2.0), 0.02, 0.006
# Shares of a run whose first part is observed, where the update's weight is measured.
_PARTS = (0.05, 0.1, 0.3, 0.5, 0.8)
# Held-out runs, at most, on which bands are calibrated.
_CALIBRATED = 150
# Nats above the forecast by which runs are told apart that may fail.
_ABOVE = (0.3, 0.6, 1.2, 2.4)
# Nats by which a final loss that was forecast for a run unseen is off, where the bands during a run are measured.
_FINAL_ERROR = 0.007


@dataclass(frozen=True)
class CurveRun:
    """One run's curve.

    Args:
        shape: of its configuration.
        shares: of the run, ascending, the last is 1.
        losses: in nats per token.
        forecast: its final loss by a configuration law that has not seen the run; NaN where there is none.
    """

    shape: RunShape
    shares: np.ndarray
    losses: np.ndarray
    forecast: float = math.nan

    @classmethod
    def of(cls, config: Mapping[str, Any], steps: Any, losses: Any, final: float) -> Self:
        """A run of a configuration; `final` is its loss at the end, steps past it are left out."""
        shape = RunShape.of(config)
        s, y = np.asarray(steps, dtype=float), np.asarray(losses, dtype=float)
        keep = np.isfinite(y) & (s > 0) & (s < shape.steps * (1 - 1e-6))
        order = np.argsort(s[keep], kind="stable")
        return cls(shape, np.append(s[keep][order] / shape.steps, 1.0), np.append(y[keep][order], final))

    @property
    def lab(self) -> str:
        """The source's parent, or itself."""
        source = SOURCES.get(self.shape.source)
        return (source.parent if source else None) or self.shape.source

    def at(self, shares: Any) -> np.ndarray:
        """Losses at shares, linear in the logarithm of the step."""
        return np.interp(np.log(shares), np.log(self.shares), self.losses)

    def ended(self) -> Self:
        """The final loss alone."""
        return replace(self, shares=self.shares[-1:], losses=self.losses[-1:])

    def thinned(self) -> Self:
        """Few points, evenly in log step, and the end."""
        if len(self.shares) < 3:
            return self.ended()
        first = max(_FIRST_SHARE, _FIRST_STEP / self.shape.steps)
        usable = np.flatnonzero(self.shares >= min(first, 1.0))
        wanted = np.geomspace(self.shares[usable[0]], 1.0, _POINTS)
        near = [usable[np.abs(np.log(self.shares[usable] / share)).argmin()] for share in wanted]
        index = np.unique([*near, len(self.shares) - 1])
        return replace(self, shares=self.shares[index], losses=self.losses[index])


def fit_curves(runs: Sequence[CurveRun], other_labs: bool = True) -> CurveLaw:
    """The law of curves, its residuals, and its errors on runs and labs that were held out.

    Args:
        runs: with their curves.
        other_labs: whether to measure the errors on a lab of which no curve is known, which takes a fit for each lab.

    Raises:
        ValueError: no run with at least three points.
    """
    usable = [run for run in runs if len(run.shares) >= 3]
    if not usable:
        raise ValueError("curves: no run has three points or more, expected runs with a loss curve")
    law = fit_shape(runs)
    law = replace(law, residuals=fit_residuals(law, usable))
    known = held_out(law, usable)
    shape_errors = np.array([error for _, _, error, _ in known])
    final_errors = np.array([run.losses[-1] - run.forecast for _, run, _, _ in known])
    coupling = _coupling(shape_errors, final_errors)
    apart = shape_errors - np.outer(np.nan_to_num(final_errors), coupling)
    wide = np.array([early(np.array(KNOTS) * run.shape.steps) for _, run, _, _ in known])
    errors = {"known": covariance(apart / wide)}
    left = float(np.mean([left for _, _, _, left in known]))
    others = _other_labs(runs) if other_labs else []
    errors["other"] = covariance(np.array(others)) if others else 9 * covariance(apart)
    law = replace(law, errors=errors, left=left, coupling=coupling.tolist())
    return replace(law, **_calibrate(law, known), recovered=_recovered(known))


def fit_shape(runs: Sequence[CurveRun]) -> CurveLaw:
    """Coefficients alone, by Gauss-Newton with Student-t weights (iteratively reweighted least squares)."""
    problem = _Problem([run.thinned() for run in runs])
    z = np.zeros(len(problem.columns))
    weights = problem.weights
    for _ in range(_ITERATIONS):
        error, design = problem.errors(z, weights), problem.design(z, weights)
        step = np.linalg.solve(design.T @ design + np.eye(len(z)), -(design.T @ error + z))
        cost, size = error @ error + z @ z, 1.0
        for _ in range(8):
            error = problem.errors(z + size * step, weights)
            if error @ error + ((z + size * step) ** 2).sum() <= cost:
                break
            size /= 2
        z = z + size * step
        weights = problem.reweighted(error, weights)
        if np.abs(size * step).max() < 0.02:
            break
    return problem.law(z)


class _Problem:
    """The least squares of `fit_shape`, whose unknowns are standard scores under the priors.

    Rows are the points of all curves, relative to their run's mean, then the final losses.
    """

    def __init__(self, runs: Sequence[CurveRun]) -> None:
        self.sources = sorted({run.shape.source for run in runs})
        self.run = np.repeat(np.arange(len(runs)), [len(run.shares) for run in runs])
        self.losses = np.concatenate([run.losses for run in runs])
        self.at = places([run.shape for run in runs], [run.shares for run in runs])
        source = np.array([run.shape.source for run in runs])[self.run]
        priors = PRIORS | LEVELS
        self.columns = [("", name) for name in priors]
        self.columns += [(own, name) for own in self.sources for name, prior in priors.items() if prior.source]
        self.mean = np.array([priors[name].mean if not own else 0.0 for own, name in self.columns])
        self.sd = np.array([priors[name].source if own else priors[name].sd for own, name in self.columns])
        self.moves = np.column_stack([(source == own) | (not own) for own, _ in self.columns]).astype(float)
        steps = np.concatenate([run.shares * run.shape.steps for run in runs])
        self.end = np.append(np.diff(self.run) > 0, True)
        share = np.sqrt(np.minimum(_RUN_WEIGHT / np.bincount(self.run)[self.run], 1.0))
        self.spread = np.append(_SPREAD * early(steps), np.full(self.end.sum(), _LEVEL_SPREAD))
        inner = np.where(self.end, 1 / _END_SPREAD, share / (_SPREAD * early(steps)))
        self.weights = np.append(inner, np.full(self.end.sum(), 1 / _LEVEL_SPREAD))

    def errors(self, z: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """Weighted errors of all rows."""
        c = self._coefficients(z)
        losses, _ = shape_terms(c, self.at)
        ends = (losses + c["E"] + np.exp(c["logA"] - c["alpha"] * self.at["size"]) - self.losses)[self.end]
        points = len(self.losses)
        along = self._centred((losses - self.losses)[:, None], weights[:points])[:, 0]
        return np.append(along, ends * weights[points:])

    def design(self, z: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """Derivatives of `errors` by the standard scores."""
        c = self._coefficients(z)
        _, slopes = shape_terms(c, self.at)
        size, zero = np.exp(c["logA"] - c["alpha"] * self.at["size"]), np.zeros(len(self.losses))
        levels = {"E": zero + 1, "logA": size, "alpha": -size * self.at["size"]}
        points, scale = len(self.losses), self.moves * self.sd
        along = np.column_stack([slopes.get(name, zero) for _, name in self.columns]) * scale
        whole = np.column_stack([(slopes | levels)[name] for _, name in self.columns]) * scale
        return np.vstack([self._centred(along, weights[:points]), whole[self.end] * weights[points:, None]])

    def _coefficients(self, z: np.ndarray) -> dict[str, np.ndarray]:
        """Of each point."""
        moved = self.moves * (self.mean + self.sd * z)
        names = np.array([name for _, name in self.columns])
        return {name: moved[:, names == name].sum(1) for name in PRIORS | LEVELS}

    def _centred(self, values: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """Weighted values less their weighted mean in each run: a run's level is its own."""
        squares = weights**2
        total = np.bincount(self.run, squares)
        means = np.column_stack([np.bincount(self.run, squares * column) for column in values.T]) / total[:, None]
        return (values - means[self.run]) * weights[:, None]

    def reweighted(self, errors: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """Weights under Student's t; within a curve its end keeps its own."""
        off = np.sqrt((_FREEDOM + 1) / (_FREEDOM + (errors / weights / self.spread) ** 2))
        off[: len(self.end)][self.end] = 1.0
        return self.weights * off

    def law(self, z: np.ndarray) -> CurveLaw:
        values = self.mean + self.sd * z
        sources: dict[str, dict[str, float]] = {own: {} for own in self.sources}
        common: dict[str, float] = {}
        for (own, name), value in zip(self.columns, values, strict=True):
            if name in PRIORS:
                (sources[own] if own else common)[name] = float(value)
        return CurveLaw(common, sources)


def _table(law: CurveLaw, runs: Sequence[CurveRun]) -> np.ndarray:
    """What runs differ by from the law at `KNOTS` relative to the end, over `early`; NaN where a curve starts later."""
    bare = replace(law, residuals={})
    knots = np.array(KNOTS)
    rows = []
    for run in runs:
        differs = run.losses - run.losses[-1] - bare.shape(run.shape, run.shares, run.losses[-1])
        row = np.interp(np.log(knots), np.log(run.shares), differs)
        rows.append(np.where(knots >= 0.75 * run.shares[0], row / early(knots * run.shape.steps), np.nan))
    return np.array(rows)


def _height(knot: float) -> float:
    """How much larger residuals are at a share of the run than late in it."""
    return 1 + 4 * math.exp(-knot / 0.05)


def _krige(coordinates: np.ndarray, table: np.ndarray) -> np.ndarray:
    """`CurveResidual.weights`, with runs that lie far off at a knot down-weighted there."""
    kernel = resemblance(coordinates, coordinates, _LENGTHS)
    weights = np.zeros(table.shape)
    for j, knot in enumerate(KNOTS[:-1]):
        here = np.flatnonzero(np.isfinite(table[:, j]))
        if len(here) < 5:
            continue
        noise = np.full(len(here), (_NOISE / _HEIGHT) ** 2)
        for _ in range(4):
            solved = np.linalg.solve(kernel[np.ix_(here, here)] + np.diag(noise), table[here, j])
            own = (noise * solved / (_NOISE * _height(knot))) ** 2
            noise = (_NOISE / _HEIGHT) ** 2 * (_FREEDOM + own) / (_FREEDOM + 1)
        weights[here, j] = solved
    return weights


def fit_residuals(law: CurveLaw, runs: Sequence[CurveRun]) -> dict[str, CurveResidual]:
    """The residual of each source."""
    residuals = {}
    for source in sorted({run.shape.source for run in runs}):
        own = [run for run in runs if run.shape.source == source]
        coordinates = np.array([run.shape.coordinates for run in own])
        weights = _krige(coordinates, _table(law, own))
        residuals[source] = CurveResidual(coordinates, weights, _LENGTHS, (_NOISE / _HEIGHT) ** 2)
    return residuals


Held = tuple[CurveLaw, CurveRun, np.ndarray, float]


def held_out(law: CurveLaw, runs: Sequence[CurveRun], folds: int = 5, seed: int = 0) -> list[Held]:
    """For each run the law whose residuals have not seen it, the run, its errors at `KNOTS`, and what was left."""
    found: list[Held] = []
    fold = np.random.default_rng(seed).permutation(len(runs)) % folds
    for i in range(folds):
        blind = replace(law, residuals=fit_residuals(law, [run for run, f in zip(runs, fold, strict=True) if f != i]))
        for run in (run for run, f in zip(runs, fold, strict=True) if f == i):
            residual = blind.residuals.get(run.shape.source)
            left = residual(run.shape)[1] if residual else 1.0
            found.append((blind, run, _errors(blind, run), left))
    return found


def _errors(law: CurveLaw, run: CurveRun) -> np.ndarray:
    """Observed less forecast shape at `KNOTS`; NaN before the curve's start."""
    knots = np.array(KNOTS)
    errors = run.at(knots) - run.losses[-1] - law.shape(run.shape, knots, run.losses[-1])
    return np.where(knots >= 0.75 * run.shares[0], errors, np.nan)


def _other_labs(runs: Sequence[CurveRun]) -> list[np.ndarray]:
    """Errors of each lab's runs under the law of the other labs, a lab weighing as much as any."""
    labs = sorted({run.lab for run in runs if len(run.shares) >= 3})
    if len(labs) < 2:
        return []
    errors = []
    for lab in labs:
        law = fit_shape([run.ended() if run.lab == lab else run for run in runs])
        mine = [_errors(law, run) for run in runs if run.lab == lab]
        errors += [mine[i] for i in np.linspace(0, len(mine) - 1, 24).astype(int)]
    return errors


def _coupling(errors: np.ndarray, final: np.ndarray) -> np.ndarray:
    """`CurveLaw.coupling` from held-out runs: a regression through zero, shrunk as by twenty runs without any."""
    known = np.isfinite(final)
    if known.sum() < 20:
        return np.zeros(len(KNOTS))
    bound = 3 * 1.48 * np.median(np.abs(final[known]))
    x = np.clip(final[known], -bound, bound)
    deviation = _deviations(errors)
    y = np.nan_to_num(np.clip(errors[known], -3 * deviation, 3 * deviation))
    slopes = (x[:, None] * y).sum(0) / (x**2).sum() * known.sum() / (known.sum() + 20)
    return np.clip(np.append(slopes[:-1], 0.0), -1.0, 1.0)


def _deviations(errors: np.ndarray) -> np.ndarray:
    """Robust standard deviation at each knot; the largest where no run has a value."""
    seen = np.isfinite(errors).any(0)
    found = 1.48 * np.nanmedian(np.abs(np.where(seen, errors, 0.0)), axis=0)
    return np.where(seen, found, found.max())


def covariance(errors: np.ndarray) -> np.ndarray:
    """Covariance of errors at `KNOTS` about zero, robust to spikes, a little of it shrunk to its diagonal."""
    deviation = _deviations(errors)
    clipped = np.clip(errors, -3 * deviation, 3 * deviation)
    present = np.isfinite(clipped)
    filled = np.where(present, clipped, 0.0)
    count = np.maximum(present.T.astype(float) @ present, 1.0)
    total = filled.T @ filled / count
    roots = np.sqrt(np.maximum(np.diag(total), 1e-12))
    # Pairs that few runs have in common would make it indefinite.
    near = np.exp(-np.abs(np.subtract.outer(np.log(KNOTS), np.log(KNOTS))))
    correlation = 0.8 * total / np.outer(roots, roots) * np.minimum(count / 20, 1) + 0.2 * near
    values, vectors = np.linalg.eigh(correlation)
    correlation = (vectors * np.maximum(values, 1e-3)) @ vectors.T
    correlation /= np.sqrt(np.outer(np.diag(correlation), np.diag(correlation)))
    result = correlation * np.outer(roots, roots)
    result[-1], result[:, -1] = 0.0, 0.0
    return result


def _recovered(held: Sequence[Held]) -> list[list[float]]:
    """`CurveLaw.recovered`: every run counts once, where it stood highest above its forecast, from step 250 on.

    Runs that fail have no final loss and are not among these: the four of xLSTM's logs are added.
    """
    counts = np.zeros(len(_ABOVE))
    for law, run, _, _ in held:
        late = run.shares * run.shape.steps >= 250
        above = (run.losses - run.losses[-1] - law.shape(run.shape, run.shares, run.losses[-1]))[late]
        passed = [i for i, limit in enumerate(_ABOVE) if above.max(initial=0.0) >= limit]
        if passed:
            counts[passed[-1]] += 1
    failed = [0.0] * (len(_ABOVE) - 1) + [4.0]
    return [[limit, good, good + bad] for limit, good, bad in zip(_ABOVE, counts.tolist(), failed, strict=True)]


def _calibrate(law: CurveLaw, held: Sequence[Held]) -> dict[str, Any]:
    """`CurveLaw.scores` and `trust` from held-out runs.

    Where a run's final loss was not forecast, its forecast is drawn with `_FINAL_ERROR`.
    """
    held = [held[i] for i in np.unique(np.linspace(0, len(held) - 1, _CALIBRATED).astype(int))]
    known = np.array([run.losses[-1] - run.forecast for _, run, _, _ in held])
    error = 1.25 * float(np.nanmean(np.abs(known))) if np.isfinite(known).sum() >= 20 else _FINAL_ERROR
    draws = np.random.default_rng(0).normal(0.0, error, len(held))
    fractions = np.arange(1, 11) / 10
    cases = []
    for (blind, run, _, _), draw in zip(held, draws, strict=True):
        mine = replace(law, residuals=blind.residuals, trust=((1.0, 1.0),))
        final = run.forecast if math.isfinite(run.forecast) else run.losses[-1] + draw
        cases.append((mine, run, final, run.at(fractions), forecast(mine, run.shape, fractions, final, error)))
    before = [(np.abs(curve.loss - truth) / curve.deviation)[fractions >= run.shares[0]]
              for _, run, _, truth, curve in cases]  # fmt: skip
    trust, scores = [], {"before": np.concatenate(before)}
    for part in _PARTS:
        seen = [(case, window) for case in cases if (window := _first(case[1], part)) is not None]
        ahead = fractions > part
        full = [forecast(m, run.shape, fractions, final, error, w) for (m, run, final, _, _), w in seen]
        moves = np.array([own.loss - curve.loss for own, ((*_, curve), _) in zip(full, seen, strict=True)])
        off = np.array([truth - curve.loss for (*_, truth, curve), _ in seen])
        taken = _trust(moves[:, ahead], off[:, ahead])
        trust.append((part, taken))
        during = []
        for (m, run, final, truth, _), window in seen:
            own = forecast(replace(m, trust=((1.0, taken),)), run.shape, fractions, final, error, window)
            during.append((np.abs(own.loss - truth) / own.deviation)[ahead])
        scores[str(part)] = np.concatenate(during)
    levels = np.linspace(0, 1, 101)
    quantiles = {name: np.round(np.quantile(ratios, levels), 4).tolist() for name, ratios in scores.items()}
    return {"trust": trust, "scores": quantiles}


def _first(run: CurveRun, part: float) -> Observed | None:
    """The first part of a run."""
    seen = (run.shares <= part) & (run.shares < 1)
    return Observed.of(run.shares[seen] * run.shape.steps, run.losses[seen], run.shape)


def _trust(moves: np.ndarray, off: np.ndarray) -> float:
    """The part of moves that comes closest to what was off, over what is ahead of a run and at its end.

    The least part whose error is within two standard errors of the best one's: observing must not make a forecast
    worse, and runs that were trained alike err alike.
    """
    parts = np.linspace(0, 1, 11)
    errors = np.array([np.abs(off - part * moves) for part in parts])
    of_run = (errors.mean(2) + errors[:, :, -1]) / 2
    best = int(of_run.mean(1).argmin())
    gains = of_run - of_run[best]
    within = gains.mean(1) <= 2 * gains.std(1) / math.sqrt(gains.shape[1])
    return float(parts[int(np.argmax(within))])
