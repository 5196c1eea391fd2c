"""The builders, through the user's door: `load_runs`, the builder classes, Parquet, the command line."""

import gzip
import json
import shutil
import subprocess
import sys
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import pytest

from datasets_scripts import SAMPLE_DIR, runs
from datasets_scripts.marin import Marin
from datasets_scripts.reading import COLUMNS
from datasets_scripts.runs import data_hash, decode_runs, export_parquet, load_runs
from datasets_scripts.sample import generate
from datasets_scripts.steplaw import StepLaw
from datasets_scripts.steplaw_moe import StepLawMoE
from fields_ncpl import FIELDS

# Sources in the JSON files of the public NCPL logs; what is particular to the CSV is in test_steplaw_moe.py.
JSON_BUILDERS: dict[str, Any] = {"marin": Marin, "steplaw": StepLaw}
BUILDERS = {**JSON_BUILDERS, "steplaw_moe": StepLawMoE}
SPLITS = ("train", "in_val", "ood_val")
# Runs of each split, and runs that diverged by the rule, as the README of the real data states them.
REAL_COUNTS = {
    "marin": ({"train": 909, "in_val": 205, "ood_val": 245, "unstable": 483}, 196),
    "steplaw": ({"train": 930, "in_val": 288, "ood_val": 296, "unstable": 232}, 190),
}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "DOWNLOADED_DATASETS_PATH", tmp_path / "cache" / "downloads")


@pytest.fixture
def logs(tmp_path):
    """A copy of the sample that a test may spoil."""
    return Path(shutil.copytree(SAMPLE_DIR, tmp_path / "logs"))


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def change(path, edit):
    """Rewrite a JSON file after `edit` changed its content in place (or returned another)."""
    content = read(path)
    result = edit(content)
    path.write_text(json.dumps(content if result is None else result), encoding="utf-8")


def change_runs(logs, edit, source="marin"):
    change(logs / f"{source}_processed_data.json", edit)


def rows_of(source, folder, config="final"):
    return [row for split in load_runs(source, folder, config).values() for row in split]


def text(value):
    """Equal texts mean equal values, types (0 is not 0.0) and order of keys."""
    return json.dumps(value)


# ------------------------------------------------------------------------------------------------ what is read


def test_the_sample_is_what_its_script_writes():
    for name, content in generate.files().items():
        assert (SAMPLE_DIR / name).read_text(encoding="utf-8") == content, (
            "run: python -m datasets_scripts.sample.generate"
        )
    assert sum(path.stat().st_size for path in SAMPLE_DIR.iterdir() if path.is_file()) < 600_000


@pytest.mark.parametrize("source", JSON_BUILDERS)
def test_the_sample_says_that_it_is_made_up(source):
    for name in ("processed_data", "unstable_runs"):
        for run in read(SAMPLE_DIR / f"{source}_{name}.json"):
            assert run["note"].startswith("made up")
            assert run["name"].startswith(f"sample-{source}-")
            assert set(run["conf"]) <= set(FIELDS)
    assert read(SAMPLE_DIR / f"{source}_keys_model_split.json")["note"].startswith("made up")


def check_rows(source, folder, prefix, config):
    """Every row equals the JSON it came from, in the split its name is in; returns the rows by split."""
    files = {
        name: read(Path(folder) / f"{prefix}_{name}.json")
        for name in ("processed_data", "keys_model_split", "unstable_runs")
    }
    by_name = {run["name"]: run for run in files["processed_data"] + files["unstable_runs"]}
    loaded = load_runs(source, folder, config)
    expected = {split: files["keys_model_split"][split] for split in SPLITS}
    expected["unstable"] = [run["name"] for run in files["unstable_runs"]]
    steps_key, losses_key = JSON_BUILDERS[source].CURVE_KEYS
    for split, names in expected.items():
        assert loaded[split]["name"] == names
        for row in loaded[split]:
            run = by_name[row["name"]]
            assert text(row["conf"]) == text(run["conf"])
            assert text([row["max_step"], row["final_loss"]]) == text([run["max_step"], run["final_loss"]])
            assert (row["source"], row["split"]) == (source, split)
            if config == "intermediate":
                curve = {"steps": run[steps_key], "losses": run[losses_key]} if steps_key in run else None
                assert row["curve"] == curve
    return loaded


