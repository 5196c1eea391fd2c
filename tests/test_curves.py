"""Loss curves: the law along a run, its fit, forecasts before and during a run, and what is said of failing runs."""

import json
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from curves_ncpl import KNOTS, CurveLaw, RunShape, early, places, shape_terms
from fields_ncpl import check_config
from ncpl import Forecaster
from ncpl.commands import forecasts  # noqa: F401 (adds `curve` to the app)
from ncpl.commands.shared import app
from ncpl.curves import EMBEDDED, Final, read_law, report, save_law
from ncpl.fitting.curves import CurveRun, fit_curves, fit_shape
from ncpl.live import follow
from observed_ncpl import Observed, forecast

CONFIG = {
    "source": "marin", "model size": 300, "data size": 6, "optimizer": "adamw", "learning rate": 4e-3,
    "batch size": 128, "warmup": 1000,
}  # fmt: skip
SHARES = np.geomspace(0.02, 1, 30)


@pytest.fixture(scope="module")
def forecaster():
    return Forecaster.from_pretrained()


def made_up_runs(labs=("a", "b"), noise=0.001):
    """Runs of two labs that follow the law at its prior's mean, one lab with half the annealing gain."""
    rng, runs = np.random.default_rng(0), []
    for lab in labs:
        truth = CurveLaw.example()
        truth = replace(truth, common={**truth.common, "logh": truth.common["logh"] - 0.5 * (lab == "b")})
        for size in (50, 120, 300):
            for steps in (4000, 9000, 20000):
                for schedule in ("cosine", "wsd"):
                    config = {
                        "source": lab, "model size": size, "data size": steps * 2**18 / 1e9, "batch size": 128,
                        "seq len": 2048, "learning rate": 1e-3, "warmup": 400, "max step": steps,
                        "lr_schedule": schedule,
                    }  # fmt: skip
                    shape = RunShape.of(config)
                    end, _ = shape_terms(truth.common, places([shape], [np.array([1.0])]))
                    final = float(2.0 + 3.0 * size**-0.3 + end[0])
                    losses = final + truth.shape(shape, SHARES) + noise * rng.normal(size=len(SHARES))
                    runs.append(CurveRun.of(config, SHARES * steps, losses, final))
    return runs


@pytest.fixture(scope="module")
def fitted():
    return fit_curves(made_up_runs())


def test_derivatives_equal_finite_differences():
    runs = [run.shape for run in made_up_runs()[::5]]
    at = places(runs, [SHARES] * len(runs))
    c = CurveLaw.example().common
    _, slopes = shape_terms(c, at)
    assert slopes.keys() == c.keys()
    for name in c:
        above, below = (shape_terms({**c, name: c[name] + step}, at)[0] for step in (1e-5, -1e-5))
        np.testing.assert_allclose(slopes[name], (above - below) / 2e-5, rtol=1e-5, atol=1e-7, err_msg=name)


def test_a_fit_forecasts_runs_of_schedules_and_lengths_it_has_not_seen():
    runs = made_up_runs()
    held = [run for run in runs if run.shape.steps == 20000 and run.shape.schedule.shape == "linear"]
    law = fit_shape([run for run in runs if run not in held])
    for run in held:
        error = np.abs(law.shape(run.shape, run.shares) - (run.losses - run.losses[-1]))
        assert error[run.shares > 0.1].mean() < 0.006


def test_final_losses_alone_teach_a_labs_data_term():
    """A lab without curves: its runs' ends say how fast its loss falls with data."""
    runs = made_up_runs()
    law = fit_shape([run.ended() if run.shape.source == "b" else run for run in runs])
    assert set(law.sources) == {"a", "b"}
    errors = [
        np.abs(law.shape(run.shape, run.shares) - (run.losses - run.losses[-1]))[run.shares > 0.3].mean()
        for run in runs
        if run.shape.source == "b"
    ]
    assert np.mean(errors) < 0.08


