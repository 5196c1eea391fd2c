"""Pushing to the Hugging Face Hub: checkpoints, adapters, data sets and the Space, each as one commit or none.

A push compares the files with what the repository holds, uploads what differs and commits it on top of the commit it
compared with. It can be repeated: large files that arrived are not sent again, and an unchanged push makes no commit.
"""

import hashlib
import json
import re
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import TypedDict, Unpack

import httpx2  # huggingface_hub's own client, whose connection errors it passes on
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, DatasetCard, HfApi, get_token, snapshot_download
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoFile

from ncpl.errors import CheckpointError, HubError

ROOT = Path(__file__).parent.parent
ACCEPTED = ("*.safetensors", "*.json", "*.yaml", "*.py", "*.md", "*.txt", "*.jinja", "*.png", "*.svg", "LICENSE")
"""What of a folder is pushed: weights, configuration, code, card, record and figures."""
LEFT_OUT = ("trainer_state.json", "*checkpoint-*/*", "*stages/*")
"""What is not, although accepted by name: a training's own state."""
STALE = ("*.safetensors", "*.safetensors.index.json", "adapter_config.json")
"""What is removed from a repository when the folder has it no more: a loader would pick it up."""
REQUIREMENTS = "torch>=2.6\ntransformers>=5.23,<6\n"
"""What `handler.py` needs on an Inference Endpoint."""
TOKEN = re.compile(rb"\bhf_[A-Za-z0-9]{30,}\b")
ATTEMPTS = 4
"""Of a whole push, after the client's own retries of single requests."""
PASSING = (408, 429, 500, 502, 503, 504)
"""HTTP statuses that may be gone a moment later."""

HUB_ERRORS = (HfHubHTTPError, httpx2.TransportError, HFValidationError, OfflineModeIsEnabled)

Files = Mapping[str, Path | bytes]


@dataclass(frozen=True)
class Pushed:
    """What a push did.

    Args:
        url: of the pull request, or of the commit that the revision now points to.
        commit: its oid.
        changed: paths written or removed, none when the repository had all of it.
    """

    url: str
    commit: str
    changed: tuple[str, ...]

    def __str__(self) -> str:
        return self.url if self.changed else f"{self.url} (unchanged)"


class PushOptions(TypedDict, total=False):
    """What every push takes.

    Args:
        private: whether a new repository is private; the owner's default when absent.
        revision: branch, created from `main` when there is none; or `refs/pr/N`.
        create_pr: open a pull request instead of committing to the branch.
        tag: name for the commit.
        message: the commit's title.
        token: access token; the one you are logged in with when absent.
    """

    private: bool | None
    revision: str | None
    create_pr: bool
    tag: str | None
    message: str | None
    token: str | None


def push(folder: str | Path, repo_id: str, *, base_model: str | None = None, **options: Unpack[PushOptions]) -> Pushed:
    """Pushes a checkpoint or an adapter: weights, configuration, processor, code, card, training record and figures.

    The folder stays as it is; a card and the endpoint's handler that it lacks are added on the way.

    Args:
        folder: as `save_pretrained` or `run_train.py` wrote it.
        repo_id: `owner/name`, or `name` for your own; created when there is none.
        base_model: repo id of an adapter's base, needed when `adapter_config.json` names a local folder.
        options: see `PushOptions`.

    Raises:
        CheckpointError: the folder does not hold a whole checkpoint; says what it lacks.
        HubError: the Hub could not be reached, refused, or has changed meanwhile.
        ValueError: a file holds an access token, or the card's metadata are refused.
    """
    folder = Path(folder)
    options["message"] = options.get("message") or f"Push {folder.resolve().name}"
    return push_files(checkpoint_files(folder, repo_id, base_model), repo_id, **options)


