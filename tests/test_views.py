"""What the app shows, without Gradio; and the app over HTTP where Gradio is installed."""

import base64
import importlib.util
import io
import re
import sys
import zipfile
from html import unescape
from pathlib import Path

import pandas as pd
import pytest

from ncpl import Forecaster, plots, views
from ncpl.drawing import Picture, band, count
from ncpl.views.inputs import FORM, INPUTS, MORE, OPTIONS, PRESETS, config_of, from_query, inputs_of, query_of
from ncpl.views.page import Page
from tests.app.server import served

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def default():
    return Forecaster.from_pretrained()


@pytest.fixture
def inputs():
    return from_query("")[1]


def shown(answer):
    """The text of an answer, as a reader has it."""
    return " ".join(unescape(re.sub(r"<svg.*?</svg>|<[^>]+>", " ", answer.html, flags=re.S)).split())


def command(answer):
    return unescape(re.findall(r"<code>(.*?)</code>", answer.html, re.S)[0])


def download(answer, name):
    return base64.b64decode(re.findall(rf'download="{name}" href="data:[^,]+,([^"]+)"', answer.html)[0])


@pytest.mark.parametrize("config", [*PRESETS.values(), {"lr": 1e-3, "nesterov": True, "warmup": 100}])
def test_a_form_gives_its_configuration_back(config, default):
    back = config_of(inputs_of(config))
    if "source" in config:
        pd.testing.assert_frame_equal(default.predict(back), default.predict(config))
    else:
        assert back == {"learning rate": "0.001", "nesterov": True, "warmup": 100}


@pytest.mark.parametrize("tab", ["forecast", "compare", "curve", "sweep", "plan", "runs", "benchmarks"])
def test_an_address_brings_everything_back(tab, inputs):
    changed = {**inputs, "learning rate": "1e-3", MORE: "lr_schedule: wsd\ndecay: 0.2", "level": "0.5"}
    changed |= {"sweep.values 2": "64, 128", "benchmarks.like": "a & b=c"}
    back_tab, back = from_query(query_of(tab, changed))
    assert back_tab == tab
    own = {name for name in INPUTS if "." not in name or name.startswith(tab)}
    assert {name: back[name] for name in own} == {name: changed[name] for name in own}


def test_an_address_that_no_field_fits_is_told(default):
    _, inputs = from_query("source=marin&colour=red&__theme=dark&utm_source=mail")
    assert "colour: not a known field" in shown(views.answer("forecast", default, inputs))
    _, inputs = from_query("source=marin&lr=1e-3&learning+rate=2e-3")
    assert "learning rate: given twice" in shown(views.answer("forecast", default, inputs))


def test_a_forecast_is_the_forecasters(default, inputs):
    answer = views.answer("forecast", default, inputs)
    expected = default.predict(next(iter(PRESETS.values())), 0.9).iloc[0]
    assert f"{expected['loss']:.4f} nats per token, 90 % interval {expected['lower']:.4f}" in shown(answer)
    table = pd.read_csv(io.BytesIO(download(answer, "forecast.csv")))
    assert table.iloc[0].to_dict() == pytest.approx(expected.to_dict())
    assert download(answer, "forecast.svg").startswith(b"<svg")
    assert 'role="img" aria-label="Forecast loss over learning rate' in answer.html
    assert 'scope="col" title="forecast of the final loss' in answer.html


def test_what_concerns_the_number_stands_beside_it(default, inputs):
    far = {**inputs, "source": "acme", "model size": "70000", "data size": "15000"}
    text = shown(views.answer("forecast", default, far))
    for note in ("source: 'acme'", "outside the training runs in source (unknown)", "model size ("):
        assert note in text.partition("Table")[0]
    wild = {**inputs, "source": "steplaw", "learning rate": "0.1"}
    assert "likely to diverge" in shown(views.answer("forecast", default, wild))