def test_a_fit_without_curves_is_refused():
    with pytest.raises(ValueError, match="curves: no run has three points"):
        fit_curves([run.ended() for run in made_up_runs()])


def test_a_law_of_curves_survives_its_file(fitted, tmp_path):
    save_law(fitted, tmp_path)
    read = read_law(tmp_path)
    run = made_up_runs()[3].shape
    np.testing.assert_allclose(read.shape(run, SHARES), fitted.shape(run, SHARES), atol=1e-5)
    np.testing.assert_allclose(read.covariance(run), fitted.covariance(run), rtol=1e-4, atol=1e-8)
    np.testing.assert_allclose(read.scored(0.3) or [], fitted.scored(0.3) or [1.0], rtol=1e-6)


def test_an_observed_part_moves_the_end_and_narrows_the_band(fitted):
    run = made_up_runs()[4]
    final = run.losses[-1] + 0.03
    before = forecast(fitted, run.shape, SHARES, final, 0.03)
    seen = run.shares < 0.6
    during = forecast(
        fitted,
        run.shape,
        SHARES,
        final,
        0.03,
        Observed.of(run.shares[seen] * run.shape.steps, run.losses[seen], run.shape),
    )
    assert abs(during.loss[-1] - run.losses[-1]) < 0.5 * abs(before.loss[-1] - run.losses[-1])
    assert (during.deviation <= before.deviation + 1e-3).all()