@pytest.mark.parametrize("config", ["final", "intermediate"])
@pytest.mark.parametrize("source", JSON_BUILDERS)
def test_sample_rows(source, config):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        loaded = check_rows(source, SAMPLE_DIR, source, config)
    columns = [column for column in COLUMNS if column != "curve" or config == "intermediate"]
    assert all(split.column_names == columns for split in loaded.values())
    assert {name: len(split) for name, split in loaded.items()} == {
        "train": 66,
        "in_val": 16,
        "ood_val": 14,
        "unstable": 8,
    }
    assert Counter(loaded["unstable"]["status"]) == {"diverged": 6, "unstable": 2}
    assert loaded["unstable"]["final_loss"].count(None) == 2
    assert {status for split in SPLITS for status in loaded[split]["status"]} == {"finished"}
    largest = {split: max(conf["model size"] for conf in loaded[split]["conf"]) for split in SPLITS}
    assert largest["ood_val"] > largest["train"] >= largest["in_val"]


@pytest.mark.parametrize("config", ["final", "intermediate"])
@pytest.mark.parametrize("source", JSON_BUILDERS)
@pytest.mark.filterwarnings("ignore:.*have no curve")
def test_real_rows(source, config, real_data_dir):
    counts, diverged = REAL_COUNTS[source]
    loaded = check_rows(source, real_data_dir, f"{source}/{source}", config)
    assert {name: len(split) for name, split in loaded.items()} == counts
    statuses = Counter((split, status) for split in loaded for status in loaded[split]["status"])
    assert statuses["unstable", "diverged"] == diverged
    assert all(statuses[split, "finished"] == counts[split] for split in SPLITS)
    assert not Marin(data_dir=real_data_dir).info.features.keys() - COLUMNS.keys()


def test_conf_keeps_order_types_and_every_digit(logs, tmp_path):
    conf = {
        "source": "marin", "z": 0, "a": 0.0, "model size": 3, "data size": 0.1 + 0.2, "epsilon": 1e-25, "tiny": 5e-324,
        "minus": -0.0, "large": 2**70, "one": 1.0, "flag": True, "word": "False", "number word": "1e-3", "none": None,
        "Größe": 'a "quote"\n', "third": 1 / 3, "16 digits": 3.3289437294006348,
    }  # fmt: skip
    change_runs(logs, lambda runs: runs[0].update(conf=conf))
    assert text(load_runs("marin", logs)["train"][0]["conf"]) == text(conf)
    export_parquet("marin", tmp_path / "parquet", logs)
    row = datasets.load_dataset(str(tmp_path / "parquet"), split="train")[0]
    assert text(decode_runs(row)["conf"]) == text(conf)


def test_rows_stay_decoded_through_the_ways_of_datasets():
    train = load_runs("marin", SAMPLE_DIR)["train"]
    muon = train.filter(lambda row: row["conf"]["optimizer"] == "muon")
    assert 0 < len(muon) < len(train)
    with_lr = muon.map(lambda row: {"lr": row["conf"]["learning rate"]})
    assert with_lr[0]["lr"] == with_lr[0]["conf"]["learning rate"] == muon["conf"][0]["learning rate"]
    assert "optimizer" in train[:2]["conf"][1]
    assert train.remove_columns("conf")[0]["name"] == train[0]["name"]


