"""Errors that are a user's to mend. All of them are `ValueError`; anything else that is raised is a bug."""

import os
from pathlib import Path

from text_ncpl import one_line, short

__all__ = ["CheckpointError", "HubError", "as_path", "new_folder", "one_line", "short"]


class CheckpointError(OSError, ValueError):
    """A checkpoint folder or Hub repository that is missing, incomplete or of another kind of model."""


class HubError(OSError, ValueError):
    """The Hugging Face Hub could not be reached, or refused what was asked."""


def as_path(given: object, name: str, accepted: str) -> Path:
    """A path that a user gives.

    Args:
        given: text or a path.
        name: what it is the path of.
        accepted: what it may be.

    Raises:
        ValueError: something else, or empty text.

    >>> as_path("runs.csv", "runs", "a file").name
    'runs.csv'
    """
    if not isinstance(given, str | os.PathLike) or not str(given).strip():
        raise ValueError(f"{name}: got {short(given)} ({type(given).__name__}), expected {accepted}")
    return Path(given)


def new_folder(given: object, name: str) -> Path:
    """The path of a folder that is to be written, absent or empty.

    Args:
        given: text or a path.
        name: what it is the path of.

    Raises:
        ValueError: something else, or a folder that holds something.

    >>> new_folder("no-such-folder", "out").name
    'no-such-folder'
    """
    path = as_path(given, name, "the path of a folder, absent or empty")
    try:
        taken = path.exists() and (not path.is_dir() or any(path.iterdir()))
    except OSError as error:
        raise ValueError(f"{name}: {one_line(path, 120)}: cannot be written ({error.strerror})") from None
    if taken:
        raise ValueError(f"{one_line(path, 120)}: holds something already, expected a folder that is absent or empty")
    return path


class TrainingError(ValueError):
    """A training that cannot go on: a loss that is not finite, a disk that is full."""


class Stopped(Exception):  # noqa: N818
    """A training that was asked to stop, has written a checkpoint, and can be resumed.

    Args:
        message: where it stopped.
        signal: number of the signal that asked.
    """

    def __init__(self, message: str, signal: int) -> None:
        super().__init__(message)
        self.signal = signal
