"""The `ncpl` command: what it prints for people and for machines, and how it ends."""

import json
import re
import subprocess
import sys
import warnings
from importlib import metadata
from pathlib import Path

import pandas as pd
import pytest
import yaml

import ncpl_cli
from datasets_scripts import SAMPLE_DIR
from ncpl import Forecaster
from ncpl.configs import read_configs
from ncpl.files import read_file
from tests.checkpoints import ADAMW, CONFIGS, tiny_model, tiny_processor

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"


def run(*arguments, capsys):
    """Exit status, stdout and stderr of `ncpl ARGUMENTS`."""
    before = sys.argv
    sys.argv = ["ncpl", *map(str, arguments)]
    capsys.readouterr()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("default")
            ncpl_cli.main()
        status: object = 0
    except SystemExit as end:
        status = end.code or 0
    finally:
        sys.argv = before
    return status, *capsys.readouterr()


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(ADAMW))
    return path


def as_json(*arguments, capsys):
    status, out, _ = run(*arguments, "--json", capsys=capsys)
    assert status == 0
    return json.loads(out)


def records(table):
    return [
        {name: None if isinstance(value, float) and pd.isna(value) else value for name, value in row.items()}
        for row in table.to_dict("records")
    ]


@pytest.mark.parametrize("arguments", [(), ("--help",), *((command, "--help") for command in ncpl_cli.ORDER)])
def test_help_has_an_example(arguments, capsys):
    status, out, err = run(*arguments, capsys=capsys)
    assert (status, err) == (0, "")
    # Each command's first sentence fits the list of commands.
    assert "..." not in out.partition("Commands:")[2]
    assert re.search(rf"\n    ncpl {arguments[0] if len(arguments) > 1 else 'predict'}\b", out)


def test_version(capsys):
    from ncpl import __version__

    if not list(metadata.distributions(name="ncpl")):
        pytest.skip("the package is not installed here")
    assert run("--version", capsys=capsys)[:2] == (0, f"ncpl {__version__}\n")


