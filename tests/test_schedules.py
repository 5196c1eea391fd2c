"""Schedules: the rate along a run, its integral, and the annealing sum against the sum over every step."""

from typing import Any

import numpy as np
import pytest

from names_ncpl import SCHEDULE_NAMES, SHAPE_NAMES, schedule_name, shape_name
from schedules_ncpl import SCHEDULES, Schedule, annealing, final_annealing

STEPS = 20_000
CONFIGS: dict[str, dict[str, Any]] = {
    "cosine": {"lr_schedule": "cosine_with_warmup", "warmup": 1000},
    "linear": {"lr_schedule": "linear", "warmup": 1000},
    "wsd": {"lr_schedule": "WSD", "warmup": 1000, "decay": 0.2, "min_lr_ratio": 0.1},
    "wsd sqrt": {"lr_schedule": "warmup_stable_decay", "decay": 0.2, "cooldown shape": "minus_sqrt"},
    "wsd exponential": {"lr_schedule": "wsd", "decay": 0.2, "cooldown shape": "exponential", "min_lr_ratio": 0.1},
    "root": {"lr_schedule": "inverse_sqrt", "warmup": 1000},
    "root cooled": {"lr_schedule": "inv_sqrt", "warmup": 1000, "decay": 0.1},
    "two-stage": {"lr_schedule": "two-stage", "decay": 0.6, "min_lr_ratio": 0.3},
    "constant": {"lr_schedule": "constant", "warmup": 1000},
    "points": {"lr points": [(0, 0), (1000, 3e-4), (9000, 3e-4), (9000, 1e-4), (15000, 2e-4), (20000, 0)]},
}


def summed_over_steps(schedule: Schedule, peak: float, at: np.ndarray, speed: float, gamma: float, power: float):
    """Equation 5 of arXiv 2503.12811, step by step."""
    rates = schedule.rate(np.arange(STEPS + 1) / STEPS)
    sums = np.cumsum(rates) * peak
    first = round(schedule.peak * STEPS) + 1
    gains = []
    for end in at:
        k = np.arange(first, end + 1)
        after = np.maximum(rates[k], 1e-4)
        gains.append(
            ((rates[k - 1] - rates[k]) * (1 - (1 + speed * after**-gamma * (sums[end] - sums[k - 1])) ** -power)).sum()
        )
    return np.array(gains)


@pytest.mark.parametrize("name", CONFIGS)
def test_annealing_on_few_nodes_equals_the_sum_over_all_steps(name):
    schedule, peak = Schedule.of(CONFIGS[name], STEPS), 6e-4
    at = np.linspace(2000, STEPS, 13).astype(int)
    fall, after, since = schedule.drops(at / STEPS)
    found = annealing(fall, after, since * STEPS * peak, 18.0, 0.55, 0.7)
    # A gain is worth about 0.15 nats, so that this is a ten-thousandth of a nat.
    np.testing.assert_allclose(found, summed_over_steps(schedule, peak, at, 18.0, 0.55, 0.7), atol=1e-3)
    assert fall.shape[1] < 250
    assert final_annealing([schedule], STEPS, peak, 18.0, 0.55, 0.7)[0] == pytest.approx(found[-1], abs=1e-12)


@pytest.mark.parametrize("name", CONFIGS)
def test_clock_is_the_mean_of_the_rates(name):
    schedule = Schedule.of(CONFIGS[name], STEPS)
    for share in (0.03, 0.5, 1.0):
        middles = (np.arange(int(STEPS * share)) + 0.5) / STEPS
        assert schedule.clock(share) == pytest.approx(schedule.rate(middles).sum() / STEPS, abs=2e-5)


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_warms_up_from_nothing_to_its_peak_and_ends_where_it_says(name):
    schedule = Schedule.of({"lr_schedule": name, "warmup": 100, "min_lr_ratio": 0.05, "decay": 0.25}, 1000)
    rates = schedule.rate(np.linspace(0, 1, 1001))
    assert rates[0] == 0
    assert rates.max() == pytest.approx(1.0)
    assert (np.diff(rates[101:]) <= 1e-12).all()
    assert rates[-1] == pytest.approx(1.0 if name == "constant" else 0.05)


def test_final_rate_is_a_ratio_or_absolute():
    by_ratio = Schedule.of({"min_lr_ratio": 0.05}, 1000)
    assert by_ratio == Schedule.of({"min_lr": 1e-4, "learning rate": 2e-3}, 1000)


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("cosine_with_min_lr", "cosine"), ("CosWithWarmup", "cosine"), ("WarmupDecayLR", "linear"),
        ("linear_decay_with_warmup", "linear"), ("constant_with_warmup", "constant"), ("WarmupLR", "constant"),
        ("warmup_stable_decay", "wsd"), ("WSD", "wsd"), ("inverse-square-root", "inverse square root"),
        ("inv_sqrt_with_warmup", "inverse square root"), ("two_stage", "two-stage"),
        ("torch.optim.lr_scheduler.CosineAnnealingLR", "cosine"), ("1-sqrt", "sqrt"),
    ],
)  # fmt: skip
def test_names_as_frameworks_write_them(written, name):
    assert schedule_name(written) == name


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"lr_schedule": "cosin"}, "lr_schedule: got 'cosin', expected one of cosine, linear.*did you mean 'cosine'"),
        ({"lr_schedule": "wsd", "cooldown shape": "quadratic"}, "cooldown shape: got 'quadratic', expected one of"),
        ({"lr points": [(10, 1e-3), (5, 1e-4)]}, "lr points: .*in the order of the steps"),
        ({"lr points": [(10, 0.0)]}, "lr points: .*one above 0"),
        ({"lr points": 3e-4}, "lr points: got 0.0003, expected pairs"),
        ({"lr points": []}, "lr points: .*expected pairs"),
    ],
)
def test_a_schedule_that_is_not_one_is_refused(config, message):
    with pytest.raises(ValueError, match=message):
        Schedule.of(config, 1000)


def test_every_name_has_its_schedule_and_every_shape_is_one():
    assert set(SCHEDULE_NAMES) == set(SCHEDULES)
    for shape in SHAPE_NAMES:
        assert Schedule.of({"lr_schedule": "wsd", "cooldown shape": shape}, 1000).shape == shape


def test_shapes_have_aliases():
    assert [shape_name(name) for name in ("1-sqrt", "exp", "COSINE")] == ["sqrt", "exponential", "cosine"]


def test_one_shape_at_every_length_and_peak_rate():
    """The key of the cache holds shares alone, so that a sweep over rates and lengths builds few schedules."""
    assert Schedule.of({"warmup": 100}, 1000) == Schedule.of({"warmup": 500, "learning rate": 3e-4}, 5000)
