"""What is said of a lab's own runs: before they are learnt from, and of forecasts by them."""

import math
import re

import pytest

from calibration_ncpl import size_in_words
from ncpl import Forecaster
from ncpl.trust import in_words
from tests.test_adapt import lab_runs

RATES = (5e-4, 1.5e-3, 3.5e-3, 9e-3, 2e-2)
BASE = {"batch size": 64, "seq len": 512}


def swept_runs(best=3.5e-3):
    """Runs of three sizes at five learning rates, of which one is the best at all sizes."""
    return [
        {**row, **BASE, "learning rate": rate, "final_loss": row["final_loss"] + 0.04 * math.log(rate / best) ** 2}
        for row in lab_runs()
        for rate in RATES
    ]


@pytest.fixture(scope="module")
def shipped():
    return Forecaster.from_pretrained()


@pytest.fixture(scope="module")
def swept(shipped):
    return shipped.adapt(swept_runs(), source="acme")


def rate_note(forecasts):
    (note,) = [note for note in forecasts.attrs["notes"] if "times the best" in note] or [""]
    return note


def test_the_note_on_a_learning_rate_is_that_of_the_forecast(swept):
    """An adapted source's best rate is its own law's, and the cost that of its losses."""
    config = {"source": "acme", "model size": 120.0, "data size": 2.5, **BASE}
    table = swept.sweep(config, {"learning rate": [2e-4, 3.5e-3, 8e-2]})
    best = swept.optimize(config, {"learning rate": (1e-4, 0.1)})
    for rate in (2e-4, 8e-2):
        found = swept.predict({**config, "learning rate": rate})
        off, at, cost = map(float, re.findall(r"[\d.e-]*\d", rate_note(found).replace("120M", ""))[:3])
        assert at == pytest.approx(best["learning rate"], rel=0.05)
        assert off == pytest.approx(rate / at, rel=0.1)
        assert cost == pytest.approx(found["loss"][0] - best["loss"], rel=0.06)
    # One size alone: nothing is said of larger models; of several configurations, which one.
    assert "larger model" not in rate_note(table)
    assert "configuration [2] of 3 (120M parameters, 2.5B tokens, batch size 64" in rate_note(table)
    assert not rate_note(swept.predict({**config, "learning rate": 3.5e-3}))


def test_that_larger_models_may_be_worse_is_said_of_rates_above_the_best_alone(swept):
    config = {"source": "acme", "data size": 2.5, **BASE}
    above = swept.sweep({**config, "learning rate": 8e-2}, {"model size": [60.0, 240.0]})
    below = swept.sweep({**config, "learning rate": 1e-4}, {"model size": [60.0, 240.0]})
    assert "a larger model may be worse" in rate_note(above)
    assert "times the best" in rate_note(below)
    assert "larger model" not in rate_note(below)


@pytest.mark.parametrize("runs", [lab_runs(**{"learning rate": 2e-3}), lab_runs(**{"learning rate": 2e-3})[:1]])
def test_a_constant_learning_rate_never_varies(shipped, runs):
    said = " ".join(shipped.adapt(runs, source="acme").report["warnings"])
    assert "The learning rate never varies: nothing is said about other learning rates." in said
    assert "follows from" not in said


@pytest.mark.parametrize(
    ("runs", "points"),
    [
        ([{**run, "name": f"n{run['model size']:g}-{i}"} for i, run in enumerate(lab_runs())], True),
        # Seeds: equal tokens, other losses. Numbered runs of a grid: one stem of all sizes.
        ([{**lab_runs()[0], "name": f"seed-{i}", "final_loss": 3.5 + i / 100} for i in range(4)], False),
        ([{**run, "name": f"run-{i}"} for i, run in enumerate(lab_runs())], False),
    ],
)
def test_points_of_one_run_have_other_tokens_and_nothing_else(shipped, runs, points):
    said = " ".join(shipped.adapt(runs, source="acme").report["warnings"])
    assert ("points of one run" in said) == points


def test_numbers_read_as_people_write_them(shipped, swept):
    one = shipped.adapt(lab_runs()[:1], source="acme").report
    assert "Learnt from 1 run of 1 model size (" in in_words(one)[0]
    assert size_in_words(2e6) == "2,000B"
    far = swept.predict({"source": "acme", "model size": 241.0, "data size": 6.0, "learning rate": 2e-3, **BASE})
    assert not any("(1 times)" in note for note in far.attrs["notes"])
    idle = swept.predict(
        {"source": "acme", "model size": 120.0, "data size": 6.0, "learning rate": 2e-3, **BASE, "beta1": 0.8}
    )
    assert "no effect on this forecast: beta1 (not read by the law of source 'acme')" in " ".join(idle.attrs["notes"])