def test_help_waits_for_nothing_heavy():
    code = (
        "import ncpl_cli, sys; print(sorted({'torch', 'transformers', 'pandas', 'numpy', 'rich'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "[]\n"


def test_forecasts_of_the_law_alone_import_no_torch():
    """From the shell and from Python: forecast, comparison, curve, sweep, optimum, plan and costs."""
    code = """
import sys, warnings
warnings.simplefilter("ignore")
import ncpl_cli
for words in (
    ["predict", "examples/marin-1b.yaml", "--json"],
    ["curve", "examples/marin-1b.yaml", "--points", "5"],
    ["sweep", "examples/marin-1b.yaml", "lr=1e-3,2e-3"],
    ["optimize", "examples/marin-1b.yaml", "lr=1e-3:2e-3"],
    ["plan", "--target-loss", "2.5"],
    ["cost", "examples/marin-1b.yaml"],
):
    sys.argv = ["ncpl", *words]
    try:
        ncpl_cli.main()
    except SystemExit as end:
        assert not end.code, words
from ncpl import Forecaster
forecaster = Forecaster.from_pretrained()
config = {"source": "marin", "model size": 300, "data size": 6, "optimizer": "adamw", "learning rate": 4e-3}
config["batch size"] = 128
forecaster.predict(config)
forecaster.sweep(config, {"learning rate": [1e-3, 2e-3]})
forecaster.optimize(config, {"learning rate": (1e-3, 1e-2)})
forecaster.curve(config, points=5)
forecaster.compare(config, config | {"optimizer": "muon"})
print(sorted({"torch", "transformers", "accelerate", "datasets"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


def test_predict_json_is_what_python_gives(forecaster, folder, capsys, tmp_path):
    file = tmp_path / "configs.json"
    file.write_text(json.dumps(CONFIGS))
    rows = as_json("predict", file, "--model", folder, capsys=capsys)
    assert [row.pop("configuration") for row in rows] == [f"{file}[{i}]" for i in range(len(CONFIGS))]
    expected = forecaster.predict(CONFIGS)
    assert rows == [{**row, "notes": expected.attrs["notes"]} for row in records(expected)]


def test_predict_table_is_for_people(forecaster, folder, file, capsys):
    status, out, err = run("predict", file, "--model", folder, capsys=capsys)
    assert status == 0
    assert "nats per token" in out
    line = next(line for line in out.splitlines() if str(file) in line)
    assert float(line.split()[-1]) == pytest.approx(forecaster.predict(ADAMW)["loss"].item(), abs=5e-5)
    assert err == "note: this checkpoint has no calibration: lower, upper, divergence and extrapolation are NaN\n"


def test_arguments_make_a_configuration_or_change_the_files(forecaster, folder, file, capsys):
    arguments = [f"{name.replace(' ', '_')}={value}" for name, value in ADAMW.items()]
    rows = as_json("predict", *arguments, "--model", folder, capsys=capsys)
    assert rows[0]["configuration"] == "arguments"
    assert rows[0]["loss"] == forecaster.predict(ADAMW)["loss"].item()
    changed = as_json("predict", file, "lr=1e-3", "--model", folder, capsys=capsys)
    assert changed[0]["loss"] == forecaster.predict({**ADAMW, "learning rate": 1e-3})["loss"].item() != rows[0]["loss"]


def test_sweep(forecaster, folder, file, tmp_path, capsys):
    arguments = ("sweep", file, "lr=1e-3:4e-3:3", "optimizer=adamw,muon", "--model", folder)
    expected = forecaster.sweep(ADAMW, {"learning rate": [1e-3, 2e-3, 4e-3], "optimizer": ["adamw", "muon"]})
    assert as_json(*arguments, capsys=capsys) == [
        {**row, "notes": expected.attrs["notes"]} for row in records(expected)
    ]
    _, out, _ = run(*arguments, capsys=capsys)
    assert [line.split() for line in out.splitlines()[3:] if line.strip()] == [
        [f"{row['learning rate']:.4g}", row["optimizer"], f"{row['loss']:.4f}"] for row in expected.to_dict("records")
    ]
    output = tmp_path / "sweep.csv"
    lowest = as_json(*arguments, "--output", output, capsys=capsys)
    assert [row["loss"] for row in lowest] == sorted(expected["loss"])
    pd.testing.assert_frame_equal(pd.read_csv(output), pd.DataFrame(expected))


def test_curve(tmp_path, file, capsys):
    model, processor = tiny_model(curves=True), tiny_processor()
    model.save_pretrained(tmp_path / "curves")
    processor.save_pretrained(tmp_path / "curves")
    rows = as_json("curve", file, "--model", tmp_path / "curves", "--points", "5", capsys=capsys)
    own = records(Forecaster.of(model, processor).curve(ADAMW, 5))
    assert [row["loss"] for row in rows] == [row["loss"] for row in own]
    status, out, _ = run("curve", file, "--model", tmp_path / "curves", "--points", "5", capsys=capsys)
    assert status == 0
    assert [line.split()[0] for line in out.splitlines()[3:] if line.strip()] == [str(row["step"]) for row in rows]


def test_a_long_sweep_shows_its_best_rows_and_says_so(forecaster, folder, file, capsys):
    _, out, err = run("sweep", file, "lr=1e-3:4e-3:50", "--model", folder, capsys=capsys)
    losses = forecaster.sweep(ADAMW, {"lr": read_grid_values("lr=1e-3:4e-3:50")})["loss"].sort_values()
    assert [line.split()[-1] for line in out.splitlines()[3:] if line.strip()] == [
        f"{loss:.4f}" for loss in losses[:30]
    ]
    assert "the 30 lowest losses of 50" in err


def read_grid_values(argument):
    from ncpl.configs import read_grid

    return read_grid([argument, "source=marin"])[1]["learning rate"]


def test_optimize(forecaster, folder, file, capsys):
    result = as_json("optimize", file, "lr=1e-4:1e-2", "batch_size=64:256", "--model", folder, capsys=capsys)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        best = forecaster.optimize(ADAMW, {"learning rate": (1e-4, 1e-2), "batch size": (64, 256)})
    assert result == records(best.to_frame().T)[0] | {"notes": best.attrs["notes"]}
    status, out, _ = run("optimize", file, "lr=1e-4:1e-2", "--model", folder, capsys=capsys)
    assert status == 0
    assert "learning rate" in out


def test_evaluate_on_the_sample(folder, tmp_path, capsys):
    output, figure = tmp_path / "result.json", tmp_path / "scatter.png"
    common = ("evaluate", "--model", folder, "--data-dir", SAMPLE_DIR)
    report = as_json(*common, "--output", output, "--figure", figure, capsys=capsys)
    assert json.loads(output.read_text()) == report
    assert figure.read_bytes().startswith(b"\x89PNG")
    assert {"model", "level", "data", "hardware", "versions", "commit", "dirty", "cells", "sizes"} == set(report)
    for cell in report["cells"]:
        own = [size for size in report["sizes"] if (size["source"], size["split"]) == (cell["source"], cell["split"])]
        assert sum(size["runs"] for size in own) == cell["runs"]
        mae = sum(size["runs"] * size["mae"] for size in own) / cell["runs"]
        assert mae == pytest.approx(cell["errors"]["model"]["mae"])
        assert all(size["low"] <= size["mae"] <= size["high"] for size in own)
    cells = [(cell["source"], cell["split"]) for cell in report["cells"]]
    assert cells == [(source, split) for source in ("marin", "steplaw") for split in ("in_val", "ood_val")]
    # There are no paper predictions of made-up runs.
    assert all(set(cell["errors"]) == {"model", "prior"} for cell in report["cells"])
    status, out, _ = run(*common, "--split", "in_val", capsys=capsys)
    assert status == 0
    assert f"{report['cells'][0]['errors']['model']['mae']:.4f}" in out
    assert "ood_val" not in out


def test_calibration_figure_needs_calibration(folder, tmp_path, capsys):
    picture = tmp_path / "calibration.png"
    common = ("evaluate", "--data-dir", SAMPLE_DIR, "--split", "in_val", "--calibration", picture)
    status, _, err = run(*common, "--model", folder, capsys=capsys)
    assert (status, picture.exists()) == (2, False)
    assert "this checkpoint has no calibration" in err
    assert run(*common, capsys=capsys)[0] == 0
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_the_examples_are_accepted():
    files = sorted((ROOT / "examples").glob("*.yaml"))
    configs, origins = read_configs([str(file) for file in files])
    assert origins == [str(file) for file in files]
    # The published prior, of the tiny checkpoint, knows no mixtures of experts.
    assert Forecaster.from_pretrained().predict(configs)["loss"].between(1, 5).all()
    assert all(500 < config["model size"] < 5000 for config in configs)


def test_every_kind_of_file_gives_the_same(tmp_path):
    several = [{**ADAMW, "nesterov": True}, {**ADAMW, "warmup": 100, "epsilon": 1e-8}]
    contents = {
        "a.json": json.dumps(several),
        "a.jsonl": "\n".join(map(json.dumps, several)),
        "a.yaml": yaml.safe_dump(several),
        "documents.yml": yaml.safe_dump_all(several),
        "a.csv": pd.DataFrame(several).to_csv(index=False),
        "excel.csv": "\ufeff" + pd.DataFrame(several).to_csv(index=False, lineterminator="\r\n"),
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content.encode())
        got = read_file(tmp_path / name)
        assert [{**row} for row in got] == several, name


def test_yaml_numbers_are_numbers(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text(
        "learning rate: 1e-4\nmin_lr: 1E-5\nepsilon: .5e-8\nwarmup: 010\nnesterov: true\nnormalization: no\n"
    )
    assert read_file(file)[0] == {
        "learning rate": 1e-4,
        "min_lr": 1e-5,
        "epsilon": 0.5e-8,
        "warmup": 10,
        "nesterov": True,
        "normalization": "no",
    }


def test_the_command_as_a_process(folder, file):
    command = [sys.executable, ROOT / "ncpl_cli.py", "predict", file, "lr=fast", "--model", folder]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: learning rate: got 'fast', expected 1e-06 to 1 (peak learning rate)\n"


def test_benchmarks(tmp_path, capsys):
    status, out, err = run("benchmarks", "--params", "7e9", "--tokens", "2e12", capsys=capsys)
    assert status == 0, err
    assert "mmlu" in out
    assert "7e+09 parameters, 2e+12 tokens" in out
    (tmp_path / "models.csv").write_text("params,tokens\n7e9,2e12\n1e9,\n")
    status, out, _ = run("benchmarks", tmp_path / "models.csv", "--json", capsys=capsys)
    known, unknown = json.loads(out)
    assert known["mmlu"] == pytest.approx(
        Forecaster.from_pretrained().benchmarks([{"params": 7e9, "tokens": 2e12}])["mmlu"][0]
    )
    assert unknown["tokens"] is None
    assert unknown["mmlu_upper"] - unknown["mmlu_lower"] > 0


def test_benchmarks_of_a_configuration(capsys):
    example = ROOT / "examples" / "marin-1b.yaml"
    status, out, err = run("benchmarks", example, "--json", capsys=capsys)
    assert status == 0, err
    (row,) = json.loads(out)
    assert row["loss_lower"] < row["loss"] < row["loss_upper"]
    assert row["olmo_hellaswag_lower"] < row["olmo_hellaswag"] < row["olmo_hellaswag_upper"]
    assert row["mmlu_lower"] <= row["mmlu"] <= row["mmlu_upper"]
    assert "marin" in row["assumption"]
    status, out, err = run("benchmarks", example, "lr=2e-2", capsys=capsys)
    assert status == 0, err
    assert "the loss of marin is taken" in out
    assert "olmo_hellaswag" in out


@pytest.mark.parametrize("suffix", ["csv", "json"])
@pytest.mark.parametrize(("params", "message"), [(7, "params: 7 must be"), ("", "params is missing"), (-1, "positive")])
def test_benchmarks_refuses_a_row_of_a_file(suffix, params, message, tmp_path, capsys):
    file = tmp_path / f"models.{suffix}"
    rows = [{"params": 7e9, "tokens": 2e12}, {"params": params, "tokens": 2e12}]
    if suffix == "csv":
        file.write_text("params,tokens\n" + "".join(f"{row['params']},{row['tokens']}\n" for row in rows))
    else:
        file.write_text(json.dumps(rows))
    status, out, err = run("benchmarks", file, "--json", capsys=capsys)
    assert (status, out) == (2, "")
    assert message in err
    assert "model 1" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "models: got none"),
        (["--params", "7", "--tokens", "2e12"], "params: 7 must be"),
        (["--params", "7e9", "--tokens", "2e12", "--like", "no such family"], "no such family"),
        (["absent.csv"], "absent.csv: cannot be read"),
        (["params=7e9", "tokens=0"], "tokens: 0 must be positive"),
        (["tokens=2e12"], "params is missing"),
        (["params=7e9", "data size=2"], "params: not a known field"),
        (["source=marin", "model size=300"], "data size: missing"),
    ],
)
def test_benchmarks_refuses(arguments, message, capsys):
    status, _, err = run("benchmarks", *arguments, capsys=capsys)
    assert status == 2
    assert message in err


def test_train_takes_the_packages_recipes_by_name(capsys):
    status, out, err = run("train", "quickstrat", capsys=capsys)
    assert (status, out) == (2, "")
    assert "quickstrat: no such file; accepted: a YAML file, or " in err
    assert "quickstart" in err
    status, _, err = run("train", "quickstart", "--trainig.x", "3", capsys=capsys)
    assert status == 2
    assert "trainig" in err


def test_losses_of_two_sources_are_not_compared(capsys):
    line = run("compare", EXAMPLES / "marin-1b.yaml", EXAMPLES / "steplaw-1b.yaml", capsys=capsys)
    assert line[0] == 2
    assert "source: got 'marin' and 'steplaw', expected one source" in line[2]


def test_optimize_chooses_among_names(capsys):
    best = as_json("optimize", EXAMPLES / "marin-1b.yaml", "lr=1e-3:1e-2", "optimizer=adamw,muon", capsys=capsys)
    assert best["optimizer"] in ("adamw", "muon")


def test_a_table_of_runs_is_forecast_without_its_losses(tmp_path, capsys):
    file = tmp_path / "runs.csv"
    file.write_text(
        "name,source,model size,data size,optimizer,learning rate,batch size,final_loss,status\n"
        "first,marin,300,6,adamw,4e-3,128,3.3,finished\n"
    )
    status, _, err = run("predict", file, capsys=capsys)
    assert status == 0
    assert "kept aside: name, final_loss, status" in err
