"""Tables as they should not be: each gives the right rows, or one line that says what to mend."""

import io
import json
import math
import os
import tracemalloc
import warnings

import pandas as pd
import pytest

from ncpl import import_runs
from ncpl.logs.importer import report_lines

HEADER = "name,params_no_embed,tokens,lr,batch_size_sequences,seq_len,optimizer,val_loss\n"
ROWS = "a,85e6,2e9,1e-3,256,2048,adamw,3.1\nb,85e6,4e9,1e-3,256,2048,adamw,3.0\n"
TABLE = HEADER + ROWS
LINES = TABLE.splitlines()
MIXED = "name,params_no_embed,tokens,lr,val_loss\n"
STEPS = range(0, 201, 10)


def loss(step):
    return 10 * math.exp(-step / 60) + 3


def history(steps):
    return "step,loss\n" + "".join(f"{step},{loss(step)}\n" for step in steps)


SAME = {
    "bom": "\ufeff" + TABLE,
    "utf-16": TABLE.encode("utf-16"),
    "utf-16 without a mark": TABLE.encode("utf-16-le"),
    "tabs": TABLE.replace(",", "\t"),
    "bars": TABLE.replace(",", "|"),
    "semicolons": TABLE.replace(",", ";"),
    "decimal commas": TABLE.replace(",", ";").replace(".", ","),
    "a line that names the separator": "sep=;\n" + TABLE.replace(",", ";"),
    "windows": TABLE.replace("\n", "\r\n"),
    "old mac": TABLE.replace("\n", "\r"),
    "blank lines": TABLE.replace("\n", "\n\n"),
    "spaces": TABLE.replace(",", " , "),
    "comment": "# exported\n" + TABLE,
    "numbered rows": "\n".join(("" if i == 0 else str(i - 1)) + "," + line for i, line in enumerate(LINES)),
    "separator at the end": "\n".join(line + "," for line in LINES),
    "empty cells after a row": LINES[0] + "\n" + "\n".join(line + ",," for line in LINES[1:]),
    "more columns": HEADER.replace("\n", ",gpu,notes\n") + ROWS.replace("\n", ',h100,"line 1\nline 2, more"\n'),
    "ten thousand columns": "\n".join(
        line + "," + ",".join(f"x{i}" if line == LINES[0] else "1" for i in range(10_000)) for line in LINES
    ),
    "perplexity": HEADER.replace("val_loss", "val_ppl")
    + ROWS.replace("3.1\n", f"{math.exp(3.1)}\n").replace("3.0\n", f"{math.exp(3)}\n"),
    "bits per token": HEADER.replace("val_loss", "val_bits_per_token")
    + ROWS.replace("3.1\n", f"{3.1 / math.log(2)}\n").replace("3.0\n", f"{3 / math.log(2)}\n"),
    "thousands": TABLE.replace("85e6", '"85,000,000"').replace("2048", '"2,048"'),
    "counts with units": TABLE.replace("85e6", "85M").replace("2e9", "2B").replace("4e9", "4 billion"),
    "batch in tokens": HEADER.replace("batch_size_sequences", "batch_size_tokens") + ROWS.replace("256", "524288"),
}


def read(tmp_path, content, name="runs.csv"):
    file = tmp_path / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return import_runs(file)


@pytest.mark.parametrize("content", SAME.values(), ids=SAME)
def test_the_same_table_in_many_dresses(tmp_path, content):
    runs = read(tmp_path, content)
    fields = ["model size", "data size", "learning rate", "batch size", "seq len", "max step"]
    rows = [[85, 2, 1e-3, 256, 2048, 3814], [85, 4, 1e-3, 256, 2048, 7629]]
    assert runs[fields].to_numpy().tolist() == rows
    assert runs["name"].tolist() == ["a", "b"]
    assert runs["final_loss"].tolist() == pytest.approx([3.1, 3.0])
    assert runs["status"].tolist() == ["finished", "finished"]