def push_dataset(
    source: str, repo_id: str, *, data_dir: str | Path | None = None, **options: Unpack[PushOptions]
) -> Pushed:
    """Pushes a source's runs as Parquet with a card, for `load_dataset(repo_id, "final")` and `"intermediate"`.

    Args:
        source: `marin`, `steplaw` or `steplaw_moe`.
        repo_id: `owner/name`, or `name` for your own; created when there is none.
        data_dir: folder of the source's run logs; the public ones are downloaded when absent.
        options: see `PushOptions`.

    Raises:
        HubError: the Hub could not be reached, refused, or has changed meanwhile.
        ValueError: an unknown source, or logs that are missing or malformed.
    """
    import pyarrow.parquet

    from datasets_scripts.runs import data_hash, export_parquet
    from ncpl.cards import dataset_card

    with tempfile.TemporaryDirectory() as scratch:
        folder = export_parquet(source, Path(scratch) / source, data_dir)
        configs = DatasetCard.load(folder / "README.md").data.to_dict()["configs"]
        files: dict[str, Path | bytes] = {
            path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*.parquet"))
        }
        runs = {
            entry["split"]: sum(pyarrow.parquet.read_metadata(path).num_rows for path in folder.glob(entry["path"]))
            for entry in configs[0]["data_files"]
        }
        files["README.md"] = dataset_card(source, repo_id, configs, runs, data_hash(source, data_dir)).encode()
        options["message"] = options.get("message") or f"Push the {source} runs"
        return push_files(files, repo_id, repo_type="dataset", **options)


def push_space(repo_id: str, **options: Unpack[PushOptions]) -> Pushed:
    """Pushes the Space of this package, with the code and the default checkpoint it runs on.

    Args:
        repo_id: `owner/name`, or `name` for your own; created when there is none.
        options: see `PushOptions`.

    Raises:
        HubError: the Hub could not be reached, or refused.
        ValueError: the package was installed without its Space, which a clone of the repository has.
    """
    options["message"] = options.get("message") or "Push the Space"
    return push_files(space_files(), repo_id, repo_type="space", **options)


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
        raise HubError(_explain(error, str(path_or_repo), HfApi())) from error


def space_files() -> dict[str, Path | bytes]:
    """The Space: its own files at the top, and beside them the modules that it imports.

    >>> {"app.py", "README.md", "requirements.txt", "ncpl/forecaster.py", "modeling_ncpl.py"} <= space_files().keys()
    True
    """
    space = ROOT / "space"
    if not (space / "app.py").exists():
        raise ValueError(f"space: no folder {space}; it is not installed with the package, push it from a clone")
    files: dict[str, Path | bytes] = {path.name: path for path in sorted(space.iterdir()) if path.is_file()}
    modules = [path for path in sorted(ROOT.glob("*_n[cs]p*.py")) if path.name != "ncpl_cli.py"]
    for folder in ("ncpl", "datasets_scripts"):
        modules += [path for path in sorted((ROOT / folder).rglob("*")) if path.is_file()]
    ours = (path for path in modules if "__pycache__" not in path.parts and path.suffix != ".pyc")
    return files | {path.relative_to(ROOT).as_posix(): path for path in ours}


def checkpoint_files(folder: Path, repo_id: str, base_model: str | None = None) -> dict[str, Path | bytes]:
    """What `push` sends: path in the repository -> local file or content.

    Raises:
        CheckpointError: the folder does not hold a whole checkpoint.
    """
    from ncpl.cards import checkpoint_card, widget_examples

    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder")
    files = folder_files(folder)
    _check_whole(folder, files)
    if "adapter_config.json" in files:
        files["adapter_config.json"] = _adapter_config(folder, base_model)
    elif _json(folder, "config.json").get("model_type") == "ncpl":
        files.setdefault("handler.py", ROOT / "handler.py")
        files.setdefault("requirements.txt", REQUIREMENTS.encode())
    if "README.md" not in files or b"[More Information Needed]" in (folder / "README.md").read_bytes():
        widget = None
        if "handler.py" in files and "widget.json" not in files:
            widget = widget_examples(folder)
            files["widget.json"] = (json.dumps(widget, indent=2) + "\n").encode()
        files["README.md"] = checkpoint_card(folder, repo_id, base_model, widget).encode()
    return files


def folder_files(folder: Path) -> dict[str, Path | bytes]:
    """The accepted files of a folder; the others are counted in a warning."""
    files: dict[str, Path | bytes] = {}
    others = []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_dir() or any(part.startswith(".") or part == "__pycache__" for part in Path(name).parts):
            continue
        accepted = any(fnmatch(path.name, pattern) for pattern in ACCEPTED)
        if accepted and not any(fnmatch(name, pattern) for pattern in LEFT_OUT):
            files[name] = path
        else:
            others.append(name)
    if others:
        named = ", ".join(others[:5]) + (", ..." if len(others) > 5 else "")
        warnings.warn(
            f"{folder}: {len(others)} files are not part of a checkpoint and not pushed: {named}", stacklevel=3
        )
    return files


