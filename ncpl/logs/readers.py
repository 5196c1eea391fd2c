"""What labs have on disk as runs: a table's rows, a history's points, a folder's files, a database.

Every reader streams: of a run it keeps the last value of each column and a thinned curve, so that a log of any size is
read in bounded memory.
"""

import functools
import itertools
import json
import math
import re
import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ncpl.errors import one_line
from ncpl.files import Row, kind_of, local, read_document, read_lines, read_rows
from ncpl.kinds import KINDS
from ncpl.logs.derive import number_of
from ncpl.logs.frameworks import plain_name
from ncpl.logs.text_logs import read_text_log
from ncpl.logs.translate import flatten, read_names

CURVE_POINTS = 512
"""Points of a curve that are kept; when there are twice as many, every second one goes."""

_PEEK = 2000
# Quantities of a run that do not change while it trains; a table in which they change holds runs, not points.
_CONSTANT = ("layers", "width", "batch", "seq_len", "params", "params_body", "steps", "tokens", "lr")
_LOSS = re.compile(r"loss|cross_?entropy|perplexity|(^|[._])(ppl|nll|bpb|xent|ce)($|[._])|bits_per_(byte|token)", re.I)
_NOT_FINAL = re.compile(
    r"z_?loss|aux|balanc|router|loss_?scale|vs_samples|std|stddev|__min$|__max$|global_max|(^|[._])(best|min)[._]|moe_|"
    r"loss_fn|smoothing|loss_type|loss_func|num_|_count$|per_class|weight|runtime|train_runtime|loss_link|_every$|"
    r"_freq$|interval|mask_loss|coef|\.component$|\.class|target|kernel|fused|chunk|impl$|window|parallel_loss|ema_loss_",
    re.I,
)
_RATE = re.compile(r"(^|[._])(lr|learning_rate)($|[._])")


@dataclass
class Curve:
    """A logged loss: what it ended at, and a thinned curve.

    Args:
        points: [(step, loss), ...], evenly spread.
        last: the finite value of the largest step; None before there is one.
        at: the largest step so far.
        finite, nans: how many values were numbers, and how many were not.
        broken: whether NaN or infinity was logged after the last finite value.
    """

    points: list[tuple[float, float]] = field(default_factory=list)
    last: float | None = None
    at: float = -math.inf
    finite: int = 0
    nans: int = 0
    broken: bool = False

    def add(self, step: float, loss: float) -> None:
        late = step >= self.at
        self.at = max(step, self.at)
        if not math.isfinite(loss):
            self.nans += 1
            self.broken = self.broken or late
            return
        self.finite += 1
        if late or self.last is None:
            self.last, self.broken = loss, False
        self.points.append((step, loss))
        if len(self.points) > 2 * CURVE_POINTS:
            del self.points[:-1:2]

    @property
    def diverged(self) -> bool:
        """Whether it ended in NaN; a table that writes NaN where nothing was measured has more of them than numbers."""
        return self.broken and self.finite >= self.nans


@dataclass
class Logged:
    """One run as it was logged.

    Args:
        name: as its log calls it; None where it has none.
        values: flattened configuration, and the last value of each logged column.
        curves: name of a logged loss -> its curve.
        peaks: name of a logged learning rate -> its largest value.
        changed: names whose value changed while the run was logged, which no configuration's does.
        at: the largest logged step.
        points: how many points were logged; 0 where the log holds one row a run.
        complete: whether the values hold a whole configuration, in which an absent key has its default.
        origin: file or folder.
        parts: of each file its values, where a configuration stands in several files.
    """

    name: str | None
    values: dict[str, Any]
    curves: dict[str, Curve] = field(default_factory=dict)
    peaks: dict[str, float] = field(default_factory=dict)
    changed: set[str] = field(default_factory=set)
    at: float = -math.inf
    points: int = 0
    origin: str = ""
    complete: bool = False
    parts: list[dict[str, Any]] = field(default_factory=list)


@functools.lru_cache(100_000)
def is_loss(name: str) -> bool:
    """Whether a column may hold the loss of the run (not a regulariser's, an extreme's or a setting).

    >>> is_loss("eval/c4/CE loss"), is_loss("train/z_loss"), is_loss("val_ppl"), is_loss("layers")
    (True, False, True, False)
    """
    plain = plain_name(name)
    return bool(_LOSS.search(plain)) and not _NOT_FINAL.search(plain)


