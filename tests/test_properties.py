"""What every forecast has to hold, of made-up configurations over the whole registry and all kinds of sources.

`NCPL_PROPERTY_CASES=10000` draws so many cases of each property at random, as `make hardening` does.
"""

import math
import os
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from fields_ncpl import FIELDS, check_config, sequence_length
from names_ncpl import SCHEDULE_NAMES, SHAPE_NAMES
from ncpl import Forecaster
from text_ncpl import MOST_LEVEL

CASES = int(os.environ.get("NCPL_PROPERTY_CASES", "0"))
PROPERTY = settings(
    max_examples=CASES or 15,
    derandomize=not CASES,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
pytestmark = pytest.mark.filterwarnings("ignore")

# Nats that a second minimum, or a rise of what should fall, may have: the residual's kernel is not monotone.
DEPTH = 0.002
RATES = np.geomspace(1e-6, 1.0, 60)
FITTED = ("marin", "steplaw", "steplaw_moe")
# What says what other fields mean, and moves nothing of its own.
DERIVED = ("max step",)


def own_runs() -> list[dict[str, Any]]:
    """Made-up runs of a lab of its own."""
    return [
        {"model size": n, "data size": d, "batch size": b, "learning rate": rate, "optimizer": "adamw"}
        | {"final_loss": 2.2 + 6 * n**-0.3 + 0.9 * d**-0.35 + 0.01 * math.log(rate / 2e-3) ** 2 + 0.1 / b}
        for n in (50, 100, 200)
        for d in (1, 4)
        for b in (64, 256)
        for rate in (1e-3, 2e-3, 4e-3)
    ]


@cache
def lab() -> Forecaster:
    """The default, which knows the lab too."""
    return Forecaster.from_pretrained().adapt(own_runs(), source="own")


def optimizers() -> list[str]:
    return [*sorted(lab().law.optimizers), "unheard-of"]


def log_uniform(low: float, high: float) -> st.SearchStrategy[float]:
    return st.floats(math.log(low), math.log(high)).map(math.exp)


@st.composite
def configurations(draw: st.DrawFn) -> dict[str, Any]:
    """A configuration of any source, with sizes and tokens that somebody may train."""
    source = draw(st.sampled_from((*FITTED, "own", "unknown")))
    size = draw(log_uniform(10, 1e5))
    config: dict[str, Any] = {
        "source": source,
        "model size": size,
        "data size": size / 1e3 * draw(log_uniform(2, 1000)),
        "optimizer": draw(st.sampled_from(optimizers())),
        "learning rate": draw(log_uniform(1e-5, 0.3)),
        "batch size": draw(st.integers(8, 4096)),
    }
    if source == "steplaw_moe":
        config |= {"active size": size / 4, "num experts": 16, "top k": 2}
    assume(config["batch size"] * sequence_length(config) * 50 < config["data size"] * 1e9)
    return config


def losses(rows: Sequence[Mapping[str, Any]]) -> np.ndarray:
    law = lab().law
    return law.losses(law.evaluate(list(rows)))


def at_best_rate(rows: Sequence[Mapping[str, Any]], rates: np.ndarray = RATES) -> np.ndarray:
    """The lowest loss over the learning rate of each configuration."""
    every = [{**row, "learning rate": float(rate)} for row in rows for rate in rates]
    return losses(every).reshape(len(rows), -1).min(1)


def second_minimum(found: np.ndarray) -> float:
    """How far a curve falls again on its way out from its lowest point, in nats."""
    foot = int(found.argmin())
    sides = found[foot:], found[: foot + 1][::-1]
    return float(max((np.maximum.accumulate(side) - side).max() for side in sides))


def rise(found: np.ndarray) -> float:
    """How far a curve that should fall is over its lowest value so far."""
    return float((found - np.minimum.accumulate(found)).max())


def scaled(config: Mapping[str, Any], factor: float) -> dict[str, Any]:
    names = ("model size", "active size")
    return {**config, **{name: config[name] * factor for name in names if name in config}}


@PROPERTY
@given(configurations())
def test_one_valley_over_the_learning_rate(config):
    assert second_minimum(losses([{**config, "learning rate": float(rate)} for rate in RATES])) <= DEPTH


@PROPERTY
@given(configurations())
def test_one_valley_over_batch_at_the_best_rate(config):
    most = config["data size"] * 1e9 / sequence_length(config)
    batches = np.unique(np.geomspace(1, min(most, 2e5), 16).astype(int))
    assert second_minimum(at_best_rate([{**config, "batch size": int(batch)} for batch in batches])) <= DEPTH


@PROPERTY
@given(configurations())
def test_more_tokens_are_never_worse(config):
    tokens = config["data size"] * np.geomspace(1, 30, 8)
    assert rise(at_best_rate([{**config, "data size": float(d)} for d in tokens])) <= DEPTH


@PROPERTY
@given(configurations())
def test_a_larger_model_is_never_worse_at_its_best_rate_and_batch(config):
    """With two tokens a parameter and more. On fewer an optimizer whose advantage shrinks with size may lose 0.003."""
    most = config["data size"] * 1e9 / sequence_length(config) / 50
    batches = [int(batch) for batch in np.geomspace(8, min(most, 4096), 4)]
    rows = [scaled(config, factor) | {"batch size": b} for factor in np.geomspace(0.04, 1, 5) for b in batches]
    assert rise(at_best_rate(rows, np.geomspace(1e-5, 0.5, 120)).reshape(5, -1).min(1)) <= DEPTH


@PROPERTY
@given(configurations(), st.floats(0.01, MOST_LEVEL))
def test_a_loss_lies_in_its_interval_between_nothing_and_chance(config, level):
    row = lab().predict_checked([config], level).iloc[0]
    chance = float(lab().law.evaluate([config]).chance[0])
    assert 0 < row["lower"] <= row["loss"] <= row["upper"] <= chance + 1e-9
    assert 0 <= row["divergence"] <= 1
    wider = lab().predict_checked([config], MOST_LEVEL).iloc[0]
    assert wider["lower"] <= row["lower"]
    assert row["upper"] <= wider["upper"]


@PROPERTY
@given(configurations())
def test_the_limits_are_those_of_theory(config):
    """No learning rate learns nothing; a batch of one token is noise, one of all tokens a single step."""
    falling = losses([{**config, "learning rate": rate} for rate in (1e-6, 1e-9, 1e-12, 1e-30)])
    assert (np.diff(falling) > -1e-9).all()
    every = config["data size"] * 1e9 / sequence_length(config)
    batches = at_best_rate([{**config, "batch size": float(batch)} for batch in np.geomspace(1, every, 12)])
    best, chance = batches.min(), float(lab().law.evaluate([config]).chance[0])
    assert falling[-1] > best + 1.0
    assert at_best_rate([{**config, "batch size": 1, "seq len": 1}])[0] > best - DEPTH
    assert best < batches[-1] <= chance


@PROPERTY
@given(configurations(), st.sampled_from(sorted(SCHEDULE_NAMES)), log_uniform(0.1, 10))
def test_differences_are_as_uncertain_as_losses(config, schedule, factor):
    """What one forecast's interval counts, its difference from another one counts too: a schedule's end, the drift."""
    rows = [config, {**config, "lr_schedule": schedule}, {**config, "data size": config["data size"] * factor}]
    at = lab().law.evaluate(rows)
    covariance = lab().law.covariance(at)
    np.testing.assert_allclose(np.sqrt(np.diag(covariance)), lab().law.uncertainty(at)["known"], rtol=1e-5)
    calibration = lab().calibration
    assert calibration is not None
    spread, noise = calibration.spread(at), calibration.noise(at)
    whole = np.outer(spread, spread) * covariance + np.diag(noise**2) + calibration.drifts(at)
    np.testing.assert_allclose(np.sqrt(np.diag(whole)), calibration.deviation(at), rtol=1e-5)
    assert np.linalg.eigvalsh(whole).min() > -1e-9


def some_of(name: str, draw: np.random.Generator) -> list[Any]:
    """Three accepted values of a field: both ends of its range and one between them."""
    field = FIELDS[name]
    names = {"lr_schedule": sorted(SCHEDULE_NAMES), "cooldown shape": sorted(SHAPE_NAMES), "optimizer": optimizers()}
    if name == "lr points":
        return [[[0, 1e-3], [100, rate]] for rate in (1e-5, float(draw.uniform(1e-5, 1e-3)), 1e-3)]
    if field.kind == "flag":
        return [False, True, bool(draw.integers(2))]
    if field.kind == "text":
        return [str(value) for value in draw.choice(names.get(name, ("one", "other", "third")), 3, replace=False)]
    low, high = max(field.low, 1e-9), min(field.high, 1e5)
    values = low, math.exp(draw.uniform(math.log(low), math.log(high))), high
    return [max(int(value), math.ceil(field.low)) if field.kind == "count" else value for value in values]


@pytest.mark.parametrize("source", [*FITTED, "own", "unknown"])
def test_every_field_moves_the_forecast_or_is_said_to_have_no_effect(source):
    """With each optimizer by itself: one to whose runs a field is idle says so, whatever it does with another."""
    draw = np.random.default_rng(0)
    wrong = []
    for optimizer in optimizers():
        start = {"source": source, "model size": 300.0, "data size": 20.0, "optimizer": optimizer}
        start |= {"learning rate": 3e-3, "batch size": 128, "lr_schedule": "wsd"}
        names = [name for name in FIELDS if name not in ("source", *DERIVED)]
        changed = [start | {name: value} for name in names for value in some_of(name, draw)]
        found = np.abs(losses(changed).reshape(-1, 3) - losses([start])[0]).max(1) > 1e-12
        for name, moves, row in zip(names, found.tolist(), changed[2::3], strict=True):
            said = any(
                name in note.partition(": ")[2].partition(" (")[0].split(", ")
                for note in lab().notes([row])
                if note.startswith("no effect")
            )
            wrong += [(optimizer, name, "moves", moves, "said", said)] if moves == said else []
    assert wrong == []


# Fields that a sweep moves through. Two take no step from 0 here: a clip of 0 is none at all, and of a decay shorter
# than a step the sum over falls of the rate is no limit (`test_limits` has that of 0).
CONTINUOUS: tuple[str, ...] = (
    "model size",
    "data size",
    "batch size",
    "learning rate",
    "weight decay",
    "warmup",
    "decay",
)
CONTINUOUS += ("beta1", "beta2", "epsilon", "max_grad_norm", "min_lr", "min_lr_ratio", "adam_lr", "momentum")


@pytest.mark.parametrize("name", CONTINUOUS)
@PROPERTY
@given(configurations(), st.floats(0, 1), st.sampled_from(["cosine", "linear", "wsd"]))
def test_a_small_step_in_a_field_is_a_small_step_in_loss_and_interval(name, config, share, schedule):
    field = FIELDS[name]
    low, high = math.log(max(field.low, 1e-9)), math.log(min(field.high, 1e4))
    value = config.get(name, math.exp(low + share * (high - low)))
    pairs = [(value, value * (1 - 1e-5))]
    steps = config["data size"] * 1e9 / config["batch size"] / sequence_length(config)
    # A first step of warmup is a small one of a long run alone.
    small = field.kind != "count" or steps > 1000
    if small and name not in ("max_grad_norm", "decay") and (field.zero or field.low == 0):
        pairs.append((0.0, field.low or 1e-9))
    rows = [{**config, "lr_schedule": schedule, name: at} for pair in pairs for at in pair]
    found = lab().predict_checked(rows)[["loss", "lower", "upper"]].to_numpy().reshape(-1, 2, 3)
    assert np.abs(np.diff(found, axis=1)).max() < 2e-3


@settings(PROPERTY, max_examples=max(CASES // 50, 3))
@given(configurations(), st.integers(0, 2**32 - 1))
def test_optimize_is_never_worse_than_any_forecast_within_its_bounds(config, seed):
    config = check_config(config, strict=False)
    bounds = {"learning rate": (1e-5, 0.1), "batch size": (16, 1024)}
    best = lab().optimize(config, bounds, constraints={"divergence": 1.0})
    rng = np.random.default_rng(seed)
    tried = [
        {**config, "learning rate": float(rate), "batch size": int(batch)}
        for rate, batch in zip(
            np.exp(rng.uniform(math.log(1e-5), math.log(0.1), 400)), rng.integers(16, 1025, 400), strict=True
        )
    ]
    assert best["loss"] <= losses(tried).min() + 2e-5