def test_a_spike_widens_the_band_and_does_not_drag_the_curve(fitted):
    run = made_up_runs()[4]
    steps = np.arange(100, run.shape.steps // 2, 50)
    smooth = run.at(steps / run.shape.steps) + 0.002 * np.random.default_rng(1).normal(size=len(steps))
    spiked = smooth + 2.0 * ((steps > steps[-1] * 0.55) & (steps < steps[-1] * 0.6))
    plain, hurt = (
        forecast(fitted, run.shape, SHARES, run.losses[-1], 0.02, Observed.of(steps, losses, run.shape))
        for losses in (smooth, spiked)
    )
    assert np.abs(plain.loss - hurt.loss)[SHARES > 0.5].max() < 0.004
    assert hurt.deviation[-1] >= plain.deviation[-1] - 1e-6


def test_losses_that_are_means_over_a_window_lie_at_its_middle():
    run = made_up_runs()[0].shape
    seen = Observed.of([101.0, 201.0], [5.0, 4.5], run, window=100)
    assert seen is not None
    assert (seen.shares * run.steps).tolist() == pytest.approx([51.5, 151.5])


@pytest.mark.parametrize("source", ["marin", "mine", "xlstm_mlstm"])
@pytest.mark.parametrize("schedule", ["cosine", "linear", "wsd", "constant", "two-stage", "inverse square root"])
def test_a_curve_never_rises_where_the_learning_rate_does_not(source, schedule):
    law, rng = read_law(EMBEDDED), np.random.default_rng(0)
    for size, steps in ((60, 3000), (1500, 40000), (20000, 200000)):
        config = {
            "source": source, "model size": size, "data size": steps * 2**19 / 1e9, "batch size": 256, "seq len": 2048,
            "learning rate": 1e-3, "warmup": 500, "max step": steps, "lr_schedule": schedule,
        }  # fmt: skip
        run, shares = RunShape.of(config), np.linspace(0.005, 1, 300)
        before = forecast(law, run, shares, 2.5, 0.02)
        assert np.diff(before.loss).max() < 1e-6
        assert before.loss[-1] == pytest.approx(2.5, abs=1e-9)
        for part in (0.1, 0.5, 0.95):
            # A noisy log whose end lies below what the law says.
            seen = np.linspace(0.01, part, 60)
            losses = 2.48 + law.shape(run, seen) + 0.03 * rng.normal(size=len(seen))
            during = forecast(law, run, shares, 2.5, 0.02, Observed.of(seen * steps, losses, run))
            assert np.diff(during.loss).max() < 1e-6


def test_a_curve_may_rise_where_the_learning_rate_does():
    points = [(0, 0.0), (500, 1e-3), (5000, 1e-4), (5200, 8e-4), (10000, 0.0)]
    config = {"source": "mine", "model size": 300, "data size": 5, "batch size": 256, "seq len": 2048, "lr": points}
    law, run = CurveLaw.example(), RunShape.of(check_config({**config, "max step": 10000}, strict=False))
    assert np.diff(law.shape(run, np.linspace(0.45, 0.53, 30))).max() > 1e-4


@pytest.mark.parametrize("noise", [0.005, 0.03, 0.1])
def test_the_band_covers_the_observed_part_as_logged(fitted, noise):
    run = made_up_runs()[4]
    seen = np.linspace(0.02, 0.6, 800)
    losses = run.at(seen) + noise * np.random.default_rng(2).normal(size=len(seen))
    observed = Observed.of(seen * run.shape.steps, losses, run.shape)
    lower, upper = forecast(fitted, run.shape, seen, run.losses[-1], 0.02, observed).logged(0.9)
    assert 0.85 < ((lower <= losses) & (losses <= upper)).mean() < 0.97
    # Ahead it is of the loss without its noise.
    ahead = forecast(fitted, run.shape, np.array([0.9, 1.0]), run.losses[-1], 0.02, observed)
    assert (np.asarray(ahead.noise) == 0).all()


SEEN = {
    "source": "marin", "model size": 300, "data size": 6, "batch size": 128, "seq len": 4096, "learning rate": 4e-3,
    "warmup": 1000, "max step": 11444,
}  # fmt: skip


def logged(law, run, final, part, offset=0.0, noise=0.01, seed=0):
    """A log with a point each 20 steps of a run that lies `offset` over its forecast."""
    steps = np.arange(20, int(run.steps * part) + 1, 20)
    truth = final + law.shape(run, steps / run.steps, final) + offset
    return steps, truth, truth + noise * np.random.default_rng(seed).normal(size=len(steps))


@pytest.mark.parametrize("source", ["marin", "mine", "xlstm_llama"])
@pytest.mark.parametrize("part", [0.05, 0.1, 0.3, 0.5, 0.8])
def test_a_curve_passes_through_its_log_wherever_that_lies(source, part):
    """And its band is no wider over the log's later part than just beyond the log."""
    law, run = read_law(EMBEDDED), RunShape.of(SEEN | {"source": source})
    deviation = 0.3 if source == "mine" else 0.008
    for offset in (-0.2, 0.0, 0.03, 0.08, 0.2, 0.5):
        for noise in (0.002, 0.02):
            steps, truth, losses = logged(law, run, 3.27, part, offset, noise)
            observed = Observed.of(steps, losses, run)
            last = steps[-1] / run.steps
            shares = np.append(last * np.array([0.5, 0.7, 0.8, 0.9, 1.0, 1.03]), 1.0)
            curve = forecast(law, run, shares, 3.27, deviation, observed)
            # Where the loss falls steeply, a bin's median is known less well.
            assert abs(curve.loss[4] - truth[-1]) < max(noise, 0.008) + 0.003 * early(steps[-1])
            width = np.subtract(*curve.interval(0.9)[::-1])
            # Bins of equal width in log steps hold fewer points, and losses scatter more, the earlier they lie.
            assert width[3] < 1.1 * width[5]
            assert width[:3].max() < 1.5 * width[5]


@pytest.mark.parametrize("source", ["marin", "xlstm_llama"])
def test_the_further_a_log_lies_off_the_less_sure_is_its_end(source):
    law, run = read_law(EMBEDDED), RunShape.of(SEEN | {"source": source})
    ends = []
    for offset in (0.0, 0.05, 0.1, 0.2, 0.4):
        steps, _, losses = logged(law, run, 3.27, 0.3, offset)
        curve = forecast(law, run, np.array([1.0]), 3.27, 0.008, Observed.of(steps, losses, run))
        ends.append((curve.loss[0] - 3.27, curve.deviation[0]))
    moved, deviation = np.array(ends).T
    assert (np.diff(moved) > 0).all()
    assert deviation[1:].min() >= deviation[0]
    assert deviation[2:].min() > 1.5 * deviation[0]
    # By no more than the offset, which the interval holds.
    assert (moved < np.array([0.001, 0.05, 0.1, 0.2, 0.4])).all()


def test_a_spike_that_decays_slowly_lowers_no_forecast_and_narrows_none():
    law, run = read_law(EMBEDDED), RunShape.of(SEEN)
    for part in (0.3, 0.6):
        steps, _, losses = logged(law, run, 3.27, part)
        peak = 0.6 * steps[-1]
        spiked = losses + np.where(steps > peak, 1.5 * np.exp((peak - steps) / (0.15 * steps[-1])), 0.0)
        plain, hurt = (
            forecast(law, run, np.array([1.0]), 3.27, 0.008, Observed.of(steps, some, run)) for some in (losses, spiked)
        )
        assert plain.loss[0] - 0.002 < hurt.loss[0] < plain.loss[0] + 0.03
        assert hurt.deviation[0] >= plain.deviation[0]


def test_no_loss_of_a_curve_nor_its_band_lies_above_chance(forecaster):
    chance = np.log(128_256)
    before = forecaster.curve(CONFIG, 1000)
    assert before["loss"].max() <= chance
    assert before["upper"].max() <= chance + 1e-9
    assert before["loss"].iloc[0] > 8
    seen = {"step": [2, 5, 10, 20, 40, 80], "loss": [11.9, 11.7, 11.2, 10.2, 9.0, 8.0]}
    during = forecaster.curve(CONFIG, 1000, observed=seen)
    assert during[["loss", "upper"]].max().max() <= chance + 1e-9


def test_a_log_that_says_nothing_narrows_nothing(forecaster):
    before = forecaster.curve(CONFIG, 100)
    for seen in ({"step": [20], "loss": [9.0]}, {"step": before["step"][:1], "loss": before["loss"][:1]}):
        table = forecaster.curve(CONFIG, 100, observed=seen)
        width, wider = (drawn["upper"] - drawn["lower"] for drawn in (before, table))
        assert (wider[20:] > 0.98 * width[20:]).all()


def test_a_log_far_from_its_forecast_is_said_so(forecaster):
    plain = forecaster.curve(CONFIG, 100)
    said = {}
    for offset in (-0.15, 0.0, 0.15):
        seen = {"step": plain["step"][:60], "loss": plain["loss"][:60] + offset}
        said[offset] = forecaster.curve(CONFIG, 100, observed=seen).attrs["report"]
    assert [report["status"] for report in said.values()] == ["off course", "on course", "off course"]
    assert re.match(r"the log lies 0\.15 above its forecast \(\d+\.\d standard deviations\)", said[0.15]["reason"])
    assert "0.15 below its forecast" in said[-0.15]["reason"]
    assert "above its forecast with 95 %" in said[0.15]["advice"]
    assert said[-0.15]["advice"] is None


def test_nothing_finite_observed_is_nothing_observed():
    assert Observed.of([10, 20], [np.nan, np.inf], made_up_runs()[0].shape) is None


def test_the_end_of_a_curve_is_the_forecast_final_loss(forecaster):
    end = forecaster.predict(CONFIG, 0.8).iloc[0]
    curve = forecaster.curve(CONFIG, 7, level=0.8)
    assert list(curve) == ["step", "tokens", "loss", "lower", "upper"]
    np.testing.assert_allclose(curve.iloc[-1][["loss", "lower", "upper"]], end[["loss", "lower", "upper"]], atol=1e-9)
    assert curve["tokens"].iloc[-1] == 6
    assert (np.diff(curve["loss"]) < 0).all()


def test_the_picture_shows_the_schedule_that_the_curve_is_of(forecaster):
    from ncpl.figures import curves

    base = {"source": "marin", "model size": 300, "data size": 6, "learning rate": 4e-3, "batch size": 128}
    config = base | {"optimizer": "muon"}
    table = forecaster.curve(config, 20)
    assert "no lr_schedule, warmup, decay, min_lr_ratio given: the curve is that of lr_schedule linear" in " ".join(
        table.attrs["notes"]
    )
    full = config | table.attrs["schedule"]
    same = forecaster.curve(full, 20)
    np.testing.assert_allclose(same["loss"], table["loss"])
    assert not any("the curve is that of" in note for note in same.attrs["notes"])
    above, beneath = curves({"run": (config, table)}).figure().axes
    assert above.get_xlim() == beneath.get_xlim()
    figures = above.figure, curves({"run": (full, same)}).figure()
    # A schedule that was not given is dashed, and the picture says what stands in.
    assert [figure.axes[1].get_lines()[0].get_linestyle() for figure in figures] == ["--", "-"]
    assert "not given in full, lr_schedule linear, warmup" in figures[0].axes[1].get_title("left")
    assert not figures[1].axes[1].get_title("left")
    drawn, meant = (figure.axes[1].get_lines()[0].get_ydata() for figure in figures)
    assert drawn[-1] == 0
    np.testing.assert_allclose(drawn, meant)


def test_warmup_moves_early_points_most(forecaster):
    config = CONFIG | {"lr_schedule": "cosine", "min_lr_ratio": 0.1}
    short, long = (forecaster.curve(config | {"warmup": steps}, 20)["loss"] for steps in (200, 3000))
    moved = (short - short.iloc[-1] - (long - long.iloc[-1])).abs()
    assert moved.iloc[:4].mean() > 5 * moved.iloc[-5:].mean()


def test_a_cooldown_comes_late_and_falls_further(forecaster):
    config = CONFIG | {"min_lr_ratio": 0.0}
    cosine, wsd = (forecaster.curve(config | {"lr_schedule": name}, 50)["loss"] for name in ("cosine", "wsd"))
    # Relative to its end, a run at a constant rate stands higher before its cooldown.
    assert wsd.iloc[40] - wsd.iloc[-1] > cosine.iloc[40] - cosine.iloc[-1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"points": 0}, "points: got 0"),
        ({"level": 1.5}, "level: got 1.5"),
        ({"window": 0}, "window: got 0"),
        ({"observed": {"step": [1], "loss": [1, 2]}}, "observed: got 1 steps and 2 losses"),
        ({"observed": {"step": [10**7], "loss": [3.0]}}, "observed: steps from 1e.07 to 1e.07, expected 0 to"),
        ({"observed": {"step": [12000], "loss": [3.0]}}, "; a longer run is max_step=12000"),
        ({"observed": {"steps": [1]}}, "observed: expected"),
    ],
)
def test_bad_input_is_refused(forecaster, change, message):
    with pytest.raises(ValueError, match=message):
        forecaster.curve(CONFIG, **change)


