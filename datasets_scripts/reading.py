"""Run logs as checked rows: JSON files read strictly, every run checked, its split and status assigned."""

import functools
import gzip
import hashlib
import json
import math
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import fsspec  # type: ignore[import-untyped]

from datasets_scripts.divergence import DIVERGED_NATS, diverged
from fields_ncpl import FIELDS
from text_ncpl import did_you_mean, short

SPLITS = ("train", "in_val", "ood_val")
UNSTABLE = "unstable"

COLUMNS = {
    "name": "run name, unique within its source",
    "source": "log the run comes from; losses of two sources do not compare",
    "conf": "the configuration: an ordered JSON object field -> value, in the order of the training prompts",
    "max_step": "optimizer steps of the whole run",
    "final_loss": "loss at the last step, nats per token; null: NaN",
    "curve": "in configuration 'intermediate': steps (optimizer steps) and losses (nats per token); null: not logged",
    "status": f"'finished'; 'diverged': final_loss is null or more than {DIVERGED_NATS} nats above the best run of the "
    "same source, model size (total and active) and data size; 'unstable': not diverged, but in no split",
    "split": "'train', 'in_val' or 'ood_val' (models larger than any in train; of mixtures of experts, by active "
    "parameters); 'unstable': of no split",
}
"""Column -> what it holds, with its unit."""

_REQUIRED = ("name", "source", "conf", "max_step", "final_loss")
_CURVE_KEYS = {"c4en_steps", "c4en_losses", "smoothed_loss_steps", "smoothed_loss"}


class MissingRunsError(ValueError):
    """A folder does not hold the runs of a source."""


def local_files(
    data_dir: str, names: Mapping[str, str], subfolders: Sequence[str], required: Sequence[str]
) -> dict[str, str]:
    """Role -> path of the files, or their gzips, that lie in a folder or one of its subfolders beside the runs.

    Args:
        data_dir: the folder.
        names: role -> file name; `runs` is among them.
        subfolders: where to look after the folder itself.
        required: roles without which the source cannot be read.

    Raises:
        MissingRunsError: the file of the role `runs` is in none of the folders.
        ValueError: there is no such folder, or another file is missing.
    """
    if not Path(data_dir).is_dir():
        raise ValueError(f"data_dir: {data_dir} is not a folder; accepted: a folder that holds {names['runs']}")
    folders = [Path(data_dir), *(Path(data_dir) / name for name in subfolders)]
    found = {
        folder: {role: path for role, name in names.items() if (path := _present(folder / name))} for folder in folders
    }
    files = next((files for files in found.values() if "runs" in files), {})
    for role in required:
        if role not in files:
            there = sorted(path.name for folder in folders if folder.is_dir() for path in folder.iterdir())
            error = MissingRunsError if role == "runs" else ValueError
            raise error(
                f"data_dir: no {names[role]} (or {names[role]}.gz) in {' or '.join(map(str, folders))}, which "
                f"hold {short(there[:8]) if there else 'nothing'}{did_you_mean(names[role], there)}"
            )
    return files


