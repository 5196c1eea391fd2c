"""The Hub's HTTP interface, as much of it as `huggingface_hub` uses to create, push, tag, browse and download.

Each route is a function from a request to an answer; `_Handler` reads, authorises, plays faults and writes. Uploads use
the basic LFS transfer; Xet has to be off in the client.
"""

import base64
import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from email.message import Message
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

from tests.hub_server.faults import Fault
from tests.hub_server.storage import LARGE, LARGE_BYTES, Blob, Commit, Repository, Storage

TOKEN = "hf_" + "w" * 34
"""Of user `me`, with write access."""
PREFIXES = {"models": "", "datasets": "datasets/", "spaces": "spaces/"}


@dataclass
class Request:
    method: str
    path: str
    query: Mapping[str, str]
    headers: Message
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body or b"{}")


@dataclass
class Answer:
    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)

    @classmethod
    def json(cls, content: Any, status: int = 200) -> Self:
        return cls(json.dumps(content).encode(), status, {"Content-Type": "application/json"})

    @classmethod
    def error(cls, status: int, message: str, code: str = "") -> Self:
        headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
        return cls(json.dumps({"error": message}).encode(), status, headers)


class HubServer:
    """A Hub on a free local port, for a `with` block.

    Attributes:
        url: for `HF_ENDPOINT`.
        storage: what it holds.
        faults: played on matching requests, the first that strikes.
        requests: `METHOD /path` of each request so far.
        tokens: token -> user; what is not here is invalid.
    """

    def __init__(self) -> None:
        self.storage = Storage()
        self.faults: list[Fault] = []
        self.requests: list[str] = []
        self.tokens = {TOKEN: "me"}
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, self))
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._http.shutdown()
        self._http.server_close()

    def environment(self) -> dict[str, str]:
        """For a process that shall talk to this server."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_TOKEN": TOKEN,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_OFFLINE": "0",
        }

    def answer(self, request: Request) -> Answer:
        for method, pattern, route in ROUTES:
            match = re.fullmatch(pattern, request.path)
            if match and request.method in method:
                return route(self, request, **{name: unquote(value or "") for name, value in match.groupdict().items()})
        return Answer.error(404, f"no such route: {request.method} {request.path}")

    def user(self, request: Request) -> str | None:
        return self.tokens.get(request.headers.get("Authorization", "").removeprefix("Bearer "))


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, hub: HubServer, *args: Any) -> None:
        self.hub = hub
        super().__init__(*args)

    def handle_any(self) -> None:
        split = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(split.query).items()}
        line = f"{self.command} {split.path}"
        fault = next((fault for fault in self.hub.faults if fault.strikes(line)), None)
        kind = fault.kind if fault else None
        if kind == "drop":
            self.hub.requests.append(line)
            return self.hang_up()
        request = Request(self.command, split.path, query, self.headers, self.read_body())
        self.hub.requests.append(line)
        if fault and kind == "status":
            return self.send(Answer.error(fault.status, f"fault: {fault.status}"))
        if fault and kind == "act":
            fault.action()
        authorization = request.headers.get("Authorization")
        if authorization and self.hub.user(request) is None:
            return self.send(Answer.error(401, "Invalid credentials in Authorization header"))
        if kind == "html":
            return self.send(
                Answer(b"<html><body>Log in to the network</body></html>", 200, {"Content-Type": "text/html"})
            )
        if kind == "redirect":
            return self.send(Answer(b"", 307, {"Location": self.path}))
        answer = self.hub.answer(request)
        if fault and kind == "applied":
            answer = Answer.error(fault.status, f"fault: {fault.status}, after all was done")
        if kind == "corrupt" and answer.body:
            answer.body = bytes([answer.body[0] ^ 1]) + answer.body[1:]
        if fault and kind == "drip":
            return self.drip(answer, fault.seconds)
        if fault and kind == "slow":
            threading.Event().wait(fault.seconds)
        if kind == "lose_answer":
            return self.hang_up()
        return self.send(answer, truncate=kind == "truncate")

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = handle_any  # noqa: N815  (http.server's names)

    def read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def send(self, answer: Answer, truncate: bool = False) -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.send_response(answer.status)
            for name, value in {"Content-Length": str(len(answer.body)), **answer.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(answer.body[: len(answer.body) // 2] if truncate else answer.body)
        if truncate:
            self.hang_up()

    def drip(self, answer: Answer, seconds: float) -> None:
        """Each byte arrives before a client gives up reading, and there are many."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.send_response(answer.status)
            for name, value in {**answer.headers, "Content-Length": str(len(answer.body))}.items():
                self.send_header(name, value)
            self.end_headers()
            for i in range(len(answer.body)):
                self.wfile.write(answer.body[i : i + 1])
                threading.Event().wait(seconds)

    def hang_up(self) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.shutdown(2)

    def log_message(self, *args: Any) -> None:
        pass


