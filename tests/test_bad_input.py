"""What users get wrong, and what they are told: the field or file, what came, what is accepted, the nearest name."""

import io
import json
import math
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fields_ncpl import REQUIRED
from ncpl import CheckpointError, Forecaster, import_runs
from ncpl.files import read_file
from processing_ncpl import NCPLProcessor
from tests.checkpoints import ADAMW
from tests.test_cli import run

EXPERTS = {"num layers": 12, "hidden dim": 768, "num experts": 16, "top k": 2, "expert dim": 2048}
# What changes in a good configuration (None: the field goes), and fragments of the message.
CONFIGS = {
    "misspelt field": ({"learning rat": 1e-3}, "learning rat: not a known field, did you mean 'learning rate'?"),
    "misspelt alias": ({"weight_decy": 0.1}, "weight_decy: not a known field, did you mean 'weight decay'?"),
    "unknown field": ({"xyzzy": 1}, "xyzzy: not a known field, known: source, model size, "),
    "twice": ({"lr": 1e-3}, "learning rate: given twice, the second time as 'lr'"),
    "text for a number": (
        {"batch size": "many"},
        "batch size: got 'many', expected a whole number, 1 to 200000 (sequences)",
    ),
    "unit in the value": ({"learning rate": "1m"}, "learning rate: got '1m', expected 1e-06 to 1 (peak learning rate)"),
    "empty": ({"warmup": ""}, "warmup: got '', expected a whole number, 0 or 1 to 1e+06 (warmup steps)"),
    "true": ({"learning rate": True}, "learning rate: got True, expected 1e-06 to 1 (peak learning rate)"),
    "list": ({"learning rate": [1e-3]}, "learning rate: got [0.001], expected"),
    "NaN": ({"learning rate": math.nan}, "learning rate: got nan, expected 1e-06 to 1 (peak learning rate)"),
    "NaN as text": ({"learning rate": "nan"}, "learning rate: got 'nan', expected"),
    "infinity": ({"data size": math.inf}, "data size: got inf, expected 0.001 to 100000 (billion tokens)"),
    "minus infinity": ({"data size": -math.inf}, "data size: got -inf, expected"),
    "negative": ({"learning rate": -1e-3}, "learning rate: got -0.001, expected 1e-06 to 1"),
    "negative count": ({"batch size": -128}, "batch size: got -128, expected a whole number, 1 to 200000 (sequences)"),
    "zero": ({"learning rate": 0}, "learning rate: got 0, expected 1e-06 to 1 (peak learning rate)"),
    "zero count": ({"batch size": 0}, "batch size: got 0, expected a whole number, 1 to 200000 (sequences)"),
    "not whole": ({"batch size": 128.5}, "batch size: got 128.5, expected a whole number"),
    "parameters": ({"model size": 134e6}, "(million non-embedding parameters); did you mean 134?"),
    "billion parameters": ({"model size": 0.134}, "(million non-embedding parameters); did you mean 134?"),
    "tokens": (
        {"data size": 2.7e9},
        "data size: got 2700000000.0, expected 0.001 to 100000 (billion tokens); did you mean 2.7?",
    ),
    "million tokens": (
        {"data size": 2700},
        "data size: got 2700, but marin's runs have 2.68 to 48.4 (billion tokens); did you mean 2.7?",
    ),
    "trillion tokens": ({"data size": 0.0027}, "(billion tokens); did you mean 2.7?"),
    "batch in tokens": (
        {"batch size": 524288},
        "batch size: got 524288, expected a whole number, 1 to 200000 (sequences)",
    ),
    "rate times 1000": ({"learning rate": 2}, "expected 1e-06 to 1 (peak learning rate); did you mean 0.002?"),
    "rate over 1000": ({"learning rate": 2e-7}, "learning rate: got 2e-07, expected 1e-06 to 1 (peak learning rate)"),
    "ten steps, no known length": (
        {"source": "mine", "max step": 10},
        "max step: 10 steps of 128 sequences of 16 to 1048576 tokens are",
    ),
    "thousand steps": ({"max step": 5000000}, "max step: 5e+06 steps of 128 sequences of 4096 tokens are"),
    "warmup too long": ({"warmup": 100000}, "warmup: got 100000, expected at most the run's 5149 training steps"),
    "size against shape": (
        {"model size": 134000, "data size": 2700, "num layers": 12, "hidden dim": 768},
        "model size: got 134000 (million non-embedding parameters), but num layers, hidden dim and ffn dim make about",
    ),
    "experts without what is active": (
        {"num experts": 8, "top k": 2},
        "active size: missing; num experts makes this a mixture of experts, which needs active size (million active",
    ),
    "experts without top k": ({"num experts": 8, "active size": 60}, "top k: missing; num experts makes this a"),
    "more active than there are": ({"active size": 200}, "active size: got 200, expected at most model size, 134"),
    "top k of fewer experts": (
        {"num experts": 8, "top k": 9, "active size": 60},
        "top k: got 9, expected at most num experts, 8",
    ),
    "tokens an active parameter": (
        {"model size": 4000, "active size": 4000, "data size": 0.01},
        "data size: 0.01 billion tokens for an active size of 4000 million parameters are 0.0025 tokens a parameter",
    ),
    "total size against experts": (
        {**EXPERTS, "model size": 95300, "data size": 200, "active size": 200},
        "model size: got 95300 (million non-embedding parameters), but num layers, hidden dim, num experts, expert dim "
        "and shared expert dim make about 934.3",
    ),
    "active size against experts": (
        {**EXPERTS, "model size": 950, "active size": 5},
        "active size: got 5 (million active non-embedding parameters, MoE), but num layers, hidden dim, top k, expert",
    ),
    "flag": ({"nesterov": "maybe"}, "nesterov: got 'maybe', expected true or false (Nesterov momentum)"),
    "number for a name": ({"optimizer": 5}, "optimizer: got 5, expected text (name of the optimizer)"),
    "blank name": ({"optimizer": " "}, "optimizer: got ' ', expected text (name of the optimizer)"),
    "no name": ({"optimizer": None}, "optimizer: got None, expected text (name of the optimizer)"),
    "unknown source": ({"source": "marine"}, "'marine'"),
} | {f"no {name}": ({name: ...}, f"{name}: missing; a configuration needs {name} (") for name in REQUIRED}


