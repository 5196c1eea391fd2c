"""Checkpoints of the forecaster on disk: where they lie, and the law that they carry.

The law is read without torch and transformers, which only a network that adds something to it needs.
"""

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from safetensors.numpy import save_file

from calibration_ncpl import Calibration
from checkpoint_ncpl import ARRAYS, SETTINGS, head_is_zero, read_json, read_law, read_settings
from embedded_ncpl import EMBEDDED, resolve
from ncpl.errors import CheckpointError
from text_ncpl import one_line, short
from upgrade_ncpl import split_arrays

DEFAULT = Path(__file__).parent / "checkpoints" / "ncpl-mini"
# The embedded predictor of benchmark scores.
PREDICTOR = "nsp-base"


@dataclass(frozen=True)
class Checkpoint:
    """What is read of a checkpoint without its network.

    Args:
        folder: where it lies.
        law: the prior law; configurations -> losses in nats per token.
        calibration: None where it has none.
        strict: whether unknown fields and implausible values are errors (`fields_ncpl.check_config`).
        law_alone: whether forecasts are the law's alone, because its network adds nothing.
    """

    folder: Path
    law: Any
    calibration: Calibration | None
    strict: bool
    law_alone: bool


def find(path_or_repo: str | Path | None = None, **hub: Any) -> Path:
    """The folder of a checkpoint: as given, embedded under this name, or downloaded from the Hub.

    Args:
        path_or_repo: a folder, the name of an embedded checkpoint, or a Hub id; the embedded default when absent.
        hub: what `huggingface_hub.snapshot_download` takes: `revision`, `token`, `cache_dir`, `local_files_only`, ...

    Raises:
        CheckpointError: there is no such checkpoint.

    >>> find("ncpl-mini") == find()
    True
    """
    if path_or_repo is None:
        return DEFAULT
    accepted = f"accepted: a checkpoint's folder or a Hub id (owner/name), or {', '.join(EMBEDDED)}"
    if not isinstance(path_or_repo, str | os.PathLike) or not str(path_or_repo).strip():
        raise CheckpointError(f"checkpoint: got {short(path_or_repo)} ({type(path_or_repo).__name__}); {accepted}")
    path = str(resolve(str(path_or_repo)))
    # `Path.exists` raises where a name is longer than a file's may be.
    if os.path.isdir(path):  # noqa: PTH112
        return Path(path)
    if os.path.exists(path):  # noqa: PTH110
        raise CheckpointError(f"{one_line(path, 120)}: a file, no checkpoint's folder; {accepted}")
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", path):
        raise CheckpointError(f"{one_line(path, 120)}: no such folder; {accepted}")
    # Only here, because it brings the Hub's client.
    from ncpl.download import fetch

    with errors(path):
        return fetch(path, **hub)


def read(folder: str | Path) -> Checkpoint:
    """The law of a checkpoint, and whether its network adds anything to it.

    Args:
        folder: of the checkpoint.

    Raises:
        CheckpointError: it is incomplete, damaged, or of another kind of model.

    >>> read(DEFAULT).law_alone
    True
    """
    folder = Path(folder)
    with errors(str(folder)):
        state = read_settings(folder)
    with errors(f"{folder}: its law"):
        law, calibration = read_law(folder)
    with errors(f"{folder}: its weights"):
        law_alone = head_is_zero(folder)
    return Checkpoint(folder, law, calibration, bool(state.get("strict", True)), law_alone)


def save_law(checkpoint: Path, folder: Path, law: Any, calibration: Calibration | None) -> None:
    """A copy of a checkpoint that carries another law.

    Args:
        checkpoint: folder whose network, tokenizer and code are copied.
        folder: receives the checkpoint.
        law, calibration: what it carries.

    Raises:
        CheckpointError: the folder cannot be written.
    """
    try:
        _save_law(checkpoint, folder, law, calibration)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise CheckpointError(one_line(f"{one_line(folder, 150)}: cannot be written ({reason})")) from None


def _save_law(checkpoint: Path, folder: Path, law: Any, calibration: Calibration | None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    kept = [
        *checkpoint.glob("*.py"),
        *checkpoint.glob("model*.safetensors"),
        *checkpoint.glob("tokenizer*"),
        *checkpoint.glob("curves.safetensors"),
    ]
    for file in [*kept, checkpoint / "config.json"]:
        # Onto the folder that it was read from, its own files stay.
        if file.resolve() != (folder / file.name).resolve():
            shutil.copyfile(file, folder / file.name)
    arrays: dict[str, np.ndarray] = {}
    state = read_json(checkpoint / SETTINGS) | {
        "prior": split_arrays(law.to_dict(), "prior", arrays),
        "calibration": None,
    }
    if calibration is not None:
        of_its_own = calibration.to_dict(with_law=calibration.law is not law)
        state["calibration"] = split_arrays(of_its_own, "calibration", arrays)
    save_file(arrays, folder / ARRAYS)
    (folder / SETTINGS).write_text(json.dumps(state, indent=2, sort_keys=True) + "\n", encoding="utf-8")


@contextmanager
def errors(what: str) -> Iterator[None]:
    """Says of which part of a checkpoint an error speaks, in one line."""
    try:
        yield
    except CheckpointError:
        raise
    except (
        OSError,
        ValueError,
        TypeError,
        LookupError,
        AttributeError,
        RecursionError,
        SafetensorError,
        StrictDataclassError,
    ) as error:
        said = f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else str(error)
        raise CheckpointError(one_line(f"{what}: {said.removeprefix(f'{what}: ')}", 290)) from error