def read_runs(path: str | Path) -> Iterator[Logged]:
    """The runs of a file or a folder.

    Raises:
        ValueError: it cannot be read, or holds nothing that is a run; says where.
    """
    if str(path) == "-":
        with local(path) as copy:
            yield from read_runs(copy)
        return
    if Path(path).is_dir():
        yield from _folder(Path(path))
        return
    kind = kind_of(path)
    if kind == "sqlite":
        yield from _trackio(Path(path))
        return
    if kind in ("csv", "jsonl", "parquet"):
        yield from _table(read_rows(path), _stem(path), str(path))
        return
    if kind == "log":
        yield _text_log(path)
        return
    document = read_document(path)
    yield from _of_document(document, _stem(path), str(path))


def _text_log(path: str | Path) -> Logged:
    """The run whose training printed this log, with the arguments that it printed."""
    logged, config = Logged(_stem(path), {}, origin=str(path)), {}
    for part, values in read_text_log(read_lines(path)):
        if part == "config":
            config.update(flatten(values))
        else:
            _add_point(logged, values, values.get("step"))
    logged.complete = bool(config)
    if not logged.points and not config:
        raise ValueError(f"{one_line(path, 100)}: a text without arguments, steps or losses, expected a training's log")
    return _configured(logged, config)


def _stem(path: str | Path) -> str:
    return Path(path).stem


def _of_document(document: Any, stem: str, origin: str) -> Iterator[Logged]:
    rows = document if isinstance(document, list) else [document]
    if len(rows) == 1 and isinstance(rows[0], dict) and isinstance(rows[0].get("log_history"), list):
        state = dict(rows[0])
        history = state.pop("log_history")
        yield _history_of(history, flatten(state), stem, origin)
        return
    if not all(isinstance(row, dict) for row in rows) or not rows or rows == [{}]:
        raise ValueError(f"{one_line(origin, 100)}: holds no runs, expected mappings of names to values")
    if len(rows) == 1:
        yield _with_curves(Logged(None, _unpacked(rows[0]), origin=origin, complete=True))
        return
    yield from _table(iter(rows), stem, origin)


# A wrapper around the configuration or the results of a run is no part of a name.
_WRAPPER = re.compile(r"^((mlflow|data)\.)?(conf|config|summary|params|metrics|hyperparameters)\.")


def _unpacked(row: Row) -> Row:
    """A row flat, with our own builders' `conf`, perhaps a JSON text, among the columns."""
    row = dict(row)
    for name in ("conf", "config", "hyperparameters", "summary"):
        if isinstance(row.get(name), str) and row[name].lstrip().startswith("{"):
            try:
                row[name] = json.loads(row[name])
            except ValueError:
                continue
    flat: Row = {}
    for name, value in flatten(row).items():
        bare = _bare(name)
        flat.setdefault(bare if bare not in row else name, value)
    return flat


# ------------------------------------------------------------------------------------------------ tables and histories


def _table(rows: Iterator[Row], stem: str, origin: str) -> Iterator[Logged]:
    """A table of runs, or of the points of one or several runs."""
    head = [_unpacked(row) for row in itertools.islice(rows, _PEEK)]
    names = list(dict.fromkeys(name for row in head for name in row))
    if not head:
        raise ValueError(f"{one_line(origin, 100)}: holds nothing, expected at least one run")
    panel = _panel_columns(names)
    everything: Iterator[Row] = itertools.chain(head, (_unpacked(row) for row in rows))
    if panel:
        yield from _panel(everything, names, origin)
        return
    if {plain_name(name) for name in names} == {"wall_time", "step", "value"}:
        # TensorBoard exports one tag of one run, and names both in the file's name alone.
        everything = ({"step": row.get("Step"), "loss": row.get("Value")} for row in everything)
        yield from _points(everything, "step", None, stem, origin)
        return
    step, run = _step_and_run(head, names)
    if step is None:
        for row in everything:
            yield _with_curves(Logged(_text(row.get(run)) if run else None, row, origin=origin))
        return
    yield from _points(everything, step, run, stem, origin)


def _with_curves(logged: Logged) -> Logged:
    """One row's lists of points as curves: `{"steps": [...], "losses": [...]}`, or a list of `{"step", "value"}`."""
    values = logged.values
    steps, losses = (values.get(f"curve.{name}") for name in ("steps", "losses"))
    if isinstance(steps, list) and isinstance(losses, list) and len(steps) == len(losses):
        del values["curve.steps"], values["curve.losses"]
        values["curve.loss"] = [{"step": step, "value": loss} for step, loss in zip(steps, losses, strict=True)]
    for name, points in list(values.items()):
        if not (is_loss(name) and isinstance(points, list) and points and isinstance(points[0], dict)):
            continue
        del values[name]
        for point in points:
            loss = _loss_value(point.get("value")) if isinstance(point, dict) else None
            step = number_of(point.get("step")) if loss is not None else None
            if loss is not None and step is not None:
                logged.curves.setdefault(name, Curve()).add(step, loss)
    return logged


