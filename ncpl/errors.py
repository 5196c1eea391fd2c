"""Errors that are a user's to mend. All of them are `ValueError`; anything else that is raised is a bug."""


class CheckpointError(OSError, ValueError):
    """A checkpoint folder or Hub repository that is missing, incomplete or of another kind of model."""


class HubError(OSError, ValueError):
    """The Hugging Face Hub could not be reached, or refused what was asked."""