def check_runs(
    source: str, contents: Mapping[str, Any], files: Mapping[str, str], curve_keys: tuple[str, str] | None = None
) -> tuple[dict[str, list[dict[str, Any]]], list[str]]:
    """Check what a source's files hold, and turn it into rows.

    Args:
        source: what every run's `source` must be.
        contents: as `RunsBuilder.read_files` gives them: `runs`, `splits` and perhaps `unstable`.
        files: role -> file that they come from, for messages; a role that is not there comes from the one of `runs`.
        curve_keys: a run's keys of the curve's steps and losses; None leaves curves out.

    Returns:
        Split -> rows (`COLUMNS`, `conf` as a dict), in the order of the split file; and what a reader has to know about
        runs and names that are in no row or not where one expects them.

    Raises:
        ValueError: a file is malformed; says which, the run, the field, what came and what is accepted.

    >>> from datasets_scripts import SAMPLE_DIR
    >>> from datasets_scripts.marin import Marin
    >>> files = Marin.find_files(str(SAMPLE_DIR))
    >>> rows, notes = check_runs("marin", {role: read_json(file, file) for role, file in files.items()}, files)
    >>> list(rows), notes
    (['train', 'in_val', 'ood_val', 'unstable'], [])
    """
    files = {role: files.get(role, files["runs"]) for role in contents}
    rows, unread = _read_rows(source, contents, files, curve_keys)
    notes = _assign_splits(rows, contents["splits"], files)
    _assign_statuses(list(rows.values()))
    regular = [row for row in rows.values() if row["split"] != UNSTABLE]
    _check_losses(regular)
    if late := sum(row["status"] == "diverged" for row in regular):
        notes.append(
            f"{late} of the {len(regular)} runs of the official split diverged by the rule of {DIVERGED_NATS} nats"
        )
    if curve_keys and (bare := sum(row["curve"] is None for row in rows.values())):
        notes.append(
            f"{bare} of {len(rows)} runs have no curve ({curve_keys[0]}, {curve_keys[1]}): their curve is null"
        )
    if unread:
        notes.append("keys of runs that are not read: " + ", ".join(f"{key!r} ({n} runs)" for key, n in unread.items()))

    by_split: dict[str, list[dict[str, Any]]] = {split: [] for split in (*SPLITS, UNSTABLE)}
    for row in sorted(rows.values(), key=lambda row: row["rank"]):
        by_split[row["split"]].append({name: row[name] for name in COLUMNS})
    return by_split, notes


def _read_rows(
    source: str, contents: Mapping[str, Any], files: Mapping[str, str], curve_keys: tuple[str, str] | None
) -> tuple[dict[str, dict[str, Any]], Counter[str]]:
    """Name -> checked run without its split and status, and how many runs hold each key that is not read."""
    rows: dict[str, dict[str, Any]] = {}
    unread: Counter[str] = Counter()
    for role in ("runs", "unstable"):
        if role not in contents:
            continue
        entries = contents[role]
        if not isinstance(entries, list) or (role == "runs" and not entries):
            raise _bad(files[role], "the file", entries, "a JSON array of runs" + (", at least one" * (role == "runs")))
        for index, entry in enumerate(entries):
            row = _read_run(entry, index, files[role], source, curve_keys)
            if row["name"] in rows:
                first = rows[row["name"]]["file"]
                raise ValueError(
                    f"{files[role]}: run {row['name']!r} is there twice (first in {first}); accepted: unique names"
                )
            rows[row["name"]] = row | {"role": role, "file": files[role], "split": UNSTABLE}
            unread.update(set(entry) - set(_REQUIRED) - _CURVE_KEYS - {"note"})
    return rows, unread


def _assign_splits(rows: dict[str, dict[str, Any]], keys: Any, files: Mapping[str, str]) -> list[str]:
    """Sets each row's `split`, and its `rank` in it; returns the notes."""
    file, notes = files["splits"], []
    if not isinstance(keys, dict):
        raise _bad(file, "the file", keys, f"a JSON object with the keys {list(SPLITS)}")
    for row in rows.values():
        row["rank"] = len(rows)
    named: dict[str, str] = {}
    for split in SPLITS:
        if split not in keys:
            raise ValueError(f"{file}: key {split!r} is missing; accepted: {list(SPLITS)}{did_you_mean(split, keys)}")
        names = keys[split]
        if not isinstance(names, list) or not names:
            raise _bad(file, split, names, "a list of at least one run name")
        absent = 0
        for rank, name in enumerate(names):
            if not isinstance(name, str):
                raise _bad(file, f"{split}[{rank}]", name, "a run name")
            if name in named:
                raise ValueError(
                    f"{file}: run {name!r} is named twice (in {named[name]!r} and {split!r}); accepted: once"
                )
            named[name] = split
            if name not in rows:
                absent += 1
                continue
            if rows[name]["role"] == "unstable":
                raise ValueError(
                    f"{file}: {split!r} names run {name!r}, which {rows[name]['file']} holds as a run of no split"
                )
            rows[name] |= {"split": split, "rank": rank}
        if absent == len(names):
            raise ValueError(
                f"{file}: none of the {absent} names of {split!r} has a run in {files['runs']} (first: {names[0]!r})"
            )
        if absent:
            notes.append(
                f"{absent} of the {len(names)} names of {split!r} have no run in {Path(files['runs']).name}: skipped"
            )

    for key in set(keys) - set(SPLITS) - {"note"}:
        notes.append(f"key {key!r} of {Path(file).name} is no split of {list(SPLITS)}: its runs are in 'unstable'")
    loose = sum(row["split"] == UNSTABLE and row["role"] == "runs" for row in rows.values())
    if "unstable" not in files:
        notes.append(f"there is no file of unstable runs: 'unstable' holds the {loose} runs that no split names")
    elif loose:
        notes.append(f"{loose} runs of {Path(files['runs']).name} are named by no split: they are in 'unstable'")
    return notes


