"""Adapting to a lab's own runs: the Bayesian update, what a checkpoint carries of it, and what is said of it."""

import json
import os
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from transformers import AutoModel, AutoProcessor

import run_train
from adapted_ncpl import AdaptedLaw
from calibration_ncpl import DRIFT
from laws_ncpl import ConfigurationLaw, law_from_dict
from ncpl import Forecaster, import_runs, plots
from ncpl.adapt import adapt_law, unread_fields
from ncpl.own_fits import chinchilla, constant_exponents
from ncpl.own_runs import read_runs
from tests.hub_server import HubServer
from tests.test_cli import as_json, run

SIZES, DATA = (60.0, 120.0, 240.0), (1.0, 2.5, 6.0)


def lab_loss(n, d):
    """A made-up lab, whose law is not the shipped one's."""
    return 2.3 + 1.1 * (n / 300) ** -0.24 + 0.3 * (d / 20) ** -0.42


def lab_runs(sizes=SIZES, data=DATA, **fields):
    rows = [{"model size": n, "data size": d, "optimizer": "adamw", **fields} for n in sizes for d in data]
    return [{**row, "final_loss": lab_loss(row["model size"], row["data size"])} for row in rows]


@pytest.fixture(scope="module")
def shipped():
    return Forecaster.from_pretrained()


@pytest.fixture(scope="module")
def adapted(shipped):
    return shipped.adapt(lab_runs(), source="acme")


def test_a_larger_run_is_forecast_better_than_by_the_shipped_law_and_its_interval_holds_it(shipped, adapted):
    config = {"source": "acme", "model size": 600.0, "data size": 20.0}
    found, truth = adapted.predict(config).iloc[0], lab_loss(600, 20)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        unknown = shipped.law([{**config, "optimizer": "adamw"}])[0]
    assert abs(found["loss"] - truth) < 0.03 < abs(unknown - truth)
    assert found["lower"] < truth < found["upper"]
    assert found["upper"] - found["lower"] < 0.3


@pytest.mark.parametrize(("size", "wider"), [(60.0, 1.0), (240.0, 1.0), (2400.0, 10**0.15)])
def test_a_forecast_widens_with_flops_beyond_the_dearest_run(adapted, size, wider):
    config = {"source": "acme", "model size": size, "data size": 6.0}
    source = adapted.law.adapted["acme"]
    rows = source.read([config])
    losses = np.array([law.losses(law.evaluate(rows))[0] for law in source.laws])
    known = np.array([law.uncertainty(rows)["known"][0] for law in source.laws])
    plain = np.sqrt(source.weights @ (known**2 + (losses - source.weights @ losses) ** 2))
    forecast = source.forecast([config])
    assert forecast["known"][0] == pytest.approx(wider * plain)
    # What benchmarks/adaptation.py judges is what is shipped: the same, and the drift beyond the runs.
    drift = DRIFT * adapted.calibration.extrapolation([config])
    assert adapted.calibration.deviation([config]) == pytest.approx(np.hypot(source.deviation(forecast), drift))


def test_other_sources_are_forecast_as_before(shipped, adapted):
    config = {"source": "marin", "model size": 300, "data size": 6, "optimizer": "muon", "learning rate": 8e-3}
    config["batch size"] = 128
    pd.testing.assert_frame_equal(shipped.predict(config), adapted.predict(config))


