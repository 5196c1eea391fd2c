"""The log of one run, which may still be written: its steps and losses, whatever wrote it.

Runs that have ended are read by `ncpl.logs`, which needs their configurations too.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ncpl.errors import as_path, one_line, short
from ncpl.files import read_growing, read_lines
from ncpl.logs.frameworks import plain_name
from ncpl.logs.points import is_loss
from ncpl.logs.text_logs import read_text_log
from ncpl.logs.translate import flatten
from text_ncpl import as_number, read_number

# Names of columns as `plain_name` spells them, the likeliest first.
_STEPS = ("step", "global_step", "_step", "iteration", "iter", "train_step", "steps", "update", "num_updates", "batch")
_TOKENS = (
    "tokens", "tokens_seen", "num_tokens", "total_tokens", "consumed_tokens", "num_input_tokens_seen", "n_tokens",
    "tokens_billions", "tokens_b",
)  # fmt: skip
_LOSSES = (
    "loss", "train_loss", "train.loss", "training_loss", "lm_loss", "train.crossentropyloss", "train.ce_loss",
)  # fmt: skip
_RUNS = ("run", "run_id", "run_name", "run_uuid", "experiment")
_HELD_OUT = re.compile(r"val|eval|test|held|dev")
_PERPLEXITY = re.compile(r"(^|[._])(ppl|perplexity)$")
# W&B's exports: `RUN - METRIC`, its extremes beside it.
_TABLES = (".csv", ".tsv", ".jsonl", ".ndjson", ".json")
_PANEL = re.compile(r"(?P<run>.+) - (?P<metric>.+?)(?P<extreme>__(MIN|MAX))?")


def read_log(path: str | Path) -> dict[str, Any]:
    """Steps and losses of a log that may still be written: a last line without an end is left.

    CSV, TSV, JSON lines, a Trainer's state, W&B's export of a panel, or what a training prints.

    Returns:
        `step`, or `tokens` where it counts no steps, and `loss`, a value a point, none while there is none; `notes`,
        where there is something to say of the log.

    Raises:
        ValueError: no such file, no column of steps or losses, several runs, or values that are no numbers; says which.
    """
    path = as_path(path, "log", "the path of a log: CSV, TSV, JSON lines or what a training prints")
    at = one_line(path, 80)
    rows = _of_one_run(_rows(path), at)
    if not rows:
        return {"step": [], "loss": []}
    names = {plain_name(str(name)): name for row in rows for name in row}
    step, tokens = _column(names, _STEPS), _column(names, _TOKENS)
    loss = _column(names, _LOSSES) or _other_loss(names)
    perplexity = None if loss is not None else _perplexity(names)
    loss = perplexity if loss is None else loss
    if (step or tokens) is None or loss is None:
        missing = "step" if (step or tokens) is None else "loss"
        found = one_line(", ".join(map(str, names.values())) or "none", 150)
        raise ValueError(f"{at}: no column is a {missing}; expected step and loss, found {found}")
    axis = step or tokens
    pairs = [(row[axis], row[loss]) for row in rows if _filled(row.get(axis)) and _filled(row.get(loss))]
    # A run that starts again may write the names a second time.
    pairs = [(a, b) for a, b in pairs if (a, b) != (axis, loss)]
    read: dict[str, Any] = {
        "step" if step else "tokens": [_number(a, f"{at}: {'step' if step else 'tokens'}") for a, _ in pairs],
        "loss": [_number(b, f"{at}: loss") for _, b in pairs],
    }
    if perplexity is not None:
        read["loss"] = [math.log(value) if value > 0 else math.nan for value in read["loss"]]
        read["notes"] = [f"no loss in the log: the natural logarithm of {loss} stands in"]
    elif _HELD_OUT.search(plain_name(str(loss))):
        read["notes"] = [f"no loss of training in the log: {loss} stands in"]
    return read


def _perplexity(names: Mapping[str, Any]) -> Any:
    """A perplexity, one of training first; None where there is none."""
    found = sorted((bool(_HELD_OUT.search(plain)), plain) for plain in names if _PERPLEXITY.search(plain))
    return names[found[0][1]] if found else None


def _column(names: Mapping[str, Any], wanted: Sequence[str]) -> Any:
    """The column whose name is wanted most, in whatever section it stands; None where none is."""
    whole = next((names[name] for name in wanted if name in names), None)
    last = {plain.rpartition(".")[2]: name for plain, name in names.items() if not _HELD_OUT.search(plain)}
    return whole if whole is not None else next((last[name] for name in wanted if name in last), None)


def _other_loss(names: Mapping[str, Any]) -> Any:
    """A loss by another name, one of training first; None where there is none."""
    losses = [plain for plain in names if is_loss(plain) and not re.search(r"ppl|perplexity|bpb|bits", plain)]
    ranked = sorted(losses, key=lambda plain: (bool(_HELD_OUT.search(plain)), "ema" in plain))
    return names[ranked[0]] if ranked else None


def _of_one_run(rows: list[dict[str, Any]], at: str) -> list[dict[str, Any]]:
    """Rows without the run in their columns' names.

    Raises:
        ValueError: they are of several runs.
    """
    panels = {name: found for row in rows[:1] for name in row if (found := _PANEL.fullmatch(str(name)))}
    column = next((name for row in rows[:1] for name in row if plain_name(str(name)) in _RUNS), None)
    runs = {found["run"]: None for found in panels.values()} or {row.get(column): None for row in rows if column}
    named = [short(run, 40) for run in runs if _filled(run) and run != column]
    if len(named) > 1:
        raise ValueError(f"{at}: {len(named)} runs ({one_line(', '.join(named), 120)}), expected the log of one")
    metrics = {name: found["metric"] for name, found in panels.items() if not found["extreme"]}
    if not panels:
        return rows
    return [{metrics.get(n, n): value for n, value in row.items() if n in metrics or n not in panels} for row in rows]


def _rows(path: Path) -> list[dict[str, Any]]:
    """A log's rows, a mapping of names to values each."""
    lines = list(read_lines(path))
    first = next((line for line in lines if line.strip()), "").lstrip("\ufeff \t")
    head = {plain_name(cell) for cell in re.split(r"[,;\t]", first)}
    if first[:1] in ("{", "["):
        try:
            document = json.loads("".join(lines))
        except (RecursionError, ValueError):
            document = read_growing(path)
        # A Trainer's state holds its log.
        history = document.get("log_history") if isinstance(document, dict) else document
        rows = history if isinstance(history, list) else [document]
        return [flatten(row) for row in rows if isinstance(row, dict)]
    if path.suffix.lower() in _TABLES or head & {*_STEPS, *_TOKENS}:
        return read_growing(path)
    whole = lines if lines and lines[-1].endswith("\n") else lines[:-1]
    return [values for part, values in read_text_log(whole) if part == "point"]


def _filled(value: Any) -> bool:
    return value is not None and str(value).strip() != ""


def _number(value: Any, what: str) -> float:
    """A number, NaN and infinity included.

    Raises:
        ValueError: it is none.
    """
    number = read_number(value) if isinstance(value, str) else as_number(value)
    if number is None:
        raise ValueError(f"{what}: got {short(value)}, expected a number")
    return float(number)