@pytest.mark.parametrize("layout", ["flat", "folder of the source's name", "gz"])
def test_layouts_of_data_dir(layout, logs, tmp_path):
    if layout != "flat":
        (tmp_path / "other" / "marin").mkdir(parents=True)
    for path in logs.glob("marin_*.json"):
        if layout == "gz":
            (tmp_path / "other" / f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
        elif layout != "flat":
            shutil.copy(path, tmp_path / "other" / "marin")
    folder = logs if layout == "flat" else tmp_path / "other"
    assert rows_of("marin", folder) == rows_of("marin", SAMPLE_DIR)
    assert data_hash("marin", folder) == data_hash("marin", SAMPLE_DIR)


def test_a_nan_in_the_file_is_a_null(logs):
    path = logs / "steplaw_unstable_runs.json"
    path.write_text(path.read_text(encoding="utf-8").replace("null", "NaN"), encoding="utf-8")
    assert text(rows_of("steplaw", logs, "intermediate")) == text(rows_of("steplaw", SAMPLE_DIR, "intermediate"))


def test_diverged_is_judged_among_runs_of_one_size(logs):
    """A run 0.29 nats above the best of its (N, D) finished, one 0.31 above diverged, and other sizes do not matter."""
    conf = {"source": "marin", "model size": 1000, "data size": 7}

    def add(runs):
        for name, loss, sizes in (
            ("best", 2.0, {}),
            ("near", 2.29, {}),
            ("far", 2.31, {}),
            ("other", 9.0, {"data size": 8}),
        ):
            runs.append({"name": name, "source": "marin", "conf": conf | sizes, "max_step": 10, "final_loss": loss})

    change(logs / "marin_unstable_runs.json", add)
    status = {row["name"]: row["status"] for row in load_runs("marin", logs)["unstable"]}
    assert {name: status[name] for name in ("best", "near", "far", "other")} == {
        "best": "unstable", "near": "unstable", "far": "diverged", "other": "unstable"
    }  # fmt: skip


# ------------------------------------------------------------------------------------------------ the cache


def test_rows_come_from_the_cache_until_the_data_change(logs):
    first = load_runs("marin", logs)["train"]
    again = load_runs("marin", logs)["train"]
    assert again.cache_files == first.cache_files
    before = data_hash("marin", logs)
    change_runs(logs, lambda runs: runs[0].update(final_loss=runs[0]["final_loss"] + 0.001))
    changed = load_runs("marin", logs)["train"]
    assert changed[0]["final_loss"] == first[0]["final_loss"] + 0.001
    assert changed._fingerprint != first._fingerprint
    assert data_hash("marin", logs) != before
    assert data_hash("steplaw", logs) == data_hash("steplaw", SAMPLE_DIR)


def test_the_cache_folder_is_the_same_in_every_process(logs):
    code = (
        f"from datasets_scripts.marin import Marin; print(Marin({str(logs / 'c')!r}, data_dir={str(logs)!r}).cache_dir)"
    )
    other = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(runs.__file__).parents[1]
    )
    assert other.stdout.strip() == Marin(logs / "c", data_dir=logs).cache_dir


def test_the_cache_folder_changes_with_the_code(tmp_path):
    """A builder whose own module differs reads anew, although the data and the names are the same."""
    code = "from datasets_scripts.marin import Marin\n\n\nclass Edited(Marin):\n    pass\n"
    (tmp_path / "marin_edited.py").write_text(code, encoding="utf-8")
    sys.path.insert(0, str(tmp_path))
    try:
        from marin_edited import Edited  # type: ignore[import-not-found]
    finally:
        sys.path.remove(str(tmp_path))
    assert Edited(data_dir=SAMPLE_DIR).cache_dir != Marin(data_dir=SAMPLE_DIR).cache_dir


def test_two_builders_do_not_mix():
    for builder_class in (Marin, StepLaw, StepLawMoE, Marin):
        for config in ("final", "intermediate"):
            builder = builder_class(config_name=config, data_dir=SAMPLE_DIR)
            builder.download_and_prepare()
            assert set(builder.as_dataset(split="train")["source"]) == {builder_class.SOURCE}
            assert ("curve" in builder.as_dataset(split="train").column_names) == (config == "intermediate")


