"""Step Law's mixtures of experts: learning rate x batch size x architecture x data size (arXiv 2503.04715)."""

import csv
import io
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from datasets_scripts.builder import RunsBuilder
from datasets_scripts.divergence import diverged
from datasets_scripts.public import PublicFiles
from datasets_scripts.reading import local_files, read_text
from fields_ncpl import FIELDS, SOURCES, training_order

FILE = "moe_lr_bs_loss.csv"

# Field -> column, and how many of the column's units make one of the field's.
FIELD_COLUMNS = {
    "model size": ("N", 1e6),
    "active size": ("Na", 1e6),
    "data size": ("D", 1e9),
    "num layers": ("numl", 1),
    "num heads": ("numh", 1),
    "hidden dim": ("h", 1),
    "ffn dim": ("ffnh", 1),
    "num experts": ("nume", 1),
    "top k": ("topk", 1),
    "expert dim": ("moeh", 1),
    "shared expert dim": ("sed", 1),
    "learning rate": ("lr", 1),
    "batch size": ("bs", 1),
}
NAME, LOSS, STEPS, LENGTH = "exp_name", "smooth loss", "ti", "seq_len"
COLUMNS = (NAME, LOSS, STEPS, LENGTH, *(column for column, _ in FIELD_COLUMNS.values()))


class StepLawMoE(RunsBuilder):
    """The mixtures of experts of Step Law: sequences of 2048 tokens, loss is the smoothed training loss.

    Read from the upstream CSV `moe_lr_bs_loss.csv` in `data_dir` or in its folder `steplaw_moe` or `steplaw`.
    `final_loss` is the column `smooth loss`, as far as the data tell which column the dense runs' is: it has double
    precision, as the dense losses have, where the column `loss`, of the last step alone, has six decimals.

    There is no official split. Ours follows the meaning of the official ones of the other sources:

    - `ood_val`: all runs of the architecture with the most active parameters;
    - `in_val`: of every other architecture one whole data size between its smallest and its largest; from the
      architecture with the fewest active parameters up, the inner data sizes take turns from the smallest up;
    - `unstable`: runs that diverged by the rule of all sources;
    - `train`: the rest.

    >>> from datasets_scripts import SAMPLE_DIR
    >>> StepLawMoE(data_dir=SAMPLE_DIR).config.name
    'final'
    """

    SOURCE = "steplaw_moe"
    PUBLIC = PublicFiles(
        "step-law/steplaw",
        "32a8f4cc50247695fb56cc6c9117abdf67c97763",
        {"runs": (f"data/{FILE}", "e45d5f3141b0ef0df1f95708fa26dd45b50a09ad")},
    )
    HOMEPAGE = "https://github.com/step-law/steplaw"
    DESCRIPTION = (
        "Mixture-of-experts pretraining runs of Step Law (github.com/step-law/steplaw, arXiv 2503.04715): a grid of "
        "learning rates and batch sizes (sequences of 2048 tokens) for each architecture and data size; the loss is "
        "the smoothed training loss. `model size` counts all experts, `active size` those that a token visits; the "
        "first layer is dense, of width `ffn dim`. Constant in all runs: AdamW with betas 0.9 and 0.95, epsilon 1e-8, "
        "weight decay 0.1, clipping at 1.0, 2000 warmup steps, cosine to `min_lr`. The split is not official: "
        "'ood_val' is the architecture with the most active parameters, 'in_val' one inner data size of each of the "
        "others."
    )

    @classmethod
    def file_names(cls) -> dict[str, str]:
        return {"runs": FILE}

    @classmethod
    def find_files(cls, data_dir: str) -> dict[str, str]:
        return local_files(data_dir, cls.file_names(), (cls.SOURCE, "steplaw"), ("runs",))

    def read_files(self, paths: Mapping[str, str]) -> dict[str, Any]:
        runs = _read_csv(paths["runs"], self.files["runs"], self.SOURCE)
        lost = diverged(runs)
        stable = [run for run, out in zip(runs, lost, strict=True) if not out]
        return {
            "runs": stable,
            "splits": _split(stable, self.files["runs"]),
            "unstable": [run for run, out in zip(runs, lost, strict=True) if out],
        }


def _read_csv(path: str, file: str, source: str) -> list[dict[str, Any]]:
    rows = csv.DictReader(io.StringIO(read_text(path, file, "CSV"), newline=""), restkey="")
    header = rows.fieldnames or []
    missing = [column for column in COLUMNS if column not in header]
    if missing:
        raise ValueError(f"{file}: column {missing[0]!r} is missing, it has {list(header)}")
    return [_run(row, f"{file}: line {rows.line_num}", source) for row in rows]


def _run(row: Mapping[str, Any], where: str, source: str) -> dict[str, Any]:
    """One line in the schema of the run logs."""
    if None in row.values() or "" in row:
        raise ValueError(f"{where}: it has not as many cells as the header; the file is truncated or malformed")
    length = _number(row, LENGTH, where)
    if length != SOURCES[source].seq_len:
        raise ValueError(f"{where}: {LENGTH} is {length:g}; accepted: {SOURCES[source].seq_len} (tokens a sequence)")
    conf: dict[str, Any] = {"source": source, "optimizer": "adamw", "min_lr": 1e-05}
    for field, (column, unit) in FIELD_COLUMNS.items():
        number = _number(row, column, where)
        # Tables make whole numbers floats where a cell is missing; in the prompt, 128.0 is not 128.
        conf[field] = int(number) if FIELDS[field].kind == "count" and number.is_integer() else number / unit
    return {
        "name": row[NAME],
        "source": source,
        "conf": training_order(conf),
        "max_step": _number(row, STEPS, where),
        "final_loss": None if row[LOSS].strip().lower() in ("", "nan") else _number(row, LOSS, where),
    }


def _number(row: Mapping[str, Any], column: str, where: str) -> float:
    try:
        return float(row[column])
    except ValueError:
        raise ValueError(f"{where}: {column} is {row[column]!r}; accepted: a number") from None


def _split(runs: list[dict[str, Any]], file: str) -> dict[str, list[str]]:
    """Split -> run names, by the rule of `StepLawMoE`."""
    cells: dict[tuple[float, float], dict[float, list[str]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        conf = run["conf"]
        cells[conf["active size"], conf["model size"]][conf["data size"]].append(run["name"])
    architectures = sorted(cells)
    held_out = {}
    for i, architecture in enumerate(architectures[:-1]):
        inner = sorted(cells[architecture])[1:-1]
        if inner:
            held_out[architecture] = inner[i % len(inner)]
    if not held_out:
        raise ValueError(
            f"{file}: nothing to hold out; accepted: runs of at least two architectures, with three data sizes or more"
        )
    names: dict[str, list[str]] = {"train": [], "in_val": [], "ood_val": []}
    for architecture, sizes in cells.items():
        for size, own in sizes.items():
            held = "in_val" if held_out.get(architecture) == size else "train"
            names["ood_val" if architecture == architectures[-1] else held] += own
    return names


if __name__ == "__main__":
    from datasets_scripts.runs import main

    main("steplaw_moe")