def push_files(files: Files, repo_id: str, *, repo_type: str = "model", **options: Unpack[PushOptions]) -> Pushed:
    """Makes a repository hold files, in one commit.

    Args:
        files: path in the repository -> local file or content.
        repo_id: `owner/name`, or `name` for your own; created when there is none.
        repo_type: `model`, `dataset` or `space`.
        options: see `PushOptions`.

    Raises:
        HubError: the Hub could not be reached, refused, or has changed meanwhile.
        ValueError: a file holds an access token, or the card's metadata are refused.
    """
    _check_secrets(files, options.get("token"))
    attempt = _Push(files, repo_id, repo_type, options, HfApi(token=options.get("token")))
    waits = [2.0**i for i in range(ATTEMPTS - 1)]
    while True:
        try:
            return attempt()
        except (*HUB_ERRORS, RuntimeError) as raised:
            # The client wraps what went wrong with one of many large files.
            error = raised.__cause__ if isinstance(raised, RuntimeError) else raised
            if not isinstance(error, HUB_ERRORS):
                raise
            if not waits or not attempt.may_repeat(error):
                raise HubError(_explain(error, repo_id, attempt.api)) from raised
        time.sleep(waits.pop(0))


@dataclass
class _Push:
    """One push, to be called until it succeeds."""

    files: Files
    repo_id: str
    repo_type: str
    options: PushOptions
    api: HfApi
    where: dict[str, str] = field(default_factory=dict)
    """The repository's full name and type, once it is known."""
    changed: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self.revision = self.options.get("revision")
        self.create_pr = self.options.get("create_pr", False)
        self.tag = self.options.get("tag")

    def __call__(self) -> Pushed:
        self._open()
        head = self.api.repo_info(**self.where, revision=self.revision).sha
        written, removed = self._differences(head)
        tagged = self._check_tag(head, bool(written or removed))
        url, commit = f"{self.api.endpoint}/{self._name}/commit/{head}", head
        if written or removed:
            self.changed = (*written, *removed)
            operations = [
                *(CommitOperationAdd(path, _content(self.files[path])) for path in written),
                *(CommitOperationDelete(path) for path in removed),
            ]
            info = self.api.create_commit(
                **self.where,
                operations=operations,
                commit_message=self.options.get("message") or "Push",
                revision=self.revision,
                create_pr=self.create_pr,
                parent_commit=head,
            )
            url, commit = info.pr_url or info.commit_url, info.oid
        if self.tag and not tagged:
            self.api.create_tag(**self.where, tag=self.tag, revision=commit)
        return Pushed(str(url), commit, self.changed)

    def may_repeat(self, error: BaseException) -> bool:
        """Whether another attempt may succeed, and cannot do anything twice."""
        status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
        if status == 412:
            # Somebody's commit came first. It may have been our own, whose answer was lost: then nothing is left to do.
            return not any(self._differences(self.revision or "main"))
        if self.create_pr:
            # A pull request whose answer was lost would be opened a second time.
            return status in (429, 503)
        return status in PASSING or isinstance(error, httpx2.TransportError)

    @property
    def _name(self) -> str:
        return ("" if self.repo_type == "model" else f"{self.repo_type}s/") + self.where["repo_id"]

    def _open(self) -> None:
        """The repository and the branch, made if need be."""
        sdk = {"space_sdk": "gradio"} if self.repo_type == "space" else {}
        private = self.options.get("private")
        url = self.api.create_repo(self.repo_id, repo_type=self.repo_type, private=private, exist_ok=True, **sdk)
        self.where = {"repo_id": url.repo_id, "repo_type": self.repo_type}
        if self.revision and not self.revision.startswith("refs/"):
            self.api.create_branch(**self.where, branch=self.revision, exist_ok=True)

    def _differences(self, revision: str) -> tuple[list[str], list[str]]:
        """Paths to write and paths to remove."""
        tree = self.api.list_repo_tree(**self.where, revision=revision, recursive=True)
        remote = {entry.path: entry for entry in tree if isinstance(entry, RepoFile)}
        written = [path for path, content in self.files.items() if not _same(content, remote.get(path))]
        stale = (path for path in remote if any(fnmatch(path, pattern) for pattern in STALE))
        removed = [path for path in stale if path not in self.files and self.repo_type == "model"]
        return written, removed

    def _check_tag(self, head: str, changed: bool) -> bool:
        """Whether the tag is there; before anything is written, because a tag does not move."""
        tags = self.api.list_repo_refs(**self.where).tags if self.tag else []
        at = next((ref.target_commit for ref in tags if ref.name == self.tag), None)
        if at is not None and (changed or at != head):
            raise HubError(f"tag: {self.tag!r} names commit {at[:7]} of {self.repo_id} already; give another name")
        return at is not None