REFUSED = {
    "empty": ("", "holds nothing"),
    "header alone": (HEADER, "holds nothing"),
    "two columns of one name": (HEADER.replace("\n", ",lr\n") + ROWS.replace("\n", ",1e-3\n"), "lr: there are two"),
    "a short row": (TABLE + "c,85e6,2e9\n", "row 3 has 3 cells, expected 8"),
    "a long row": (TABLE + "c" + ",1" * 9 + "\n", "row 3 has 10 cells, expected 8"),
    "a cell under no name": (HEADER.replace("\n", ",\n") + ROWS.replace("\n", ",x\n"), "column 9 has no name"),
    "no header": (ROWS, "knows none of the names"),
    "no known name": ("a,b\n1,2\n", "knows none of the names a, b"),
    "a web page": ("<!DOCTYPE html>\n<html><body>Sign in</body></html>\n", "web page"),
    "a workbook": (b"PK\x03\x04" + bytes(range(256)), "save it as CSV"),
    "gzip": (b"\x1f\x8b\x08" + bytes(range(256)), "gzip"),
    "latin-1": (TABLE.replace("a,", "caf\xe9,", 1).encode("latin-1"), "not UTF-8"),
    "too many columns": (",".join(f"x{i}" for i in range(30_000)) + "\n", "30,000 columns"),
    "an open quote": (TABLE + '"c,85e6\n' + ROWS, "row 3 has 1 cells"),
}
REFUSED_FILES = {
    "truncated.json": ('[{"name": "a", "lr": 1e-3}, {"name": "b", "l', "not JSON"),
    "truncated.jsonl": ('{"name": "a", "lr": 1e-3}\n{"name": "b", "l', "line 2 is not JSON"),
    "text.parquet": ("hello", "not Parquet"),
    "deep.json": ("[" * 5000 + "]" * 5000, "64 levels"),
    "twice.yaml": ("lr: 1\nlr: 2\n", "given twice"),
    "words.yaml": ("just some words\n", "holds no runs"),
    "picture.yaml": (b"\x89PNG\r\n\x1a\n", "not UTF-8"),
}


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [("runs.csv", *case) for case in REFUSED.values()] + [(name, *case) for name, case in REFUSED_FILES.items()],
    ids=[*REFUSED, *REFUSED_FILES],
)
def test_one_line_says_what_is_wrong(tmp_path, name, content, said):
    with pytest.raises(ValueError, match=said) as error:
        read(tmp_path, content, name)
    message = str(error.value)
    assert name in message
    assert "\n" not in message
    assert len(message) <= 300


def test_a_truncated_parquet(tmp_path):
    whole = io.BytesIO()
    pd.DataFrame([{"name": "a", "lr": 1e-3}]).to_parquet(whole)
    with pytest.raises(ValueError, match="not Parquet"):
        read(tmp_path, whole.getvalue()[:200], "runs.parquet")


TOLD = {
    "a loss that is text": (TABLE.replace("3.1\n", "3.1 nats\n"), ["no loss", "finished"], "'3.1 nats' is no loss"),
    "losses that are not above 0": (
        TABLE.replace("3.1\n", "-3.1\n").replace("3.0\n", "0\n"),
        ["no loss", "no loss"],
        "-3.1 is no loss: not above 0",
    ),
    "a perplexity called loss": (
        TABLE.replace("3.1\n", "22.2\n").replace("3.0\n", "20.1\n"),
        ["diverged", "diverged"],
        "is it a perplexity",
    ),
    "bits per byte": (TABLE.replace("val_loss", "val_bpb"), ["no loss", "no loss"], "bytes of a token"),
    "a rate that is no number": (TABLE.replace("1e-3", "10^-3", 1), ["finished", "finished"], "'10^-3' is no number"),
    "losses that are not finite": (TABLE.replace("3.1\n", "NaN\n").replace("3.0\n", "inf\n"), ["diverged"] * 2, ""),
    "one name twice": (TABLE.replace("b,", "a,", 1), ["finished", "finished"], ""),
    "two units in one column": (
        MIXED + "a,85,2,1e-3,3.1\nb,85e6,2e9,1e-3,3.0\n",
        ["finished", "finished"],
        "85 is too small for a count and its unit is unknown",
    ),
    "one device's batch": (
        TABLE.replace("batch_size_sequences", "per_device_train_batch_size"),
        ["finished", "finished"],
        "devices (that see different data",
    ),
    "a batch of an unknown kind": (
        TABLE.replace("batch_size_sequences", "batch_size"),
        ["finished", "finished"],
        "256 may be of one device, or tokens",
    ),
    "a count that is negative": (TABLE.replace("85e6", "-85e6"), ["finished", "finished"], "it is not set"),
    "steps and tokens apart": (
        HEADER.replace("\n", ",max_steps\n") + ROWS.replace("\n", ",100\n"),
        ["finished", "finished"],
        "but 2e+09 are given",
    ),
}


