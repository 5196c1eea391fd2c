"""Nothing leaves that should not, and no answer of a Hub hangs a push or a download or loads damaged weights."""

import base64
import json
import os
import struct
import zlib

import huggingface_hub.constants
import pytest

from ncpl import download
from ncpl.download import fetch
from ncpl.errors import CheckpointError, HubError
from ncpl.hub import push
from ncpl.hub.cards import checkpoint_card
from ncpl.hub.files import folder_files
from ncpl.hub.secrets import check_secrets
from tests.hub_server import Fault
from tests.hub_server.server import TOKEN
from tests.test_hub import carded, folder, hub, saved  # noqa: F401  (fixtures)

# Of a whole push, or of a download, at a Hub that is none: a circle of redirects takes most.
MOST_REQUESTS = 40
OTHER = "hf_" + "a1B2" * 9
TOKENS = {
    "followed by _": f"x = {OTHER}_",
    "GitHub": "token ghp_" + "a1B2" * 9,
    "AWS": "AKIA" + "ABCD1234" * 2,
    "OpenAI": "sk-" + "a1B2c" * 4 + "T3BlbkFJ" + "a1B2c" * 4,
    "Anthropic": "sk-ant-api03-" + "a1B2" * 10,
    "Google": "AIza" + "a1B2c" * 7,
    "Slack": "xoxb-" + "1" * 12 + "-" + "a" * 24,
    "private key": "-----BEGIN RSA PRIVATE KEY-----",
    "basic auth": "https://me:secret1234@example.org/",
}


def png(kind, body):
    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", bytes(13)) + chunk(kind, body) + chunk(b"IEND", b"")


@pytest.mark.parametrize("text", TOKENS.values(), ids=TOKENS.keys())
def test_tokens_of_every_provider_are_found(text):
    with pytest.raises(ValueError, match=r"^notes\.md holds an access token \(.+\); remove it") as refusal:
        check_secrets({"notes.md": f"Notes: {text} and more".encode()})
    assert text not in str(refusal.value)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("record.json", json.dumps({"token": OTHER}).encode("utf-16")),
        ("record.json", b"\x00" + f"token {OTHER}".encode("utf-16-be")),
        ("figure.png", png(b"tEXt", b"Comment\x00" + OTHER.encode())),
        ("figure.png", png(b"zTXt", b"Comment\x00\x00" + zlib.compress(OTHER.encode()))),
        ("figure.png", png(b"iTXt", b"xComment\x00\x01\x00en\x00x\x00" + zlib.compress(OTHER.encode()))),
        ("model.safetensors", os.urandom(3000) + b" " + OTHER.encode() + b" " + os.urandom(3000)),
    ],
    ids=["UTF-16", "UTF-16 BE", "PNG text", "PNG compressed", "PNG international", "weights"],
)
def test_tokens_are_found_in_every_file(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match="Hugging Face token"):
        check_secrets({name: tmp_path / name})


def test_a_token_across_two_pieces_of_a_large_file_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr("ncpl.hub.secrets.CHUNK", 100)
    monkeypatch.setattr("ncpl.hub.secrets.OVERLAP", 80)
    (tmp_path / "weights.safetensors").write_bytes(b"\x00" * 80 + OTHER.encode() + b"\x00" * 300)
    with pytest.raises(ValueError, match="access token"):
        check_secrets({"weights.safetensors": tmp_path / "weights.safetensors"})


def test_ordinary_files_hold_no_tokens():
    """What this repository itself publishes, random weights, hashes and base64 among it."""
    from ncpl.hub.embed import CHECKPOINTS
    from ncpl.hub.files import space_files

    files = {path.as_posix(): path for path in CHECKPOINTS.rglob("*") if path.is_file()}
    noise = os.urandom(10**6)
    check_secrets({**files, **space_files(), "a": noise, "b": base64.b64encode(noise), "c": noise.hex().encode()})


def test_links_do_not_lead_out_of_the_folder(hub, carded, tmp_path):  # noqa: F811
    (tmp_path / "secret.json").write_text('{"mine": "alone"}')
    (carded / "passwd").symlink_to("/etc/passwd")
    with pytest.warns(UserWarning, match="1 files are not part of a checkpoint and not pushed: passwd"):
        assert "passwd" not in folder_files(carded)
    (carded / "elsewhere").symlink_to(tmp_path, target_is_directory=True)
    with pytest.warns(UserWarning, match="passwd"):
        assert not [name for name in folder_files(carded) if "secret" in name]
    for target in ("/etc/passwd", tmp_path / "secret.json", "../secret.json", "missing.json"):
        link = carded / "notes.json"
        link.symlink_to(target)
        if target == "missing.json":
            with pytest.warns(UserWarning, match=r"notes\.json"):
                assert "notes.json" not in folder_files(carded)
        else:
            with pytest.raises(CheckpointError, match=r"notes\.json: a link to a file outside the folder"):
                push(carded, "me/tiny")
        link.unlink()
    assert not hub.requests
    (carded / "inside.json").symlink_to("config.json")
    os.mkfifo(carded / "pipe.json")
    with pytest.warns(UserWarning, match=r"2 files .*: passwd, pipe\.json"):
        assert "inside.json" in folder_files(carded)