@pytest.mark.parametrize("config", ["final", "intermediate"])
@pytest.mark.parametrize("source", BUILDERS)
def test_streaming_gives_the_same_rows(source, config):
    stream = BUILDERS[source](config_name=config, data_dir=SAMPLE_DIR).as_streaming_dataset()
    assert list(stream) == [*SPLITS, "unstable"]
    assert text([decode_runs(row) for split in stream.values() for row in split]) == text(
        rows_of(source, SAMPLE_DIR, config)
    )


def test_an_unstable_split_may_be_empty(logs):
    (logs / "marin_unstable_runs.json").write_text("[]", encoding="utf-8")
    loaded = load_runs("marin", logs)
    assert len(loaded["unstable"]) == 0
    assert loaded["unstable"].features == loaded["train"].features


# ------------------------------------------------------------------------------------------------ Parquet


@pytest.mark.parametrize("source", BUILDERS)
def test_parquet_round_trip(source, tmp_path):
    folder = export_parquet(source, tmp_path / "out", SAMPLE_DIR)
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "data"]
    assert datasets.get_dataset_config_names(str(folder)) == ["final", "intermediate"]
    for config in ("final", "intermediate"):
        loaded = load_runs(source, SAMPLE_DIR, config)
        back = datasets.load_dataset(str(folder), config)
        assert list(back) == list(loaded)
        for split, rows in back.items():
            assert rows.features == loaded[split].features
            assert text([decode_runs(row) for row in rows]) == text(list(loaded[split]))
    assert "curve" not in datasets.load_dataset(str(folder), split="in_val").column_names  # "final" is the default


def test_each_run_is_exported_once(tmp_path):
    """However the files are named to `load_dataset`, they have one schema, and no run comes twice."""
    folder = export_parquet("marin", tmp_path / "out", SAMPLE_DIR)
    rows = datasets.load_dataset("parquet", data_files=str(folder / "**" / "*.parquet"), split="train")
    assert len(rows) == len(set(rows["name"])) == 104


@pytest.mark.filterwarnings("ignore:.*have no curve")
def test_parquet_of_runs_without_curves_and_without_unstable_runs(logs, tmp_path):
    (logs / "marin_unstable_runs.json").unlink()
    change_runs(logs, lambda runs: [{k: v for k, v in run.items() if not k.startswith("c4en")} for run in runs])
    with pytest.warns(UserWarning, match="no file of unstable runs"):
        folder = export_parquet("marin", tmp_path / "out", logs)
    back = datasets.load_dataset(str(folder), "intermediate")
    assert list(back) == list(SPLITS)
    assert back["train"][0]["curve"] is None


def test_descriptions_carry_units(tmp_path):
    description = Marin(data_dir=SAMPLE_DIR).info.description
    for name in ("model size", "data size", "warmup", "learning rate"):
        assert f"- `{name}`: {FIELDS[name].unit}" in description
    assert "`final_loss`: loss at the last step, nats per token" in description
    assert description in (export_parquet("marin", tmp_path / "out", SAMPLE_DIR) / "README.md").read_text(
        encoding="utf-8"
    )


def test_export_never_overwrites(tmp_path):
    (tmp_path / "mine.txt").write_text("kept", encoding="utf-8")
    with pytest.raises(ValueError, match=r"exists already; accepted: a new or an empty folder"):
        export_parquet("marin", tmp_path, SAMPLE_DIR)
    assert (tmp_path / "mine.txt").read_text(encoding="utf-8") == "kept"


def test_command_line(tmp_path, capsys):
    runs.main("steplaw", ["--data_dir", str(SAMPLE_DIR), "--output", str(tmp_path / "out")])
    assert capsys.readouterr().out.strip() == str(tmp_path / "out")
    assert len(datasets.load_dataset(str(tmp_path / "out"), split="train")) == 66
    with pytest.raises(SystemExit) as stop:
        runs.main("steplaw", ["--data_dir", str(tmp_path / "nowhere"), "--output", str(tmp_path / "out2")])
    assert stop.value.code == 2
    assert "nowhere is not a folder" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------ bad input


