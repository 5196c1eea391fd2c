"""Pushing to the Hugging Face Hub: checkpoints, adapters, data sets and the Space, each as one commit or none.

A push compares the files with what the repository holds, uploads what differs and commits it on top of the commit it
compared with. It can be repeated: large files that arrived are not sent again, and an unchanged push makes no commit.
"""

import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import TypedDict, Unpack

import httpx2  # huggingface_hub's own client, whose connection errors it passes on
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, DatasetCard, HfApi, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils.sha import git_hash

from embedded_ncpl import EMBEDDED
from ncpl.download import HUB_ERRORS, PASSING, bounded, explain
from ncpl.errors import CheckpointError, HubError, as_path, one_line, short
from ncpl.hub.bundle import CODE, bundle_files, model_of, renewed, requirements
from ncpl.hub.files import STALE, Files, check_tensors, checkpoint_files, space_files
from ncpl.hub.secrets import check_secrets
from text_ncpl import did_you_mean

ATTEMPTS = 4
"""Of a whole push, after the client's own retries of single requests."""


@dataclass(frozen=True)
class Pushed:
    """What a push did.

    Args:
        url: of the pull request, or of the commit that the revision now points to; the repo id after a dry run.
        commit: its oid, empty after a dry run.
        changed: paths written or removed, none when the repository had all of it; all of them after a dry run.
    """

    url: str
    commit: str
    changed: tuple[str, ...]

    def __str__(self) -> str:
        if not self.commit:
            return "\n  ".join([f"nothing was sent; a push to {self.url} sends, where the Hub differs:", *self.changed])
        return self.url if self.changed else f"{self.url} (unchanged)"


class PushOptions(TypedDict, total=False):
    """What every push takes.

    Args:
        private: whether a new repository is private; the owner's default when absent.
        revision: branch, created from `main` when there is none; or `refs/pr/N`.
        create_pr: open a pull request instead of committing to the branch.
        tag: name for the commit.
        message: the commit's title.
        dry_run: do and check everything that comes before the Hub is asked, and send nothing.
        token: access token; the one you are logged in with when absent.
    """

    private: bool | None
    revision: str | None
    create_pr: bool
    tag: str | None
    message: str | None
    dry_run: bool
    token: str | None


_OPTIONS: dict[str, type] = {"private": bool, "create_pr": bool, "dry_run": bool}
"""Options that are no text."""


def _checked(options: PushOptions, message: str = "") -> PushOptions:
    """The options of a push, with its own message where none is given.

    Raises:
        ValueError: an option that is none, or a value of another type.
    """
    for name, value in options.items():
        if name not in PushOptions.__annotations__:
            known = PushOptions.__annotations__
            raise ValueError(
                f"{one_line(name, 60)}: no option of a push{did_you_mean(name, known)} ({', '.join(known)})"
            )
        kind = _OPTIONS.get(name, str)
        if not isinstance(value, kind | None):
            raise ValueError(f"{name}: got {short(value)}, expected {'true or false' if kind is bool else 'text'}")
    return {**options, "message": options.get("message") or message or "Push"}


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
    from ncpl.hub.cards import check_repo_id

    try:
        check_repo_id(repo_id)
        if base_model is not None:
            check_repo_id(base_model, "base_model")
    except ValueError as error:
        raise HubError(str(error)) from None
    folder = as_path(folder, "folder", "the path of a checkpoint's folder")
    options = _checked(options, f"Push {folder.resolve().name}")
    files = checkpoint_files(folder, base_model)
    if "README.md" not in files or b"[More Information Needed]" in (folder / "README.md").read_bytes():
        from ncpl.hub.cards import checkpoint_card, widget_examples

        widget = None
        if "handler.py" in files and "widget.json" not in files:
            widget = widget_examples(folder)
            files["widget.json"] = (json.dumps(widget, indent=2) + "\n").encode()
        files["README.md"] = checkpoint_card(folder, repo_id, base_model, widget).encode()
    else:
        card = (folder / "README.md").read_bytes()
        # The checkpoints that come with the package go by bare names, which nobody else can load.
        for name in EMBEDDED:
            card = card.replace(f'"{name}"'.encode(), f'"{repo_id}"'.encode())
        files["README.md"] = card
    return push_files(files, repo_id, stale=STALE, **options)


def push_code(repo_id: str, **options: Unpack[PushOptions]) -> Pushed:
    """Renews the code of a repository whose weights stay, and the library versions that it names.

    Args:
        repo_id: `owner/name` of a checkpoint or an adapter of ours.
        options: see `PushOptions`; `revision` is renewed, not created.

    Raises:
        CheckpointError: the repository holds no model of ours.
        HubError: the Hub could not be reached, refused, or has changed meanwhile.
    """
    options = _checked(options, "Renew the code")

    def content(name: str) -> str | None:
        try:
            file = hf_hub_download(repo_id, name, revision=options.get("revision"), token=options.get("token"))
        except LocalEntryNotFoundError:
            # The Hub was not reached, which says nothing of the repository.
            raise
        except EntryNotFoundError:
            return None
        return Path(file).read_text(encoding="utf-8")

    def settings(name: str) -> dict:
        found = json.loads(content(name) or "{}")
        return found if isinstance(found, dict) else {}

    try:
        adapter = bool(bounded(lambda: settings("adapter_config.json")))
        model = "ncpl" if adapter else model_of(bounded(lambda: settings("config.json")).get("model_type"))
        card = bounded(lambda: content("README.md"))
    except HUB_ERRORS as error:
        raise HubError(explain(error, repo_id)) from error
    if model is None:
        raise CheckpointError(f"{repo_id}: expected a repository with a config.json of model_type ncpl or nsp")
    files: dict[str, Path | bytes] = dict(bundle_files(model))
    if adapter:
        del files["handler.py"]
    elif model == "ncpl":
        files["requirements.txt"] = requirements().encode()
    if card is not None:
        files["README.md"] = renewed(card).encode()
    return push_files(files, repo_id, stale=CODE, **options)


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
    from ncpl.hub.cards import dataset_card

    options = _checked(options, f"Push the {source} runs")
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
    options = _checked(options, "Push the Space")
    return push_files(space_files(), repo_id, repo_type="space", **options)


