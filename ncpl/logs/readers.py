"""What labs have on disk as runs: a table's rows, a history's points, a folder's files, a database.

Every reader streams: of a run it keeps the last value of each column and a thinned curve, so that a log of any size is
read in bounded memory.
"""

import functools
import itertools
import json
import os
import re
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ncpl.errors import one_line
from ncpl.files import STANDARD_INPUT, Row, kind_of, local, read_cells, read_document, read_lines, read_rows
from ncpl.kinds import KINDS
from ncpl.logs.derive import number_of
from ncpl.logs.frameworks import plain_name
from ncpl.logs.points import BLOCK, Curve, Logged, Parse, blocks, is_loss
from ncpl.logs.text_logs import read_text_log
from ncpl.logs.translate import flatten, read_names

_PEEK = 2000
# Quantities of a run that do not change while it trains; a table in which they change holds runs, not points.
_CONSTANT = ("layers", "width", "batch", "seq_len", "params", "params_body", "steps", "tokens", "lr")


def read_runs(path: str | Path) -> Iterator[Logged]:
    """The runs of a file or a folder.

    Raises:
        ValueError: it cannot be read, or holds nothing that is a run; says where.
    """
    if str(path) == "-":
        with local(path) as copy:
            for logged in read_runs(copy):
                logged.origin = STANDARD_INPUT
                yield logged
        return
    # `Path.is_dir` raises where a name is longer than a file's may be.
    if os.path.isdir(path):  # noqa: PTH112
        try:
            yield from _folder(Path(path))
        except OSError as error:
            at = one_line(error.filename or path, 150)
            raise ValueError(f"{at}: cannot be read ({error.strerror or error})") from None
        return
    kind = kind_of(path)
    if kind == "sqlite":
        yield from _trackio(Path(path))
        return
    if kind in ("csv", "jsonl", "parquet"):
        yield from _table(read_rows(path), _stem(path), str(path), path)
        return
    if kind == "log":
        yield _text_log(path)
        return
    document = read_document(path)
    yield from _of_document(document, _stem(path), str(path))


def _text_log(path: str | Path) -> Logged:
    """The run whose training printed this log, with the arguments that it printed."""
    logged, config = Logged(_stem(path), {}, origin=str(path)), {}

    def points() -> Iterator[Row]:
        for part, values in read_text_log(read_lines(path)):
            if part == "config":
                config.update(flatten(values))
            else:
                yield values

    for block in blocks(points()):
        logged.add(block, block.get("step", [None] * len(next(iter(block.values())))))
    logged.complete = bool(config)
    if not logged.points and not config:
        raise ValueError(f"{one_line(path, 100)}: a text without arguments, steps or losses, expected a training's log")
    return logged.configured(config)


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
_NESTED = {"conf", "config", "hyperparameters", "summary"}
_WRAPPER = re.compile(r"^((mlflow|data)\.)?(conf|config|summary|params|metrics|hyperparameters)\.")


def _unpacked(row: Row) -> Row:
    """A row flat, with our own builders' `conf`, perhaps a JSON text, among the columns."""
    for name in _NESTED & row.keys():
        if isinstance(row.get(name), str) and row[name].lstrip().startswith("{"):
            try:
                row = {**row, name: json.loads(row[name])}
            except ValueError:
                continue
    flat = flatten(row)
    bare = _all_bare(tuple(flat))
    return flat if bare is None else dict(zip(bare, flat.values(), strict=True))


@functools.lru_cache(1000)
def _all_bare(names: tuple[str, ...]) -> tuple[str, ...] | None:
    """Names without their wrappers, but where another one has that name; None where none has a wrapper."""
    taken = set(names)
    bare = []
    for name in names:
        short = _bare(name)
        bare.append(name if short in taken else short)
        taken.add(bare[-1])
    return None if tuple(bare) == names else tuple(bare)


# ------------------------------------------------------------------------------------------------ tables and histories