def test_the_covariance_agrees_with_the_uncertainty_and_with_a_posterior_by_finite_differences(adapted):
    law = adapted.law
    configs = [{"source": "acme", "model size": n, "data size": 10.0, "optimizer": "adamw"} for n in (100, 400, 800)]
    covariance = law.covariance(configs)
    np.testing.assert_allclose(np.sqrt(np.diagonal(covariance)), law.uncertainty(configs)["known"], rtol=1e-6)
    assert np.linalg.eigvalsh(covariance).min() > -1e-12
    # One law: what its posterior says of the closed form, by differences in each coefficient.
    one = law.base
    marin = [{"source": "nowhere", "model size": n, "data size": 10.0, "optimizer": "adamw"} for n in (100, 400)]
    slopes = np.zeros((2, len(one.columns)))
    for j, (kind, group, name) in enumerate(one.columns):
        if kind == "common" or group == "adamw":
            moved = []
            for step in (1e-5, -1e-5):
                common, optimizers = dict(one.common), {key: dict(own) for key, own in one.optimizers.items()}
                target = common if kind == "common" else optimizers[group]
                target[name] += step
                moved.append(replace(one, common=common, optimizers=optimizers).closed_form(marin))
            slopes[:, j] = (moved[0] - moved[1]) / 2e-5
    known = slopes @ one.posterior
    order = list(one.common)
    by_name = np.zeros((2, len(order)))
    for j, (kind, _, name) in enumerate(one.columns):
        if kind == "common":
            by_name[:, order.index(name)] = slopes[:, j]
    spread = np.array([one.priors[name].source for name in order])
    expected = known @ known.T + (by_name * spread) @ (by_name * spread).T
    np.testing.assert_allclose(one.covariance(marin), expected, rtol=1e-4)


def test_adapting_twice_is_adapting_once_with_all_runs(shipped):
    runs = lab_runs()
    twice = shipped.adapt(runs[:5], source="acme").adapt(runs[5:], source="acme")
    once = shipped.adapt(runs, source="acme")
    asked = {"source": "acme", "model size": 900.0, "data size": 15.0}
    pd.testing.assert_frame_equal(twice.predict(asked), once.predict(asked))


def test_a_saved_checkpoint_is_an_ordinary_one(adapted, tmp_path):
    adapted.save_pretrained(tmp_path / "mine")
    asked = [{"source": "acme", "model size": 900.0, "data size": 15.0}]
    loaded = Forecaster.from_pretrained(tmp_path / "mine")
    pd.testing.assert_frame_equal(loaded.predict(asked), adapted.predict(asked))
    AutoModel.from_pretrained(tmp_path / "mine", trust_remote_code=True)
    processor = AutoProcessor.from_pretrained(tmp_path / "mine", trust_remote_code=True)
    assert processor.law([{**asked[0], "optimizer": "adamw"}])[0] == pytest.approx(adapted.predict(asked)["loss"][0])
    card = (tmp_path / "mine" / "README.md").read_text()
    assert "9 runs of 3 model sizes" in card
    assert "| chinchilla |" in card
    # And again adaptable, with the runs that it learnt from.
    again = loaded.adapt(lab_runs(sizes=(480.0,)), source="acme")
    assert len(again.law.adapted["acme"].runs) == 12


def test_the_law_survives_json(adapted):
    law = adapted.law
    plain = json.loads(json.dumps(law.to_dict(), default=lambda value: np.asarray(value).tolist()))
    asked = [{"source": "acme", "model size": 500.0, "data size": 8.0, "optimizer": "adamw"}]
    read = law_from_dict(plain)
    assert isinstance(read, AdaptedLaw)
    np.testing.assert_allclose(read(asked), law(asked), rtol=1e-9)


@pytest.mark.parametrize(
    ("runs", "said"),
    [
        (lab_runs(sizes=(100.0,), data=(2.0,)), "One run"),
        (lab_runs(sizes=(100.0,)), "One model size"),
        (lab_runs()[:3], "One model size"),
        (
            [run for run in lab_runs(data=(0.2, 1.2, 2.4, 4.8)) if run["data size"] == run["model size"] / 50],
            "tokens a",
        ),
        (lab_runs(sizes=(5.0, 10.0, 20.0)), "under 20 million"),
        ([{**run, "learning rate": 0.1 / run["model size"]} for run in lab_runs()], "learning rate follows"),
    ],
)
def test_few_or_tied_runs_are_taken_and_said_to_be_few(shipped, runs, said):
    lab = shipped.adapt(runs, source="acme")
    asked = {"source": "acme", "model size": runs[-1]["model size"], "data size": runs[-1]["data size"]}
    assert lab.predict(asked)["loss"][0] == pytest.approx(runs[-1]["final_loss"], abs=0.05)
    assert any(said in sentence for sentence in lab.report["warnings"])