def test_an_unknown_schedule_is_refused(forecaster):
    with pytest.raises(ValueError, match=r"lr_schedule: got 'cosin'.*did you mean 'cosine'"):
        forecaster.curve(CONFIG | {"lr_schedule": "cosin"})


def test_observing_a_run_on_course_changes_little(forecaster):
    plain = forecaster.curve(CONFIG, 20)
    seen = {"step": plain["step"][:8], "loss": plain["loss"][:8]}
    told = forecaster.curve(CONFIG, 20, observed=pd.DataFrame(seen))
    np.testing.assert_allclose(told["loss"], plain["loss"], atol=0.002)
    assert told.attrs["report"]["status"] == "on course"
    assert told.attrs["report"]["advice"] is None


def test_failing_runs_are_said_so(forecaster):
    plain = forecaster.curve(CONFIG, 50)
    steps, losses = plain["step"][:20].to_numpy(), plain["loss"][:20].to_numpy()

    def said(changed):
        return forecaster.curve(CONFIG, 5, observed={"step": steps, "loss": changed}).attrs["report"]

    assert said(np.append(losses[:-1], np.nan))["status"] == "nan"
    broken = said(np.append(losses[:-3], [np.nan] * 3))
    assert f"from step {steps[-3]:g} on" in broken["reason"]
    high = said(losses + 3.0)
    assert (high["status"], high["recovers"] < 0.5) == ("failing", True)
    assert "nats above its forecast" in high["reason"]
    rising = said(np.concatenate([losses[:10], losses[9] + 0.05 * np.arange(10)]))
    assert rising["status"] == "failing"


