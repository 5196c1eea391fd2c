"""The page for the meeting, and pictures by every command that shows something."""

import re
import shlex
from html import unescape
from html.parser import HTMLParser

import pytest

from ncpl import Forecaster
from ncpl.configs import check_configs, read_configs
from ncpl.views.report import report
from tests.test_cli import as_json, run

CONFIG = "examples/marin-1b.yaml"


@pytest.fixture(scope="module")
def forecaster():
    return Forecaster.from_pretrained()


class Balanced(HTMLParser):
    """Refuses tags that do not close, and counts the ones that fetch something."""

    def __init__(self):
        super().__init__()
        self.open, self.fetched = [], []

    def handle_starttag(self, tag, attrs):
        self.fetched += [value for name, value in attrs if name in ("src", "href") and not value.startswith("#")]
        if tag not in ("meta", "br", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_a_map_hatches_where_runs_will_rather_diverge(forecaster):
    config = {"source": "marin", "model size": 300, "data size": 6, "optimizer": "adamw", "learning rate": 4e-3}
    table = forecaster.sweep(config | {"batch size": 128}, {"learning rate": [2e-3, 6e-2], "batch size": [64, 128]})
    assert table["divergence"].max() > 0.5 > table["divergence"].min()
    axes = table.plot().figure().axes[0]
    (hatched,) = [part for part in axes.collections if part.get_hatch()]
    assert hatched.get_edgecolor()[0][3] == 1
    assert len(hatched.get_paths()) == (table["divergence"] > 0.5).sum()


@pytest.mark.filterwarnings("ignore")
def test_the_page_says_what_the_commands_say(forecaster, tmp_path, capsys):
    page = tmp_path / "report.html"
    assert as_json("report", CONFIG, "--out", page, capsys=capsys)["bytes"] == page.stat().st_size
    text = page.read_text(encoding="utf-8")
    (config,) = check_configs(read_configs([CONFIG])[0])
    row = forecaster.predict(config).iloc[0]
    assert f"<strong>{row['loss']:.4f}</strong>" in text
    assert f"{row['lower']:.4f} to {row['upper']:.4f}" in text
    assert f"{forecaster.cost(config)['gpu_hours']:,.0f} NVIDIA H100" in text
    for section in ("Forecast", "Loss curve", "Learning rate and batch size", "Cost and plan", "Benchmark scores",
                    "Risks", "Sources"):  # fmt: skip
        assert f">{section}</h2>" in text
    assert text.count("<svg role") == 4
    reader = Balanced()
    reader.feed(text)
    assert reader.open == []
    assert reader.fetched == []
    assert not re.search(r"@import|url\((?!#)", text)
    names = re.findall(r'\bid="([^"]+)"', text)
    assert len(names) == len(set(names))
    assert "prefers-color-scheme:dark" in text


@pytest.mark.filterwarnings("ignore")
def test_the_pages_command_runs_as_it_stands_and_gives_its_forecast(forecaster, tmp_path, capsys):
    lab = tmp_path / "a lab"
    forecaster.save_pretrained(lab)
    page = tmp_path / "report.html"
    run("report", CONFIG, "--model", lab, "--level", "0.8", "--out", page, capsys=capsys)
    text = page.read_text(encoding="utf-8")
    (command,) = map(shlex.split, re.findall(r"<pre>(.*?)</pre>", unescape(text)))
    assert command[0] == "ncpl"
    (row,) = as_json(*command[1:], capsys=capsys)
    assert f"80 % interval {row['lower']:.4f} to {row['upper']:.4f}" in text


@pytest.mark.filterwarnings("ignore")
def test_the_pages_tables_say_what_their_columns_are(forecaster):
    (config,) = check_configs(read_configs([CONFIG])[0])
    text = unescape(report(forecaster, config))
    scores = text[text.index('id="benchmark-scores"') : text.index('id="risks"')]
    assert "<dt>lower</dt><dd>lower end of the forecast's interval</dd>" in scores
    assert "nats" not in "".join(re.findall(r"<dl>.*?</dl>", scores))
    # Nothing was adapted.
    assert "adapted" not in text
    assert ">nan<" not in text
    # Published laws count tokens one by one, and their own parameters.
    laws = text[text.index("What published laws say") : text.index('id="benchmark-scores"')]
    assert "billion" not in laws.replace("along a curve billions", "")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--out", "report.pdf"], "expected a file that ends in .html"),
        (["--out", "nowhere/report.html"], "there is no folder nowhere"),
        (["--gpu", "abacus"], "gpu: got 'abacus'"),
        (["examples/steplaw-1b.yaml"], "configurations: got 2"),
    ],
)
def test_a_report_that_cannot_be_is_told(arguments, told, capsys):
    status, _, said = run("report", CONFIG, *arguments, capsys=capsys)
    assert status == 2
    assert told in said