def truncate(path):
    path.write_bytes(path.read_bytes()[:2000])


def gzip_truncated(path):
    path.with_name(path.name + ".gz").write_bytes(gzip.compress(path.read_bytes())[:-200])
    path.unlink()


def repeat_key(path):
    path.write_text(
        path.read_text(encoding="utf-8").replace('"max_step":', '"max_step": 3, "max_step":', 1), encoding="utf-8"
    )


def put(*keys, value, where=0):
    """An edit of the run at `where`: the value at the path of keys."""

    def edit(runs):
        target = runs[where]
        for key in keys[:-1]:
            target = target[key]
        target[keys[-1]] = value

    return edit


def drop(*keys):
    def edit(runs):
        target = runs[0]
        for key in keys[:-1]:
            target = target[key]
        del target[keys[-1]]

    return edit


def drop_curve(runs):
    del runs[0]["c4en_steps"], runs[0]["c4en_losses"]


def rename(old, new):
    def edit(runs):
        runs[0][new] = runs[0].pop(old)

    return edit


RUNS, KEYS, UNSTABLE = "marin_processed_data.json", "marin_keys_model_split.json", "marin_unstable_runs.json"
FIRST = "run 'sample-marin-0000': "

# What was done to which file, and what the message says (besides the file).
BAD_FILES = {
    "missing runs": (RUNS, Path.unlink, [f"no {RUNS} (or {RUNS}.gz) in", "which hold", "did you mean"]),
    "missing splits": (KEYS, Path.unlink, [f"no {KEYS} (or {KEYS}.gz) in"]),
    "truncated": (RUNS, truncate, ["not whole JSON, it is truncated or malformed", "at line 3", "of 2000"]),
    "truncated unstable": (UNSTABLE, truncate, ["not whole JSON"]),
    "empty": (RUNS, lambda path: path.write_text(""), ["not whole JSON", "character 0 of 0"]),
    "LFS pointer": (RUNS, lambda path: path.write_text("version https://git-lfs"), ["not whole JSON"]),
    "not UTF-8": (RUNS, lambda path: path.write_bytes(b"\xff\xfe["), ["not UTF-8 text", "accepted: JSON"]),
    "truncated gzip": (RUNS, gzip_truncated, [f"{RUNS}.gz: not a whole gzip file", "truncated"]),
    "key twice": (RUNS, repeat_key, ["key 'max_step' is there twice in one object"]),
}
BAD_CONTENT = {
    "not an array": (
        RUNS,
        lambda runs: {"runs": runs},
        ["the file is {'runs'", "(dict); accepted: a JSON array of runs"],
    ),
    "no run": (RUNS, lambda runs: [], ["the file is [] (list); accepted: a JSON array of runs, at least one"]),
    "run is no object": (
        RUNS,
        lambda runs: runs.insert(3, "x"),
        ["run number 3: the run is 'x' (str); accepted: an object"],
    ),
    "no name": (RUNS, drop("name"), ["run number 0: key 'name' is missing (it has ['source'"]),
    "name is no text": (RUNS, put("name", value=7), ["name is 7 (int); accepted: a text that is not empty"]),
    "no max_step": (
        RUNS,
        rename("max_step", "max_steps"),
        [FIRST, "key 'max_step' is missing", "did you mean 'max_steps'?"],
    ),
    "no final_loss": (RUNS, drop("final_loss"), [FIRST, "key 'final_loss' is missing"]),
    "max_step zero": (
        RUNS,
        put("max_step", value=0),
        [FIRST, "max_step is 0 (int); accepted: a positive whole number"],
    ),
    "max_step half": (RUNS, put("max_step", value=10.5), ["max_step is 10.5 (float)"]),
    "max_step text": (RUNS, put("max_step", value="10"), ["max_step is '10' (str)"]),
    "other source": (RUNS, put("source", value="steplaw"), [FIRST, "source is 'steplaw' (str); accepted: 'marin'"]),
    "name twice": (RUNS, put("name", value="sample-marin-0000", where=1), [FIRST[:-2], "is there twice"]),
    "name in both files": (
        UNSTABLE,
        put("name", value="sample-marin-0000"),
        [FIRST[:-2], "is there twice (first in", RUNS],
    ),
    "conf is a list": (RUNS, put("conf", value=[1]), [FIRST, "conf is [1] (list); accepted: an object"]),
    "nested conf": (
        RUNS,
        put("conf", "beta1", value=[0.9]),
        ["conf['beta1'] is [0.9] (list); accepted: a text, a finite"],
    ),
    "NaN in conf": (RUNS, put("conf", "warmup", value=float("nan")), ["conf['warmup'] is nan (float); accepted"]),
    "no model size": (RUNS, drop("conf", "model size"), [FIRST, "conf has no 'model size'"]),
    "text as data size": (
        RUNS,
        put("conf", "data size", value="1B"),
        ["conf['data size'] is '1B' (str)", "billion tokens"],
    ),
    "negative model size": (RUNS, put("conf", "model size", value=-1), ["conf['model size'] is -1", "million"]),
    "loss text": (
        RUNS,
        put("final_loss", value="3.2"),
        [FIRST, "final_loss is '3.2' (str); accepted: a positive number (nats"],
    ),
    "loss zero": (RUNS, put("final_loss", value=0), ["final_loss is 0 (int)"]),
    "loss true": (RUNS, put("final_loss", value=True), ["final_loss is True (bool)"]),
    "null loss": (
        RUNS,
        put("final_loss", value=None),
        ["of split 'train': final_loss is None", "runs of no split alone"],
    ),
    "NaN loss": (RUNS, put("final_loss", value=float("nan")), ["of split 'train': final_loss is None"]),
    "infinite loss": (RUNS, put("final_loss", value=float("inf")), ["of split 'train': final_loss is None"]),
    "curve without steps": (
        RUNS,
        drop("c4en_steps"),
        [FIRST, "c4en_steps is None", "c4en_steps and c4en_losses come together"],
    ),
    "curve is no list": (
        RUNS,
        put("c4en_losses", value="3.1"),
        [FIRST, "c4en_losses is '3.1' (str); accepted: a list"],
    ),
    "unequal curve": (RUNS, put("c4en_losses", value=[3.0]), [FIRST, "c4en_steps has 36 points and c4en_losses 1"]),
    "steps stand": (
        RUNS,
        put("c4en_steps", 1, value=109),
        [FIRST, "c4en_steps[1] is 109 (int)", "the step before it, 109"],
    ),
    "steps fall": (RUNS, put("c4en_steps", 5, value=1), ["c4en_steps[5] is 1 (int); accepted: more than"]),
    "step text": (RUNS, put("c4en_steps", 5, value="x"), ["c4en_steps[5] is 'x' (str); accepted: a number from 0 up"]),
    "curve loss text": (RUNS, put("c4en_losses", 5, value="x"), ["c4en_losses[5] is 'x' (str)"]),
    "null in a curve": (RUNS, put("c4en_losses", 5, value=None), ["of split 'train': loss 5 of the curve is None"]),
    "splits are a list": (KEYS, lambda keys: [1], ["the file is [1] (list); accepted: a JSON object with the keys"]),
    "no in_val": (
        KEYS,
        lambda keys: {"inval": keys.pop("in_val"), **keys},
        ["'in_val' is missing", "did you mean 'inval'?"],
    ),
    "split is a text": (
        KEYS,
        lambda keys: keys.update(train="x"),
        ["train is 'x' (str); accepted: a list of at least one"],
    ),
    "split is empty": (KEYS, lambda keys: keys.update(ood_val=[]), ["ood_val is [] (list)"]),
    "name is a number": (KEYS, lambda keys: keys.update(train=[1]), ["train[0] is 1 (int); accepted: a run name"]),
    "in two splits": (
        KEYS,
        lambda keys: keys["in_val"].append(keys["train"][0]),
        [FIRST[:-2], "twice (in 'train' and 'in_val')"],
    ),
    "no name has a run": (
        KEYS,
        lambda keys: keys.update(in_val=["x", "y"]),
        ["none of the 2 names of 'in_val' has a run", RUNS],
    ),
    "split names an unstable run": (
        KEYS,
        lambda keys: keys["train"].append("sample-marin-0096"),
        ["'train' names run 'sample-marin-0096'", UNSTABLE, "a run of no split"],
    ),
}


