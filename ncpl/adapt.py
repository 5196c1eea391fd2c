"""Adapts a configuration-aware law to a lab's own runs: a Bayesian update of its hierarchy by a few losses.

A new source's coefficients are the common ones plus deviations. Four priors say how far it may deviate, a Gaussian
process over size and data takes what the closed form gets wrong of this lab, and the maximum a posteriori under each
combination of prior, misfit height and noise becomes one law, weighed by its Laplace evidence (MacKay 2003, chapter 27;
Kennedy & O'Hagan 2001 for the misfit). The law is used by its names of coefficients, their priors and posterior, its
closed form and its gradient alone.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from scipy.linalg import cho_factor, cho_solve, solve_triangular
from scipy.special import gammaln, logsumexp

from adapted_ncpl import DEFAULT_OPTIMIZER, AdaptedLaw, AdaptedSource
from fields_ncpl import sequence_length
from forms_ncpl import INPUTS, REFERENCE, gradient, law_terms, locate
from laws_ncpl import ConfigurationLaw
from residual_ncpl import FIXED_SCALES, MISFIT, KernelResidual, residual_kernel

Run = Mapping[str, Any]
# Coefficients of size and data, whose spread over labs is known from other labs' runs (`Beliefs`).
SHAPE = ("E", "logA", "alpha", "logB", "beta", "growth", "beta_n")
# Student-t degrees of freedom of a run's own noise.
FREEDOM = 4.0
# Laws of less weight are left out: they change no forecast and cost room in the checkpoint.
LEAST_WEIGHT = 0.005
# The shipped law counts as so many sizes beside the lab's own, where these are all of so many million parameters.
POOLED, LEAST_KNOWN = 6.0, 30.0


@dataclass(frozen=True)
class Beliefs:
    """What other labs' runs say before the first run of a new one (`benchmarks/adaptation.py` measures it).

    Args:
        mean: (coefficients of `SHAPE`,) mean over labs of single-lab fits.
        covariance: (coefficients, coefficients) over labs.
        kinds: prior -> its probability.
        scores: ascending quantiles of |error| / standard deviation of other labs' held-out runs, evenly spaced.
    """

    mean: np.ndarray
    covariance: np.ndarray
    kinds: Mapping[str, float]
    scores: Sequence[float]

    @classmethod
    @cache
    def shipped(cls) -> "Beliefs":
        """Those of all labs at hand."""
        state = json.loads((Path(__file__).parent / "adaptation.json").read_text(encoding="utf-8"))
        return cls(np.array(state["mean"]), np.array(state["covariance"]), state["kinds"], state["scores"])


# The misfit's height as a share of the loss that training removes, and one run's noise in nats, with their prior
# densities: log-normal, medians 0.02 and 0.003.
HEIGHTS = tuple(
    (height, noise)
    for noise, heights in ((0.002, (0.01, 0.02, 0.04, 0.08)), (0.01, (0.02, 0.04, 0.08)), (0.04, (0.04, 0.08)))
    for height in heights
)
# Growth of a run's noise with its excess.
NOISE_SLOPE = 0.03
SCALES = {"g0": 0.0018, "g1": 0.08, "v1": 1.0, "lu": 0.7, "lb": 0.9, "v2": 0.0, "lu2": 1.0, "lb2": 1.0, "ln": 1.0}
SCALES |= FIXED_SCALES | {"ld": 1.0, "vc": 0.003, "lnc": 0.8, "ldc": 1.0, "rho": 1.0}


def adapt_law(
    law: ConfigurationLaw | AdaptedLaw,
    runs: Sequence[Run],
    source: str,
    *,
    parent: str | None = None,
    beliefs: Beliefs | None = None,
    offsets: np.ndarray | float = 0.0,
) -> AdaptedLaw:
    """A law that knows `source` from its own runs.

    Args:
        law: the fitted hierarchy; what it knew of `source` is replaced.
        runs: checked configurations with `final_loss`, nats per token.
        source: the name that forecasts will use.
        parent: an adapted source of the same lab (other data or another evaluation set), from whose posterior the new
            one deviates less than from another lab's.
        beliefs: what other labs say; the shipped ones when absent.
        offsets: what else of the forecast is not the law's (a network's part), in nats, one for each run.

    >>> law = ConfigurationLaw.example()
    >>> runs = [{"model size": n, "data size": d, "optimizer": "adamw", "final_loss": 3.0 + 20 / n + 0.5 / d}
    ...         for n in (50, 100) for d in (1, 2)]
    >>> adapted = adapt_law(law, runs, "mine")
    >>> bool(abs(adapted([{**runs[3], "source": "mine"}])[0] - 3.45) < 0.02)
    True
    """
    base, beliefs = (law.base if isinstance(law, AdaptedLaw) else law), beliefs or Beliefs.shipped()
    whole = law if isinstance(law, AdaptedLaw) else AdaptedLaw(law, {})
    unread = unread_fields(runs)
    state = _State.of(base, runs, source, unread, offsets)
    if parent:
        priors = _priors_of_parent(base, whole.adapted[parent], state)
    else:
        priors = {
            name: (*prior, math.log(beliefs.kinds[name])) for name, prior in _priors(base, state, beliefs).items()
        }
    found: list[tuple[float, tuple[Any, ...], ConfigurationLaw]] = []
    for name, (mean, covariance, weight) in priors.items():
        for height, noise, fit in _fits(state, mean, covariance):
            density = -0.5 * (math.log(height / 0.02) / 0.7) ** 2 - 0.5 * (math.log(noise / 0.003) / 1.5) ** 2
            found.append((fit.evidence + density + weight, (name, height, noise), fit.law(state)))
    kinds = ["" if parent else item[1][0] for item in found]
    weights = _weights(np.array([item[0] for item in found]), kinds, runs, beliefs.kinds["offset"])
    kept = np.flatnonzero(weights >= LEAST_WEIGHT)
    weights = weights[kept] / weights[kept].sum()
    labels = [found[i][1] for i in kept]
    floor = float(np.sqrt(weights @ [noise**2 for _, _, noise in labels]))
    laws = [found[i][2] for i in kept]
    usual = _usual(runs, unread)
    return whole.with_source(
        source, AdaptedSource(laws, weights, labels, floor, NOISE_SLOPE, unread, usual, list(runs), parent)
    )


def _weights(evidence: np.ndarray, kinds: Sequence[str], runs: Sequence[Run], odds: float) -> np.ndarray:
    """Posterior probabilities of the fits by their evidence; those of kind `offset` together by a pool.

    Runs of few sizes cannot say how the loss goes on with size, and their evidence cannot know it. So where all models
    are of sizes that the shipped law knows, the odds of that law with an offset are `POOLED` over the number of sizes,
    times the ratio of evidences to the power 1 / sqrt(runs), which is small where the runs plainly contradict it;
    elsewhere they are the prior `odds`, which the evidence holds, times the ratio itself.
    """
    weights = np.exp(evidence - logsumexp(evidence))
    offset = np.array([kind == "offset" for kind in kinds])
    sizes = {round(float(run.get("active size") or run["model size"]), 1) for run in runs}
    if min(sizes) < LEAST_KNOWN or not offset.any() or offset.all():
        return weights
    own, other = (logsumexp(evidence[some]) for some in (offset, ~offset))
    gap = min(own - other - math.log(odds), 0.0)
    pooled = POOLED / len(sizes) * math.exp(gap / math.sqrt(len(runs)))
    share = pooled / (1 + pooled)
    weights[offset] = share * np.exp(evidence[offset] - own)
    weights[~offset] = (1 - share) * np.exp(evidence[~offset] - other)
    return weights


def single_lab_shape(law: ConfigurationLaw, runs: Sequence[Run]) -> np.ndarray:
    """The coefficients of `SHAPE` of one lab's runs, with next to no prior: what `Beliefs` are made of."""
    state = _State.of(law, runs, "lab", unread_fields(runs))
    mean, covariance, between = _common_block(law, state)
    block = [state.law.columns.index(("common", "common", name)) for name in SHAPE]
    own = np.array([law.priors[name].mean for name in SHAPE])
    spread = np.diag(np.array([1.0, 1.0, 0.12, 1.0, 0.15, 0.2, 0.1]) ** 2)
    mean, covariance = _with_block(mean, covariance + np.diag(between**2), block, own, spread)
    found = _fit(state, mean, np.linalg.cholesky(covariance), {**SCALES, MISFIT: 0.01}, 0.002, None)
    assert found is not None
    return found.values[block]