def test_the_report_says_what_is_learnt_and_how_far_to_believe_it(adapted):
    report = adapted.report
    assert report["runs"] == 9
    assert report["sizes"] == [60.0, 120.0, 240.0]
    assert report["believed_up_to"] == pytest.approx(20 * 6e15 * 240 * 6)
    assert report["largest_size_out"]["adapted"] < 0.03
    assert {"chinchilla", "constant exponents"} <= report["largest_size_out"].keys()
    assert report["learned"]["E"]["over_prior"] < report["learned"]["beta_n"]["over_prior"]
    widths = [row["interval_over_now"] for row in report["more_runs"] if row["model size"] == 240.0]
    assert widths == sorted(widths, reverse=True)
    assert widths[0] <= 1
    json.dumps(report)


def test_runs_that_do_not_say_their_optimizer_are_forecast_like_those_that_do(shipped):
    unsaid = [{name: value for name, value in run.items() if name != "optimizer"} for run in lab_runs()]
    lab = shipped.adapt(unsaid, source="acme")
    for row in lab.report["fitted"]:
        assert row["after"] == pytest.approx(row["observed"], abs=0.01)
    assert lab.report["largest_size_out"]["adapted"] < 0.03


def test_evaluation_sets_are_children_of_their_lab(shipped):
    runs = [{**run, "pile": run["final_loss"] - 0.4} for run in lab_runs()]
    lab = shipped.adapt(runs, source="acme", eval={"pile": "pile"})
    asked = {"model size": 500.0, "data size": 15.0}
    main, child = (lab.predict({"source": name, **asked})["loss"][0] for name in ("acme", "acme/pile"))
    assert main - child == pytest.approx(0.4, abs=0.03)
    assert lab.law.adapted["acme/pile"].parent == "acme"


def test_a_child_learns_from_its_parent(shipped, adapted):
    few = [{**run, "final_loss": run["final_loss"] - 0.3} for run in lab_runs(sizes=(60.0, 120.0), data=(1.0,))]
    child = adapted.adapt(few, source="acme-code", parent="acme")
    asked = {"source": "acme-code", "model size": 600.0, "data size": 20.0}
    assert child.predict(asked)["loss"][0] == pytest.approx(lab_loss(600, 20) - 0.3, abs=0.06)


def test_several_data_mixes_have_one_parent(adapted):
    """Each mix from two runs: its own level, the parent's exponents, and none disturbs another."""
    lab, shifts = adapted, {"acme-code": -0.6, "acme-web": 0.2}
    for name, shift in shifts.items():
        few = [{**run, "final_loss": run["final_loss"] + shift} for run in lab_runs(sizes=(60.0, 120.0), data=(1.0,))]
        lab = lab.adapt(few, source=name, parent="acme")
    asked = {"model size": 600.0, "data size": 20.0}
    main = lab.predict({"source": "acme", **asked})["loss"][0]
    assert main == adapted.predict({"source": "acme", **asked})["loss"][0]
    for name, shift in shifts.items():
        assert lab.predict({"source": name, **asked})["loss"][0] == pytest.approx(main + shift, abs=0.08)
        assert lab.law.adapted[name].parent == "acme"


def test_what_two_configurations_share_cancels(shipped):
    base = {"source": "nowhere", "model size": 300, "data size": 6, "learning rate": 4e-3, "batch size": 128}
    base["seq len"] = 4096
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = shipped.compare({**base, "optimizer": "muon"}, {**base, "optimizer": "adamw"})
        loss = shipped.predict({**base, "optimizer": "adamw"}).iloc[0]
        back = shipped.compare({**base, "optimizer": "adamw"}, {**base, "optimizer": "muon"})
    assert found["upper"] - found["lower"] < (loss["upper"] - loss["lower"]) / 3
    assert found["difference"] == pytest.approx(-back["difference"])
    assert found["p_better"] == pytest.approx(1 - back["p_better"])


