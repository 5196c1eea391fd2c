"""Repositories of the Hugging Face Hub as local folders, and what the Hub's refusals mean, in one line each."""

import json
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import httpx2  # huggingface_hub's own client, whose connection errors it passes on
from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from ncpl.errors import HubError
from text_ncpl import warn_user

T = TypeVar("T")

PASSING = (408, 429, 500, 502, 503, 504)
"""HTTP statuses that may be gone a moment later."""
PATIENCE = 120.0
"""Seconds that any work with the Hub may take, besides those for its bytes."""
SLOWEST = 50_000
"""Bytes per second below which a transfer is given up."""


class HubTimeoutError(TimeoutError):
    """The Hub answers, but so slowly that it would not end."""


HUB_ERRORS = (
    HfHubHTTPError,
    httpx2.RequestError,
    httpx2.InvalidURL,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    HubTimeoutError,
    json.JSONDecodeError,
)
"""What working with the Hub raises when it cannot be reached, refuses, or answers with something else."""


def fetch(path_or_repo: str | Path, **options: Any) -> Path:
    """A folder as it is, or the files of a repository, downloaded and compared with the hashes that the Hub names.

    Without network the copy that was downloaded before is taken.

    Args:
        path_or_repo: a folder, or a repo id.
        options: what `huggingface_hub.snapshot_download` takes: `revision`, `token`, `cache_dir`, `local_files_only`.

    Raises:
        HubError: neither a folder nor a repository that can be read, or files that arrived damaged.
    """
    if Path(path_or_repo).is_dir():
        return Path(path_or_repo)
    repo_id = str(path_or_repo)
    try:
        if constants.HF_HUB_OFFLINE or options.get("local_files_only"):
            return Path(snapshot_download(repo_id, **{**options, "local_files_only": True}))
        try:
            size = bounded(lambda: _size(repo_id, options))
        except httpx2.TransportError as error:
            return _cached(repo_id, options, error)
        return bounded(lambda: _download(repo_id, options), size)
    except HUB_ERRORS as error:
        raise HubError(explain(error, repo_id)) from error


def _size(repo_id: str, options: Mapping[str, Any]) -> int:
    """Bytes of a repository's files."""
    asked = {name: options[name] for name in ("revision", "token") if name in options}
    info = HfApi().model_info(repo_id, files_metadata=True, **asked)
    return sum(sibling.size or 0 for sibling in info.siblings or ())


def _cached(repo_id: str, options: Mapping[str, Any], error: httpx2.TransportError) -> Path:
    try:
        folder = snapshot_download(repo_id, **{**options, "local_files_only": True})
    except LocalEntryNotFoundError:
        raise error from None
    warn_user(f"{repo_id}: the Hub cannot be reached, the copy downloaded before is used")
    return Path(folder)


def _download(repo_id: str, options: Mapping[str, Any]) -> Path:
    # By the revision's own name, which the cache then knows without network; the folder is named after the commit.
    folder = Path(snapshot_download(repo_id, **options))
    where = {name: options[name] for name in ("cache_dir", "token") if name in options}
    found = HfApi().verify_repo_checksums(repo_id, revision=folder.name, **where)
    damaged = [mismatch["path"] for mismatch in found.mismatches]
    for name in damaged:
        # So that the next attempt does not find them in the cache.
        (folder / name).resolve().unlink(missing_ok=True)
        (folder / name).unlink(missing_ok=True)
    if damaged:
        named = ", ".join(damaged[:3])
        raise HubError(f"{repo_id}: {named} arrived damaged, with another hash than the Hub names; try again")
    return folder


def bounded(work: Callable[[], T], size: int = 0) -> T:
    """Does something with the Hub within bounded time: the client's own limits are for a single read.

    Args:
        work: what is done; after the limit nobody waits for it, and it ends with the process.
        size: bytes that it transfers.

    Raises:
        HubTimeoutError: it took longer than `PATIENCE` and `SLOWEST` allow.
    """
    limit = PATIENCE + size / SLOWEST
    done: list[T] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            done.append(work())
        except BaseException as error:
            # Whatever it was, it is raised where it was waited for.
            failed.append(error)

    worker = threading.Thread(target=run, daemon=True)
    worker.start()
    worker.join(limit)
    if failed:
        raise failed[0]
    if not done:
        raise HubTimeoutError(f"not done within {limit:.0f} seconds")
    return done[0]


def explain(error: BaseException, repo_id: str, again: str = "try again") -> str:
    """One line: what happened, what it means for the repository, what to do.

    Args:
        error: one of `HUB_ERRORS`.
        repo_id: the repository that was asked for.
        again: what to do after an error that passes.
    """
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    said = f" ({error.server_message})" if isinstance(error, HfHubHTTPError) and error.server_message else ""
    endpoint = constants.ENDPOINT
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
    elif isinstance(error, httpx2.TooManyRedirects):
        reason = f"{endpoint} redirects in a circle; check HF_ENDPOINT, or a proxy between"
    elif isinstance(error, httpx2.TransportError):
        reason = f"the connection to {endpoint} failed ({type(error).__name__}); {again}"
    elif isinstance(error, json.JSONDecodeError):
        reason = f"{endpoint} answered with something that is not the Hub's JSON; check HF_ENDPOINT, or a proxy between"
    elif isinstance(error, HubTimeoutError):
        reason = f"the connection to {endpoint} is too slow, {error}; {again}"
    else:
        reason = str(error)
    return f"{repo_id}: {' '.join(reason.split())[:250]}"