def wrong(changes):
    return {name: value for name, value in {**ADAMW, **changes}.items() if value is not ...}


def refused(*arguments, capsys):
    """The one line on stderr with which the command ends, status 2."""
    status, out, err = run(*arguments, capsys=capsys)
    assert (status, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    return err.removeprefix("error: ").rstrip("\n")


@pytest.mark.parametrize(("changes", "message"), CONFIGS.values(), ids=CONFIGS)
def test_configurations_at_every_door(changes, message, forecaster, folder, tmp_path, capsys):
    config = wrong(changes)
    with pytest.raises(ValueError, match=re.escape(message)) as at_processor:
        NCPLProcessor.from_pretrained(folder)(config)
    with pytest.raises(ValueError, match=re.escape(message)) as at_predict:
        forecaster.predict(config)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(config))
    at_command = refused("predict", file, "--model", folder, capsys=capsys)
    for text in (str(at_processor.value), str(at_predict.value), at_command):
        assert message in text
        assert "\n" not in text


# A source is known to the prior, not to the registry, so it is not refused here.
REGISTRY = {name: case for name, case in CONFIGS.items() if name != "unknown source"}


@pytest.mark.parametrize(("changes", "message"), REGISTRY.values(), ids=REGISTRY)
def test_of_several_configurations_the_wrong_one_is_named(changes, message, forecaster, folder, tmp_path, capsys):
    config = wrong(changes)
    with pytest.raises(ValueError, match=r"^configs\[1\]: ") as error:
        forecaster.predict([ADAMW, config])
    assert message in str(error.value)
    file = tmp_path / "configs.json"
    file.write_text(json.dumps([ADAMW, config]))
    assert refused("predict", file, "--model", folder, capsys=capsys).startswith(f"{file}[1]: ")


def test_a_row_of_a_table_is_named_by_its_index(forecaster):
    table = pd.DataFrame([ADAMW, {**ADAMW, "learning rate": np.nan}], index=["good", "bad"])
    with pytest.raises(ValueError, match=r"^row 'bad': learning rate: missing"):
        forecaster.predict(table)