@pytest.mark.parametrize("source", ["marin", "nowhere", "acme"])
def test_a_configuration_differs_from_itself_by_nothing_and_another_run_by_its_own_noise(adapted, source):
    config = {"source": source, "model size": 300, "data size": 6, "optimizer": "adamw", "learning rate": 4e-3}
    config |= {"batch size": 128, "seq len": 4096}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = adapted.compare(config, dict(config))
    assert found.to_dict() == {"difference": 0.0, "lower": 0.0, "upper": 0.0, "p_better": 0.5}
    near = {**config, "data size": 6.001}
    noise = adapted.calibration.noise([config, near])
    _, deviation = adapted.calibration.difference([config, near])
    score = adapted.calibration.score([config], 0.9)[0] / 1.645
    assert deviation == pytest.approx(score * np.hypot(*noise), rel=0.01)


def test_a_labs_own_finished_and_diverged_runs_move_its_probability_to_diverge(shipped, tmp_path):
    rates = {"learning rate": 1e-2, "batch size": 128, "warmup": 100}
    runs = lab_runs(**rates)
    asked = {"source": "acme", "model size": 300.0, "data size": 6.0, "optimizer": "adamw", **rates}

    def probability(forecaster, **changes):
        return forecaster.predict({**asked, **changes})["divergence"].iloc[0]

    before, finished = probability(shipped), shipped.adapt(runs, "acme")
    assert before > 0.5
    assert probability(finished) < 0.15
    assert probability(shipped.adapt(runs[:1], "acme")) > 2 * probability(finished)
    assert probability(finished, optimizer="muon") == pytest.approx(probability(shipped, optimizer="muon"))
    assert probability(finished, source="other") == before
    lost = [{**run, "final_loss": None, "status": "diverged"} for run in runs[:4]]
    with pytest.warns(UserWarning, match="4 of 13 runs diverged"):
        both = shipped.adapt([*runs, *lost], "acme")
    assert probability(both) > 1.5 * probability(finished)
    both.save_pretrained(tmp_path)
    again = Forecaster.from_pretrained(tmp_path)
    assert probability(again) == pytest.approx(probability(both))
    more = again.adapt([{**runs[0], "data size": 3.0, "final_loss": lab_loss(60, 3)}], "acme")
    assert len(more.law.adapted["acme"].diverged) == 4


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"data size": None}, "data size: missing"),
        ({"model size": 60e6}, "model size: got"),
        ({"warmup": -3}, "warmup: got -3"),
    ],
)
def test_a_diverged_run_whose_configuration_is_not_accepted_is_reported_and_left_out(changes, reason):
    runs = lab_runs()[:3]
    broken = {**runs[0], "final_loss": None, "status": "diverged", **changes}
    with pytest.warns(UserWarning, match="of 5 runs diverged") as said:
        finished, diverged = read_runs([*runs, broken, {**runs[0], "status": "diverged"}], "acme")
    assert (len(finished), len(diverged)) == (3, 1)
    left_out, learnt = sorted(str(warning.message) for warning in said)
    assert left_out.startswith(f"1 of 5 runs diverged and are left out, the first for runs[3]: {reason}")
    assert learnt.startswith("1 of 5 runs diverged: only")
    # A finished run is never dropped for a mistake.
    with pytest.raises(ValueError, match=reason):
        read_runs([*runs, {**runs[0], **changes}], "acme")


def test_an_imported_table_without_sizes_says_how_to_map_them(shipped, tmp_path):
    path = tmp_path / "runs.csv"
    path.write_text("name,config.model.n_params,config.tokens,summary.loss\na,50000000,1000000000,3.5\n")
    for runs in (path, import_runs(path)):
        with pytest.raises(ValueError, match=r'--map "model\.n_params=model size"'):
            shipped.adapt(runs, "acme")
    written = tmp_path / "out.csv"
    import_runs(path).to_csv(written, index=False)
    with pytest.raises(ValueError, match=r"model size: missing.*import --map"):
        shipped.adapt(written, "acme")


def test_unread_fields():
    runs = lab_runs(**{"batch size": 128, "learning rate": 1e-3})
    assert unread_fields(runs) == ["learning rate"]
    assert unread_fields(lab_runs()) == ["learning rate", "batch size"]
    runs[0]["learning rate"] = 2e-3
    assert unread_fields(runs) == []