@pytest.mark.parametrize("view", ["forecast", "curve", "sweep"])
def test_the_command_gives_the_same(view, default, inputs, capsys):
    import json
    import shlex

    import ncpl_cli

    changed = {**inputs, MORE: "warmup: 500", "level": "0.8", "sweep.values": "1e-3:4e-3:3"}
    answer = views.answer(view, default, changed)
    words = [*shlex.split(command(answer))[1:], "--json"]
    old, sys.argv = sys.argv, ["ncpl", *words]
    try:
        with pytest.raises(SystemExit) as exit_:
            ncpl_cli.main()
    finally:
        sys.argv = old
    assert not exit_.value.code
    told = json.loads(capsys.readouterr().out)
    told = told["curve"] if isinstance(told, dict) and "curve" in told else told
    told = told["sweep"] if isinstance(told, dict) and "sweep" in told else told
    name = {"forecast": "forecast.csv"}.get(view, f"{view}.csv")
    table = pd.read_csv(io.BytesIO(download(answer, name)))
    assert len(told) == len(table)
    assert [row["loss"] for row in told] == pytest.approx(table["loss"].tolist(), abs=1e-6)


@pytest.mark.parametrize(
    ("view", "change", "told"),
    [
        ("forecast", {"learning rate": "abc"}, "learning rate: got 'abc'"),
        ("forecast", {"model size": ""}, "model size: missing"),
        ("forecast", {MORE: "colour: red"}, "colour: not a known field"),
        ("forecast", {MORE: "lr: 1e-3"}, "learning rate: given twice"),
        ("forecast", {MORE: "warmup: 1\nwarmup: 2"}, "given twice"),
        ("forecast", {MORE: "- 1"}, "further fields: got"),
        ("forecast", {"level": "2"}, "level: got 2"),
        ("curve", {"curve.observed": "a,b\n1,2\n"}, "observed.csv: no column is a step"),
        ("compare", {"compare.with": ""}, "compare with: missing"),
        ("compare", {"compare.with": "lr: fast"}, "learning rate: got 'fast'"),
        ("sweep", {"sweep.values": ""}, "sweep values: missing"),
        ("sweep", {"sweep.field": "colour"}, "sweep field: got 'colour'"),
        ("sweep", {"sweep.values": "1e-3:1e-2:100001"}, "at most"),
        ("sweep", {"sweep.values": "1e-3:1e-2:500", "sweep.values 2": "1:1000:900"}, "expected at most 10,000"),
        ("sweep", {"sweep.values": "1e-3:oops:5"}, "learning rate: got '1e-3:oops:5'"),
        ("plan", {"plan.amount": "lots"}, "training FLOPs: got 'lots'"),
        ("plan", {"plan.gpu": "abacus"}, "abacus"),
        ("plan", {"plan.budget": "target loss", "plan.amount": "0.5"}, "0.5"),
        ("benchmarks", {"benchmarks.params": "big"}, "params: got 'big'"),
        ("benchmarks", {"benchmarks.like": "nobody"}, "nobody"),
    ],
)
def test_a_fault_names_its_input_and_changes_nothing(view, change, told, default, inputs):
    answer = views.answer(view, default, {**inputs, **change})
    assert 'role="alert"' in answer.html
    assert told in shown(answer)
    assert len(shown(answer)) <= 300
    assert answer.inputs == {**inputs, **change}


def test_any_file_is_read_and_fills_the_form(default, inputs, tmp_path):
    ours = tmp_path / "runs.csv"
    ours.write_text("source,model size,data size,optimizer,lr,batch size\nmarin,134,2.7,adamw,2e-3,128\n"
                    "marin,302,12,muon,8e-3,128\n")  # fmt: skip
    answer = views.answer("forecasts", default, inputs, str(ours))
    assert "2 configurations" in shown(answer)
    assert answer.inputs["model size"] == "134"
    assert command(answer) == "ncpl predict runs.csv"
    theirs = "source: marin\nmodel:\n  n_layers: 12\n  d_model: 768\nparams_no_embed: 85e6\ntokens: 2e9\nlr: 6e-4\n"
    theirs += "optimizer: adamw\nglobal_batch_size: 256\nseq_len: 4096\n"
    pasted = views.answer("forecasts", default, inputs, None, theirs)
    assert "nats per token" in shown(pasted), shown(pasted)
    assert (pasted.inputs["model size"], pasted.inputs["learning rate"]) == ("85", "0.0006")


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("broken.json", b"{", "broken.json: not JSON"),
        ("picture.png", b"\x89PNG\r\n\x1a\n" + bytes(range(256)), "picture.png"),
        ("empty.yaml", b"", "empty.yaml: holds nothing"),
        ("twice.yaml", b"lr: 1\nlr: 2\n", "twice.yaml: "),
    ],
)
def test_a_bad_file_is_told_by_its_own_name(name, content, told, default, inputs, tmp_path):
    (tmp_path / name).write_bytes(content)
    answer = views.answer("forecasts", default, inputs, str(tmp_path / name))
    assert told in shown(answer)
    assert str(tmp_path) not in answer.html
    assert "/tmp" not in answer.html
    assert answer.inputs == inputs