def _table(rows: Iterator[Row], stem: str, origin: str, path: str | Path | None = None) -> Iterator[Logged]:
    """A table of runs, or of the points of one or several runs, which are read again from `path` by columns."""
    head = [_unpacked(row) for row in itertools.islice(rows, _PEEK)]
    names = list(dict.fromkeys(name for row in head for name in row))
    if not head:
        raise ValueError(f"{one_line(origin, 100)}: holds nothing, expected at least one run")
    everything: Iterator[Row] = itertools.chain(head, (_unpacked(row) for row in rows))
    if _panel_columns(names):
        columns, parse = _columns(path, everything)
        yield from _panel(columns, names, origin, parse)
        return
    if {plain_name(name) for name in names} == {"wall_time", "step", "value"}:
        # TensorBoard exports one tag of one run, and names both in the file's name alone.
        points = ({"step": row.get("Step"), "loss": row.get("Value")} for row in everything)
        yield from _points(blocks(points), "step", None, stem, origin)
        return
    step, run = _step_and_run(head, names)
    if step is None:
        for row in everything:
            yield _with_curves(Logged(_text(row.get(run)) if run else None, row, origin=origin))
        return
    columns, parse = _columns(path, everything)
    yield from _points(columns, step, run, stem, origin, parse)


def _columns(
    path: str | Path | None, rows: Iterator[Row]
) -> tuple[Iterable[dict[str, list[Any]]], Callable[[Any], Any] | None]:
    """A history in blocks of columns, and what makes a value of a cell: a CSV file's cells stay text."""
    if path is None or kind_of(path) != "csv":
        return blocks(rows), None
    header, parse, cells = read_cells(path, BLOCK)
    if any(name in _NESTED or (_bare(name) in header and _bare(name) != name) for name in header):
        return blocks(rows), None
    return ({_bare(name): column for name, column in block.items()} for block in cells), parse


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
            loss = number_of(point.get("value")) if isinstance(point, dict) else None
            step = number_of(point.get("step")) if loss is not None else None
            if loss is not None and step is not None:
                logged.curves.setdefault(name, Curve()).add([step], [loss])
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


def _points(
    blocks_of: Iterable[dict[str, list[Any]]],
    step: str,
    run: str | None,
    stem: str,
    origin: str,
    parse: Parse | None = None,
) -> Iterator[Logged]:
    """The runs of a history, whose points come in blocks of columns; a column may tell which run a point is of."""
    runs: dict[Any, Logged] = {}
    for block in blocks_of:
        steps = block.get(step) or [None] * len(next(iter(block.values())))
        keys = block.get(run) if run else None
        for key, rows in _by_key(keys, len(steps)).items():
            if run:
                key = _value_of(key, parse)
            found = block if len(rows) == len(steps) else {n: [cells[i] for i in rows] for n, cells in block.items()}
            at = steps if len(rows) == len(steps) else [steps[i] for i in rows]
            if key is None and run and all(_value_of(cell, parse) is None for cell in at):
                continue
            if key not in runs:
                runs[key] = Logged(_text(key) if run else stem, {}, origin=origin)
            runs[key].add(found, at, parse)
    yield from runs.values()


def _by_key(keys: list[Any] | None, count: int) -> dict[Any, Sequence[int]]:
    """Of each run the places of its points in a block."""
    if keys is None:
        return {None: range(count)}
    groups: dict[Any, list[int]] = {}
    for i, key in enumerate(keys):
        groups.setdefault(str(key) if isinstance(key, list | dict) else key, []).append(i)
    return dict(groups)


def _value_of(cell: Any, parse: Parse | None) -> Any:
    return cell if parse is None or cell is None else parse(cell)


@functools.lru_cache(100_000)
def _bare(name: str) -> str:
    return _WRAPPER.sub("", name)


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


def _panel_columns(names: list[str]) -> bool:
    """Whether this is W&B's export of a panel: a column for the step, and of each run `RUN - METRIC`."""
    others = [name for name in names[1:] if not re.search(r"__(MIN|MAX)$", name)]
    return bool(others) and all(" - " in name for name in others)