def test_a_batch_that_never_varies_is_read_and_need_not_be_said(shipped):
    """Runs of the shipped law itself at one batch, far too large for their data: only their level is another."""
    asked = {"model size": 400.0, "data size": 40.0, "learning rate": 2e-3, "batch size": 1024, "seq len": 4096}
    runs = [
        {**asked, "model size": n, "data size": d, "optimizer": "adamw", "source": "nowhere"}
        for n in (50.0, 100.0, 200.0)
        for d in (1.0, 3.0, 9.0)
    ]
    target = {**asked, "optimizer": "adamw", "source": "nowhere"}
    losses = shipped.law.closed_form([*runs, target]) + 0.2
    told = [{**run, "final_loss": loss} for run, loss in zip(runs, losses[:-1].tolist(), strict=True)]
    lab = shipped.adapt(told, source="acme")
    assert lab.predict({**target, "source": "acme"})["loss"][0] == pytest.approx(losses[-1], abs=0.02)
    unsaid = {name: value for name, value in target.items() if name != "batch size"}
    assert lab.predict({**unsaid, "source": "acme"})["loss"][0] == pytest.approx(losses[-1], abs=0.02)


def test_what_an_adapted_source_leaves_unsaid_is_completed_everywhere(adapted):
    config = {"source": "acme", "model size": 600.0, "data size": 20.0}
    assert adapted.cost(config)["flops"] > 6 * 600e6 * 20e9
    forecast = adapted.predict(config)["loss"].item()
    assert adapted.benchmarks(config)["loss"].item() == forecast
    assert adapted.curve(config, points=1)["loss"].item() == pytest.approx(forecast)
    assert adapted.sweep(config, {"model size": [600.0]})["loss"].item() == pytest.approx(forecast)


@pytest.mark.parametrize(
    ("runs", "source", "message"),
    [
        ([{"model size": 50, "data size": 1}], "acme", "none has a final_loss"),
        ([{"data size": 1, "final_loss": 3.0}], "acme", r"runs\[0\]: model size: missing"),
        ([{"model size": 50, "data size": 1, "final_loss": "three"}], "acme", r"runs\[0\]: final_loss: got 'three'"),
        ([{"model size": 50, "data size": 1, "final_loss": -3.0}], "acme", "above 0"),
        ([{"model size": 50, "data size": 1, "final_loss": 3.0}], "marin", "known to this checkpoint already"),
    ],
)
def test_bad_runs(shipped, runs, source, message):
    with pytest.raises(ValueError, match=message):
        shipped.adapt(runs, source=source)


def test_unfinished_runs_and_other_columns_are_put_aside_and_told():
    runs = [
        {**lab_runs()[0], "status": "crashed"},
        {**lab_runs()[1], "mood": "good"},
        {**lab_runs()[2], "final_loss": None},
    ]
    with pytest.warns(UserWarning, match="2 of 3 runs"), pytest.warns(UserWarning, match="mood"):
        assert len(read_runs(runs, "acme")[0]) == 1


def test_a_log_of_another_framework_is_adapted_to_as_it_is(shipped, tmp_path):
    table = pd.DataFrame(lab_runs()).drop(columns="optimizer")
    named = {"model size": "params_no_embed", "data size": "tokens", "final_loss": "val_loss"}
    log = table.rename(columns=named).assign(name=[f"run-{i}" for i in range(len(table))])
    log["params_no_embed"] *= 1e6
    log["tokens"] *= 1e9
    log.to_csv(tmp_path / "runs.csv", index=False)
    asked = {"source": "acme", "model size": 600.0, "data size": 20.0, "optimizer": "adamw"}
    from_file = shipped.adapt(tmp_path / "runs.csv", source="acme").predict(asked)["loss"][0]
    assert from_file == pytest.approx(lab_loss(600, 20), abs=0.03)


