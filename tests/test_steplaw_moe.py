"""Step Law's mixtures of experts: the builder of its CSV against a second reading of it, and the ways of the source."""

import gzip
import json
import shutil
import warnings
from pathlib import Path

import pandas as pd
import pytest

from datasets_scripts import SAMPLE_DIR
from datasets_scripts.reading import MissingRunsError
from datasets_scripts.runs import data_hash, load_runs
from fields_ncpl import FIELDS, check_config
from ncpl import Forecaster
from ncpl.evaluation import evaluation_report, forecast_runs
from ncpl.recipe import DataBlock
from ncpl.training.data import pool, read_runs
from ncpl.training.prior import _unstable
from tests.test_cli import as_json, run

FILE = "moe_lr_bs_loss.csv"
INT_FIELDS = {
    "num layers": "numl", "num heads": "numh", "hidden dim": "h", "ffn dim": "ffnh", "num experts": "nume",
    "top k": "topk", "expert dim": "moeh", "shared expert dim": "sed", "batch size": "bs",
}  # fmt: skip


@pytest.fixture
def logs(tmp_path):
    """A folder with a copy of the sample's table, which a test may spoil."""
    (tmp_path / "logs").mkdir()
    return Path(shutil.copy(SAMPLE_DIR / FILE, tmp_path / "logs")).parent


def change(logs, edit):
    table = pd.read_csv(logs / FILE)
    result = edit(table)
    (table if result is None else result).to_csv(logs / FILE, index=False)


def check_rows(folder, file):
    """The rows say what pandas reads in the table, and every run of it is in one split; returns table and rows."""
    table = pd.read_csv(file, float_precision="round_trip").set_index("exp_name")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        loaded = load_runs("steplaw_moe", folder)
    rows = [row for split in loaded.values() for row in split]
    assert sorted(row["name"] for row in rows) == sorted(table.index)
    order = list(FIELDS)
    for row in rows:
        line, conf = table.loc[row["name"]], row["conf"]
        assert row["max_step"] == line["ti"]
        assert row["final_loss"] == (None if pd.isna(line["smooth loss"]) else line["smooth loss"])
        assert conf["model size"] == pytest.approx(line["N"] / 1e6, rel=1e-15)
        assert conf["active size"] == pytest.approx(line["Na"] / 1e6, rel=1e-15)
        assert conf["data size"] == pytest.approx(line["D"] / 1e9, rel=1e-15)
        assert {name: conf[name] for name in INT_FIELDS} == {name: line[key] for name, key in INT_FIELDS.items()}
        assert all(type(conf[name]) is int for name in INT_FIELDS)
        assert (conf["source"], conf["optimizer"], conf["min_lr"]) == ("steplaw_moe", "adamw", 1e-5)
        assert conf["learning rate"] == line["lr"]
        assert len(conf) == len(INT_FIELDS) + 7
        assert list(conf) == sorted(conf, key=order.index)
        # A real run is never implausible.
        assert check_config({**conf, "max step": row["max_step"]})
    return table, loaded


def cells_of(split):
    return {(conf["active size"], conf["data size"]) for conf in split["conf"]}


def check_splits(loaded):
    """The architecture with the most active parameters is held out, and of each other one whole inner data size."""
    train, in_val, ood_val = (cells_of(loaded[name]) for name in ("train", "in_val", "ood_val"))
    assert len(train) + len(in_val) + len(ood_val) == len(train | in_val | ood_val)
    assert min(size for size, _ in ood_val) > max(size for size, _ in train | in_val)
    assert len({size for size, _ in ood_val}) == 1
    chosen = [tokens for _, tokens in sorted(in_val)]
    sizes = sorted({tokens for _, tokens in train})
    assert {size for size, _ in in_val} == {size for size, _ in train}
    # Inner data sizes in turns: the second, the third, the second.
    assert chosen == [sizes[1 + i % (len(sizes) - 2)] for i in range(len(chosen))]


def test_sample_rows():
    table, loaded = check_rows(SAMPLE_DIR, SAMPLE_DIR / FILE)
    assert table["note"].str.startswith("made up").all()
    counts = {name: len(split) for name, split in loaded.items()}
    assert counts == {"train": 54, "in_val": 18, "ood_val": 24, "unstable": 4}
    check_splits(loaded)
    assert set(loaded["unstable"]["status"]) == {"diverged"}
    assert list(loaded["unstable"]["final_loss"]).count(None) == 1
    assert {status for name in ("train", "in_val", "ood_val") for status in loaded[name]["status"]} == {"finished"}


def test_real_rows(real_data_dir):
    _, loaded = check_rows(real_data_dir, real_data_dir / "steplaw" / FILE)
    counts = {name: len(split) for name, split in loaded.items()}
    assert counts == {"train": 399, "in_val": 135, "ood_val": 174, "unstable": 0}
    check_splits(loaded)
    assert sorted(tokens for _, tokens in cells_of(loaded["in_val"])) == [4, 4, 8]