def _check_whole(folder: Path, files: Files) -> None:
    """Everything that loading needs is there: configuration, weights, and the code that they name."""
    adapter = "adapter_config.json" in files
    if not adapter and "config.json" not in files:
        raise CheckpointError(
            f"{folder}: no config.json and no adapter_config.json, expected a checkpoint or an adapter"
        )
    missing = [name for name in ("adapter_model.safetensors",) if adapter and name not in files]
    index = "model.safetensors.index.json"
    if index in files:
        missing += sorted(set(_json(folder, index)["weight_map"].values()) - files.keys())
    elif not adapter and "model.safetensors" not in files:
        missing.append("model.safetensors")
    if not adapter and _json(folder, "config.json").get("model_type") == "ncpl":
        missing += [name for name in ("processor_config.json", "tokenizer.json") if name not in files]
    for name in ("config.json", "processor_config.json", "preprocessor_config.json"):
        settings = _json(folder, name) if name in files else {}
        classes = [*settings.get("auto_map", {}).values()]
        classes += [entry["impl"] for entry in settings.get("custom_pipelines", {}).values()]
        modules = {f"{value.partition('.')[0]}.py" for value in classes if value and "--" not in value}
        missing += sorted(modules - files.keys())
    if missing:
        raise CheckpointError(
            f"{folder}: lacks {', '.join(dict.fromkeys(missing))}; save model and processor with save_pretrained"
        )


def _adapter_config(folder: Path, base_model: str | None) -> Path | bytes:
    """The adapter's settings, whose base has to be a repository that others can load too."""
    settings = _json(folder, "adapter_config.json")
    base = str(settings.get("base_model_name_or_path"))
    if base_model is None:
        if Path(base).exists() or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", base):
            raise CheckpointError(
                f"{folder}: the adapter's base is the local folder {base!r}, which others do not have; push it too and "
                "give its repo id as base_model"
            )
        return folder / "adapter_config.json"
    settings["base_model_name_or_path"] = base_model
    return (json.dumps(settings, indent=2, sort_keys=True) + "\n").encode()


def _check_secrets(files: Files, token: str | None) -> None:
    secret = (token or get_token() or "").encode()
    for path, content in files.items():
        if path.endswith((".safetensors", ".parquet", ".png")):
            continue
        data = content if isinstance(content, bytes) else content.read_bytes()
        if TOKEN.search(data) or (secret and secret in data):
            raise ValueError(f"{path}: holds an access token, which would become public; remove it, nothing was pushed")


def _content(content: Path | bytes) -> str | bytes:
    return content if isinstance(content, bytes) else str(content)


def _same(content: Path | bytes, remote: RepoFile | None) -> bool:
    """Whether the repository has this content: by sha256 for large files, by git's hash for the others."""
    size = len(content) if isinstance(content, bytes) else content.stat().st_size
    if remote is None or size != remote.size:
        return False
    if remote.lfs is not None:
        return _digest(hashlib.sha256(), content) == remote.lfs.sha256
    return _digest(hashlib.sha1(b"blob %d\0" % size), content) == remote.blob_id


def _digest(digest: "hashlib._Hash", content: Path | bytes) -> str:
    for chunk in _chunks(content):
        digest.update(chunk)
    return digest.hexdigest()


def _chunks(content: Path | bytes) -> Iterator[bytes]:
    if isinstance(content, bytes):
        yield content
        return
    with content.open("rb") as file:
        while chunk := file.read(2**20):
            yield chunk


def _json(folder: Path, name: str) -> dict:
    try:
        content = json.loads((folder / name).read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{folder / name}: cannot be read as JSON ({error})") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{folder / name}: got {type(content).__name__}, expected a JSON object")
    return content


def _explain(error: BaseException, repo_id: str, api: HfApi) -> str:
    """One line: what happened, what it means for the repository, what to do."""
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    said = f" ({error.server_message})" if isinstance(error, HfHubHTTPError) and error.server_message else ""
    again = "push again, files that arrived are not sent twice"
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
        reason = f"the Hub answered {status} {ATTEMPTS} times; {again}"
    elif isinstance(error, httpx2.TransportError):
        reason = f"the connection to {api.endpoint} failed ({type(error).__name__}); {again}"
    else:
        reason = " ".join(str(error).split())
    return f"{repo_id}: {reason}"