@pytest.mark.parametrize(("content", "status", "said"), TOLD.values(), ids=TOLD)
def test_what_was_not_taken_is_told(tmp_path, content, status, said):
    runs = read(tmp_path, content)
    assert runs["status"].tolist() == status
    assert runs["name"].is_unique
    assert said in "\n".join(report_lines(runs.attrs["report"]))
    if "batch" in said or "devices" in said or "may be" in said:
        assert "batch size" not in runs


HISTORIES = {
    "sorted": history(STEPS),
    "shuffled": history([50, 200, 0, 150, 100, 10]),
    "started again": history([*range(0, 120, 10), *range(80, 201, 10)]),
    "negative steps": history([-1, *STEPS]),
    "quoted": history(STEPS).replace("\n", '"\n"').replace(",", '","').join(['"', '"']).removesuffix('""'),
    "thousands of steps as text": history(STEPS).replace("200,", "0.2k,"),
}


@pytest.mark.parametrize("content", HISTORIES.values(), ids=HISTORIES)
def test_the_largest_step_is_the_last(tmp_path, content):
    runs = read(tmp_path, content)
    assert runs[["max step", "final_loss"]].to_numpy().tolist() == [[200, pytest.approx(loss(200))]]
    steps = [step for step, _ in runs.attrs["curves"]["runs"]]
    assert steps == sorted(set(steps))


def test_a_bare_batch_is_told_by_steps_and_tokens(tmp_path):
    row = {"params_no_embed": 85e6, "tokens": 2.097152e9, "max_steps": 1000, "seq_len": 2048, "lr": 1e-3}
    for batch in (1024, 1024 * 2048):
        content = json.dumps(row | {"batch_size": batch, "val_loss": 3.0}) + "\n"
        assert read(tmp_path, content, "runs.jsonl")["batch size"].tolist() == [1024]


def test_a_run_that_ended_in_nan_diverged(tmp_path):
    content = history(STEPS) + "210,NaN\n220,NaN\n"
    assert read(tmp_path, content)["status"].tolist() == ["diverged"]


def test_a_long_log_needs_little_memory(tmp_path):
    """`make hardening` reads 300 MB (NCPL_LOG_MB)."""
    megabytes = int(os.environ.get("NCPL_LOG_MB", "3"))
    file = tmp_path / "long.jsonl"
    with file.open("w") as log:
        steps = 0
        while log.tell() < megabytes * 1e6:
            for step in range(steps, steps + 1000):
                log.write(f'{{"step": {step}, "train/loss": {loss(step / 100)}, "lr": 1e-3, "note": "{"x" * 200}"}}\n')
            steps += 1000
    tracemalloc.start()
    try:
        runs = import_runs(file)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert runs["max step"].tolist() == [steps - 1]
    assert runs["final_loss"].tolist() == [pytest.approx(loss((steps - 1) / 100))]
    # The first rows are kept to tell what kind of table it is; nothing grows with the file.
    assert peak < 12e6