def _assign_statuses(rows: Sequence[dict[str, Any]]) -> None:
    """Sets each row's `status`."""
    for row, lost in zip(rows, diverged(rows), strict=True):
        stays = UNSTABLE if row["split"] == UNSTABLE else "finished"
        row["status"] = "diverged" if lost else stays


def _check_losses(rows: list[dict[str, Any]]) -> None:
    """Only runs of no split may have lost their loss: a null is no target, and a split is whole."""
    for row in rows:
        where, accepted = (
            f"{row['file']}: run {row['name']!r} of split {row['split']!r}",
            "a positive number (nats per token)",
        )
        if row["final_loss"] is None:
            raise _bad(where, "final_loss", None, f"{accepted}; null or NaN in runs of no split alone")
        if row["curve"] and None in row["curve"]["losses"]:
            raise _bad(
                where,
                f"loss {row['curve']['losses'].index(None)} of the curve",
                None,
                f"{accepted}; null or NaN in runs of no split alone",
            )


def _read_run(run: Any, index: int, file: str, source: str, curve_keys: tuple[str, str] | None) -> dict[str, Any]:
    """One checked run, without `split` and `status`."""
    if not isinstance(run, dict):
        raise _bad(f"{file}: run number {index}", "the run", run, f"an object with the keys {list(_REQUIRED)}")
    where = f"{file}: run {run['name']!r}" if "name" in run else f"{file}: run number {index}"
    for key in _REQUIRED:
        if key not in run:
            raise ValueError(f"{where}: key {key!r} is missing (it has {short(list(run))}){did_you_mean(key, run)}")
    name, conf, max_step = run["name"], run["conf"], run["max_step"]
    if not isinstance(name, str) or not name:
        raise _bad(where, "name", name, "a text that is not empty")
    if run["source"] != source:
        raise _bad(where, "source", run["source"], repr(source))
    if not isinstance(conf, dict):
        raise _bad(where, "conf", conf, "an object of fields and values")
    for field, value in conf.items():
        if not (value is None or isinstance(value, str | bool | int) or _is_finite(value)):
            raise _bad(where, f"conf[{field!r}]", value, "a text, a finite number, true, false or null")
    for field in ("model size", "data size"):
        if field not in conf:
            raise ValueError(f"{where}: conf has no {field!r} (it has {short(list(conf))}){did_you_mean(field, conf)}")
        if not _is_finite(conf[field]) or conf[field] <= 0:
            raise _bad(where, f"conf[{field!r}]", conf[field], f"a positive number ({FIELDS[field].unit})")
    if not _is_finite(max_step) or not 0 < max_step < 2**53 or max_step != int(max_step):
        raise _bad(where, "max_step", max_step, "a positive whole number (optimizer steps)")
    return {
        "name": name,
        "source": source,
        "conf": conf,
        "max_step": int(max_step),
        "final_loss": _read_loss(where, "final_loss", run["final_loss"]),
        "curve": _read_curve(run, where, *curve_keys) if curve_keys else None,
    }