def test_laws_fitted_to_ones_own_runs_recover_their_own_kind():
    runs = [
        {"model size": n, "data size": d, "final_loss": 1.9 + 9 / n**0.5 + 0.8 / d**0.4}
        for n in (20, 50, 120, 300)
        for d in (0.5, 1, 3, 9)
    ]
    held = [{"model size": 900, "data size": 20}]
    assert chinchilla(runs, held)[0] == pytest.approx(1.9 + 9 / 900**0.5 + 0.8 / 20**0.4, abs=0.003)
    assert constant_exponents(runs, held)[0] == pytest.approx(2.4, abs=0.2)


def test_a_plan_of_a_lab_takes_what_its_runs_have_in_common(shipped):
    lab = shipped.adapt(lab_runs(optimizer="muon", **{"seq len": 8192}), source="muonlab")
    plan = lab.plan(flops=1e19, base={"source": "muonlab"})
    assert (plan.config["optimizer"], plan.config["seq len"]) == ("muon", 8192)
    assert not [note for note in plan.notes if "stands in" in note]


def test_a_labs_picture_shows_the_largest_size_from_the_smaller_ones(adapted):
    said = "largest size, from the smaller ones"
    assert said in plots.lab(adapted.report).svg()
    assert said not in plots.lab({**adapted.report, "held_out": []}).svg()


def test_further_runs_are_grouped_by_what_they_are(adapted):
    """Three kinds of further runs, 4, 8 and 16 of each: a kind is one line of the picture."""
    rows = pd.DataFrame(adapted.report["more_runs"])
    assert rows.groupby(["model size", "data size"])["runs"].apply(list).tolist() == [[4, 8, 16]] * 3


def test_forecasts_beyond_the_runs_say_so_again(shipped, adapted):
    """What `adapt` says of too much compute and of another ratio stands beside each such forecast."""
    near, far = ({"source": "acme", "model size": n, "data size": d} for n, d in ((300, 10), (30_000, 1000)))
    assert not [note for note in adapted.notes([adapted._completed(near)]) if "believe" in note]
    assert any("believe forecasts up to about" in note for note in adapted.notes([adapted._completed(far)]))
    same = [run for size in (50, 100, 200) for run in lab_runs((size,), (size / 50,))]
    lab = shipped.adapt(same, source="chinchilla-only")
    asked = {"source": "chinchilla-only", "model size": 300, "data size": 1.5}
    told = [note for note in lab.notes([lab._completed(asked)]) if "another ratio" in note]
    assert told == [
        "source 'chinchilla-only': all runs have 20 tokens a parameter: believe no forecast of another ratio"
    ]
    assert not [note for note in lab.notes([{**asked, "data size": 6}]) if "another ratio" in note]


def test_the_law_alone_adapts_without_a_network():
    law = ConfigurationLaw.example()
    adapted = adapt_law(law, lab_runs(), "acme")
    asked = [{**run, "source": "acme"} for run in lab_runs()]
    np.testing.assert_allclose(adapted(asked), [run["final_loss"] for run in asked], atol=0.01)