@pytest.mark.parametrize(
    ("configs", "message"),
    [
        ([], "configs: got an empty batch, expected at least one configuration"),
        (pd.DataFrame(), "configs: got an empty batch"),
        (pd.DataFrame(columns=list(ADAMW)), "configs: got an empty batch"),
        (iter(()), "configs: got an empty batch"),
        (pd.DataFrame([[1, 2]], columns=["warmup", "warmup"]), "warmup: the table has two columns of this name"),
        ("marin.yaml", "configs: got 'marin.yaml' (str), expected a dict, a list of dicts or a DataFrame"),
        (None, "configs: got None (NoneType), expected a dict"),
        (3, "configs: got 3 (int), expected a dict"),
        ([1], "configuration: got 1, expected a mapping of fields to values"),
    ],
)
def test_what_is_no_batch(configs, message, forecaster):
    with pytest.raises(ValueError, match=re.escape(message)):
        forecaster.predict(configs)


@pytest.mark.parametrize("level", [0, 1, -0.5, 90, math.nan, "0.9", True, None])
def test_levels(level, forecaster):
    with pytest.raises(ValueError, match=r"level: got .* expected a coverage between 0 and 1"):
        forecaster.predict(ADAMW, level=level)


# File name, content, and fragments of the message that follows the file's name.
FILES = {
    "broken YAML": ("a.yaml", "source: [marin\nmodel size: 1", "not YAML: "),
    "broken YAML says where": ("a.yaml", "source: marin\n\tmodel size: 1", "line 2"),
    "empty YAML": ("a.yaml", "", "holds nothing, expected at least one configuration"),
    "comments alone": ("a.yaml", "# nothing\n", "holds nothing"),
    "list of numbers": ("a.yaml", "- 1\n- 2\n", "[0]: holds 1 (int), expected a mapping of fields to values"),
    "text": ("a.yaml", "hello", "holds 'hello' (str), expected a mapping of fields to values"),
    "field twice in YAML": ("a.yaml", "warmup: 1\nsource: marin\nwarmup: 2\n", "warmup: given twice"),
    "broken JSON": ("a.json", '{"source": "marin",}', "not JSON: "),
    "empty JSON": ("a.json", "", "not JSON: "),
    "empty JSON array": ("a.json", "[]", "holds nothing"),
    "field twice in JSON": ("a.json", '{"warmup": 1, "warmup": 2}', "warmup: given twice"),
    "broken JSON lines": ("a.jsonl", '{"source": "marin"}\n{"source"', "line 2 is not JSON: "),
    "empty CSV": ("a.csv", "", "holds nothing"),
    "CSV without rows": ("a.csv", "source,model size\n", "holds nothing"),
    "CSV with a long row": (
        "a.csv",
        "source,warmup\nmarin,1,2\n",
        "row 1 has 3 cells, expected 2, one for each column",
    ),
    "CSV with a short row": ("a.csv", "source,warmup\nmarin,1\nmarin\n", "row 2 has 1 cells, expected 2"),
    "CSV column twice": ("a.csv", "warmup,warmup\n1,2\n", "warmup: there are two columns of this name"),
    "CSV column without name": ("a.csv", ",warmup\n0,1\n", "column 1 has no name"),
    "other kind of file": ("a.db", "SQLite format 3", "a database"),
    "no text": ("a.yaml", b"\xff\xfa\x00", "not UTF-8 text"),
}


@pytest.mark.parametrize(("name", "content", "message"), FILES.values(), ids=FILES)
def test_files(name, content, message, folder, tmp_path, capsys):
    file = tmp_path / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    said = f"^{re.escape(str(file))}.*{re.escape(message)}"
    with pytest.raises(ValueError, match=said):
        read_file(file)
    assert re.search(said, refused("predict", file, "--model", folder, capsys=capsys))


ARGUMENTS = {
    "missing file": (["missing.yaml"], "missing.yaml: cannot be read (No such file or directory), accepted: a .yaml"),
    "neither file nor field": (["learning rate"], "learning rate: no such file, accepted: a .yaml, .yml, .json"),
    "value without field": (["=3"], "=3: no such file, accepted: a .yaml"),
    "field twice": (["lr=1e-3", "learning_rate=1e-4"], "learning rate: given twice, the second time as"),
    "missing fields": (
        ["source=marin", "model_size=134"],
        "data size: missing; a configuration needs data size (billion",
    ),
}


@pytest.mark.parametrize(("arguments", "message"), ARGUMENTS.values(), ids=ARGUMENTS)
def test_arguments(arguments, message, folder, capsys):
    assert message in refused("predict", *arguments, "--model", folder, capsys=capsys)


def test_a_folder_instead_of_a_file(folder, tmp_path, capsys):
    assert "holds no runs" in refused("predict", tmp_path, "--model", folder, capsys=capsys)