def _read_curve(run: Mapping[str, Any], where: str, steps_key: str, losses_key: str) -> dict[str, list[Any]] | None:
    steps: Any = run.get(steps_key)
    losses: Any = run.get(losses_key)
    if steps is None and losses is None:
        return None
    for key, values in ((steps_key, steps), (losses_key, losses)):
        if not isinstance(values, list):
            raise _bad(where, key, values, f"a list of numbers; {steps_key} and {losses_key} come together")
    if len(steps) != len(losses):
        raise ValueError(
            f"{where}: {steps_key} has {len(steps)} points and {losses_key} {len(losses)}; accepted: equal lengths"
        )
    for i, step in enumerate(steps):
        if not _is_finite(step) or step < 0:
            raise _bad(where, f"{steps_key}[{i}]", step, "a number from 0 up (optimizer steps)")
        if i and step <= steps[i - 1]:
            raise _bad(where, f"{steps_key}[{i}]", step, f"more than the step before it, {steps[i - 1]}")
    if not steps:
        return None
    return {
        "steps": [float(step) for step in steps],
        "losses": [_read_loss(where, f"{losses_key}[{i}]", loss) for i, loss in enumerate(losses)],
    }


def _read_loss(where: str, key: str, loss: Any) -> float | None:
    if loss is None or (isinstance(loss, float) and not math.isfinite(loss)):
        return None
    if not _is_finite(loss) or loss <= 0:
        raise _bad(where, key, loss, "a positive number (nats per token), null or NaN")
    return float(loss)


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < math.inf


def _present(path: Path) -> str | None:
    """The file itself or its gzip."""
    return next((str(p) for p in (path, path.with_name(path.name + ".gz")) if p.is_file()), None)


def read_bytes(path: str, file: str) -> bytes:
    """The content of a file or of its gzip; `file` is what messages call it.

    Raises:
        ValueError: a gzip that is not whole.
    """
    try:
        with fsspec.open(path, "rb", compression="infer") as stream:
            return stream.read()
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{file}: not a whole gzip file ({error}); it is truncated or malformed") from error


def read_text(path: str, file: str, kind: str) -> str:
    """The text of a file or its gzip; `file` and `kind` are what messages call it.

    Raises:
        ValueError: a gzip that is not whole, or no UTF-8.
    """
    try:
        return read_bytes(path, file).decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: not UTF-8 text ({error}); accepted: {kind}, or {kind} in a .gz") from error


def read_json(path: str, file: str) -> Any:
    """The content of a JSON file or its gzip; `file` is what messages call it.

    Raises:
        ValueError: no whole JSON, or a key given twice in one object.
    """
    text = read_text(path, file, "JSON")
    try:
        return json.loads(text, object_pairs_hook=functools.partial(_unique_keys, file))
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{file}: not whole JSON, it is truncated or malformed: {error.msg} at line {error.lineno} column "
            f"{error.colno} (character {error.pos} of {len(text)}, after {text[max(0, error.pos - 40) : error.pos]!r})"
        ) from error


def _unique_keys(file: str, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """`json` would keep the last of two equal keys and say nothing."""
    result = dict(pairs)
    if len(result) < len(pairs):
        key = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ValueError(
            f"{file}: key {key!r} is there twice in one object: {str(result)[:120]}; accepted: unique keys"
        )
    return result


def hash_files(files: Mapping[str, str], paths: Mapping[str, str]) -> str:
    """SHA-256 of the contents of files; a gzip counts as what it holds."""
    digest = hashlib.sha256()
    for role, file in files.items():
        digest.update(role.encode() + hashlib.sha256(read_bytes(paths[role], file)).digest())
    return digest.hexdigest()


def _bad(where: str, field: str, value: Any, accepted: str) -> ValueError:
    return ValueError(f"{where}: {field} is {short(value)} ({type(value).__name__}); accepted: {accepted}")