@pytest.mark.parametrize(
    "arguments",
    [
        ["predict", CONFIG],
        ["predict", CONFIG, "examples/steplaw-1b.yaml"],
        ["curve", CONFIG],
        ["sweep", CONFIG, "optimizer=adamw,muon"],
        ["optimize", CONFIG, "lr=1e-3:1e-2", "batch_size=64:512"],
        ["compare", "{tmp}/a.yaml", "{tmp}/b.yaml"],
        ["suggest", "{tmp}/candidates.csv", "--budget", "1e20"],
        ["cost", CONFIG, "examples/steplaw-1b.yaml"],
        ["benchmarks", "--params", "7e9", "--tokens", "2e12"],
    ],
    ids=lambda arguments: " ".join(arguments[:1]),
)
def test_every_command_draws_what_it_shows(arguments, tmp_path, capsys):
    base = "source: marin\nmodel size: 302\ndata size: 12\nlr: 0.004\nbatch size: 128\n"
    (tmp_path / "a.yaml").write_text(f"{base}optimizer: muon\n")
    (tmp_path / "b.yaml").write_text(f"{base}optimizer: adamw\n")
    head = "source,model size,data size,optimizer,lr,batch size\n"
    (tmp_path / "candidates.csv").write_text(head + "".join(f"marin,{n},6,adamw,2e-3,128\n" for n in (134, 302, 1200)))
    picture = tmp_path / "picture.html"
    words = [word.replace("{tmp}", str(tmp_path)) for word in arguments]
    status, out, said = run(*words, "--save", picture, capsys=capsys)
    assert status == 0, said
    assert out
    text = unescape(picture.read_text(encoding="utf-8"))
    assert text.count("<svg role") == 1
    assert re.search(r"aria-label=\"[^\"]*[0-9]", text)
    status, _, said = run(*words, "--save", tmp_path / "picture.gif", capsys=capsys)
    assert status == 2
    assert "accepted: .png, .pdf, .svg, .html" in said


@pytest.mark.filterwarnings("ignore")
def test_what_a_user_holds_draws_itself(forecaster, tmp_path):
    config = {
        "source": "marin",
        "model size": 302,
        "data size": 12,
        "optimizer": "adamw",
        "lr": 4e-3,
        "batch size": 128,
    }
    runs = [{"model size": n, "data size": d, "final_loss": 3 + 20 / n + 0.4 / d} for n in (50, 100) for d in (1, 2, 4)]
    held = (
        forecaster.predict(config),
        forecaster.sweep(config, {"lr": [1e-3, 2e-3, 4e-3], "batch size": [64, 128]}),
        forecaster.curve(config, 10),
        forecaster.compare(config | {"optimizer": "muon"}, config),
        forecaster.optimize(config, {"lr": (1e-3, 1e-2)}),
        forecaster.plan(flops=1e19),
        forecaster.adapt(runs, source="mine").report,
    )
    for i, thing in enumerate(held):
        picture = thing.plot()
        assert picture._repr_png_().startswith(b"\x89PNG")
        assert len(picture.figure("dark").axes) >= len(picture.panels)
        picture.save(tmp_path / f"{i}.pdf")
        assert (tmp_path / f"{i}.pdf").read_bytes().startswith(b"%PDF")


@pytest.mark.filterwarnings("ignore")
def test_compare_changes_both_configurations(forecaster, tmp_path, capsys):
    base = {"source": "marin", "model size": 302, "data size": 12, "lr": 0.004, "batch size": 128}
    for name in ("muon", "adamw"):
        lines = "".join(f"{field}: {value}\n" for field, value in {**base, "optimizer": name}.items())
        (tmp_path / f"{name}.yaml").write_text(lines)
    files = [tmp_path / "muon.yaml", tmp_path / "adamw.yaml"]
    found = as_json("compare", *files, "data_size=6", "optimizer=lion", capsys=capsys)
    assert found["difference"] == 0
    found = as_json("compare", *files, "data_size=6", capsys=capsys)
    expected = forecaster.compare(*({**base, "data size": 6, "optimizer": name} for name in ("muon", "adamw")))
    assert found["difference"] == pytest.approx(expected["difference"])


@pytest.mark.filterwarnings("ignore")
def test_suggest_names_its_target(tmp_path, capsys):
    head = "source,model size,data size,optimizer,lr,batch size\n"
    pool = tmp_path / "candidates.csv"
    pool.write_text(head + "".join(f"marin,{n},6,adamw,2e-3,128\n" for n in (134, 302, 1200)))
    _, _, said = run("suggest", pool, "--budget", "1e20", capsys=capsys)
    assert "the target is 1200M parameters on 6B tokens" in said
