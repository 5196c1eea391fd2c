"""The closed form of the configuration-aware law: one valley over the learning rate, by construction.

Every term that the learning rate moves is zero, with its derivative, at the best rate, falls towards it from below and
rises above it; what size and data leave is monotone in both. numpy alone; differentiated by `gradients_ncpl`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

try:
    from .gradients_ncpl import gradient as differentiate
    from .names_ncpl import schedule_name
    from .schedules_ncpl import Schedule, final_annealing
    from .upgrade_ncpl import closed_form_0_1
except ImportError:
    from gradients_ncpl import gradient as differentiate
    from names_ncpl import schedule_name
    from schedules_ncpl import Schedule, final_annealing
    from upgrade_ncpl import closed_form_0_1

# Where the logarithms of the configuration-aware law are zero.
REFERENCE = {"model size": 300.0, "data size": 20.0, "batch tokens": 2.0**19, "learning rate": 2e-3}
# The form that is fitted today. A saved law without a form has the first, of release 0.1.
FORM = 2
# What `law_terms` reads of a run: `effective_size`'s arguments and `closed_form`'s.
INPUTS = ("active", "idle", "head", "d", "b", "rate")
# Nats that the rough side of the learning rate, and the noise of small batches, cost a run that finishes, at most.
_SATURATION = 0.4
# A little below the best rate runs lose as slowly as other labs' data exponent says; from three
# log units below, where no lab has runs, tokens count in proportion to the rate.
_SLOW, _TOO_SLOW = 0.38, 3.0
# Log units of size and data beyond `REFERENCE` over which an optimizer's advantage drifts; no run knows of more.
_DRIFT = 2.5
# The data exponent stays above this, so that more tokens always help.
_LEAST_BETA = 0.1


def _softplus(x: Any) -> Any:
    return np.log1p(np.exp(-np.abs(x))) + np.maximum(x, 0.0)


def closed_form(c: Mapping[str, Any], n: Any, d: Any, b: Any, rate: Any) -> dict[str, Any]:
    """The configuration-aware law, of arrays and of `gradients_ncpl.Dual` values alike.

        L = E + A e^(-alpha m) + B e^(growth m - (beta + beta_n m) s) + valley(x) + floor(b) + waste(b)

    with x the log of the learning rate over the best one, s the log of the tokens that the optimizer makes of the data,
    and m the log of the size, or of the best smaller size where the model is too large for its data: a larger model is
    never worse. The valley sums what a rate below the best one loses (a hyperbola near it; far below, tokens count in
    proportion to the rate) and what one above it loses: two exponentials, less their tangents at the best rate, for
    slow progress and for rough training, and the data that runs lose which blow up early and recover, a smooth step
    above the best rate by `e^near` at least. `floor` is the noise of small batches and `waste` the data that batches
    over the critical size throw away (McCandlish et al. 2018, arXiv 1812.06162). The data term grows with size, as in
    every lab's runs at hand (docs/experiments.md).

    Args:
        c: coefficient -> its value for each run.
        n, d, b, rate: logarithms of `effective_size`, data size, batch tokens and peak learning rate over `REFERENCE`.

    Returns:
        `loss` in nats per token; its parts `surface`, the valley, and `excess`, valley, floor and waste together; and
        where the rate lies: `valley`, log over the best one, and `edge`, log over the one where training turns rough.
    """

    def power(name: str) -> Any:
        return c[name] + c[f"{name}_n"] * n + c[f"{name}_d"] * d + c[f"{name}_b"] * b

    best = power("lr")
    x = np.clip(rate - best, -12.0, 8.0)
    tokens = d + c["eff"] + c["eff_n"] * np.clip(n, -_DRIFT, _DRIFT) + c["eff_d"] * np.clip(d, -_DRIFT, _DRIFT)
    over = _softplus(b - c["crit"] - c["crit_d"] * d)
    m = np.minimum(n, _largest_useful(c, tokens, over))
    size = np.exp(c["logA"] - c["alpha"] * m)
    data = np.exp(c["logB"] + c["growth"] * m - np.maximum(c["beta"] + c["beta_n"] * m, _LEAST_BETA) * tokens)
    waste = data * np.expm1(c["beta"] * over)
    place = _softplus(4 * (power("blow") - best)) / 4 + np.exp(c["near"])
    sharp = 2 + np.exp(c["sharp"])
    step = 1 / (1 + np.exp(np.clip(sharp * (np.log(place) - np.log(np.maximum(x, 1e-9))), -40.0, 40.0)))
    lost = np.exp(c["lost"] + c["lost_d"] * np.clip(d, -_DRIFT, _DRIFT) + c["lost_b"] * np.clip(b, -3.0, 3.0)) * step
    rough = np.exp(c["rough"])
    edge = np.exp(np.clip(rough * (best - power("edge")) - 4, -60.0, 2.0)) * _over_tangent(rough * x)
    high = np.exp(power("high")) * _over_tangent(np.exp(c["steep"]) * x)
    behind = np.maximum(-x - _TOO_SLOW, 0.0)
    slow = data * np.expm1(c["beta"] * behind * behind / (0.5 + behind))
    # A run that goes on rising diverges and has no loss: what finishes saturates.
    low = np.exp(power("low")) * _below(x, np.exp(c["width"])) + slow
    surface = low + _saturated(high + edge + data * np.expm1(c["beta"] * lost))
    excess = surface + _saturated(np.exp(np.clip(c["floor"] + c["floor_b"] * b, -20.0, 6.0))) + waste
    return {
        "loss": c["E"] + c["offset"] + size + data + excess,
        "surface": surface,
        "excess": excess,
        "valley": x,
        "edge": rate - power("edge"),
    }


def _largest_useful(c: Mapping[str, Any], tokens: Any, over: Any) -> Any:
    """Log size at which size and data terms together are least: a larger model is worth no more on so few tokens."""
    growth = np.maximum(c["growth"] - c["beta_n"] * tokens, 1e-3)
    alpha = np.maximum(c["alpha"], 0.02)
    balance = np.log(alpha) + c["logA"] - c["logB"] + c["beta"] * (tokens - over) - np.log(growth)
    return balance / (alpha + growth)


def _over_tangent(x: Any) -> Any:
    """`e^x - 1 - x`: zero with its derivative at 0."""
    x = np.clip(x, -60.0, 8.0)
    return np.exp(x) - 1 - x


def _below(x: Any, width: Any) -> Any:
    """A hyperbola about 0, which far below 0 grows as tokens that count in proportion to the rate."""

    def hyperbola(at: Any) -> Any:
        return np.sqrt(at * at + width * width) - width

    low = hyperbola(np.minimum(x, 0.0))
    return hyperbola(x) - low + np.expm1(_SLOW * low) / _SLOW


def _saturated(x: Any) -> Any:
    return _SATURATION * (1 - np.exp(-x / _SATURATION))


def effective_size(c: Mapping[str, Any], active: Any, idle: Any, head: Any) -> Any:
    """Logarithm over `REFERENCE` of the size that a model is worth.

    The output head counts in part (Porian et al. 2024; docs/experiments.md), idle experts by a power (Clark et al.
    2022).

    Args:
        c: coefficient -> its value for each run.
        active: logarithm of the active parameters over `REFERENCE`.
        idle: logarithm of all parameters over the active ones, 0 of a dense model.
        head: parameters of the output head over the active ones.
    """
    return active + c["experts"] * idle + np.log1p(c["head"] * head)


def law_terms(c: Mapping[str, Any], runs: Mapping[str, Any], form: int = FORM) -> dict[str, Any]:
    """The closed form at runs, with their effective `size` and the `best` rate, where one that is NaN is taken to lie.

    `reducible` is what training removes of the loss at the best rate: the terms of size and data.

    Args:
        c: coefficient -> its value for each run.
        runs: `INPUTS` -> values.
        form: 2, `closed_form`, or 1, that of release 0.1.
    """
    n, d, b = effective_size(c, runs["active"], runs["idle"], runs["head"]), runs["d"], runs["b"]
    best = c["lr"] + c["lr_n"] * n + c["lr_d"] * d + c["lr_b"] * b
    missing = np.isnan(runs["rate"])
    rate = np.where(missing, 0.0, runs["rate"]) + missing * 1.0 * best
    terms = (closed_form if form == FORM else closed_form_0_1)(c, n, d, b, rate)
    reducible = terms["loss"] - terms["excess"] - c["E"] - c["offset"]
    return terms | {"size": n, "best": best, "rate": rate, "reducible": reducible}


# Nats over which losses bend to the chance level.
_CHANCE_WIDTH = 0.1
# What a learning rate's schedule is made of.
SCHEDULE_FIELDS = ("lr_schedule", "min_lr", "min_lr_ratio", "decay", "warmup", "lr points")
# What a whole fall of the rate gains at the reference size, in nats: of a source, and of any other the mean over labs.
# Then the standard deviation of its logarithm over labs, its growth with size, and the annealing's speed, exponent of
# the rate and power (`benchmarks/schedules.py` fits them to runs that differ in their schedule alone).
ANNEALED = {"": 0.196, "marin": 0.538}
ANNEALED_SPREAD = 0.68
_ANNEALED_N, _ANNEALING = 0.108, (22.4, 0.514, 0.311)
# Power of the rate in the clock of a run's progress: that of its curve (`curves_ncpl`).
_CLOCK_POWER = 0.5


def stated_schedule(config: Mapping[str, Any], usual: Mapping[str, Any], read: Sequence[str]) -> dict[str, Any]:
    """The fields of a schedule that a configuration states and its source's residual does not read.

    Of a decay, the residual knows nothing where the optimizer's runs never had one.
    Where a source's runs state rates by step, its law is fitted to their losses as they are: it knows their effect.
    """
    left_out = {*read, "lr points"} if "lr points" in usual else {*read}
    left_out -= {"decay"} if usual.get("decay") is None else set()
    return {name: config[name] for name in SCHEDULE_FIELDS if config.get(name) is not None and name not in left_out}


def stated_decay(config: Mapping[str, Any]) -> float | None:
    """The share of the run over which the rate decays, where a configuration states one; a constant rate's is 0.

    >>> stated_decay({"lr_schedule": "constant"}), stated_decay({"decay": 0.2}), stated_decay({})
    (0.0, 0.2, None)
    """
    name = config.get("lr_schedule")
    if name is not None and schedule_name(name) == "constant":
        return 0.0
    return None if config.get("decay") is None else float(config["decay"])


def schedules_of(
    usual: Mapping[str, Any], own: Mapping[str, Any], kept: Mapping[str, Any], rate: float, steps: float
) -> tuple[Schedule, Schedule]:
    """The usual schedule, and that of a configuration which states some fields of its own.

    Args:
        usual: the fields of the usual one.
        own: the fields that the configuration states; its final rate stands for either way of giving one.
        kept: fields that both have in common.
        rate: the peak learning rate.
        steps: of the run.
    """
    left = {name: usual[name] for name in SCHEDULE_FIELDS if usual.get(name) is not None}
    stated, other = {**left, **kept}, dict(left)
    changed = "lr_schedule" in own and schedule_name(own["lr_schedule"]) != schedule_name(usual["lr_schedule"])
    if changed:
        other.pop("decay", None)
    if changed or {"min_lr", "min_lr_ratio"} & own.keys():
        other = {name: value for name, value in other.items() if name not in ("min_lr", "min_lr_ratio")}
    other |= {**kept, **own}
    return Schedule.of({**stated, "learning rate": rate}, steps), Schedule.of({**other, "learning rate": rate}, steps)


def schedule_effect(
    c: Mapping[str, float], n: float, d: float, steps: float, schedules: tuple[Schedule, Schedule], annealed: float
) -> float:
    """What one schedule's final loss lies over another's, in nats per token: its annealing, and its slower clock.

    Args:
        c: coefficient -> value.
        n, d: logarithms of `effective_size` and data size over `REFERENCE`.
        steps: of the run.
        schedules: before and after; peak rates are the same, taken as the reference's for the lag.
        annealed: what a whole fall of the rate gains at the reference size, in nats.
    """
    before, after = schedules
    data = float(np.exp(c["logB"] + c["growth"] * n - (c["beta"] + c["beta_n"] * n) * d))
    clock, usual = (max(float(schedule.clock(1.0, _CLOCK_POWER)), 1e-3) for schedule in (after, before))
    gained = np.diff(final_annealing(schedules, steps, REFERENCE["learning rate"], *_ANNEALING))[0]
    return float(data * ((clock / usual) ** -c["beta"] - 1) - annealed * np.exp(_ANNEALED_N * n) * gained)


def below_chance(losses: np.ndarray, chance: np.ndarray) -> np.ndarray:
    """Losses that stay below those of a model that knows nothing; those a nat below it and more stay as they are."""
    return chance - _CHANCE_WIDTH * np.logaddexp(0.0, (chance - losses) / _CHANCE_WIDTH)


def gradient(c: Mapping[str, Any], runs: Mapping[str, np.ndarray], form: int = FORM) -> np.ndarray:
    """Derivatives of the closed form by its coefficients, (runs, coefficients).

    Args:
        c: coefficient -> its value for each run.
        runs: `INPUTS` -> values.
        form: of the closed form.
    """
    columns = {name: np.broadcast_to(values, len(runs["d"])) for name, values in c.items()}
    slopes = []
    # So many rows at a time that the derivatives stay in a core's cache.
    for i in range(0, len(runs["d"]), 256):
        rows = {name: runs[name][i : i + 256] for name in INPUTS}
        some = {name: values[i : i + 256] for name, values in columns.items()}
        slopes.append(differentiate(lambda duals, rows=rows: law_terms(duals, rows, form)["loss"], some))
    return np.concatenate(slopes) if slopes else np.empty((0, len(columns)))


def locate(terms: Mapping[str, Any], runs: Mapping[str, Any], form: int = FORM) -> dict[str, Any]:
    """The residual's coordinates: rate over the best one, batch over its drift with data, size, data, excess.

    Beside them what else of a run its size is made of. The first form takes the rate over its rough edge.
    """
    rate = np.clip(terms["valley"], -5.0, 4.0) if form == FORM else np.clip(terms["edge"], -5.0, 3.0)
    return {
        "rate": rate,
        "batch": runs["b"] - 0.4 * runs["d"],
        "size": terms["size"],
        "data": runs["d"],
        "excess": np.clip(terms["excess"], 0.0, 0.5),
        "reducible": terms["reducible"],
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
    # Where runs blow up early, how far above the best rate at least (the logarithm of log units), how sharply that sets
    # in, and the logarithm of data (in log units) that they lose.
    **_power("blow", 0.8, Prior(-0.6, 0.2, 0.1), Prior(0.0, 0.2, 0.1), Prior(0.0, 0.2, 0.1), 0.7, 0.7),
    "near": Prior(-0.9, 0.5, 0.7),
    "sharp": Prior(1.0, 0.5, 0.3),
    "lost": Prior(-1.2, 0.7, 0.5),
    "lost_d": Prior(0.0, 0.2, 0.1),
    "lost_b": Prior(0.0, 0.2, 0.1),
    "floor": Prior(-5.0, 0.5, 0.5),
    "floor_b": Prior(-1.0, 0.2, 0.2),
    "crit": Prior(1.5, 0.7, 0.7, 0.4),
    "crit_d": Prior(0.3, 0.15, 0.15),
}
# What the shape over learning rate and batch hangs on. Within a cell it varies from run to run, so that all runs count
# for it; all other coefficients set a cell's level, which its runs share.
SHAPE = frozenset(
    name
    for name in PRIORS
    if name.split("_")[0]
    in ("lr", "low", "width", "high", "steep", "edge", "rough", "blow", "near", "sharp", "lost", "floor", "crit")
)