def test_nothing_typed_becomes_markup(default, inputs, tmp_path):
    evil = '<img src=x onerror="alert(1)">'
    for view, change in (
        ("forecast", {"optimizer": evil}),
        ("forecast", {MORE: f"{evil}: 1"}),
        ("sweep", {"sweep.field": evil}),
    ):
        assert "<img" not in views.answer(view, default, {**inputs, **change}).html
    file = tmp_path / "runs.csv"
    file.write_text(f"source,model size,data size,optimizer,lr,batch size\n'=1+1',134,2.7,\"{evil}\",2e-3,128\n")
    assert "<img" not in views.answer("forecasts", default, inputs, str(file)).html
    drawn = plots.forecasts(pd.DataFrame({"loss": [3.0], "lower": [2.9], "upper": [3.1]}), [evil])
    page = Page("x", drawn, pd.DataFrame({"name": ["=1+1", evil]}), ["ncpl"])
    assert b"'=1+1" in base64.b64decode(re.findall(r'\.csv" href="data:[^,]+,([^"]+)"', page.html())[0])
    assert "<img" not in page.html()


def test_a_sweep_of_two_fields_is_a_map(default, inputs):
    answer = views.answer("sweep", default, {**inputs, "sweep.values": "1e-3:8e-3:4", "sweep.values 2": "64, 128, 256"})
    table = default.sweep(
        next(iter(PRESETS.values())), {"learning rate": [0.001, 0.002, 0.004, 0.008], "batch size": [64, 128, 256]}
    )
    best = table.iloc[int(table["loss"].argmin())]
    assert f"Lowest at learning rate {best['learning rate']:.4g}, batch size {best['batch size']:g}" in shown(answer)
    words = views.answer("sweep", default, {**inputs, "sweep.field": "optimizer", "sweep.values": "adamw, muon"})
    assert "Lowest at optimizer" in shown(words)


def test_a_comparison_is_the_forecasters(default, inputs):
    answer = views.answer("compare", default, inputs)
    first = next(iter(PRESETS.values()))
    found = default.compare(first, {**first, "optimizer": "muon", "learning rate": 0.008})
    below = "below" if found["difference"] < 0 else "above"
    assert f"A ends {abs(found['difference']):.4f} nats {below} B" in shown(answer)
    assert b"optimizer: muon" in download(answer, "b.yaml")
    assert command(answer) == "ncpl compare a.yaml b.yaml"


def test_two_runs_of_one_forecast_are_said_to_be_so(default, inputs):
    # The law of this source does not read the field.
    answer = views.answer("compare", default, {**inputs, "compare.with": "num layers: 12"})
    assert "A and B have the same forecast" in shown(answer)
    assert "is better with" not in shown(answer)


OWN_RUNS = "name,params_no_embed,tokens,lr,batch_size,optimizer,val_loss\n" + "".join(
    f"r{n}_{d},{n}e6,{d}e9,1e-3,128,adamw,{2.2 + 30 / n**0.9 + 0.5 / d**0.5:.4f}\n"
    for n in (30, 60, 120)
    for d in (1, 2, 4)
)


def test_a_lab_uploads_its_runs_and_takes_its_forecaster_home(default, inputs, tmp_path):
    file = tmp_path / "own.csv"
    file.write_text(OWN_RUNS)
    answer = views.answer("runs", default, {**inputs, "runs.source": "acme"}, [str(file)])
    assert "acme is learnt from 9 runs" in shown(answer)
    assert command(answer) == "ncpl adapt own.csv --source acme --out acme"
    assert answer.inputs["source"] == "acme"
    later = views.answer("forecast", answer.state, {**answer.inputs, "model size": "240"})
    with zipfile.ZipFile(io.BytesIO(download(answer, "acme.zip"))) as archive:
        archive.extractall(tmp_path)
    home = Forecaster.from_pretrained(tmp_path / "acme")
    config = config_of({**answer.inputs, "model size": "240"})
    assert f"{home.predict(config)['loss'].iloc[0]:.4f} nats per token" in shown(later)
    nothing = views.answer("runs", default, inputs, None)
    assert "runs: missing, expected a file" in shown(nothing)
    assert nothing.state is None


