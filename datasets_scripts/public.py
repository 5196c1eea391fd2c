"""The public repositories of run logs: files pinned by commit and git blob, and a look at a data set of the Hub."""

import hashlib
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from huggingface_hub import HfApi

GITHUB = "https://github.com"
HUB_LOGS = "zhqwqwq/NCPL-Pretraining-Logs"
"""The data set of the Hub that the authors of NCPL name for their logs."""


class DownloadError(ConnectionError, ValueError):
    """A public file could not be downloaded, or is another one than was checked."""


@dataclass(frozen=True)
class PublicFiles:
    """Files of a GitHub repository at the commit at which they were checked.

    Args:
        repository: `owner/name`.
        commit: full commit id.
        files: role -> (path in the repository, git blob id of its content).

    >>> PublicFiles("acme/logs", "4f6e64b", {"runs": ("data/runs.json", "76f470b")}).urls()
    {'runs': 'https://github.com/acme/logs/raw/4f6e64b/data/runs.json'}
    """

    repository: str
    commit: str
    files: Mapping[str, tuple[str, str]]

    def urls(self, revision: str | None = None) -> dict[str, str]:
        """Role -> address of the file at a revision, the checked commit when absent.

        The `raw` address also serves the content of files that the repository keeps in Git LFS.
        """
        base = f"{GITHUB}/{self.repository}/raw/{revision or self.commit}"
        return {role: f"{base}/{path}" for role, (path, _) in self.files.items()}

    def pins(self, revision: str | None) -> bool:
        """Whether what a revision holds was checked: it is the commit."""
        return revision in (None, self.commit)

    def check(self, role: str, content: bytes) -> None:
        """Whether a downloaded file is the one that was checked.

        Raises:
            DownloadError: its git blob id is another one.
        """
        path, expected = self.files[role]
        if expected not in (git_blob(content), git_blob(lfs_pointer(content))):
            raise DownloadError(
                f"{self.repository}: {path} at {self.commit[:10]} is git blob {git_blob(content)[:10]}, expected "
                f"{expected[:10]}; the download is damaged or the file was replaced: try again, or give data_dir"
            )


def git_blob(content: bytes) -> str:
    """The id that git gives a file of this content.

    >>> git_blob(b"hello\\n")
    'ce013625030ba8dba906f756967f9e9ca394464a'
    """
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def lfs_pointer(content: bytes) -> bytes:
    """What git stores in the place of a file that Git LFS keeps (specification version 1).

    >>> lfs_pointer(b"").decode().splitlines()[-1]
    'size 0'
    """
    oid = hashlib.sha256(content).hexdigest()
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize {len(content)}\n".encode()


def look_at_hub(names: Mapping[str, str], repository: str = HUB_LOGS) -> tuple[str, str, dict[str, str]]:
    """Which of a source's files a data set of the Hub holds, wherever they lie in it.

    Args:
        names: role -> file name.
        repository: `owner/name` of a data set.

    Returns:
        One line of what was found, the data set's commit, and role -> path of the files that are there once.

    Raises:
        DownloadError: the Hub cannot be reached, or has no such data set.
    """
    try:
        info = HfApi().dataset_info(repository)
    except (OSError, ValueError) as error:
        raise DownloadError(f"{repository}: could not list its files ({_first_line(error)})") from error
    paths = [sibling.rfilename for sibling in info.siblings or []]
    found = {}
    for role, name in names.items():
        fitting = [path for path in paths if PurePosixPath(path).name in (name, f"{name}.gz")]
        if len(fitting) == 1:
            found[role] = fitting[0]
    shown = ", ".join(sorted(paths)[:6]) + (", ..." if len(paths) > 6 else "")
    fits = ", ".join(f"{role}: {path}" for role, path in found.items()) or f"none named {', '.join(names.values())}"
    return f"{repository} at {str(info.sha)[:10]}: {len(paths)} files ({shown}); {fits}", str(info.sha), found


def fetch_from_hub(names: Mapping[str, str], folder: Path, repository: str = HUB_LOGS) -> str:
    """Copies a source's files from a data set of the Hub into a folder, under the names that a builder reads.

    Raises:
        DownloadError: the Hub cannot be reached, or the data set lacks the runs or their splits; it says what it holds.
    """
    said, commit, found = look_at_hub(names, repository)
    lacking = [names[role] for role in ("runs", "splits") if role in names and role not in found]
    if lacking:
        raise DownloadError(f"{said}; lacks {', '.join(lacking)}")
    for path in found.values():
        try:
            local = HfApi().hf_hub_download(repository, path, repo_type="dataset", revision=commit)
        except (OSError, ValueError) as error:
            raise DownloadError(f"{repository}: could not download {path} ({_first_line(error)})") from error
        shutil.copy(local, folder / PurePosixPath(path).name)
    return said


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:120]