def _step_and_run(head: list[Row], names: list[str]) -> tuple[str | None, str | None]:
    """The columns that tell a history's step and run; no step where each row is a run of its own."""
    reading = read_names(names)
    step = reading.names.get("step", (None, 0))[0]
    run = _run_column(reading, head)
    if step is None and "iter" in {plain_name(name) for name in names}:
        step = next(name for name in names if plain_name(name) == "iter")
    if step is None:
        return None, run
    groups: dict[Any, list[Row]] = {}
    for row in head:
        groups.setdefault(row.get(run) if run else None, []).append(row)
    several = [rows for rows in groups.values() if len(rows) > 1]
    if not several:
        return None, run
    for rows in several:
        steps = [number_of(row.get(step), counted=True) for row in rows]
        known = [number for number in steps if number is not None]
        if (
            len(known) < len(rows) / 2
            or len(set(known)) < 2
            or (sorted(known) != known and len(set(known)) < len(known) / 2)
        ):
            return None, run
        for quantity in _CONSTANT:
            column = reading.names.get(quantity, (None, 0))[0]
            values = {str(row[column]) for row in rows if column is not None and row.get(column) is not None}
            if len(values) > 1 and not (quantity in ("lr", "tokens") and len(values) > len(rows) / 3):
                return None, run
    return step, run


def _run_column(reading: Any, head: list[Row]) -> str | None:
    column = reading.names.get("name", (None, 0))[0]
    return column if column is not None and any(column in row for row in head) else None


def _points(rows: Iterable[Row], step: str, run: str | None, stem: str, origin: str) -> Iterator[Logged]:
    runs: dict[Any, Logged] = {}
    for row in rows:
        key = row.get(run) if run else None
        if key is None and run and not row.get(step):
            continue
        if key not in runs:
            runs[key] = Logged(_text(key) if run else stem, {}, origin=origin)
        _add_point(runs[key], row, number_of(row.get(step), counted=True))
    yield from runs.values()


def _add_point(logged: Logged, row: Row, step: float | None) -> None:
    logged.points += 1
    # Tables are not always sorted, and a run that starts again goes back: the largest step is the last.
    late = step is None or step >= logged.at
    if step is not None:
        logged.at = max(step, logged.at)
    for name, value in row.items():
        if value is None or value == "":
            continue
        if is_loss(name):
            loss = _loss_value(value)
            if loss is not None:
                logged.curves.setdefault(name, Curve()).add(logged.points if step is None else step, loss)
            continue
        if isinstance(value, float) and math.isnan(value):
            continue
        if _is_rate(name):
            # The largest learning rate that was logged is the peak.
            logged.peaks[name] = max(float(number_of(value) or 0), logged.peaks.get(name, 0.0))
        if logged.values.setdefault(name, value) != value:
            logged.changed.add(name)
            if late:
                logged.values[name] = value


@functools.lru_cache(100_000)
def _is_rate(name: str) -> bool:
    return bool(_RATE.search(plain_name(name)))


@functools.lru_cache(100_000)
def _bare(name: str) -> str:
    return _WRAPPER.sub("", name)


def _configured(logged: Logged, values: Row) -> Logged:
    """The run with its configuration: what that says of a name comes before what was logged under it."""
    values = {name: value for name, value in values.items() if value is not None}
    logged.values.update(values)
    logged.changed -= values.keys()
    for name in values:
        logged.peaks.pop(name, None)
    return logged


def _loss_value(value: Any) -> float | None:
    """A loss, NaN and infinities included, perhaps as text."""
    if isinstance(value, str):
        text = value.strip().lower().lstrip("+")
        if text in ("nan", "inf", "infinity", "-inf", "-infinity"):
            return math.nan
    number = number_of(value)
    if number is not None:
        return float(number)
    return math.nan if isinstance(value, float) else None


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


def _panel_columns(names: list[str]) -> bool:
    """Whether this is W&B's export of a panel: a column for the step, and of each run `RUN - METRIC`."""
    others = [name for name in names[1:] if not re.search(r"__(MIN|MAX)$", name)]
    return bool(others) and all(" - " in name for name in others)


