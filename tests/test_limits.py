"""What the default says at limits that a user reaches: slow rates, other schedules, far batches, runs that diverge."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from forms_ncpl import ANNEALED, ANNEALED_SPREAD
from ncpl import Forecaster

RESULTS = Path(__file__).parent.parent / "benchmarks" / "results"
STEPLAW = {"source": "steplaw", "model size": 3000, "data size": 300, "optimizer": "adamw", "learning rate": 1e-3}
STEPLAW |= {"batch size": 512}
MARIN = {"source": "marin", "model size": 134.2, "data size": 21.47, "optimizer": "adamw", "learning rate": 4e-3}
MARIN |= {"batch size": 128}


@pytest.fixture(scope="module")
def default():
    return Forecaster.from_pretrained()


def test_a_rate_far_below_the_best_costs_far_more_than_a_tenth_of_a_nat(default):
    losses = default.predict([{**STEPLAW, "learning rate": rate} for rate in (1e-6, 1e-5, 1e-4, 1e-3)])["loss"]
    assert (losses.diff().dropna() < 0).all()
    assert losses.iloc[0] - losses.iloc[-1] > 0.5


def test_a_source_s_constant_may_be_stated(default):
    left_out, stated = (default.predict([config]).iloc[0] for config in (STEPLAW, {**STEPLAW, "warmup": 2000}))
    np.testing.assert_allclose(left_out.to_numpy(float), stated.to_numpy(float), rtol=1e-12)


def test_the_end_of_a_schedule_counts_and_widens_the_interval(default):
    ends: list[dict[str, Any]] = [{}, {"min_lr_ratio": 0.05}, {"min_lr_ratio": 0.1}, {"lr_schedule": "constant"}]
    found = default.predict([{**MARIN, **end} for end in ends])
    assert (found["loss"].diff().dropna() > 0).all()
    # Logged of another optimizer: 0.018 and 0.048; before, 0.003 was said.
    assert 0.01 < found["loss"].iloc[2] - found["loss"].iloc[0] < 0.06
    assert ((found["upper"] - found["lower"]).diff().dropna() > 0).all()


def test_the_gain_of_a_schedule_s_end_is_the_measured_one():
    measured = json.loads((RESULTS / "schedules.json").read_text(encoding="utf-8"))
    assert {"": measured["mean"], "marin": measured["labs"]["marin"]} == ANNEALED
    assert measured["spread"] == ANNEALED_SPREAD


def test_what_a_schedule_s_end_gains_cancels_between_equal_schedules_alone(default):
    """A lab's gain is one unknown: it adds to the difference of two schedules and not to that of two rates."""
    law = default.law
    constant, cosine = {**MARIN, "lr_schedule": "constant"}, {**MARIN, "lr_schedule": "cosine"}
    configs = [constant, {**constant, "learning rate": 4.01e-3}, cosine, MARIN]
    covariance, known = law.covariance(configs), law.uncertainty(configs)["known"]
    np.testing.assert_allclose(np.sqrt(np.diag(covariance)), known, rtol=1e-6)
    effects = ANNEALED_SPREAD * law.schedule_effect(law.evaluate(configs))
    deviation = [np.sqrt(covariance[0, 0] + covariance[i, i] - 2 * covariance[0, i]) for i in range(4)]
    assert deviation[1] < 0.02 * effects[0]
    # The gain is all that differs: equal, but for the rounding of doubles.
    assert effects[0] > effects[2]
    np.testing.assert_allclose(deviation[2:], effects[0] - effects[2:], rtol=1e-12)
    differs = default.compare(constant, MARIN)
    assert differs["upper"] - differs["lower"] > 2 * effects[0]


@pytest.mark.parametrize(("size", "data"), [(1000, 100), (3000, 300), (7000, 1000), (70000, 1400)])
def test_the_best_batch_far_away_is_the_closed_form_s(default, size, data):
    batches = np.geomspace(64, 8192, 57)
    config = {key: value for key, value in MARIN.items() if key != "learning rate"}
    configs = [{**config, "model size": size, "data size": data, "batch size": float(batch)} for batch in batches]
    at = default.law.evaluate(configs)
    closed, whole = batches[at.terms["loss"].argmin()], batches[default.law.losses(at).argmin()]
    assert abs(np.log(whole / closed)) < 0.2


