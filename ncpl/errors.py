"""Errors that are a user's to mend. All of them are `ValueError`; anything else that is raised is a bug."""

from text_ncpl import one_line, short

__all__ = ["CheckpointError", "HubError", "one_line", "short"]


class CheckpointError(OSError, ValueError):
    """A checkpoint folder or Hub repository that is missing, incomplete or of another kind of model."""


class HubError(OSError, ValueError):
    """The Hugging Face Hub could not be reached, or refused what was asked."""


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
