"""Scores that the embedded NSP gives: alone, along a plan, through a forecast loss, and what refuses."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from configuration_nsp import CHANCE, CORE_TASKS, DEFAULT_TASKS
from feature_extraction_nsp import NSPFeatureExtractor
from modeling_nsp import NSPModel
from ncpl import figures
from ncpl.nsp import loss_link, protocols
from ncpl.nsp.benchmarks import benchmarks, benchmarks_along, compute_path, emergence_marks, emergence_scales

ROOT = Path(__file__).parent.parent
LLAMA = {"params": 7e9, "tokens": 2e12}


@pytest.fixture(scope="module")
def base():
    return NSPModel.from_pretrained("nsp-base").eval()


def test_the_embedded_model_is_small_and_complete(base):
    folder = ROOT / "ncpl" / "checkpoints" / "nsp-base"
    assert sum(file.stat().st_size for file in folder.iterdir()) <= 4 * 2**20
    assert set(CORE_TASKS) <= set(base.config.tasks)
    assert len(base.config.interval_quantiles) == len(base.config.tasks)
    assert set(DEFAULT_TASKS) <= set(CHANCE)


def test_every_class_loads_the_embedded_model_by_name(base):
    assert NSPFeatureExtractor.from_pretrained("nsp-base").tasks == list(base.config.tasks)
    assert NSPFeatureExtractor.from_pretrained("nsp-base").families == list(base.config.families)
    alone = "from modeling_nsp import NSPModel; print(len(NSPModel.from_pretrained('nsp-base').config.tasks))"
    done = subprocess.run([sys.executable, "-c", alone], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.split() == [str(len(base.config.tasks))], done.stderr


def test_benchmarks_tell_scores_bands_and_families(base):
    table = benchmarks([LLAMA, {"params": 7e10, "tokens": 2e12}], level=0.9)
    wide = benchmarks([LLAMA], level=0.98)
    for task in CORE_TASKS:
        assert (table[f"{task}_lower"] <= table[task]).all()
        assert (table[f"{task}_upper"] >= table[task]).all()
        assert table[task][1] >= table[task][0]
        assert (
            wide[f"{task}_upper"][0] - wide[f"{task}_lower"][0] > table[f"{task}_upper"][0] - table[f"{task}_lower"][0]
        )
    family = base.config.families[0]
    alike = benchmarks([LLAMA], like=family)
    assert alike["mmlu_upper"][0] - alike["mmlu_lower"][0] < table["mmlu_upper"][0] - table["mmlu_lower"][0]
    with pytest.raises(ValueError, match="unknown family"):
        benchmarks([LLAMA], like="No Such Family")


def test_emergence_scales_are_ordered_and_agree_with_the_scores(base):
    scales = emergence_scales(base).dropna()
    assert len(scales) >= 5
    assert (scales["flops_lower"] <= scales["flops"]).all()
    assert (scales["flops"] <= scales["flops_upper"]).all()
    at = scales.set_index("task")["flops"].to_dict()["gsm8k"]
    around = benchmarks_along(*compute_path(np.array([1 / 30, 30]) * at, 20.0), model=base)
    assert around["gsm8k_emergence"].iloc[0] < 0.5 < around["gsm8k_emergence"].iloc[1]


def test_scores_along_a_plans_frontier(base):
    """A list of sizes, of a new family or like a known one; marks are where the probability passes a half."""
    params, tokens = np.logspace(8.5, 11.5, 40), 20 * np.logspace(8.5, 11.5, 40)
    path = benchmarks_along(params, tokens, model=base)
    np.testing.assert_allclose(path["flops"], 6 * params * tokens)
    marks = emergence_marks(path).set_index("task")["flops"]
    past = path["flops"][path["gsm8k_emergence"] >= 0.5]
    assert marks["gsm8k"] == past.iloc[0]
    like = benchmarks_along(params, tokens, like="Llama-2", model=base)
    plain = benchmarks([{"params": n, "tokens": d, "domain": "general", "moe": False, "like": "Llama-2"}
                        for n, d in zip(params, tokens, strict=True)], model=base)  # fmt: skip
    np.testing.assert_allclose(like["mmlu"], plain["mmlu"])
    with pytest.raises(ValueError, match="tokens: 1 counts for 2 params"):
        benchmarks_along([1e9, 2e9], [1e11], model=base)


def test_scores_follow_a_loss():
    table = loss_link.scores_from_loss([3.4, 2.8, 2.6], source="olmo_ladder")
    assert table["olmo_hellaswag"].is_monotonic_increasing
    assert (table["olmo_hellaswag_lower"] < table["olmo_hellaswag"]).all()
    assert table["setting"].str.contains("dolma2").all()
    wider = loss_link.scores_from_loss(2.8, lower=2.6, upper=3.0)
    assert wider["olmo_hellaswag_lower"][0] < table["olmo_hellaswag_lower"][1]
    assert not table["extrapolation"].any()
    assert loss_link.scores_from_loss(0.5)["extrapolation"].all()
    with pytest.raises(ValueError, match="accepted is a loss above 0"):
        loss_link.scores_from_loss(-1.0)


RUN = {
    "source": "marin",
    "model size": 300,
    "data size": 6,
    "optimizer": "adamw",
    "learning rate": 4e-3,
    "batch size": 128,
}


@pytest.fixture(scope="module")
def forecaster():
    from ncpl import Forecaster

    return Forecaster.from_pretrained()


def test_a_configuration_gives_scores_through_its_loss(forecaster):
    table = forecaster.benchmarks([RUN, {**RUN, "learning rate": 5e-2}])
    assert set(CORE_TASKS) | {"olmo_hellaswag", "equivalent_compute"} <= set(table.columns)
    forecast = forecaster.predict([RUN, {**RUN, "learning rate": 5e-2}])
    np.testing.assert_allclose(table["loss"], forecast["loss"])
    np.testing.assert_allclose(table[["params", "tokens"]], [[3e8, 6e9]] * 2)
    # A worse learning rate is less compute, and no score is better for it.
    assert table["loss"][1] > table["loss"][0]
    assert table["equivalent_compute"][1] < 0.8 * table["equivalent_compute"][0]
    for task in (*CORE_TASKS, "olmo_hellaswag", "olmo_arc_easy"):
        assert table[task][1] <= table[task][0]
        assert (table[f"{task}_lower"] <= table[task]).all()
        assert (table[f"{task}_upper"] >= table[task]).all()
    # The link, by hand: the ladder's scores at the forecast loss less the source's offset.
    offset, _ = loss_link.load_links()["olmo_ladder"].offsets["marin"]
    by_hand = loss_link.scores_from_loss(forecast["loss"] - offset)
    np.testing.assert_allclose(table["olmo_hellaswag"], by_hand["olmo_hellaswag"])
    # The loss's uncertainty is in the bands.
    assert (table["olmo_hellaswag_lower"] < by_hand["olmo_hellaswag_lower"]).all()
    assert table["assumption"].str.contains("marin is taken -0.2").all()


def test_scaled_compute_is_where_the_ladder_has_the_loss():
    link = loss_link.load_links()["olmo_ladder"]
    params, tokens = np.array([3e8, 7e9]), np.array([6e9, 2e12])
    scale = link.scale(link.expected(0.5 * params, 0.5 * tokens), params, tokens)
    np.testing.assert_allclose(scale, 0.5, rtol=1e-6)


def test_a_source_without_offset_says_so(forecaster):
    run = {**RUN, "source": "my lab", "seq len": 4096}
    with pytest.warns(UserWarning, match=r"no offset .* measured for \['my lab'\]"):
        table = forecaster.benchmarks(run)
    assert table["equivalent_compute"].isna().all()
    assert not any(column.startswith("olmo_") for column in table.columns)
    assert table["assumption"].str.contains("nothing is known of the loss scale of my lab").all()
    plain = benchmarks({"params": 3e8, "tokens": 6e9, "moe": False})
    np.testing.assert_allclose(table["mmlu"], plain["mmlu"])
    with pytest.warns(UserWarning, match="no offset"):
        both = forecaster.benchmarks([RUN, run])
    assert both["olmo_hellaswag"].isna().tolist() == [False, True]


def test_offsets_are_the_best_runs_distance_from_the_law():
    link = loss_link.load_links()["olmo_ladder"]
    runs = []
    for size in (100, 300, 900):
        level = float(link.expected(size * 1e6, 1e10)) - 0.3
        runs += [({"model size": size, "data size": 10}, level + worse) for worse in (0.0, 0.1, 0.2, 0.3, 0.5)]
    runs += [({"model size": 50, "data size": 10}, 0.1)] * 4  # too few runs to be called tuned
    link.offsets.clear()
    loss_link.fit_offsets(link, {"made up": runs})
    assert link.offsets["made up"] == (pytest.approx(-0.3), pytest.approx(0.0, abs=1e-9))


@pytest.mark.parametrize(
    ("models", "message"),
    [
        ([RUN, LLAMA], "number 0 is a run's configuration and number 1 describes a model"),
        ({**RUN, "model size": 7e9}, "model size: got 7000000000"),
        ({**RUN, "data size": 0}, "data size: got 0"),
        ({k: v for k, v in RUN.items() if k != "data size"}, "data size: missing"),
    ],
)
def test_bad_configurations(models, message, forecaster):
    with pytest.raises(ValueError, match=message):
        forecaster.benchmarks(models)


def test_emergence_is_judged_after_a_calibration_on_other_families():
    random = np.random.default_rng(0)
    probability = random.uniform(0.02, 0.98, 4000)
    past = random.random(4000) < probability
    # Overconfident by a factor of three in log odds.
    told = 1 / (1 + (1 / probability - 1) ** 3)
    frame = pd.DataFrame({"task": "bb_arithmetic_2da_2_acc", "value": np.where(past, 0.5, 0.0), "emergence": told,
                          "fold": np.arange(4000) % 5})  # fmt: skip
    figures = protocols.emergence_figures(frame, 0.1)
    assert figures["calibrated"]["brier"] < figures["brier"] - 0.01
    for group in figures["calibrated"]["reliability"]:
        assert group["forecast"] == pytest.approx(group["share_past"], abs=0.06)


def test_the_figure_draws_every_task(base):
    figure = figures.scores_over_compute(base, tasks=CORE_TASKS).figure()
    assert sum(axis.get_visible() for axis in figure.axes) == 8