GOOD = [f"{name}={value}" for name, value in ADAMW.items()]

COMMANDS = {
    "no arguments": (["predict"], "Missing argument 'CONFIG'"),
    "unknown option": (["predict", "--levle", "0.9"], "No such option: --levle"),
    "unknown command": (["predcit"], "No such command 'predcit'"),
    "level": (["predict", *GOOD, "--level", "90"], "'--level': got 90, expected a coverage between 0 and 1"),
    "level as text": (
        ["predict", *GOOD, "--level", "high"],
        "'--level': got 'high', expected a coverage between 0 and 1",
    ),
    "sweep of nothing": (["sweep", *GOOD], "fields: got none to vary, expected field=a,b,c or field=low:high:count"),
    "sweep of two configurations": (["sweep", "{two}", "lr=1e-3,2e-3"], "configurations: got 2, the second {two}[1]"),
    "range": (["sweep", *GOOD[:4], GOOD[5], "lr=1e-3:1e-2"], "learning rate: got '1e-3:1e-2', expected low:high:count"),
    "swept field": (["sweep", *GOOD, "learning rats=1,2"], "learning rats: not a known field, did you mean"),
    "swept value": (["sweep", *GOOD, "warmup=100,many"], "warmup: got 'many', expected a whole number"),
    "no bounds": (["optimize", *GOOD], "fields: got none to vary, expected field=low:high"),
    "bounds reversed": (
        ["optimize", *GOOD, "warmup=9:1"],
        "warmup: got (9, 1), expected two finite numbers, the lower first",
    ),
    "bounds of a name": (["optimize", *GOOD, "nesterov=0:1"], "nesterov: not a number, expected a numeric field"),
    "bounds as text": (["optimize", *GOOD, "warmup=a:b"], "warmup: got 'a:b', expected low:high, two numbers"),
    "split": (
        ["evaluate", "--split", "inval"],
        "split: got 'inval', accepted: train, in_val, ood_val; did you mean 'in_val'?",
    ),
    "data": (["evaluate", "--data-dir", "{empty}"], "no marin_processed_data.json"),
    "output": (
        ["evaluate", "--output", "{empty}/no/result.json"],
        "there is no folder {empty}/no; accepted: a file in",
    ),
    "figure": (["evaluate", "--figure", "{empty}"], "{empty}: cannot be written, is a folder"),
}


@pytest.mark.parametrize(("arguments", "message"), COMMANDS.values(), ids=COMMANDS)
def test_commands(arguments, message, folder, tmp_path, capsys):
    two = tmp_path / "two.json"
    two.write_text(json.dumps([ADAMW, ADAMW]))
    (tmp_path / "empty").mkdir()
    names = {"two": two, "empty": tmp_path / "empty"}
    arguments = [argument.format(**names) for argument in arguments]
    if arguments[0] in ("predict", "sweep", "optimize", "evaluate"):
        arguments += ["--model", str(folder)]
    assert message.format(**names) in refused(*arguments, capsys=capsys)


def without(*names):
    def change(folder):
        for name in names:
            (folder / name).unlink()

    return change


def cut(name, share=0.5):
    def change(folder):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: int(len(content) * share)])

    return change


def other_model(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "bert"}))


def headless(folder):
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    kept = {name: value for name, value in weights.items() if not name.startswith("head.")}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})


CHECKPOINTS = {
    "no weights": (without("model.safetensors"), "its weights: "),
    "no configuration": (without("config.json"), "expected a config.json of model_type 'ncpl', found no config.json"),
    "no processor": (
        without("processor_config.json"),
        "expected the processor_config.json of an NCPLProcessor, found none",
    ),
    "no tokenizer": (without("tokenizer.json"), "its processor: "),
    "truncated weights": (cut("model.safetensors"), "its weights: "),
    "truncated tokenizer": (cut("tokenizer.json"), "its processor: "),
    "truncated processor": (cut("processor_config.json"), "processor_config.json"),
    "truncated configuration": (cut("config.json"), "not a valid JSON file"),
    "another model": (other_model, "expected a config.json of model_type 'ncpl', found 'bert'"),
    "part of the weights": (headless, "its weights: model.safetensors: head.weight is missing"),
    "empty": (lambda path: [file.unlink() for file in path.iterdir() if file.is_file()], "config.json"),
}