def test_counts_follow_from_the_shape(real_data_dir):
    """What `model size` and `active size` count: one dense layer, experts elsewhere, no routers."""
    for conf in load_runs("steplaw_moe", real_data_dir)["train"]["conf"]:
        layers, h, experts = conf["num layers"], conf["hidden dim"], conf["num experts"]
        width, shared = conf["expert dim"], conf["shared expert dim"]
        always = 4 * layers * h**2 + 3 * h * conf["ffn dim"]
        total = always + (layers - 1) * 3 * h * (experts * width + shared)
        active = always + (layers - 1) * 3 * h * (conf["top k"] * width + shared)
        assert (conf["model size"], conf["active size"]) == pytest.approx((total / 1e6, active / 1e6), rel=1e-12)


def test_constants_are_the_dense_runs(real_data_dir):
    """Beside the experts, a configuration has the fields, number types and constants of a dense run of Step Law."""
    dense = load_runs("steplaw", real_data_dir)["train"][0]["conf"]
    moe = load_runs("steplaw_moe", real_data_dir)["train"][0]["conf"]
    experts = ("active size", "num experts", "top k", "expert dim", "shared expert dim")
    shared = {name: value for name, value in moe.items() if name not in experts}
    assert [(name, type(value)) for name, value in shared.items()] == [(n, type(v)) for n, v in dense.items()]
    assert {shared[name] == dense[name] for name in ("optimizer", "min_lr")} == {True}


@pytest.mark.parametrize("layout", ["steplaw_moe", "steplaw", "gz", "floats"])
def test_layouts(layout, logs, tmp_path):
    if layout == "gz":
        (logs / f"{FILE}.gz").write_bytes(gzip.compress((logs / FILE).read_bytes()))
        (logs / FILE).unlink()
    elif layout == "floats":
        # As tables are once a cell was missing.
        change(logs, lambda table: table.astype({"numl": float, "bs": float, "ti": float}))
    else:
        (tmp_path / "other" / layout).mkdir(parents=True)
        shutil.move(logs / FILE, tmp_path / "other" / layout / FILE)
        logs = tmp_path / "other"
    for name, split in load_runs("steplaw_moe", SAMPLE_DIR).items():
        assert json.dumps(list(load_runs("steplaw_moe", logs)[name])) == json.dumps(list(split))
    assert (data_hash("steplaw_moe", logs) == data_hash("steplaw_moe", SAMPLE_DIR)) == (layout != "floats")


def test_no_curves():
    with pytest.warns(UserWarning, match="steplaw_moe: this log has no curves"):
        loaded = load_runs("steplaw_moe", SAMPLE_DIR, "intermediate")
    assert loaded["train"][0]["curve"] is None


def test_diverged_is_judged_within_an_architecture(logs):
    """Two architectures of one total size: 0.31 nats above the other's best is nothing, above its own it diverged."""

    def edit(table):
        table["N"] = 700_000_000
        cell = (table["topk"] == 2) & (table["D"] == 2_000_000_000) & (table["smooth loss"] < 4)
        best = table.loc[(table["nume"] == 64) & (table["D"] == 2_000_000_000), "smooth loss"].min()
        table.loc[cell, "smooth loss"] = best + 0.31
        table.loc[table.index[cell][0], "smooth loss"] = best + 0.62

    change(logs, edit)
    loaded = load_runs("steplaw_moe", logs)
    assert len(loaded["unstable"]) == 5
    assert len(loaded["train"]) == 53


def first(column, value):
    """An edit of the first line."""

    def edit(table):
        return table.astype({column: object}).assign(**{column: [value, *table[column].astype(object)[1:]]})

    return edit


BAD_TABLES = {
    "a column is missing": (lambda t: t.drop(columns="Na"), "column 'Na' is missing, it has ['exp_name'"),
    "no number": (first("moeh", "wide"), "line 2: moeh is 'wide'; accepted: a number"),
    "an empty cell": (first("lr", ""), "line 2: lr is ''; accepted: a number"),
    "not finite": (first("lr", "inf"), "conf['learning rate'] is inf (float); accepted: a text, a finite number"),
    "other context": (first("seq_len", 4096), "line 2: seq_len is 4096; accepted: 2048 (tokens a sequence)"),
    "half a step": (first("ti", 10.5), "max_step is 10.5 (float); accepted: a positive whole number"),
    "negative loss": (first("smooth loss", -1), "final_loss is -1.0 (float); accepted: a positive number"),
    "name twice": (lambda t: pd.concat([t, t[:1]]), "run 'sample-steplaw_moe-0000' is there twice"),
    "one architecture": (lambda t: t[t["nume"] == 64], "nothing to hold out; accepted: runs of at least two"),
    "two data sizes": (lambda t: t[t["D"] < 5e9], "nothing to hold out; accepted: runs of at least two"),
    "no run": (lambda t: t[:0], "nothing to hold out"),
}