def test_a_run_that_ends_worse_is_advised_against():
    law = CurveLaw.example()
    run = made_up_runs()[0].shape
    steps = np.linspace(500, 3000, 40)
    losses = 2.5 + law.shape(run, steps / run.steps)
    advice = report(law, run, Final(2.4, 2.35, 2.45, 0.9), steps, losses, 2.5, 0.01)["advice"]
    assert advice == "this run ends 0.08 nats or more above its forecast with 95 %; consider to stop it"


def test_commands(tmp_path):
    arguments = [f"{name}={value}" for name, value in CONFIG.items()]
    log = tmp_path / "log.csv"
    log.write_text("step,loss\n500,4.9\n1000,4.4\n2000,3.9\n", encoding="utf-8")
    run = CliRunner()
    found = run.invoke(app, ["curve", *arguments, "--observed", str(log), "--json", "--points", "5"])
    assert found.exit_code == 0, found.output
    assert len(json.loads(found.stdout)["curve"]) == 5
    watched = run.invoke(app, ["watch", str(log), *arguments, "--every", "0"])
    assert watched.exit_code == 0, watched.output
    assert watched.stdout.startswith("step 2000: final loss ")
    figure = tmp_path / "curves.png"
    assert run.invoke(app, ["curve", *arguments, "--save", str(figure)]).exit_code == 0
    assert figure.stat().st_size > 10_000


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_watch_follows_a_log_that_is_being_written(forecaster, tmp_path, suffix):
    curve, log = forecaster.curve(CONFIG, 12), tmp_path / f"train.{suffix}"
    rows = list(zip(curve["step"].tolist(), curve["loss"].tolist(), strict=True))

    def lines(part):
        if suffix == "jsonl":
            return "".join(json.dumps({"global_step": step, "loss": loss}) + "\n" for step, loss in part)
        return "".join(f"{step},{loss}\n" for step, loss in part)

    log.write_text(("" if suffix == "jsonl" else "step,loss\n") + lines(rows[:2]), encoding="utf-8")
    found = []
    for forecast_now in follow(log, CONFIG, forecaster, every=0.01):
        found.append(forecast_now)
        done = 2 * len(found)
        with log.open("a", encoding="utf-8") as stream:
            stream.write(lines(rows[done : done + 2]))
    assert [one["step"] for one in found] == [step for step, _ in rows[1::2]]
    assert [one["status"] for one in found] == ["on course"] * (len(found) - 1) + ["ended"]
    assert found[-1]["loss"] == pytest.approx(rows[-1][1], abs=1e-3)
    widths = [one["upper"] - one["lower"] for one in found]
    assert widths[-1] < 0.5 * widths[0]