def _panel(
    blocks_of: Iterable[dict[str, list[Any]]], names: list[str], origin: str, parse: Parse | None = None
) -> Iterator[Logged]:
    runs: dict[str, dict[str, str]] = {}
    for name in names[1:]:
        if not re.search(r"__(MIN|MAX)$", name):
            run, _, metric = name.rpartition(" - ")
            runs.setdefault(run.removeprefix("Group: "), {})[metric] = name
    logged = {run: Logged(run, {}, origin=origin) for run in runs}
    for block in blocks_of:
        steps = block[names[0]]
        for run, metrics in runs.items():
            columns = {metric: block[name] for metric, name in metrics.items() if name in block}
            # A panel's rows are all runs' steps; a run has values in its own.
            cells = enumerate(zip(*columns.values(), strict=True))
            rows = [i for i, row in cells if any(cell not in (None, "") for cell in row)]
            if rows:
                own = {metric: [column[i] for i in rows] for metric, column in columns.items()}
                at = [steps[i] for i in rows]
                logged[run].add({"_step": at} | own, at, parse)
    yield from (run for run in logged.values() if run.points)


def _history_of(history: list[Any], values: Row, stem: str, origin: str) -> Logged:
    """A trainer's state: its log holds rows of training and of evaluation."""
    logged, points = Logged(stem, {}, origin=origin), []
    for row in history:
        if isinstance(row, dict):
            # The mean over the whole run, which the last row gives, is no final loss.
            points.append(flatten({name: value for name, value in row.items() if name != "train_loss"}))
    for block in blocks(points):
        logged.add(block, block.get("step", [None] * len(next(iter(block.values())))))
    return logged.configured(values)


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
            elif KINDS[entry.suffix.lower()] in ("log", "python", "shell"):
                # A folder of runs holds programs and their own logs too.
                found += _of_a_training(entry)
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


def _of_a_training(path: Path) -> list[Logged]:
    """The run of a text log, a script or a program; nothing where it is of something else."""
    try:
        found = list(read_runs(path))
    except ValueError:
        return []
    return [logged for logged in found if logged.curves or len(read_names(logged.values).names) > 2]


def _joined(found: list[Logged], folder: Path) -> list[Logged]:
    """A folder's configuration, perhaps in several files, and its only run's history are one run."""
    configs = [logged for logged in found if logged.complete and not logged.points and not logged.curves]
    origins = Counter(logged.origin for logged in found)
    histories = [
        logged
        for logged in found
        if (logged.points and logged.name == _stem(logged.origin))
        # One point alone looks like a table of one run.
        or (not logged.complete and logged.name is None and origins[logged.origin] == 1)
    ]
    whole = join_configs(configs, folder.name, str(folder)) if len(configs) > 1 else configs[0] if configs else None
    if whole is None or len(configs) + len(histories) < len(found):
        return found
    if not histories:
        return [whole]
    run = Logged(folder.name, {}, origin=str(folder), complete=True)
    for history in histories:
        # Two files may use one name, such as train.csv and val.csv with a column `loss`.
        clashing = len(histories) > 1 and bool({"loss", *run.curves} & history.curves.keys())
        run.curves.update({f"{_stem(history.origin)}.{k}" if clashing else k: v for k, v in history.curves.items()})
        run.values.update(history.values)
        run.changed |= history.changed
        run.peaks.update(history.peaks)
        run.points += history.points
    run.parts = whole.parts
    return [run.configured(whole.values)]


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
            points = database.execute("select run_name, step, metrics from metrics order by run_name, step")
            rows = ({"run_name": name, "step": step} | flatten(_json_row(text)) for name, step, text in points)
            for logged in _points(blocks(rows), "step", "run_name", path.stem, str(path)):
                name = str(logged.name)
                logged.values.pop("run_name", None)
                yield logged.configured(flatten(configs.get(name, {})))
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
    points = blocks(_unpacked(row) for row in read_rows(path))
    for logged in _points(points, "step", "run_name", path.stem, str(path)):
        yield logged.configured(configs.get(str(logged.name), {}))
