"""What is said of a lab's own runs: before they are learnt from, and of forecasts by them."""

import math
import re
import warnings
from typing import Any

import pandas as pd
import pytest

from calibration_ncpl import size_in_words
from ncpl import Forecaster, import_runs
from ncpl.own_runs import read_runs
from ncpl.trust import in_words, warnings_of
from tests.test_adapt import lab_runs
from tests.test_cli import run

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


def told(call, *arguments, **named):
    """What a call warns of, as one text."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = call(*arguments, **named)
    return found, " | ".join(str(one.message) for one in caught)


def test_adapting_again_counts_runs_and_names_those_that_have_another_loss(shipped):
    runs = [{**run, "name": f"r{i}"} for i, run in enumerate(lab_runs())]
    first = shipped.adapt(runs[:6], source="acme")
    changed = {**runs[1], "final_loss": runs[1]["final_loss"] - 0.02}
    lab, said = told(first.adapt, [runs[0], changed, *runs[6:]], source="acme")
    assert "source 'acme': 6 runs from before, 4 new (1 of before came again)" in said
    assert "1 from before equal new ones but for the loss; the new losses count: the first, 'r1', had" in said
    known = {run["name"]: run["final_loss"] for run in lab.law.adapted["acme"].runs}
    assert len(lab.law.adapted["acme"].runs) == len(known) == 9
    assert known["r1"] == changed["final_loss"]
    # Seeds of one table are no conflict, and nothing is said of a first adaptation.
    seeds, said = told(read_runs, [{**runs[0], "final_loss": 3.5}, {**runs[0], "final_loss": 3.6}], "acme")
    assert (len(seeds[0]), said) == (2, "")


def test_runs_left_out_are_named_and_duplicates_are_told_as_such(tmp_path):
    table = pd.DataFrame([{**run, "name": f"r{i}"} for i, run in enumerate(lab_runs())])
    table.loc[3, "final_loss"] = None
    pd.concat([table, table[:2]]).to_csv(tmp_path / "runs.csv", index=False)
    (runs, _), said = told(read_runs, tmp_path / "runs.csv", "acme")
    assert len(runs) == 8
    assert "1 of 11 runs have no final loss or did not finish and are left out, the first 'r3'" in said
    assert "2 of 11 runs repeat the configuration and loss of another and count once, the first 'r0" in said


def test_a_loss_too_low_to_be_one_is_named_and_no_cells_best(shipped, tmp_path):
    """A typing error in one of two seeds does not make the other a diverged run."""
    runs = [{**run, "name": f"r{i}"} for i, run in enumerate(lab_runs())]
    slip = {**runs[-1], "name": "slip", "final_loss": 1.09}
    pd.DataFrame([*runs, slip]).to_csv(tmp_path / "runs.csv", index=False)
    assert set(import_runs(tmp_path / "runs.csv")["status"]) == {"finished"}
    lab = shipped.adapt(tmp_path / "runs.csv", source="acme")
    (said,) = [sentence for sentence in lab.report["warnings"] if "check it" in sentence]
    assert re.match(r"Run 'slip' lies 2\.\d\d nats below what the other runs allow \(final_loss 1\.09\)", said)
    clean = shipped.adapt(runs, source="acme")
    assert not any("check it" in sentence for sentence in clean.report["warnings"])
    config = {"source": "acme", "model size": 240.0, "data size": 6.0, "learning rate": 2e-3, "batch size": 128}
    assert lab.predict(config)["divergence"][0] < clean.predict(config)["divergence"][0] + 0.01


@pytest.mark.parametrize(
    ("size", "data", "said"),
    [
        (1, 1000, "data size looks like millions of tokens"),
        (1e-3, 1, "model size looks like billions"),
        (1, 1e-3, "data size looks like trillions of tokens"),
        (1, 1, ""),
    ],
)
def test_sizes_of_which_all_are_in_another_unit_are_told(size, data, said):
    runs = [{**run, "model size": run["model size"] * size, "data size": run["data size"] * data} for run in lab_runs()]
    found = " ".join(warnings_of(runs, []))
    assert (said in found) if said else ("looks like" not in found)


def test_a_lab_is_adapted_again_onto_its_own_folder(shipped, tmp_path, capsys):
    runs = lab_runs()
    shipped.adapt(runs[:6], source="acme").save_pretrained(tmp_path / "acme")
    pd.DataFrame(runs[6:]).to_csv(tmp_path / "more.csv", index=False)
    folder = tmp_path / "acme"
    status, _, err = run(
        "adapt", tmp_path / "more.csv", "--source", "acme", "--model", folder, "--out", folder, capsys=capsys
    )
    assert (status, "6 runs from before, 3 new" in err) == (0, True)
    assert len(Forecaster.from_pretrained(folder).law.adapted["acme"].runs) == 9


def test_what_a_frameworks_rule_says_of_the_optimizer_is_used(tmp_path, capsys):
    config: dict[str, Any] = {
        "n_layer": 12,
        "n_head": 12,
        "n_embd": 768,
        "block_size": 1024,
        "batch_size": 12,
        "bias": False,
    }
    config |= {"gradient_accumulation_steps": 40, "max_iters": 600000, "learning_rate": 6e-4, "dropout": 0.0}
    pd.DataFrame([{**config, "decay_lr": True, "min_lr": 6e-5, "wandb_log": True}]).to_csv(
        tmp_path / "export.csv", index=False
    )
    status, _, err = run("predict", tmp_path / "export.csv", "vocab_size=50304", capsys=capsys)
    assert status == 0, err
    assert "nanoGPT trains with AdamW" in err


def test_a_fit_that_runs_away_is_left_out(shipped):
    """Tiny models on little data whose losses no closed form holds: one of the fits loses its covariance."""
    rows = [(12.6, 1.233, 3.94), (10.5, 1.84, 3.67), (4.7, 0.195, 6.72), (4.7, 0.277, 5.74), (87.8, 0.167, 5.32)]
    runs = [
        {"model size": n, "data size": d, "optimizer": "adamw", "final_loss": loss}
        for n, d, loss in (*rows, (162.4, 0.113, 6.6))
    ]
    found = (
        Forecaster.from_pretrained()
        .adapt(runs, "acme")
        .predict({"source": "acme", "model size": 50.0, "data size": 1.0})
        .iloc[0]
    )
    assert 2.0 < found["lower"] < found["loss"] < found["upper"] < 6.0