def check_message(logs, file, fragments):
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the fragments are the match
        load_runs("marin", logs, "intermediate")
    for fragment in (file, *fragments):
        assert fragment in str(error.value)


@pytest.mark.parametrize(("file", "spoil", "fragments"), BAD_FILES.values(), ids=BAD_FILES.keys())
def test_bad_files(logs, file, spoil, fragments):
    spoil(logs / file)
    check_message(logs, file, fragments)


@pytest.mark.parametrize(("file", "edit", "fragments"), BAD_CONTENT.values(), ids=BAD_CONTENT.keys())
def test_bad_content(logs, file, edit, fragments):
    change(logs / file, edit)
    check_message(logs, file, fragments)


BAD_ARGUMENTS = {
    "source": (
        lambda: load_runs("marine"),
        "source: 'marine' is unknown, accepted: ['marin', 'steplaw', 'steplaw_moe']; did you mean 'marin'?",
    ),
    "config": (
        lambda: load_runs("marin", SAMPLE_DIR, "last"),
        "'last' not found. Available: ['final', 'intermediate']",
    ),
    "data_dir": (
        lambda: load_runs("marin", "/no/such/folder"),
        "/no/such/folder is not a folder; accepted: a folder that holds",
    ),
    "data_files": (lambda: Marin(data_files="x.json"), "data_files: a run log is read as a whole; accepted: data_dir"),
}


