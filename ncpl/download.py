"""Repositories of the Hugging Face Hub as local folders, and what the Hub's refusals mean, in one line each."""

from pathlib import Path

import httpx2  # huggingface_hub's own client, whose connection errors it passes on
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from ncpl.errors import HubError

HUB_ERRORS = (HfHubHTTPError, httpx2.TransportError, HFValidationError, OfflineModeIsEnabled)
"""What the Hub's client raises when the Hub cannot be reached or refuses."""
PASSING = (408, 429, 500, 502, 503, 504)
"""HTTP statuses that may be gone a moment later."""


def fetch(path_or_repo: str | Path) -> Path:
    """A folder as it is, or the files of a repository, downloaded.

    Raises:
        HubError: neither a folder nor a repository that can be read.
    """
    if Path(path_or_repo).is_dir():
        return Path(path_or_repo)
    try:
        return Path(snapshot_download(str(path_or_repo)))
    except (*HUB_ERRORS, LocalEntryNotFoundError) as error:
        raise HubError(explain(error, str(path_or_repo))) from error


def explain(error: BaseException, repo_id: str, again: str = "try again") -> str:
    """One line: what happened, what it means for the repository, what to do.

    Args:
        error: one of `HUB_ERRORS`.
        repo_id: the repository that was asked for.
        again: what to do after an error that passes.
    """
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    said = f" ({error.server_message})" if isinstance(error, HfHubHTTPError) and error.server_message else ""
    if status == 401:
        reason = "the Hub does not accept the access token, it is absent, expired or wrong; log in with `hf auth login`"
    elif status == 403:
        reason = f"the access token has no right to write there{said}"
    elif isinstance(error, RevisionNotFoundError):
        reason = f"no such revision{said}"
    elif isinstance(error, RepositoryNotFoundError):
        reason = "no such repository, or the access token cannot see it"
    elif status == 412:
        reason = "somebody else committed while this push was under way, and nothing of it was committed; push again"
    elif status == 429:
        reason = f"the Hub takes no more requests for now; wait, then {again}"
    elif status in PASSING:
        reason = f"the Hub answered {status} repeatedly; {again}"
    elif isinstance(error, httpx2.TransportError):
        reason = f"the connection to {HfApi().endpoint} failed ({type(error).__name__}); {again}"
    else:
        reason = " ".join(str(error).split())
    return f"{repo_id}: {reason}"