def push_files(
    files: Files,
    repo_id: str,
    *,
    repo_type: str = "model",
    stale: Sequence[str] = (),
    **options: Unpack[PushOptions],
) -> Pushed:
    """Makes a repository hold files, in one commit.

    Args:
        files: path in the repository -> local file or content.
        repo_id: `owner/name`, or `name` for your own; created when there is none.
        repo_type: `model`, `dataset` or `space`.
        stale: patterns of files that are removed from the repository when they are not among `files`.
        options: see `PushOptions`.

    Raises:
        HubError: the Hub could not be reached, refused, or has changed meanwhile.
        ValueError: a file holds an access token, or the card's metadata are refused.
    """
    options = _checked(options)
    check_secrets(files, options.get("token"))
    check_tensors(files)
    if options.get("dry_run"):
        return Pushed(repo_id, "", tuple(sorted(files)))
    operations = {path: CommitOperationAdd(path, content) for path, content in files.items()}
    attempt = _Push(operations, repo_id, repo_type, tuple(stale), options, HfApi(token=options.get("token")))
    size = sum(operation.upload_info.size for operation in operations.values())
    waits = [2.0**i for i in range(ATTEMPTS - 1)]
    while True:
        try:
            return bounded(attempt, size)
        except (*HUB_ERRORS, RuntimeError) as raised:
            # The client wraps what went wrong with one of many large files.
            error = raised.__cause__ if isinstance(raised, RuntimeError) else raised
            if not isinstance(error, HUB_ERRORS):
                raise
            if not waits or not attempt.may_repeat(error):
                again = "push again, files that arrived are not sent twice"
                raise HubError(explain(error, repo_id, again)) from raised
        time.sleep(waits.pop(0))


@dataclass
class _Push:
    """One push, to be called until it succeeds."""

    files: dict[str, CommitOperationAdd]
    repo_id: str
    repo_type: str
    stale: tuple[str, ...]
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
            request = self._open_request() if self.create_pr else None
            url, commit = request or self._commit(head, written, removed)
        if self.tag and not tagged:
            self.api.create_tag(**self.where, tag=self.tag, revision=commit)
        return Pushed(str(url), commit, self.changed)

    def _commit(self, head: str, written: Sequence[str], removed: Sequence[str]) -> tuple[str, str]:
        """Address of the commit or of the pull request, and the commit's oid."""
        info = self.api.create_commit(
            **self.where,
            operations=[*(self.files[path] for path in written), *map(CommitOperationDelete, removed)],
            commit_message=self._message,
            revision=self.revision,
            create_pr=self.create_pr,
            parent_commit=head,
        )
        return str(info.pr_url or info.commit_url), info.oid

    def _open_request(self) -> tuple[str, str] | None:
        """An open pull request that holds these files: of an attempt whose answer was lost, or of an earlier push."""
        opened = self.api.get_repo_discussions(**self.where, discussion_type="pull_request", discussion_status="open")
        for request in opened:
            if request.title == self._message and not any(self._differences(str(request.git_reference))):
                head = self.api.repo_info(**self.where, revision=request.git_reference).sha
                return str(request.url), str(head)
        return None

    def may_repeat(self, error: BaseException) -> bool:
        """Whether another attempt may succeed, and cannot do anything twice."""
        status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
        if status == 412:
            # Somebody's commit came first. It may have been our own, whose answer was lost: then nothing is left to do.
            return not any(self._differences(self.revision or "main"))
        return status in PASSING or isinstance(error, httpx2.TransportError)

    @property
    def _message(self) -> str:
        return str(self.options["message"])

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
        written = [path for path, operation in self.files.items() if not _same(operation, remote.get(path))]
        stale = (path for path in remote if any(fnmatch(path, pattern) for pattern in self.stale))
        removed = [path for path in stale if path not in self.files]
        return written, removed

    def _check_tag(self, head: str, changed: bool) -> bool:
        """Whether the tag is there; before anything is written, because a tag does not move."""
        tags = self.api.list_repo_refs(**self.where).tags if self.tag else []
        at = next((ref.target_commit for ref in tags if ref.name == self.tag), None)
        if at is not None and (changed or at != head):
            raise HubError(f"tag: {self.tag!r} names commit {at[:7]} of {self.repo_id} already; give another name")
        return at is not None


def _same(operation: CommitOperationAdd, remote: RepoFile | None) -> bool:
    """Whether the repository has this content: by sha256 for large files, by git's hash for the others."""
    if remote is None or operation.upload_info.size != remote.size:
        return False
    if remote.lfs is not None:
        return operation.upload_info.sha256.hex() == remote.lfs.sha256
    with operation.as_file() as file:
        return git_hash(file.read()) == remote.blob_id