def test_the_example_trains_imports_adapts_pushes_and_loads(tmp_path):
    """`examples/adapt_own_lab.py` as a user runs it."""
    example = Path(__file__).parent.parent / "examples" / "adapt_own_lab.py"
    with HubServer() as hub:
        done = subprocess.run(
            [sys.executable, example, "me", "--folder", tmp_path / "lab"],
            env={**os.environ, **hub.environment(), "HF_HOME": str(tmp_path / "home")},
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, done.stderr[-4000:]
        result = json.loads(done.stdout.splitlines()[-1])
        card = hub.storage[result["repository"]].files()["README.md"].decode()
    assert result["runs"] == 4
    assert result["loaded"] == result["forecast"]
    # The chain's entropy is 1.52 nats; the larger run lies between it and the best of the small ones.
    assert 1.4 < result["forecast"]["loss"] < min(result["losses"])
    assert "Learnt from 4 runs of 2 model sizes" in card


LOADS_ALONE = """
import importlib.util, json, sys
sys.path = [path for path in sys.path if path not in ("", sys.argv[2])]
from transformers import AutoModel, AutoProcessor
model = AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True)
processor = AutoProcessor.from_pretrained(sys.argv[1], trust_remote_code=True)
assert "ncpl" not in sys.modules
print(json.dumps(processor.law([json.loads(sys.argv[3])]).tolist()))
"""


def test_the_folder_forecasts_in_a_process_that_does_not_import_the_toolbox(adapted, tmp_path):
    adapted.save_pretrained(tmp_path / "acme")
    asked = {"source": "acme", "model size": 500.0, "data size": 8.0, "optimizer": "adamw"}
    root = str(Path(__file__).parent.parent)
    done = subprocess.run(
        [sys.executable, "-c", LOADS_ALONE, str(tmp_path / "acme"), root, json.dumps(asked)],
        cwd=tmp_path,
        env={**os.environ, "HF_HOME": str(tmp_path / "home")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout.splitlines()[-1]) == pytest.approx(adapted.law([asked]).tolist())


@pytest.fixture
def log(tmp_path):
    path = tmp_path / "runs.csv"
    pd.DataFrame(lab_runs()).assign(name=[f"run-{i}" for i in range(9)]).to_csv(path, index=False)
    return path


def test_commands_adapt_compare_and_suggest(log, tmp_path, capsys):
    """The three commands in a row, as typed: each prints a table for people and JSON for machines."""
    folder = tmp_path / "acme"
    figure = tmp_path / "acme.svg"
    status, out, err = run("adapt", log, "--source", "acme", "--out", folder, "--save", figure, capsys=capsys)
    assert status == 0, err
    assert figure.read_text().startswith("<?xml")
    assert (folder / "adaptation-1.png").read_bytes().startswith(b"\x89PNG")
    assert "adaptation-1.png" in (folder / "README.md").read_text()
    assert "Learnt from 9 runs of 3 model sizes (60 to 240 million" in out
    assert "nats per token" in out
    assert "chinchilla" in out
    report = as_json("adapt", log, "--source", "acme", "--out", folder, capsys=capsys)
    assert report["sizes"] == [60.0, 120.0, 240.0]

    first, second = tmp_path / "a.yaml", tmp_path / "b.yaml"
    first.write_text("{source: acme, model size: 480, data size: 6}")
    second.write_text("{source: acme, model size: 240, data size: 12}")
    status, out, err = run("compare", first, second, "--model", folder, capsys=capsys)
    assert status == 0, err
    assert "p_better" in out
    found = as_json("compare", first, second, "--model", folder, capsys=capsys)
    assert found["lower"] < lab_loss(480, 6) - lab_loss(240, 12) < found["upper"]

    pool = tmp_path / "pool.csv"
    pd.DataFrame({"source": "acme", "model size": [60, 480, 2000], "data size": 10}).to_csv(pool, index=False)
    status, out, err = run("suggest", pool, "--budget", "6e19", "--model", folder, capsys=capsys)
    assert status == 0, err
    assert "narrows the target's interval" in out
    rows = as_json("suggest", pool, "--budget", "6e19", "--model", folder, capsys=capsys)
    assert rows[0]["candidate"] == 1
    assert rows[0]["flops"] == pytest.approx(6e15 * 480 * 10)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda table: table[:1], "One run"),
        (lambda table: table[:3], "One model size"),
        (lambda table: table.assign(final_loss=[3.0, None, *table["final_loss"][2:]]), "1 of 9 runs"),
    ],
)
def test_the_command_says_what_few_or_strange_runs_cannot_say(log, tmp_path, capsys, change, said):
    change(pd.read_csv(log)).to_csv(log, index=False)
    status, _, err = run("adapt", log, "--source", "acme", "--out", tmp_path / "acme", capsys=capsys)
    assert status == 0
    assert said in err


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda table: table.drop(columns="final_loss"), "final_loss"),
        (lambda table: table.drop(columns="model size"), "model size: missing"),
        (lambda table: table.assign(final_loss=-1.0), "final_loss"),
    ],
)
def test_the_command_ends_with_one_line_on_runs_that_it_cannot_learn_from(log, tmp_path, capsys, change, said):
    change(pd.read_csv(log)).to_csv(log, index=False)
    status, _, err = run("adapt", log, "--source", "acme", "--out", tmp_path / "acme", capsys=capsys)
    assert status == 2
    error = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(error) == 1
    assert said in error[0]
    assert not (tmp_path / "acme").exists()