def test_what_a_loss_leaves_out_is_said(default):
    notes = default.predict([{**STEPLAW, "learning rate": 5e-2, "batch size": 64}]).attrs["notes"]
    assert any("likely to diverge" in note and "a run that does not" in note for note in notes)
    assert any("times the best" in note for note in notes)
    assert not [note for note in default.predict([MARIN]).attrs["notes"] if "times the best" in note]


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_shorter_decay_ends_nearer_to_a_constant_rate(default, optimizer):
    """Also below the shortest decay of any run, and for an optimizer whose runs never had one."""
    config = {**MARIN, "optimizer": optimizer}
    decays = [0.0005, 0.005, 0.05, 0.199, 0.2, 0.4, 0.8]
    forecasts = default.predict([config | {"lr schedule": "wsd", "decay": decay} for decay in decays])
    assert (np.diff(forecasts["loss"]) < 0).all()
    assert forecasts["loss"].iloc[3] - forecasts["loss"].iloc[4] < 0.002
    # Trees know of no decay shorter than the runs'.
    assert forecasts["divergence"].iloc[:5].nunique() == 1
    constant = default.predict(config | {"lr schedule": "constant"}).iloc[0]
    none = default.predict(config | {"lr schedule": "wsd", "decay": 0}).iloc[0]
    assert abs(none["loss"] - constant["loss"]) < 1e-3
    gains = constant["loss"] - forecasts["loss"]
    assert 0 < gains.iloc[0] < 0.2 * gains.iloc[-1]
    width = forecasts["upper"] - forecasts["lower"]
    assert width.iloc[0] > 2 * width.iloc[-1]


@pytest.mark.parametrize(("name", "little"), [("weight decay", 1e-6), ("warmup", 1)])
def test_a_small_value_of_a_field_lies_as_near_as_none(default, name, little):
    found = default.predict([MARIN | {name: 0}, MARIN | {name: little}])
    assert found["extrapolation"].nunique() == 1
    assert (found["upper"] - found["lower"]).diff().abs().iloc[1] < 1e-3


def test_the_probability_to_diverge_has_no_step_over_the_rate(default):
    """A percent of the learning rate moves it by less than 0.03, though trees step between the rates of runs."""
    rates = np.geomspace(3e-4, 6e-2, 500)
    for source, optimizer in (("marin", "adamw"), ("marin", "muon"), ("marin", "lion"), ("steplaw", "adamw")):
        configs = [
            {
                "source": source,
                "optimizer": optimizer,
                "model size": 134,
                "data size": 5,
                "batch size": 128,
                "learning rate": rate,
            }
            for rate in rates.tolist()
        ]
        chances = default.predict(configs)["divergence"].to_numpy()
        assert np.abs(np.diff(chances)).max() < 0.03, (source, optimizer)
        assert chances.max() > 0.1


@pytest.mark.parametrize(("name", "value"), [("momentum", 0.99), ("normalize_grads", True), ("gamma", 5.0)])
def test_a_field_that_an_optimizer_does_not_have_moves_nothing_and_is_said_to(default, name, value):
    before, after = default.predict([MARIN]), default.predict([MARIN | {name: value}])
    np.testing.assert_array_equal(before.to_numpy(), after.to_numpy())
    assert any(note.startswith(f"no effect on this forecast: {name} (") for note in after.attrs["notes"])


def test_an_optimizer_without_runs_of_its_source_is_said_to_come_from_others(default):
    notes = default.predict([STEPLAW | {"optimizer": "muon"}]).attrs["notes"]
    assert any("source 'steplaw' has no runs of 'muon' (only adamw)" in note and "marin" in note for note in notes)
    assert not any("has no runs" in note for note in default.predict([STEPLAW, MARIN]).attrs["notes"])


def test_a_field_without_effect_leaves_the_probability_to_diverge_too(default):
    lab = {**MARIN, "source": "a lab that nobody knows"}
    changes: list[dict[str, Any]] = [{}, {"epsilon": 0}, {"beta1": 0.99}, {"nesterov": True}, {"max_grad_norm": 10}]
    with pytest.warns(UserWarning, match="not among the fitted"):
        assert default.predict([lab | change for change in changes])["divergence"].nunique() == 1