def test_a_plan_is_the_forecasters(default, inputs):
    answer = views.answer("plan", default, inputs)
    best = default.plan(flops=1e21, base={"source": "marin", "optimizer": "adamw"}).best
    assert f"{count(best['params'])} parameters on {count(best['tokens'])} tokens : loss {best['loss']:.4f}" in shown(
        answer
    )
    assert command(answer) == "ncpl plan source=marin optimizer=adamw --flops 1e+21 --gpu h100 --count 64"


def test_an_observed_part_moves_the_curve(default, inputs):
    config = config_of(inputs)
    usual = default.curve(config, 60)
    part = usual.head(30)
    log = "step,loss\n" + "".join(f"{s},{v + 0.05}\n" for s, v in zip(part["step"], part["loss"], strict=True))
    answer = views.answer("curve", default, {**inputs, "curve.observed": log})
    seen = {"step": part["step"].tolist(), "loss": (part["loss"] + 0.05).tolist()}
    end = default.curve(config, 60, seen).iloc[-1]["loss"]
    assert end != usual["loss"].iloc[-1]
    assert f"Ends at {end:.4f}" in shown(answer)
    assert "--observed observed.csv" in command(answer)


def test_charts_follow_the_page():
    table = pd.DataFrame({"loss": [3.0, 2.5], "lower": [2.9, 2.4], "upper": [3.1, 2.6]})
    drawn = Picture('a "chart"', (lambda axes, theme: band(axes, theme, [1, 10], table, "x"),)).svg()
    assert "currentColor" in drawn
    assert "var(--ncpl-main," in drawn
    assert "#010203" not in drawn
    assert "#040506" not in drawn
    assert 'aria-label="a &quot;chart&quot;"' in drawn


def test_the_spaces_requirements_are_the_packages():
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    expected = {*project["dependencies"], *project["optional-dependencies"]["space"]}
    assert set((ROOT / "space" / "requirements.txt").read_text().split("\n")) - {""} == expected


def test_a_missing_gradio_is_told(monkeypatch, capsys):
    import ncpl_cli

    monkeypatch.setattr(importlib.util, "find_spec", lambda name, package=None: None)
    monkeypatch.setattr(sys, "argv", ["ncpl", "app"])
    with pytest.raises(SystemExit) as exit_:
        ncpl_cli.main()
    assert exit_.value.code == 2
    assert "pip install ncpl[space]" in capsys.readouterr().err


@pytest.fixture(scope="module")
def address():
    if importlib.util.find_spec("gradio") is None:
        pytest.skip("gradio is not installed: pip install ncpl[space]")
    with served() as found:
        yield found.address


def test_the_app_over_http(address, default, inputs, tmp_path):
    from gradio_client import Client, handle_file

    client = Client(address, verbose=False)
    values = [inputs[name] for name in INPUTS]
    _, html, query = client.predict(*values, api_name="/forecast")
    assert html == views.answer("forecast", default, inputs).html
    assert query.startswith("tab=forecast&source=marin")
    _, html, _ = client.predict(
        *["abc" if name == "learning rate" else inputs[name] for name in INPUTS], api_name="/forecast"
    )
    assert "learning rate: got" in html
    assert (
        client.predict("Marin, Muon, 302M parameters, 12B tokens", api_name="/preset")[FORM.index("optimizer")]
        == "muon"
    )
    file = tmp_path / "one.json"
    file.write_text(
        '{"source": "marin", "model size": 134, "data size": 2.7, "optimizer": "muon", "lr": 0.004, "batch size": 128}'
    )
    read = client.predict(handle_file(str(file)), "", *values, api_name="/read")
    assert any("nats per token" in str(part) for part in read)
    assert "134" in read
    opened = client.predict(api_name="/open")
    assert any("nats per token" in str(part) for part in opened)
    assert set(FORM) < set(INPUTS) > set(OPTIONS)