def _whoami(hub: HubServer, request: Request) -> Answer:
    name = hub.user(request)
    if name is None:
        return Answer.error(401, "Invalid username or password.")
    token = {"displayName": "test", "role": "write"}
    return Answer.json({"type": "user", "name": name, "fullname": name, "orgs": [], "auth": {"accessToken": token}})


def _validate_yaml(hub: HubServer, request: Request) -> Answer:
    """The YAML block has to parse; the real Hub checks its fields too."""
    block = re.match(r"---\n(.*?\n)---", request.json["content"], re.DOTALL)
    try:
        yaml.safe_load(block[1] if block else "")
    except yaml.YAMLError as error:
        return Answer.json({"errors": [{"message": str(error)}], "warnings": []}, 400)
    return Answer.json({"errors": [], "warnings": []})


def _create(hub: HubServer, request: Request) -> Answer:
    user, wanted = hub.user(request), request.json
    if user is None:
        return Answer.error(401, "Invalid username or password.")
    owner = wanted.get("organization") or user
    if owner != user:
        return Answer.error(403, f"You don't have the rights to create a model under the namespace {owner!r}")
    kind, name = f"{wanted.get('type') or 'model'}s", f"{owner}/{wanted['name']}"
    url = f"{hub.url}/{PREFIXES[kind]}{name}"
    if (kind, name) in hub.storage.repositories:
        return Answer.json({"error": "You already created this repo", "url": url}, 409)
    private = wanted.get("private") or wanted.get("visibility") == "private"
    hub.storage.repositories[kind, name] = Repository(kind, name, bool(private))
    return Answer.json({"url": url, "name": name, "id": name})


def _lfs_batch(hub: HubServer, request: Request, kind: str, name: str) -> Answer:
    objects = []
    for wanted in request.json["objects"]:
        actions = {
            "upload": {"href": f"{hub.url}/lfs/{wanted['oid']}"},
            "verify": {"href": f"{hub.url}/lfs/verify"},
        }
        objects.append(wanted if wanted["oid"] in hub.storage.large else {**wanted, "actions": actions})
    return Answer.json({"transfer": "basic", "objects": objects})


def _lfs_upload(hub: HubServer, request: Request, oid: str) -> Answer:
    if hashlib.sha256(request.body).hexdigest() != oid:
        return Answer.error(400, "content does not match its sha256")
    hub.storage.large[oid] = request.body
    return Answer()


def _lfs_verify(hub: HubServer, request: Request) -> Answer:
    return Answer.json({}) if request.json["oid"] in hub.storage.large else Answer.error(404, "no such object")


Route = Callable[..., Answer]


def _in_repository(write: bool = False) -> Callable[[Route], Route]:
    """Finds the repository; a private one, and any writing, is its owner's alone."""

    def wrap(route: Route) -> Route:
        def run(hub: HubServer, request: Request, kind: str, name: str, **groups: str) -> Answer:
            repository = hub.storage.repositories.get((kind.strip("/") or "models", name))
            owner = hub.user(request) == name.partition("/")[0]
            if repository is None or (repository.private and not owner):
                return Answer.error(404, "Repository not found", "RepoNotFound")
            if write and not owner:
                return Answer.error(403, "You don't have write access to this repository")
            return route(hub, request, repository, **groups)

        return run

    return wrap