@pytest.mark.parametrize(("call", "message"), BAD_ARGUMENTS.values(), ids=BAD_ARGUMENTS.keys())
def test_bad_arguments(call, message):
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the message is the match
        call()
    assert message in str(error.value)


# What is odd, but loses nothing: file, edit, warning, and the rows of train and unstable that are left.
COUNTED = {
    "names without a run": (
        KEYS,
        lambda keys: keys["train"].append("gone"),
        "1 of the 67 names of 'train' have no run",
        66,
        8,
    ),
    "runs without a name": (
        KEYS,
        lambda keys: keys.update(train=keys["train"][2:]),
        "2 runs of .* named by no split",
        64,
        10,
    ),
    "an unknown split": (KEYS, lambda keys: keys.update(test=["x"]), "key 'test' of .* is no split", 66, 8),
    "a run without a curve": (RUNS, drop_curve, "1 of 104 runs have no curve", 66, 8),
    "an unknown key": (RUNS, put("colour", value="red"), r"not read: 'colour' \(1 runs\)", 66, 8),
    "a diverged run in train": (
        RUNS,
        put("final_loss", value=9.0),
        "1 of the 96 runs of the official split diverged",
        66,
        8,
    ),
}


@pytest.mark.parametrize(("file", "edit", "message", "train", "unstable"), COUNTED.values(), ids=COUNTED.keys())
def test_counted_warnings(logs, file, edit, message, train, unstable):
    change(logs / file, edit)
    for _ in ("prepared", "from the cache"):
        with pytest.warns(UserWarning, match=f"marin: .*{message}") as seen:
            loaded = load_runs("marin", logs, "intermediate")
        assert len(seen) == 1
        assert (len(loaded["train"]), len(loaded["unstable"])) == (train, unstable)