@pytest.mark.parametrize(("edit", "message"), BAD_TABLES.values(), ids=BAD_TABLES)
def test_bad_tables(edit, message, logs):
    change(logs, edit)
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the message is the match
        load_runs("steplaw_moe", logs)
    assert message in str(error.value)
    assert FILE in str(error.value)


def test_truncated_and_missing_tables(logs):
    content = (logs / FILE).read_bytes()
    (logs / FILE).write_bytes(content[:-150])
    with pytest.raises(ValueError, match=r"line 101: it has not as many cells as the header; the file is truncated"):
        load_runs("steplaw_moe", logs)
    (logs / FILE).write_bytes(b"")
    with pytest.raises(ValueError, match=r"column 'exp_name' is missing, it has \[\]"):
        load_runs("steplaw_moe", logs)
    (logs / FILE).rename(logs / "moe_lr_bs_los.csv")
    with pytest.raises(MissingRunsError, match=rf"no {FILE} .* which hold .*did you mean 'moe_lr_bs_los.csv'"):
        load_runs("steplaw_moe", logs)


# ------------------------------------------------------------------------------------------------ the source elsewhere


def test_training_reads_the_source(tmp_path):
    runs = read_runs(DataBlock(sources=["steplaw", "steplaw_moe"], data_dir="sample"))
    assert {split: len(of["steplaw_moe"]) for split, of in runs.items()} == {"train": 54, "in_val": 18, "ood_val": 24}
    config = runs["train"]["steplaw_moe"][0].config
    assert (config["num experts"], config["max step"]) == (64, 15258)


def test_divergence_is_learned_from_what_is_no_larger_than_train_source_by_source():
    """Neither the held-out architecture, of hardly more total parameters, nor dense models below a mixture's size."""
    data = DataBlock(sources=["steplaw", "steplaw_moe"], data_dir="sample")
    runs = read_runs(data)
    kept = _unstable(data, pool(runs["train"]))
    active = {split: {r.config["active size"] for r in runs[split]["steplaw_moe"]} for split in ("train", "ood_val")}
    moe = [row["conf"]["active size"] for row in kept if row["source"] == "steplaw_moe"]
    assert len(moe) == 3
    assert set(moe) <= active["train"]
    largest = max(r.config["model size"] for r in runs["train"]["steplaw"])
    assert max(row["conf"]["model size"] for row in kept if row["source"] == "steplaw") <= largest


def test_evaluate_judges_the_source(tmp_path, capsys):
    report = as_json("evaluate", "--data-dir", SAMPLE_DIR, "--figure", tmp_path / "scatter.png", capsys=capsys)
    cells = {(cell["source"], cell["split"]): cell for cell in report["cells"]}
    assert list(cells) == [(s, split) for s in ("marin", "steplaw", "steplaw_moe") for split in ("in_val", "ood_val")]
    assert (cells["steplaw_moe", "in_val"]["runs"], cells["steplaw_moe", "ood_val"]["runs"]) == (18, 24)
    assert report["data"]["steplaw_moe"] == data_hash("steplaw_moe", SAMPLE_DIR)
    sizes = [size for size in report["sizes"] if size["source"] == "steplaw_moe"]
    assert [(size["split"], size["runs"]) for size in sizes] == [("in_val", 6)] * 3 + [("ood_val", 24)]
    assert len({size["active_size"] for size in sizes}) == 4
    assert all("active_size" not in size for size in report["sizes"] if size["source"] != "steplaw_moe")


def test_the_paper_predicted_no_mixture(real_data_dir):
    runs = forecast_runs(Forecaster.from_pretrained(), real_data_dir)
    assert runs.loc[runs["source"] == "steplaw_moe", ["ncpl_1p7b", "chinchilla"]].isna().all(axis=None)
    for cell in evaluation_report(runs, "default", real_data_dir)["cells"]:
        paper = {"ncpl_1p7b", "chinchilla"} & set(cell["errors"])
        assert len(paper) == (0 if cell["source"] == "steplaw_moe" else 2)
        assert cell["left_out"] == 0


def test_evaluate_says_which_sources_it_leaves_out(folder, logs, capsys):
    status, out, err = run("evaluate", "--data-dir", logs, capsys=capsys)
    assert (status, "steplaw_moe" in out, "marin" in out) == (0, True, False)
    for source in ("marin", "steplaw"):
        assert f"{source} is left out: data_dir: no {source}_processed_data.json" in err
    # The published prior has no coefficients for mixtures of experts.
    status, out, err = run("evaluate", "--data-dir", SAMPLE_DIR, "--model", folder, "--split", "in_val", capsys=capsys)
    assert (status, "steplaw_moe" in out) == (0, False)
    assert "steplaw_moe is left out: the checkpoint's prior knows marin, steplaw alone" in err
    status, _, err = run("evaluate", "--data-dir", logs, "--model", folder, capsys=capsys)
    assert status == 2
    assert "no marin_processed_data.json" in err