def test_cards_execute_nothing_and_keep_their_metadata(carded):  # noqa: F811
    """Records and file names hold what they like."""
    evil = "<script>alert(1)</script>\n---\nlicense: mit\n| a [x](javascript:y) `"
    record = {
        "recipe": {"model": {"backbone": evil}},
        "seed": evil,
        "data": {evil: {"sha256": "5eab" * 16, "runs": {"train": 1}}},
        "hardware": {"cpu": evil, "cpu_cores": 2, "gpus": [], "processes": 1},
        "versions": {"torch": evil},
        "metrics": {evil: {evil: {"final": {"n": 3, "mae": 0.1, "rmse": 0.1, "spearman": 0.1, "bias": 0.1}}}},
        "wall_s": 3,
    }
    (carded / "training_record.json").write_text(json.dumps(record))
    (carded / "<script>---).png").write_bytes(b"\x89PNG")
    text = checkpoint_card(carded, "me/tiny")
    assert "<script" not in text
    assert text.count("\n---\n") == 1, "the end of the metadata"
    assert "](javascript" not in text
    from huggingface_hub import ModelCard

    assert ModelCard(text).data.license == "apache-2.0"
    for name in ("me/<script>", "me/a\n---\n", "me/a/b", "../x"):
        with pytest.raises(ValueError, match="repo: got") as refusal:
            checkpoint_card(carded, name)
        assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("name", ["dataset", "adapter", "nsp-base", "forecaster"])
def test_a_repositorys_name_does_not_choose_another_kinds_template(carded, name):  # noqa: F811
    assert checkpoint_card(carded, f"me/{name}") == checkpoint_card(carded, "me/tiny").replace("tiny", name)


@pytest.mark.parametrize("step", ["POST /api/repos/create", "GET .*/tree/", "POST .*/preupload", "POST .*/commit/"])
@pytest.mark.parametrize(
    ("kind", "message"), [("html", "not the Hub's JSON"), ("redirect", "redirects in a circle"), ("drip", "too slow")]
)
def test_a_hub_that_is_none_fails_in_one_line_and_bounded_time(hub, carded, monkeypatch, step, kind, message):  # noqa: F811
    monkeypatch.setattr(download, "PATIENCE", 1.0)
    monkeypatch.setattr(download, "SLOWEST", 10**7)
    hub.faults.append(Fault(match=step, kind=kind, times=None, seconds=1))
    before = len(hub.requests)
    with pytest.raises(HubError, match=message) as failure:
        push(carded, "me/tiny")
    # Each is bounded by `PATIENCE`, so that few of them are bounded time.
    assert len(hub.requests) - before <= MOST_REQUESTS
    assert "\n" not in str(failure.value)
    assert len(str(failure.value)) < 300


def test_downloads_are_compared_with_their_hashes(hub, carded, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    pushed = push(carded, "me/tiny")
    hub.faults.append(Fault(match=r"GET /me/tiny/resolve/.*\.safetensors", kind="corrupt"))
    with pytest.raises(HubError, match=r"me/tiny: model\.safetensors arrived damaged"):
        fetch("me/tiny")
    assert hub.faults[0].struck == 1
    got = fetch("me/tiny")
    assert (got / "model.safetensors").read_bytes() == (carded / "model.safetensors").read_bytes()
    assert fetch("me/tiny", revision=pushed.commit) == got
    with monkeypatch.context() as offline:
        offline.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        assert fetch("me/tiny") == got
    hub.faults[:] = [Fault(match="GET", kind="drop", times=None)]
    with pytest.warns(UserWarning, match="the Hub cannot be reached, the copy downloaded before is used"):
        assert fetch("me/tiny") == got


@pytest.mark.parametrize(
    ("kind", "message"),
    [("html", "not the Hub's JSON"), ("redirect", "redirects in a circle"), ("drip", "too slow"), ("drop", "failed")],
)
def test_downloads_end_in_bounded_time(hub, carded, tmp_path, monkeypatch, kind, message):  # noqa: F811
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    push(carded, "me/tiny")
    monkeypatch.setattr(download, "PATIENCE", 1.0)
    hub.faults.append(Fault(match="GET", kind=kind, times=None, seconds=0.1))
    before = len(hub.requests)
    with pytest.raises(HubError, match=message) as failure:
        fetch("me/tiny")
    assert len(hub.requests) - before <= MOST_REQUESTS
    assert "\n" not in str(failure.value)
    assert TOKEN not in str(failure.value)
