"""What a Hub keeps: repositories as commits of files, references to commits, and the store of large files."""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

# Kept out of git by the Hub's default `.gitattributes`; larger files are too, whatever they are called.
LARGE = re.compile(r"\.(safetensors|bin|pt|pth|parquet|arrow|onnx|msgpack|gz|zip|npz|pkl|joblib)$")
LARGE_BYTES = 10_000_000


def git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@dataclass(frozen=True)
class Blob:
    """A file's content, with its sha256 when it is kept by LFS."""

    content: bytes
    sha256: str | None = None

    @property
    def oid(self) -> str:
        """Of the git blob: the content, or the pointer that stands for it."""
        if self.sha256 is None:
            return git_oid(self.content)
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(self.content)}\n"
        return git_oid(pointer.encode())

    @property
    def etag(self) -> str:
        return self.sha256 or self.oid


@dataclass(frozen=True)
class Commit:
    oid: str
    parent: str | None
    title: str
    files: Mapping[str, Blob]


@dataclass
class Repository:
    """One repository; `kind` is `models`, `datasets` or `spaces`, `branches` and `tags` map names to commit oids."""

    kind: str
    name: str
    private: bool = False
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    pull_requests: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.commit("main", {}, "initial commit")

    def resolve(self, revision: str) -> Commit | None:
        """A commit by branch, tag, `refs/pr/N` or oid."""
        references = {**self.branches, **self.tags, **self.pull_requests}
        return self.commits.get(references.get(revision, revision))

    def commit(self, branch: str, files: Mapping[str, Blob], title: str) -> Commit:
        references = self.pull_requests if branch.startswith("refs/pr/") else self.branches
        parent = references.get(branch)
        content = f"{self.kind}/{self.name} {len(self.commits)} {parent} {title} {sorted(files)}"
        commit = Commit(hashlib.sha1(content.encode()).hexdigest(), parent, title, dict(files))
        self.commits[commit.oid] = commit
        references[branch] = commit.oid
        return commit

    def open_pull_request(self, commit: Commit) -> str:
        name = f"refs/pr/{len(self.pull_requests) + 1}"
        self.pull_requests[name] = commit.oid
        return name

    def files(self, revision: str = "main") -> dict[str, bytes]:
        """Path -> content, for tests to look at."""
        commit = self.resolve(revision)
        assert commit is not None, f"{self.name} has no revision {revision}"
        return {path: blob.content for path, blob in commit.files.items()}

    def history(self, branch: str = "main") -> list[str]:
        """Titles of a branch's commits, the newest first."""
        titles, commit = [], self.resolve(branch)
        while commit is not None:
            titles.append(commit.title)
            commit = self.commits.get(commit.parent or "")
        return titles


@dataclass
class Storage:
    """All repositories, by kind and name, and large files by sha256."""

    repositories: dict[tuple[str, str], Repository] = field(default_factory=dict)
    large: dict[str, bytes] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Repository:
        """A model by `owner/name`, other kinds by `datasets/owner/name` and `spaces/owner/name`."""
        kind, _, rest = name.partition("/")
        return self.repositories[(kind, rest) if kind in ("datasets", "spaces") else ("models", name)]
