"""Files that are verified before they are used: hash manifests of folders, and JSON that carries its own hash."""

import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from ncpl.errors import TrainingError

MANIFEST = "manifest.json"


def write_json(file: Path, data: Any) -> None:
    """Writes JSON in one piece: a reader sees the old file or the new one, whole."""
    write_text(file, json.dumps(_strict(data), indent=2, allow_nan=False) + "\n")


def write_text(file: Path, text: str) -> None:
    """Writes text in one piece: a reader sees the old file or the new one, whole."""
    part = file.with_name(file.name + ".part")
    with part.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    part.replace(file)


def write_hashed(file: Path, data: Any) -> None:
    """Writes JSON beside its SHA-256, for `read_hashed`."""
    data = _strict(data)
    write_json(file, {"sha256": _hash_json(data), "data": data})


def read_hashed(file: Path) -> Any | None:
    """What `write_hashed` wrote; None where there is no such file, or where it is not as it was written.

    >>> read_hashed(Path("/nonexistent")) is None
    True
    """
    try:
        stored = json.loads(file.read_bytes())
        return stored["data"] if stored["sha256"] == _hash_json(stored["data"]) else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _hash_json(data: Any) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


def _strict(data: Any) -> Any:
    """JSON has no NaN: null stands for a figure that is not defined."""
    if isinstance(data, Mapping):
        return {key: _strict(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_strict(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns a failure to write below a path into one line; what was written before stays for resuming.

    Raises:
        TrainingError: the disk is full, read-only or broken.
    """
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        text = " ".join(str(error).split())
        # torch and safetensors raise errors of their own, of which only the text says that the system refused a write.
        if not isinstance(error, OSError) and not re.search(
            r"I/O error|os error|writ(e|ing)|iostream|unexpected pos", text
        ):
            raise
        free = shutil.disk_usage(path.parent).free / 2**20 if path.parent.exists() else 0
        raise TrainingError(
            f"{path} could not be written ({text[:100]}; {free:,.0f} MiB are free); once it can be, the same command "
            "resumes from the last whole checkpoint"
        ) from error


def hash_file(file: Path) -> str:
    """SHA-256 of a file's contents."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_manifest(folder: Path) -> None:
    """Lists every file of a folder with its SHA-256 in `manifest.json`; a folder without one is cut short."""
    write_hashed(folder / MANIFEST, hash_files(folder))


def hash_files(folder: Path) -> dict[str, str]:
    """Path below the folder -> SHA-256, of every file but the manifest."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    return {path.relative_to(folder).as_posix(): hash_file(path) for path in files}


def damage(folder: Path) -> str | None:
    """What is wrong with a folder that `write_manifest` has listed, in words; None where it is whole.

    >>> damage(Path("/nonexistent"))
    'it was not written to its end'
    """
    if not (folder / MANIFEST).exists():
        return "it was not written to its end"
    listed = read_hashed(folder / MANIFEST)
    if listed is None:
        return f"{MANIFEST} is damaged"
    return altered(folder, listed)


def altered(folder: Path, hashes: Mapping[str, str]) -> str | None:
    """The first file of a folder that is missing or not as its hash says, in words; None where all are."""
    for name, expected in hashes.items():
        if not (folder / name).is_file():
            return f"{name} is missing"
        if hash_file(folder / name) != expected:
            return f"{name} is damaged"
    return None


def checkpoints(folder: Path) -> list[Path]:
    """A stage's checkpoints, the newest first; what is only called alike is none.

    >>> checkpoints(Path("/nonexistent"))
    []
    """
    found = [path for path in folder.glob("checkpoint-*") if path.is_dir() and _step(path) is not None]
    return sorted(found, key=lambda path: -(_step(path) or 0))


def _step(checkpoint: Path) -> int | None:
    digits = checkpoint.name.removeprefix("checkpoint-")
    return int(digits) if digits.isdecimal() and digits.isascii() else None


def newest_whole(folder: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint that is whole, as is the best one that it names, whose weights the stage may end with.

    Args:
        folder: of the stage.

    Returns:
        the checkpoint, or None where the stage starts anew; and what is wrong with those that were passed over.
    """
    problems: list[str] = []
    for checkpoint in checkpoints(folder):
        wrong = damage(checkpoint)
        if wrong is None:
            state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
            best = folder / f"checkpoint-{state['best_global_step']}"
            if state["best_global_step"] and best != checkpoint and (of_best := damage(best)):
                wrong = f"{best.name}, the best before it: {of_best}"
        if wrong is None:
            return checkpoint, problems
        problems.append(f"{checkpoint.name}: {wrong}")
    return None, problems