def _panel(rows: Iterable[Row], names: list[str], origin: str) -> Iterator[Logged]:
    step = names[0]
    runs: dict[str, Logged] = {}
    split = {name: name.rpartition(" - ") for name in names[1:] if not re.search(r"__(MIN|MAX)$", name)}
    for row in rows:
        grouped: dict[str, Row] = {}
        for name, (run, _, metric) in split.items():
            value = row.get(name)
            if value is not None:
                grouped.setdefault(run.removeprefix("Group: "), {})[metric] = value
        for run, point in grouped.items():
            logged = runs.setdefault(run, Logged(run, {}, origin=origin))
            point.setdefault("_step", row.get(step))
            _add_point(logged, point, number_of(row.get(step), counted=True))
    yield from runs.values()


def _history_of(history: list[Any], values: Row, stem: str, origin: str) -> Logged:
    """A trainer's state: its log holds rows of training and of evaluation."""
    logged = Logged(stem, {}, origin=origin)
    for row in history:
        if isinstance(row, dict):
            # The mean over the whole run, which the last row gives, is no final loss.
            _add_point(logged, flatten({k: v for k, v in row.items() if k != "train_loss"}), number_of(row.get("step")))
    return _configured(logged, values)


# ------------------------------------------------------------------------------------------------ folders


_RUN_FILES = ("trainer_state.json", "wandb-summary.json", "wandb-metadata.json")
_CONFIG_FILES = ("config.json", "training_args.json", "config.yaml", "hparams.yaml", "args.json", "params.json")
_PASSED = re.compile(
    r"tokenizer|vocab|merges|special_tokens|generation_config|added_tokens|preprocessor|model\.safetensors\.index|"
    r"all_results|train_results|eval_results|adapter_config|wandb-metadata|\.expected\.csv$|requirements|scheduler"
)


def _folder(folder: Path, depth: int = 0) -> Iterator[Logged]:
    """The runs of a folder: its own files as one run if they are a run's, else each file and each folder on its own."""
    if depth > 6:
        return
    entries = sorted(folder.iterdir(), key=lambda entry: entry.name)
    if _is_run(folder):
        yield _run_folder(folder)
        return
    checkpoints = [entry for entry in entries if re.fullmatch(r"checkpoint-\d+", entry.name) and _is_run(entry)]
    if checkpoints:
        newest = max(checkpoints, key=lambda entry: int(entry.name.rpartition("-")[2]))
        logged = _run_folder(newest)
        logged.name, logged.origin = folder.name, str(folder)
        yield logged
        entries = [entry for entry in entries if entry not in checkpoints and not _config(entry)]
    found: list[Logged] = []
    nested = False
    trackio = [entry for entry in entries if entry.name.endswith("_configs.parquet")]
    for entry in entries:
        if entry.is_dir() and not entry.is_symlink() and not entry.name.startswith("."):
            yield from _folder(entry, depth + 1)
            nested = True
        elif entry.is_file() and KINDS.get(entry.suffix.lower()) and not _PASSED.search(entry.name):
            if entry.name.endswith(("_system.parquet", "_configs.parquet")):
                continue
            if any(entry.name == config.name.replace("_configs.parquet", ".parquet") for config in trackio):
                found += _trackio_parquet(entry)
            else:
                found += read_runs(entry)
    yield from _joined(found, folder)
    if depth == 0 and not (nested or found or checkpoints):
        raise ValueError(f"{one_line(folder, 100)}: holds no runs, {_binary(entries)}")


def _binary(entries: list[Path]) -> str:
    """What to do with files of which no other program makes a table."""
    names = " ".join(entry.name for entry in entries)
    if ".wandb" in names:
        return "its .wandb file is binary: `wandb sync` it and export the run as CSV"
    if "events.out.tfevents" in names:
        return "its TensorBoard events are binary: export the scalars as CSV"
    return f"expected files: {', '.join(sorted(KINDS))}"


def _joined(found: list[Logged], folder: Path) -> list[Logged]:
    """A folder's configuration, perhaps in several files, and its only run's history are one run."""
    configs = [logged for logged in found if logged.complete and not logged.points and not logged.curves]
    histories = [logged for logged in found if logged.points and logged.name == _stem(logged.origin)]
    whole = join_configs(configs, folder.name, str(folder)) if len(configs) > 1 else configs[0] if configs else None
    if whole is None or len(configs) + len(histories) < len(found):
        return found
    if not histories:
        return [whole]
    run = Logged(folder.name, {}, origin=str(folder), complete=True)
    for history in histories:
        # Two files may use one name, such as train.csv and val.csv with a column `loss`.
        clashing = len(histories) > 1 and bool({"loss", *run.curves} & history.curves.keys())
        run.curves.update({f"{history.name}.{k}" if clashing else k: v for k, v in history.curves.items()})
        run.values.update(history.values)
        run.changed |= history.changed
        run.peaks.update(history.peaks)
        run.points += history.points
    run.parts = whole.parts
    return [_configured(run, whole.values)]