def all_of(earlier: Sequence[Run], runs: Sequence[Run], source: str) -> list[Run]:
    """All runs of a source, those of an earlier adaptation first; a run that comes again counts once."""
    runs = [*earlier, *({**run, "source": source} for run in runs)]
    return list({json.dumps(dict(run), sort_keys=True, default=str): run for run in runs}.values())


def unread_fields(runs: Sequence[Run]) -> list[str]:
    """Fields from which these runs cannot learn, so that they are taken as absent in them and in every forecast.

    A learning rate that follows from model size is part of size's effect: it is taken as the best one. A batch is read
    wherever one is stated: also one that never varies is too large for little data and too small for much
    (docs/experiments-adaptation.md).
    """
    rates: dict[float, set[float]] = {}
    for run in runs:
        if run.get("learning rate") is not None:
            rates.setdefault(round(float(run["model size"]), 3), set()).add(float(run["learning rate"]))
    unread = [] if any(len(own) > 1 for own in rates.values()) else ["learning rate"]
    return unread if any(run.get("batch size") is not None for run in runs) else [*unread, "batch size"]


@dataclass(frozen=True)
class _State:
    """One source's coefficients and its optimizers' as a vector, and its runs.

    Args:
        law: the source's law at the prior's mean, which knows the source alone.
        source: its name.
        losses: (runs,) nats per token.
        inputs: the closed form's inputs of the runs.
        optimizers: (runs,) names.
        moved: (runs, columns) 1 where a run depends on that entry of the vector.
    """

    law: ConfigurationLaw
    source: str
    losses: np.ndarray
    inputs: Mapping[str, np.ndarray]
    optimizers: np.ndarray
    moved: np.ndarray
    places: np.ndarray

    @classmethod
    def of(
        cls,
        base: ConfigurationLaw,
        runs: Sequence[Run],
        source: str,
        unread: Sequence[str],
        offsets: np.ndarray | float = 0.0,
    ) -> "_State":
        deviating = [name for name, prior in base.priors.items() if prior.optimizer]
        runs = [{**run, "optimizer": run.get("optimizer") or DEFAULT_OPTIMIZER} for run in runs]
        unknown = {str(run["optimizer"]) for run in runs} - set(base.optimizers)
        law = replace(
            base,
            optimizers={**base.optimizers, **{name: dict.fromkeys(deviating, 0.0) for name in sorted(unknown)}},
            sources={source: {}},
            parents={},
            typical={source: {"": _typical(runs, unread)}},
            residuals={},
            posterior=np.zeros((0, 0)),
        )
        at = law.evaluate([{name: value for name, value in run.items() if name not in unread} for run in runs])
        names = list(law.common)
        places = np.array([names.index(name) for _, _, name in law.columns])
        moved = np.array(
            [[kind == "common" or group == name for kind, group, _ in law.columns] for name in at.optimizers.tolist()]
        )
        losses = np.array([float(run["final_loss"]) for run in runs]) - offsets
        inputs = {name: at.inputs[name] for name in INPUTS}
        return cls(law, source, losses, inputs, at.optimizers, moved.astype(float), places)

    def coefficients(self, values: np.ndarray) -> dict[str, np.ndarray]:
        names = list(self.law.common)
        table = (self.moved * values) @ np.eye(len(names))[self.places]
        return dict(zip(names, table.T, strict=True))

    def slopes(self, coefficients: Mapping[str, np.ndarray]) -> np.ndarray:
        """(runs, columns) derivatives of the closed form."""
        return gradient(coefficients, self.inputs, self.law.form)[:, self.places] * self.moved

    def points(self, terms: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The misfit's coordinates of the runs."""
        names = sorted(set(self.optimizers.tolist()))
        places = np.array([names.index(name) for name in self.optimizers.tolist()])
        return locate(terms, self.inputs, self.law.form) | {
            "optimizer": places,
            "fields": np.zeros((len(self.losses), 0)),
        }


def _typical(runs: Sequence[Run], unread: Sequence[str]) -> dict[str, Any]:
    """What stands in where a configuration of this source leaves a field out."""
    typical: dict[str, Any] = {"seq len": float(np.median([sequence_length(run) for run in runs]))}
    sizes = [float(run["vocab size"]) for run in runs if run.get("vocab size")]
    if sizes:
        typical["vocab size"] = float(np.median(sizes))
    widths = [
        float(run["hidden dim"])
        * math.sqrt(REFERENCE["model size"] / float(run.get("active size") or run["model size"]))
        for run in runs
        if run.get("hidden dim")
    ]
    if widths:
        typical["hidden dim"] = float(np.median(widths))
    batches = [float(run["batch size"]) for run in runs if run.get("batch size")]
    tied = "batch size" in unread or not batches
    typical["batch size"] = REFERENCE["batch tokens"] / typical["seq len"] if tied else float(np.median(batches))
    # Marks runs that state their rate by step (`forms_ncpl.stated_schedule`).
    if runs[0].get("lr points"):
        typical["lr points"] = runs[0]["lr points"]
    return typical


def _usual(runs: Sequence[Run], unread: Sequence[str]) -> dict[str, Any]:
    """What a configuration of this source need not say."""
    typical = _typical(runs, unread)
    usual: dict[str, Any] = {"seq len": int(typical["seq len"])}
    if "vocab size" in typical:
        usual["vocab size"] = int(typical["vocab size"])
    if "learning rate" in unread:
        given = [float(run["learning rate"]) for run in runs if run.get("learning rate")]
        usual["learning rate"] = float(np.median(given)) if given else REFERENCE["learning rate"]
    batches = {round(float(run["batch size"])) for run in runs if run.get("batch size")}
    if "batch size" in unread or len(batches) == 1:
        usual["batch size"] = round(typical["batch size"])
    optimizers = {str(run.get("optimizer") or DEFAULT_OPTIMIZER) for run in runs}
    return usual | ({"optimizer": optimizers.pop()} if len(optimizers) == 1 else {})


Gaussian = tuple[np.ndarray, np.ndarray]


def _priors(base: ConfigurationLaw, state: _State, beliefs: Beliefs) -> dict[str, Gaussian]:
    """Four priors of a new source's vector: prior -> (mean, covariance).

    `hierarchy`: the fit's own common values and deviations between sources. `labs`: the same, but the shape's spread is
    that of other labs' single-lab fits. `wide`: a Chinchilla law of weakly known exponents. `offset`: the shipped law,
    but for its level.
    """
    mean, covariance, between = _common_block(base, state)
    hierarchy = covariance + np.diag(between**2)
    shape = [state.law.columns.index(("common", "common", name)) for name in SHAPE]
    level = shape[SHAPE.index("E")]
    offset = 0.05 * covariance + 1e-10 * np.eye(len(mean))
    offset[level, level] += 1.0
    wide = np.array([2.0, -0.6, 0.3, -1.4, 0.35, 0.0, 0.0]), np.diag([1.0, 1.0, 0.15, 1.0, 0.15, 0.05, 0.02])
    return {
        "hierarchy": (mean, hierarchy),
        "labs": _with_block(mean, hierarchy, shape, beliefs.mean, beliefs.covariance),
        "wide": _with_block(mean, hierarchy, shape, wide[0], wide[1] ** 2),
        "offset": (mean, offset),
    }


def _common_block(base: ConfigurationLaw, state: _State) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean and posterior covariance of the base law's common and optimizers' columns, and deviations of a new source.

    The deviations also hold an optimizer's that the base law does not know.
    """
    places = {column: i for i, column in enumerate(base.columns)}
    columns = state.law.columns
    rows = np.zeros((len(columns), base.posterior.shape[1]))
    mean, between = np.zeros(len(columns)), np.zeros(len(columns))
    for i, (kind, group, name) in enumerate(columns):
        if (kind, group, name) in places and len(base.posterior):
            rows[i] = base.posterior[places[kind, group, name]]
        if kind == "common":
            mean[i], between[i] = base.common[name], base.priors[name].source
        elif group in base.optimizers:
            mean[i] = base.optimizers[group][name]
        else:
            between[i] = base.priors[name].optimizer
    return mean, rows @ rows.T + 1e-10 * np.eye(len(columns)), between


def _with_block(
    mean: np.ndarray, covariance: np.ndarray, block: Sequence[int], own: np.ndarray, spread: np.ndarray
) -> Gaussian:
    """A Gaussian in which some coefficients are replaced by others, independent of the rest."""
    mean, covariance = mean.copy(), covariance.copy()
    covariance[block, :] = covariance[:, block] = 0.0
    covariance[np.ix_(block, block)], mean[list(block)] = spread, own
    return mean, covariance


def _priors_of_parent(
    base: ConfigurationLaw, parent: AdaptedSource, state: _State
) -> dict[Any, tuple[np.ndarray, np.ndarray, float]]:
    """The posterior of each of the parent's laws, widened by how far a source deviates from its parent."""
    _, _, between = _common_block(base, state)
    priors: dict[Any, tuple[np.ndarray, np.ndarray, float]] = {}
    for law, weight, label in zip(parent.laws, parent.weights, parent.labels, strict=True):
        name = label[0]
        if name in priors and priors[name][2] >= math.log(weight):
            continue
        places = {column: i for i, column in enumerate(law.columns)}
        index = [places.get(column, -1) for column in state.law.columns]
        rows = np.array([law.posterior[i] if i >= 0 else np.zeros(law.posterior.shape[1]) for i in index])
        mean = np.array(
            [
                law.common[coefficient] if kind == "common" else law.optimizers.get(group, {}).get(coefficient, 0.0)
                for kind, group, coefficient in state.law.columns
            ]
        )
        own = DEVIATION_FROM_PARENT * between
        own[state.law.columns.index(("common", "common", "E"))] = between.max()
        priors[name] = mean, rows @ rows.T + np.diag(own**2 + 1e-10), math.log(weight)
    return priors


# Standard deviation of a source from its parent, as a share of that from other labs; its level's is not reduced, since
# another tokenizer or evaluation set moves it freely.
DEVIATION_FROM_PARENT = 0.3


@dataclass(frozen=True)
class _Fit:
    """One maximum a posteriori: `score` in whitened coordinates, `values`, `trust` in each run, and its evidence."""

    score: np.ndarray
    values: np.ndarray
    trust: np.ndarray
    evidence: float
    posterior: np.ndarray
    scales: Mapping[str, float]
    points: Mapping[str, np.ndarray]
    weights: np.ndarray
    noise: np.ndarray

    def law(self, state: _State) -> ConfigurationLaw:
        """The source's law: an ordinary `ConfigurationLaw` with one source."""
        columns = state.law.columns
        optimizers: dict[str, dict[str, float]] = {name: {} for name in state.law.optimizers}
        common = dict(state.law.common)
        for (kind, group, name), value in zip(columns, self.values.tolist(), strict=True):
            (common if kind == "common" else optimizers[group])[name] = value
        residual = KernelResidual(
            fields=[],
            scales=self.scales,
            optimizers=sorted(set(state.optimizers.tolist())),
            runs=self.points,
            weights=self.weights,
            noise=self.noise,
            inputs=state.inputs,
        )
        return replace(
            state.law,
            common=common,
            optimizers=optimizers,
            posterior=self.posterior,
            residuals={state.source: residual},
        )


def _fits(state: _State, mean: np.ndarray, covariance: np.ndarray) -> Iterator[tuple[float, float, _Fit]]:
    """The fits under one prior: the misfit's height, the noise, and the fit, where there is one."""
    root, start = np.linalg.cholesky(covariance), None
    for height, noise in HEIGHTS:
        try:
            fit = _fit(state, mean, root, {**SCALES, MISFIT: height}, noise, start)
        except np.linalg.LinAlgError:
            fit = None  # It ran away so far that rounding leaves no covariance.
        start = None if fit is None else (fit.score, fit.trust)
        if fit is not None:
            yield height, noise, fit


def _fit(
    state: _State,
    mean: np.ndarray,
    root: np.ndarray,
    scales: Mapping[str, float],
    noise: float,
    start: tuple[np.ndarray, np.ndarray] | None,
) -> _Fit | None:
    """The maximum a posteriori under a Gaussian prior, the misfit marginalised; None where the numbers overflow.

    Gauss-Newton steps in the space of the runs, which are fewer than the coefficients, with a line search; the misfit's
    height and the runs' weights (Student-t, Holland & Welsch 1977) are renewed between rounds.
    """
    score, trust = start or (np.zeros(len(mean)), np.ones(len(state.losses)))
    with np.errstate(all="ignore"):
        for _ in range(3 if start else 4):
            coefficients = state.coefficients(mean + root @ score)
            terms = law_terms(coefficients, state.inputs, state.law.form)
            points = state.points(terms)
            own = (noise + NOISE_SLOPE * points["excess"]) ** 2
            covariance = residual_kernel(scales, points, points) + np.diag(own / trust)
            if not np.isfinite(covariance).all():
                return None
            score, final, cost = _descend(state, mean, root, score, covariance)
            if final is None:
                return None
            left = state.losses - final["loss"]
            weights = np.linalg.solve(covariance, left)
            used, trust = trust, np.minimum((FREEDOM + 1) / (FREEDOM + (own / trust * weights) ** 2 / own), 1.25)
    values = mean + root @ score
    slopes = state.slopes(state.coefficients(values)) @ root
    gram = slopes @ slopes.T + covariance
    inner = np.eye(len(mean)) - slopes.T @ np.linalg.solve(gram, slopes)
    count = len(state.losses)
    evidence = -cost - 0.5 * np.linalg.slogdet(gram)[1] - count / 2 * math.log(2 * math.pi)
    evidence += _student_correction(used).sum()
    if not np.isfinite(evidence):
        return None
    posterior = np.linalg.cholesky(root @ inner @ root.T + 1e-10 * np.eye(len(mean)))
    return _Fit(score, values, trust, float(evidence), posterior, scales, points, weights, own / used)


def _descend(
    state: _State, mean: np.ndarray, root: np.ndarray, score: np.ndarray, covariance: np.ndarray
) -> tuple[np.ndarray, dict[str, np.ndarray] | None, float]:
    """Gauss-Newton with halved steps: standard scores, the closed form's terms at them, and the cost."""
    lower = np.linalg.cholesky(covariance)

    def at(score: np.ndarray) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], float]:
        coefficients = state.coefficients(mean + root @ score)
        terms = law_terms(coefficients, state.inputs, state.law.form)
        if not np.isfinite(terms["loss"]).all():
            return coefficients, terms, math.inf
        white = solve_triangular(lower, state.losses - terms["loss"], lower=True)
        return coefficients, terms, 0.5 * float(white @ white + score @ score)

    coefficients, terms, cost = at(score)
    if not math.isfinite(cost):
        return score, None, cost
    for _ in range(15):
        slopes = state.slopes(coefficients) @ root
        target = state.losses - terms["loss"] + slopes @ score
        step = slopes.T @ cho_solve(cho_factor(slopes @ slopes.T + covariance), target) - score
        share = 1.0
        while share > 1e-4 and (tried := at(score + share * step))[2] > cost:
            share /= 2
        if share <= 1e-4:
            break
        gain, score = cost - tried[2], score + share * step
        coefficients, terms, cost = tried
        if gain < 1e-2:
            break
    return score, terms, cost


def _student_correction(trust: np.ndarray) -> np.ndarray:
    """Log density of a Student-t error over that of the Gaussian of the weight it was given."""
    far = (FREEDOM + 1) / trust - FREEDOM
    student = gammaln((FREEDOM + 1) / 2) - gammaln(FREEDOM / 2) - 0.5 * math.log(FREEDOM * math.pi)
    student = student - (FREEDOM + 1) / 2 * np.log1p(far / FREEDOM)
    return student - (0.5 * np.log(trust) - 0.5 * math.log(2 * math.pi) - 0.5 * trust * far)
