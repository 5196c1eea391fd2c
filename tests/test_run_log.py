"""The log of one run while it is written: what wrote it, restarts, other units, and what is none."""

import json
import math
import subprocess
import sys

import numpy as np
import pytest

from ncpl import Forecaster
from ncpl.figures import curves
from ncpl.live import follow
from ncpl.run_log import read_log
from tests.test_cli import run

CONFIG = {
    "source": "marin", "model size": 300, "data size": 6, "optimizer": "adamw", "learning rate": 4e-3,
    "batch size": 128, "seq len": 4096, "warmup": 1000,
}  # fmt: skip


@pytest.fixture(scope="module")
def forecaster():
    return Forecaster.from_pretrained()


def test_logs_of_several_kinds(tmp_path):
    (tmp_path / "a.csv").write_text("step,loss\n10,5.0\n20,4.5\n30,4", encoding="utf-8")
    # The last line is still being written.
    assert read_log(tmp_path / "a.csv") == {"step": [10.0, 20.0], "loss": [5.0, 4.5]}
    rows = [{"global_step": 1, "train/loss": 9.5}, {"global_step": 2, "lr": 1e-3}, {"global_step": 3, "train/loss": 9}]
    (tmp_path / "b.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    assert read_log(tmp_path / "b.jsonl") == {"step": [1.0, 3.0], "loss": [9.5, 9.0]}
    (tmp_path / "c.csv").write_text("time,value\n1,2\n", encoding="utf-8")
    with pytest.raises(ValueError, match="no column is a step; expected step and loss, found time, value"):
        read_log(tmp_path / "c.csv")
    (tmp_path / "d.csv").write_text("step,loss\n1,4.5\n2,low\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"d\.csv: loss: got 'low', expected a number"):
        read_log(tmp_path / "d.csv")


def logs_of_one_run(forecaster):
    """Ways in which loops write the same 60 points, name of the file -> text, and the points."""
    curve = forecaster.curve(CONFIG, 200)
    steps, losses = curve["step"][:60].tolist(), curve["loss"][:60].round(4).tolist()
    pairs = list(zip(steps, losses, strict=True))
    tokens = curve["tokens"].iloc[-1] * 1e9 / curve["step"].iloc[-1]
    state = {"log_history": [{"step": s, "loss": y, "grad_norm": 1.0} for s, y in pairs], "max_steps": 100000}
    lines = {
        "plain.csv": ["step,loss", *(f"{s},{y}" for s, y in pairs)],
        "twice.csv": [f"{s},{y}" for s, y in [("step", "loss"), *pairs[:30], ("step", "loss"), *pairs[30:]]],
        "tokens.csv": ["tokens_seen,train/loss", *(f"{s * tokens},{y}" for s, y in pairs)],
        "billions.csv": ["tokens,loss", *(f"{s * tokens / 1e9},{y}" for s, y in pairs)],
        "panel.csv": ['"Step","a - train/loss","a - train/loss__MIN"', *(f'"{s}","{y}","{y}"' for s, y in pairs)],
        "printed.log": [f"12:00 | iteration {s}/ 99999 | lm loss: {y:.6E} | lr: 2e-3" for s, y in pairs],
        "nested.jsonl": [json.dumps({"global_step": s, "train": {"ce_loss": y}, "val": {"n": 1}}) for s, y in pairs],
        "trainer_state.json": json.dumps(state, indent=1).split("\n"),
    }  # fmt: skip
    return {name: "\n".join(rows) + "\n" for name, rows in lines.items()}, pairs


def test_a_log_says_the_same_whatever_wrote_it(forecaster, tmp_path):
    texts, pairs = logs_of_one_run(forecaster)
    expected = forecaster.curve(CONFIG, 7, observed=dict(zip(("step", "loss"), zip(*pairs, strict=True), strict=True)))
    for name, text in texts.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
        seen = read_log(tmp_path / name)
        found = forecaster.curve(CONFIG, 7, observed=seen)
        np.testing.assert_allclose(found["loss"], expected["loss"], atol=1e-6, err_msg=name)
        assert found.attrs["seen"] == pytest.approx(pairs[-1][0])
        assert found.plot(seen).figure()


def test_a_log_of_held_out_losses_alone_is_read_and_said_so(forecaster, tmp_path):
    _, pairs = logs_of_one_run(forecaster)
    (tmp_path / "eval.csv").write_text("step,eval_loss\n" + "".join(f"{s},{y}\n" for s, y in pairs), encoding="utf-8")
    seen = read_log(tmp_path / "eval.csv")
    assert seen["loss"] == [y for _, y in pairs]
    notes = forecaster.curve(CONFIG, 3, observed=seen).attrs["notes"]
    assert "no loss of training in the log: eval_loss stands in" in notes


def test_a_perplexity_is_read_as_its_logarithm(tmp_path):
    (tmp_path / "log.csv").write_text("step,val_ppl,train/perplexity\n10,90,20\n20,80,10\n", encoding="utf-8")
    seen = read_log(tmp_path / "log.csv")
    assert seen["loss"] == pytest.approx([math.log(20), math.log(10)])
    assert seen["notes"] == ["no loss in the log: the natural logarithm of train/perplexity stands in"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("step,loss,run\n1,9,a\n1,9,b\n", r"2 runs \('a', 'b'\), expected the log of one"),
        ("Step,a - loss,b - loss\n1,9,9\n", r"2 runs \('a', 'b'\), expected the log of one"),
        ("step,loss\n1,low\n", "loss: got 'low', expected a number"),
        ("step,bpb\n1,0.9\n", "no column is a loss; expected step and loss, found step, bpb"),
    ],
)
def test_a_log_that_is_none_of_one_run_is_refused(tmp_path, text, message):
    (tmp_path / "log.csv").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        read_log(tmp_path / "log.csv")


def test_an_empty_log_is_waited_for(forecaster, tmp_path):
    log = tmp_path / "log.csv"
    log.write_text("step,loss\n", encoding="utf-8")
    assert read_log(log) == {"step": [], "loss": []}
    with pytest.raises(ValueError, match="no points yet"):
        next(follow(log, CONFIG, forecaster, every=None))


@pytest.mark.parametrize("lost", [0.5, math.nan])
def test_a_run_that_was_started_again_is_what_it_did_after_that(forecaster, lost):
    """From an earlier checkpoint, where it had begun to fail."""
    _, pairs = logs_of_one_run(forecaster)
    steps, losses = map(list, zip(*pairs, strict=True))
    first = losses[:40]
    first[30:] = [loss + lost for loss in first[30:]]
    again = {"step": steps[:40] + steps[25:], "loss": first + losses[25:]}
    found, plain = (forecaster.curve(CONFIG, 9, observed=seen) for seen in (again, {"step": steps, "loss": losses}))
    np.testing.assert_allclose(found["loss"], plain["loss"], atol=1e-9)
    assert found.attrs["report"]["status"] == "on course"
    said = f"goes back once, from step {steps[39]:g} to {steps[25]:g}"
    assert any(said in note and "15 earlier losses are left out" in note for note in found.attrs["notes"])
    # A table without an order is no run that starts again.
    order = np.random.default_rng(0).permutation(len(steps))
    mixed = forecaster.curve(CONFIG, 9, observed={"step": np.array(steps)[order], "loss": np.array(losses)[order]})
    np.testing.assert_allclose(mixed["loss"], plain["loss"], atol=1e-9)
    assert mixed.attrs["seen"] == steps[-1]


def test_what_stays_far_above_its_forecast_does_not_recover(forecaster):
    """The chance agrees with the forecast that the log gives: here losses in percent."""
    _, pairs = logs_of_one_run(forecaster)
    steps, losses = (np.array(values) for values in zip(*pairs, strict=True))
    told = forecaster.curve(CONFIG, 5, observed={"step": steps, "loss": losses * 100}).attrs["report"]
    assert told["status"] == "failing"
    assert told["recovers"] < 0.05
    assert "are they nats per token?" in told["reason"]


@pytest.mark.parametrize(
    ("convert", "said"),
    [
        (np.exp, "the loss looks like perplexity: their natural logarithm follows the forecast in nats per token"),
        (lambda nats: nats / math.log(2), "the loss looks like bits: they are 1.44 times the forecast"),
    ],
)
def test_a_log_in_another_unit_is_no_failing_run(forecaster, convert, said):
    _, pairs = logs_of_one_run(forecaster)
    steps, losses = (np.array(values) for values in zip(*pairs, strict=True))
    noise = np.random.default_rng(1).normal(0, 0.03, len(losses))
    told = forecaster.curve(CONFIG, 5, observed={"step": steps, "loss": convert(losses + noise)}).attrs["report"]
    assert told["status"] == "wrong unit"
    assert told["reason"].startswith(said)
    assert "stop" not in told["advice"]
    # A run that has blown up to what a perplexity could be is one that fails.
    blown = np.append(losses[:40], convert(losses[40:]) + 9)
    assert forecaster.curve(CONFIG, 5, observed={"step": steps, "loss": blown}).attrs["report"]["status"] == "failing"


@pytest.mark.parametrize("first", [0, 1])
def test_a_run_that_has_ended_has_the_loss_of_its_log(forecaster, tmp_path, first):
    """Whatever was forecast of it, and whether its steps count from 0 or from 1."""
    whole = forecaster.curve(CONFIG, 500)
    steps, total = whole["step"].to_numpy(), int(whole["step"].iloc[-1])
    losses = whole["loss"].to_numpy() + 0.02 + np.random.default_rng(2).normal(0, 0.01, len(steps))
    log = tmp_path / "log.csv"
    log.write_text("step,loss\n" + "".join(f"{s - 1 + first},{y}\n" for s, y in zip(steps, losses, strict=True)))
    # It ends by itself, however often it looks.
    (found,) = follow(log, CONFIG, forecaster, every=60)
    assert found["step"] == total - 1 + first
    assert found["status"] == "ended"
    assert found["loss"] == pytest.approx(losses[-10:].mean(), abs=0.002)
    assert 0.003 < (found["upper"] - found["lower"]) / 2 < 0.009
    assert found["reason"].startswith(f"the run has ended: the log's own end, {found['loss']:.4f}, lies 0.0")
    assert "above its forecast before the run" in found["reason"]
    short = forecaster.curve(CONFIG, 9, observed={"step": steps[:-20], "loss": losses[:-20]}).attrs["report"]
    assert short["status"] == "on course"


def test_watch_says_at_once_what_is_in_the_log(tmp_path):
    """Before a forecast is made, which takes a while where the machine is busy."""
    log, words = tmp_path / "log.csv", [f"{name}={value}" for name, value in CONFIG.items()]
    log.write_text("step,loss\n", encoding="utf-8")
    command = [sys.executable, "-m", "ncpl_cli", "watch", str(log), *words, "--every", "0.2"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as watch:
        assert watch.stdout is not None
        assert watch.stderr is not None
        try:
            assert watch.stderr.readline() == f"note: {log}: no points yet, waiting for the first\n"
            with log.open("a", encoding="utf-8") as stream:
                stream.write("1000,4.5\n2000,4.0\n")
            # Into a pipe, and before the run has ended.
            assert watch.stdout.readline().startswith("step 2000: final loss ")
        finally:
            watch.kill()


def test_watching_needs_no_transformers(tmp_path):
    """It takes seconds to import."""
    log, words = tmp_path / "log.csv", [f"{name}={value}" for name, value in CONFIG.items()]
    log.write_text("step,loss\n1000,4.5\n2000,4.0\n", encoding="utf-8")
    code = (
        "import sys, ncpl_cli\ntry:\n    ncpl_cli.main()\nexcept SystemExit:\n    pass\n"
        "print([name for name in ('transformers', 'torch') if name in sys.modules])"
    )
    command = [sys.executable, "-c", code, "watch", str(log), *words, "--every", "0"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr.startswith(f"note: {log}: 2 points\n")
    assert done.stdout.splitlines()[-1] == "[]"


def failing_logs(forecaster):
    """What went wrong -> steps and losses, from the 40th point on."""
    _, pairs = logs_of_one_run(forecaster)
    steps, losses = (np.array(values) for values in zip(*pairs, strict=True))
    late = np.arange(len(steps)) >= 40
    return {"if it recovers": (steps, losses + 4 * late), "if it is restarted": (steps, np.where(late, np.nan, losses))}


@pytest.mark.parametrize("condition", ["if it recovers", "if it is restarted"])
def test_the_forecast_of_a_failing_run_says_under_what_it_holds(forecaster, tmp_path, capsys, condition):
    steps, losses = failing_logs(forecaster)[condition]
    log, words = tmp_path / "log.csv", [f"{name}={value}" for name, value in CONFIG.items()]
    log.write_text("step,loss\n" + "".join(f"{s},{y}\n" for s, y in zip(steps, losses, strict=True)), encoding="utf-8")
    status, out, _ = run("curve", *words, "--points", 4, "--observed", log, capsys=capsys)
    assert status == 0
    rows = [line for line in out.splitlines() if line.strip()[:1].isdigit()]
    assert [condition in row for row in rows] == [False, True, True, True]
    assert condition in run("watch", log, *words, "--every", 0, capsys=capsys)[1]
    # The picture's axis is that of the curve; what it leaves out is marked.
    table = forecaster.curve(CONFIG, 60, observed={"step": steps, "loss": losses})
    axes = curves({"run": (CONFIG, table)}, {"step": steps, "loss": losses}).figure().axes[0]
    marked = next(line for line in axes.get_lines() if line.get_label() in ("above the axis", "not a number"))
    np.testing.assert_allclose(marked.get_xdata(), table["tokens"].iloc[-1] * steps[40:] / table["step"].iloc[-1])
    assert set(marked.get_ydata()) == {axes.get_ylim()[1]}
    assert "90 % interval" in axes.get_legend_handles_labels()[1]
    assert table.plot({"step": steps, "loss": np.where(np.isnan(losses), np.inf, losses)}).figure()


def test_the_picture_of_a_curve_has_no_corners(tmp_path, capsys):
    """However few points are asked of the table."""
    words = [f"{name}={value}" for name, value in CONFIG.items()]
    for points in (4, 400):
        assert run("curve", *words, "--points", points, "--save", tmp_path / f"{points}.svg", capsys=capsys)[0] == 0
    assert (tmp_path / "4.svg").read_bytes() == (tmp_path / "400.svg").read_bytes()