def test_an_unknown_labs_run_is_believed_where_its_final_loss_is_not_known(forecaster):
    """Its forecast before the run may be a nat off; a tenth of the run says how low it ends at least."""
    config = CONFIG | {"source": "mine", "seq len": 2048}
    before = forecaster.curve(config, 200)
    seen = {"step": before["step"][:20], "loss": before["loss"][:20] - 1.5}
    during = forecaster.curve(config, 200, observed=seen)
    assert during["loss"].iloc[-1] < seen["loss"].iloc[-1]
    assert before["loss"].iloc[-1] - during["loss"].iloc[-1] > 1.0


def test_a_failing_run_says_with_what_probability_it_recovers(forecaster):
    curve = forecaster.curve(CONFIG, 40)
    steps, losses = curve["step"][:20].to_numpy(), curve["loss"][:20].to_numpy()
    spiked = losses.copy()
    spiked[8:10] += 2.0
    seen = forecaster.curve(CONFIG, 40, observed={"step": steps, "loss": spiked})
    plain = forecaster.curve(CONFIG, 40, observed={"step": steps, "loss": losses})
    assert seen.attrs["report"]["status"] == "on course"
    assert abs(seen["loss"].iloc[-1] - plain["loss"].iloc[-1]) < 0.005
    width = seen["upper"] - seen["lower"]
    assert width[8] > (plain["upper"] - plain["lower"])[8]
    high = forecaster.curve(CONFIG, 5, observed={"step": steps, "loss": losses + 2.6}).attrs["report"]
    assert 0 < high["recovers"] < 0.5
    assert "recover" in high["advice"]