def _at_revision(route: Route) -> Route:
    def run(hub: HubServer, request: Request, repository: Repository, revision: str = "", **groups: str) -> Answer:
        commit = repository.resolve(revision or "main")
        if commit is None:
            return Answer.error(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return route(hub, request, repository, commit, **groups)

    return run


@_in_repository()
@_at_revision
def _info(hub: HubServer, request: Request, repository: Repository, commit: Commit) -> Answer:
    return Answer.json(
        {
            "_id": "0",
            "id": repository.name,
            "sha": commit.oid,
            "private": repository.private,
            "gated": False,
            "disabled": False,
            "tags": [],
            "downloads": 0,
            "likes": 0,
            "lastModified": "2026-01-01T00:00:00.000Z",
            "createdAt": "2026-01-01T00:00:00.000Z",
            "siblings": [{"rfilename": path} for path in sorted(commit.files)],
        }
    )


def _entry(path: str, blob: Blob) -> dict[str, Any]:
    entry = {"type": "file", "path": path, "size": len(blob.content), "oid": blob.oid}
    if blob.sha256:
        entry["lfs"] = {"oid": blob.sha256, "size": len(blob.content), "pointerSize": 134}
    return entry


@_in_repository()
@_at_revision
def _tree(hub: HubServer, request: Request, repository: Repository, commit: Commit, folder: str = "") -> Answer:
    prefix = f"{folder}/" if folder else ""
    below = {path: blob for path, blob in commit.files.items() if path.startswith(prefix)}
    if folder and not below:
        return Answer.error(404, f"{folder} does not exist", "EntryNotFound")
    folders = {path[:i] for path in below for i in range(len(prefix), len(path)) if path[i] == "/"}
    if request.query.get("recursive") != "true":
        folders = {path for path in folders if "/" not in path[len(prefix) :]}
        below = {path: blob for path, blob in below.items() if "/" not in path[len(prefix) :]}
    directories = [{"type": "directory", "path": path, "size": 0, "oid": "0" * 40} for path in sorted(folders)]
    return Answer.json(directories + [_entry(path, blob) for path, blob in sorted(below.items())])


@_in_repository()
@_at_revision
def _paths_info(hub: HubServer, request: Request, repository: Repository, commit: Commit) -> Answer:
    asked = request.json["paths"] if request.body[:1] == b"{" else parse_qs(request.body.decode())["paths"]
    return Answer.json([_entry(path, commit.files[path]) for path in asked if path in commit.files])


@_in_repository()
def _refs(hub: HubServer, request: Request, repository: Repository) -> Answer:
    def listed(references: Mapping[str, str], prefix: str) -> list[dict[str, str]]:
        return [{"name": name, "ref": prefix + name, "targetCommit": oid} for name, oid in references.items()]

    return Answer.json(
        {
            "branches": listed(repository.branches, "refs/heads/"),
            "tags": listed(repository.tags, "refs/tags/"),
            "pullRequests": listed(repository.pull_requests, ""),
            "converts": [],
        }
    )


@_in_repository()
def _discussions(hub: HubServer, request: Request, repository: Repository) -> Answer:
    opened = [
        {
            "num": int(name.rpartition("/")[2]),
            "title": repository.commits[oid].title,
            "status": "open",
            "author": {"name": "me"},
            "createdAt": "2026-01-01T00:00:00.000Z",
            "isPullRequest": True,
            "repo": {"name": repository.name, "type": repository.kind.removesuffix("s")},
        }
        for name, oid in repository.pull_requests.items()
    ]
    return Answer.json({"discussions": opened, "count": len(opened), "start": 0})


@_in_repository()
@_at_revision
def _resolve(hub: HubServer, request: Request, repository: Repository, commit: Commit, path: str) -> Answer:
    blob = commit.files.get(path)
    if blob is None:
        missing = Answer.error(404, "Entry not found", "EntryNotFound")
        missing.headers["X-Repo-Commit"] = commit.oid
        return missing
    size = len(blob.content)
    headers = {"ETag": f'"{blob.etag}"', "X-Repo-Commit": commit.oid, "Accept-Ranges": "bytes"}
    headers["X-Linked-Size"] = str(size)
    span = re.match(r"bytes=(\d+)-(\d*)", request.headers.get("Range", ""))
    if not span:
        return Answer(blob.content, 200, headers)
    start, end = int(span[1]), min(int(span[2] or size - 1), size - 1)
    headers["Content-Range"] = f"bytes {start}-{end}/{size}"
    return Answer(blob.content[start : end + 1], 206, headers)


@_in_repository(write=True)
def _preupload(hub: HubServer, request: Request, repository: Repository, revision: str) -> Answer:
    commit = repository.resolve(revision)
    if commit is None:
        return Answer.error(404, f"Invalid rev id: {revision}", "RevisionNotFound")
    files = []
    for wanted in request.json["files"]:
        large = wanted["size"] > LARGE_BYTES or LARGE.search(wanted["path"])
        present = commit.files.get(wanted["path"])
        files.append(
            {
                "path": wanted["path"],
                "uploadMode": "lfs" if large else "regular",
                "shouldIgnore": False,
                "oid": present.etag if present else None,
            }
        )
    return Answer.json({"files": files})


@_in_repository(write=True)
def _commit(hub: HubServer, request: Request, repository: Repository, revision: str) -> Answer:
    """All of a commit's lines are read before any of them counts."""
    head = repository.resolve(revision)
    if head is None:
        return Answer.error(404, f"Invalid rev id: {revision}", "RevisionNotFound")
    files, title = dict(head.files), ""
    for line in map(json.loads, request.body.splitlines()):
        value = line["value"]
        if line["key"] == "header":
            title = value["summary"]
            if value.get("parentCommit") and not head.oid.startswith(value["parentCommit"]):
                return Answer.error(412, "A commit has happened since. Please refresh and try again.")
        elif line["key"] == "file":
            files[value["path"]] = Blob(base64.b64decode(value["content"]))
        elif line["key"] == "lfsFile":
            if value["oid"] not in hub.storage.large:
                return Answer.error(400, f"{value['path']}: the LFS object was not uploaded")
            files[value["path"]] = Blob(hub.storage.large[value["oid"]], value["oid"])
        elif line["key"] == "deletedFile":
            if files.pop(value["path"], None) is None:
                return Answer.error(404, "A file with this name doesn't exist", "EntryNotFound")
        elif line["key"] == "deletedFolder":
            files = {path: blob for path, blob in files.items() if not path.startswith(value["path"].rstrip("/") + "/")}
    branch, pull_request = revision, None
    if request.query.get("create_pr"):
        branch = repository.open_pull_request(head)
        number = branch.rpartition("/")[2]
        pull_request = f"{hub.url}/{PREFIXES[repository.kind]}{repository.name}/discussions/{number}"
    commit = repository.commit(branch, files, title)
    url = f"{hub.url}/{PREFIXES[repository.kind]}{repository.name}/commit/{commit.oid}"
    return Answer.json({"commitOid": commit.oid, "commitUrl": url, "pullRequestUrl": pull_request})


@_in_repository(write=True)
def _branch(hub: HubServer, request: Request, repository: Repository, revision: str) -> Answer:
    if revision in repository.branches:
        return Answer.error(409, f"Reference already exists: refs/heads/{revision}")
    start = repository.resolve(request.json.get("startingPoint", "main"))
    if start is None:
        return Answer.error(404, "Invalid starting point", "RevisionNotFound")
    repository.branches[revision] = start.oid
    return Answer.json({})


@_in_repository(write=True)
@_at_revision
def _tag(hub: HubServer, request: Request, repository: Repository, commit: Commit) -> Answer:
    if request.json["tag"] in repository.tags:
        return Answer.error(409, f"Tag reference exists already: refs/tags/{request.json['tag']}")
    repository.tags[request.json["tag"]] = commit.oid
    return Answer.json({})


_KIND = r"(?P<kind>datasets/|spaces/)?"
_NAME = r"(?P<name>[^/]+/[^/]+)"
_REVISION = r"(?P<revision>refs/pr/\d+|[^/]+)"
_REPOSITORY = rf"/api/(?:models|(?P<kind>datasets|spaces))/{_NAME}"
ROUTES: list[tuple[tuple[str, ...], str, Route]] = [
    (("GET",), "/api/whoami-v2", _whoami),
    (("POST",), "/api/validate-yaml", _validate_yaml),
    (("POST",), "/api/repos/create", _create),
    (("POST",), rf"/{_KIND}{_NAME}\.git/info/lfs/objects/batch", _lfs_batch),
    (("POST",), "/lfs/verify", _lfs_verify),
    (("PUT",), "/lfs/(?P<oid>[0-9a-f]{64})", _lfs_upload),
    (("GET", "HEAD"), rf"{_REPOSITORY}(?:/revision/{_REVISION})?", _info),
    (("GET", "HEAD"), rf"{_REPOSITORY}/tree/{_REVISION}(?:/(?P<folder>.+))?", _tree),
    (("POST",), rf"{_REPOSITORY}/paths-info/{_REVISION}", _paths_info),
    (("GET",), rf"{_REPOSITORY}/refs", _refs),
    (("GET",), rf"{_REPOSITORY}/discussions", _discussions),
    (("POST",), rf"{_REPOSITORY}/preupload/{_REVISION}", _preupload),
    (("POST",), rf"{_REPOSITORY}/commit/{_REVISION}", _commit),
    (("POST",), rf"{_REPOSITORY}/branch/{_REVISION}", _branch),
    (("POST",), rf"{_REPOSITORY}/tag/{_REVISION}", _tag),
    (("GET", "HEAD"), rf"/{_KIND}{_NAME}/resolve/{_REVISION}/(?P<path>.+)", _resolve),
]