@pytest.mark.parametrize(("change", "message"), CHECKPOINTS.values(), ids=CHECKPOINTS)
def test_checkpoint_folders(change, message, folder, tmp_path, capsys):
    broken = Path(shutil.copytree(folder, tmp_path / "broken"))
    change(broken)
    with pytest.raises(CheckpointError) as error:
        Forecaster.from_pretrained(broken)
    line = refused("predict", *GOOD, "--model", broken, capsys=capsys)
    for text in (str(error.value), line):
        assert text.startswith(f"{broken}: ")
        assert message in text


@pytest.mark.parametrize("path", ["no/such/folder", "./missing", "/nowhere/at/all"])
def test_missing_checkpoint_folders(path, capsys):
    with pytest.raises(CheckpointError, match="no such folder; accepted: a checkpoint's folder or a Hub id"):
        Forecaster.from_pretrained(path)
    assert refused("predict", *GOOD, "--model", path, capsys=capsys).startswith(f"{path}: no such folder")


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("examples/marin-1b.yaml", "examples/marin-1b.yaml: a file, no checkpoint's folder"),
        ("", "checkpoint: got '' (str)"),
        (3, "checkpoint: got 3 (int)"),
        ([], "checkpoint: got [] (list)"),
        (b"x", "checkpoint: got b'x' (bytes)"),
        ("\x00", r"\x00: no such folder"),
    ],
)
def test_what_is_no_checkpoint_is_told_from_a_hub_id(path, said, capsys):
    with pytest.raises(CheckpointError) as error:
        Forecaster.from_pretrained(path)
    assert str(error.value).startswith(said)
    assert "accepted: a checkpoint's folder or a Hub id" in str(error.value)
    if isinstance(path, str):
        assert refused("predict", *GOOD, "--model", path, capsys=capsys) == str(error.value)
        assert refused("merge", path, "merged", capsys=capsys) == str(error.value)


@pytest.mark.parametrize("command", [("predict",), ("sweep", "lr=1e-3:1e-2:3"), ("import",), ("cost",)])
@pytest.mark.parametrize("text", ["", "a: [1\n"])
def test_standard_input_is_called_so(command, text, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    line = refused(command[0], "-", *command[1:], capsys=capsys)
    assert line.startswith("standard input: ")
    assert not re.search(r"tmp|unicode string", line)


HERE = Forecaster.from_pretrained()


@pytest.mark.parametrize("given", [3, [], b"x", "", pd.DataFrame({"a": [1]})], ids=lambda given: str(type(given)))
@pytest.mark.parametrize(
    ("name", "door"),
    [
        ("runs", import_runs),
        ("folder", HERE.save_pretrained),
        ("hardware", lambda path: HERE.plan(flops=1e20, hardware=path)),
    ],
    ids=["import_runs", "save_pretrained", "hardware"],
)
def test_what_is_no_path_is_told_at_every_door(name, door, given):
    with pytest.raises(ValueError, match=rf"^{name}: got .* \({type(given).__name__}\), expected the path of a "):
        door(given)


@pytest.mark.parametrize(
    ("name", "door"),
    [
        ("configs", HERE.predict),
        ("models", HERE.benchmarks),
        ("candidates", lambda rows: HERE.suggest(rows, 1e20)),
        ("target", lambda rows: HERE.suggest([ADAMW], 1e20, rows)),
    ],
)
def test_a_list_of_one_says_which_too(name, door):
    with pytest.raises(ValueError, match=rf"^{name}\[0\]: learning rate: got 'fast'"):
        door([{**ADAMW, "learning rate": "fast"}])


@pytest.mark.parametrize("door", [import_runs, HERE.save_pretrained], ids=["import_runs", "save_pretrained"])
def test_none_is_no_path(door):
    with pytest.raises(ValueError, match=r": got None \(NoneType\), expected the path of a f"):
        door(None)


@pytest.mark.parametrize(("options", "said"), [({"map": 3}, "map: got 3"), ({"eval": 3}, "eval: got 3")])
def test_options_of_import_of_another_type_are_told(options, said):
    with pytest.raises(ValueError, match=f"^{said}, expected"):
        import_runs("examples", **options)


def test_a_hub_id_that_cannot_be_reached(capsys):
    with pytest.raises(CheckpointError, match=r"^nobody/nothing: "):
        Forecaster.from_pretrained("nobody/nothing")
    assert refused("predict", *GOOD, "--model", "nobody/nothing", capsys=capsys).startswith("nobody/nothing: ")