def join_configs(configs: list[Logged], name: str, origin: str) -> Logged | None:
    """Several files as one run's configuration, such as a model's and its trainer's; None where they are several runs.

    They are one where no two files give one quantity two values, and each adds something that the others lack.
    """
    known: list[dict[str, Any]] = []
    for config in configs:
        reading = read_names(config.values)
        found = {quantity: str(config.values[theirs]) for quantity, (theirs, _) in reading.names.items()}
        found |= {ours: str(config.values[theirs]) for ours, theirs in reading.fields.items()}
        known.append({quantity: value for quantity, value in found.items() if quantity != "name"})
    for i, one in enumerate(known):
        others: dict[str, str] = {k: v for j, other in enumerate(known) if j != i for k, v in other.items()}
        differs = any(others.get(quantity, value) != value for quantity, value in one.items())
        if differs or (one and one.keys() <= others.keys()):
            return None
    values: dict[str, Any] = {}
    for config in configs:
        values = config.values | values
    return Logged(name, values, origin=origin, complete=True, parts=[config.values for config in configs])


def _config(entry: Path) -> bool:
    return entry.name in _CONFIG_FILES


def _is_run(folder: Path) -> bool:
    return any((folder / name).is_file() for name in _RUN_FILES)


def _run_folder(folder: Path) -> Logged:
    """One run of several files: its configuration, its trainer's state, its summary."""
    values: Row = {}
    for name in _CONFIG_FILES:
        if (folder / name).is_file():
            document = read_document(folder / name)
            if isinstance(document, dict):
                values.update(_unpacked({key: value for key, value in document.items() if key != "wandb_version"}))
    name = folder.parent.name if folder.name == "files" else folder.name
    logged = Logged(name, values, origin=str(folder), complete=True)
    state = folder / "trainer_state.json"
    if state.is_file():
        document = read_document(state)
        if not isinstance(document, dict):
            raise ValueError(f"{one_line(state, 100)}: holds no trainer's state, expected a mapping")
        history = document.pop("log_history", [])
        logged = _history_of(
            history if isinstance(history, list) else [], values | flatten(document), name, str(folder)
        )
        logged.complete = bool(values)
    summary = folder / "wandb-summary.json"
    if summary.is_file():
        document = read_document(summary)
        last = _unpacked(document) if isinstance(document, dict) else {}
        logged.values = last | values
        logged.changed |= last.keys() - values.keys()
    return logged


# ------------------------------------------------------------------------------------------------ trackio


def _trackio(path: Path) -> Iterator[Logged]:
    """A trackio project: a database of metrics and configurations."""
    try:
        with sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True) as database:
            tables = {name for (name,) in database.execute("select name from sqlite_master where type = 'table'")}
            if "metrics" not in tables:
                raise ValueError(f"{one_line(path, 100)}: a database without a table of metrics, expected trackio's")
            configs: dict[str, Row] = {}
            if "configs" in tables:
                for name, text in database.execute("select run_name, config from configs"):
                    configs[name] = _json_row(text)
            runs: dict[str, Logged] = {}
            for name, step, text in database.execute(
                "select run_name, step, metrics from metrics order by run_name, step"
            ):
                logged = runs.setdefault(name, Logged(name, {}, origin=str(path)))
                _add_point(logged, {"step": step} | flatten(_json_row(text)), step)
            for name, logged in runs.items():
                yield _configured(logged, flatten(configs.get(name, {})))
    except sqlite3.Error as error:
        raise ValueError(f"{one_line(path, 100)}: a database that cannot be read ({error})") from None


def _json_row(text: Any) -> Row:
    row = json.loads(text) if isinstance(text, str | bytes) else text
    return {name: value for name, value in row.items() if not name.startswith("_")} if isinstance(row, dict) else {}


def _trackio_parquet(path: Path) -> Iterator[Logged]:
    configs = {
        str(row.get("run_name")): _unpacked({k: v for k, v in row.items() if not k.startswith("_")})
        for row in read_rows(path.with_name(path.name.replace(".parquet", "_configs.parquet")))
    }
    for logged in _points((_unpacked(row) for row in read_rows(path)), "step", "run_name", path.stem, str(path)):
        yield _configured(logged, configs.get(str(logged.name), {}))