def test_the_same_run_twice_counts_once_and_the_order_does_not_matter(shipped, adapted):
    runs = [{**run, "name": "one"} for run in lab_runs()]
    asked = {"source": "acme", "model size": 600.0, "data size": 20.0}
    again = shipped.adapt([*runs[::-1], *runs], source="acme")
    assert len(again.law.adapted["acme"].runs) == 9
    assert again.predict(asked)["loss"][0] == pytest.approx(adapted.predict(asked)["loss"][0], abs=1e-3)


def test_the_shipped_law_keeps_a_share_where_all_sizes_are_its_own_and_the_runs_do_not_contradict_it(shipped):
    def share(sizes, losses=None):
        runs = lab_runs(sizes=sizes, **{"learning rate": 2e-3, "batch size": 128, "seq len": 2048})
        if losses is not None:
            asked = [{**run, "source": "nowhere"} for run in runs]
            runs = [{**run, "final_loss": loss} for run, loss in zip(runs, losses(asked) + 0.3, strict=True)]
        known = shipped.adapt(runs, source="acme").law.adapted["acme"]
        return sum(w for label, w in zip(known.labels, known.weights, strict=True) if label[0] == "offset")

    # Losses as the shipped law says, three sizes and one; another lab's; and sizes that the shipped law does not know.
    assert share(SIZES, shipped.law.closed_form) == pytest.approx(6 / 9, abs=0.1)
    assert share((60.0,), shipped.law.closed_form) == pytest.approx(6 / 7, abs=0.1)
    assert share(SIZES) < 0.15
    assert share((5.0, 10.0, 20.0), shipped.law.closed_form) < 0.3


@pytest.mark.parametrize("stage", ["frozen", "lora", "full"])
def test_a_networks_stage_on_top_of_an_adapted_law_is_kept_by_the_one_standard_error_rule(
    shipped, log, tmp_path, stage, capsys
):
    """`recipes/adapt.yaml` with one step a stage: three steps gain nothing over a law that has seen the runs."""
    shipped.adapt(log, source="acme").save_pretrained(tmp_path / "acme")
    recipe = yaml.safe_load((Path(__file__).parent.parent / "recipes" / "adapt.yaml").read_text())
    recipe["model"]["checkpoint"], recipe["data"]["runs"] = str(tmp_path / "acme"), str(log)
    small = {"epochs": 1, "batch_size": 4, "learning_rate": 1e-6, "evaluations": 1}
    lora = {"lora": {"r": 2, "alpha": 4}} if stage == "lora" else {}
    recipe["stages"] = {"frozen" if stage == "frozen" else "full": {**small, **lora}}
    (tmp_path / "adapt.yaml").write_text(yaml.safe_dump(recipe))
    run_train.main([str(tmp_path / "adapt.yaml"), "--output_dir", str(tmp_path / "out")])
    assert "network rejected" in capsys.readouterr().out
    asked = {"source": "acme", "model size": 500.0, "data size": 8.0}
    if stage == "lora":
        assert run("merge", tmp_path / "out", tmp_path / "merged", capsys=capsys)[0] == 0
    found = Forecaster.from_pretrained(tmp_path / ("merged" if stage == "lora" else "out")).predict(asked)["loss"][0]
    assert found == pytest.approx(Forecaster.from_pretrained(tmp_path / "acme").predict(asked)["loss"][0], abs=1e-6)


def test_plain_tokens_in_the_place_of_billions_are_refused(shipped):
    runs = [{"model size": 50, "data size": 3e9, "learning rate": 1e-3, "batch size": 128, "final_loss": 3.4}]
    with pytest.raises(ValueError, match=r"data size: got 3e\+09, expected .* check the unit"):
        shipped.adapt(runs, source="acme")