def test_knots_end_at_the_end():
    assert KNOTS[-1] == 1.0
    assert list(KNOTS) == sorted(KNOTS)


def test_pairs_of_steps_and_rates_move_the_end_too_and_are_taken_from_the_shell(forecaster):
    fields = [f"{name}={value}" for name, value in CONFIG.items() if name not in ("learning rate", "warmup")]
    found = {}
    for last in ("0", "4e-3"):
        pairs = f"lr=[(0, 0), (1000, 4e-3), (9000, 4e-3), (11444, {last})]"
        run = CliRunner().invoke(app, ["curve", *fields, pairs, "--json", "--points", "3"])
        assert run.exit_code == 0, run.output
        found[last] = json.loads(run.stdout)[-1]["loss"]
        points = [(0, 0.0), (1000, 4e-3), (9000, 4e-3), (11444, float(last))]
        config = {name: value for name, value in CONFIG.items() if name not in ("learning rate", "warmup")}
        assert found[last] == pytest.approx(forecaster.predict(config | {"lr": points})["loss"][0], abs=1e-9)
    # A rate that never falls misses what its fall gains.
    assert 0.05 < found["4e-3"] - found["0"] < 0.4
    bad = CliRunner().invoke(app, ["curve", *fields, "lr=[(0, 0), (900, 4e-3), (500, 0)]"])
    assert isinstance(bad.exception, ValueError)
    assert "in the order of the steps" in str(bad.exception)


def test_a_sweep_over_schedules_and_a_search_over_the_cooldown(forecaster):
    swept = forecaster.sweep(CONFIG | {"min_lr_ratio": 0.0}, {"lr_schedule": ["cosine", "wsd", "constant"]})
    assert swept["loss"].nunique() == 3
    assert swept.set_index("lr_schedule")["loss"].idxmax() == "constant"
    best = forecaster.optimize(CONFIG | {"lr_schedule": "wsd", "min_lr_ratio": 0.0}, {"decay": (0.05, 0.9)})
    least = forecaster.sweep(CONFIG | {"lr_schedule": "wsd", "min_lr_ratio": 0.0}, {"decay": [0.05, 0.2, 0.5, 0.9]})
    assert 0.05 <= best["decay"] <= 0.9
    assert best["loss"] <= least["loss"].min() + 2e-3


def test_a_learning_rate_may_be_pairs_of_steps_and_rates(forecaster):
    pairs = [(0, 0.0), (1000, 4e-3), (11444, 0.0)]
    by_pairs = forecaster.curve(
        {name: value for name, value in CONFIG.items() if name != "learning rate"} | {"lr": pairs}
    )
    linear = forecaster.curve(CONFIG | {"lr_schedule": "linear", "min_lr_ratio": 0.0})
    shape, plain = (table["loss"] - table["loss"].iloc[-1] for table in (by_pairs, linear))
    np.testing.assert_allclose(shape, plain, atol=1e-3)
