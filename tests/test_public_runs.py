"""The public run logs: pinned files from a server laid out as the repositories are, and the Hub's data set."""

import json
import os
import shutil
import subprocess
import sys
import threading
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import datasets
import huggingface_hub
import pytest

from datasets_scripts import SAMPLE_DIR, public, runs
from datasets_scripts.marin import Marin
from datasets_scripts.public import DownloadError, git_blob, lfs_pointer
from datasets_scripts.runs import builder_class, data_hash, load_runs
from datasets_scripts.steplaw import StepLaw
from datasets_scripts.steplaw_moe import StepLawMoE
from tests.hub_server import HubServer
from tests.hub_server.server import TOKEN

ROOT = Path(__file__).parent.parent
NCPL = "zhqwqwq/Configuration-to-Performance-Scaling-Law"
COMMIT = "4f6e64b0144ec0fa8070a4398e3aebe33a8b11b1"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "DOWNLOADED_DATASETS_PATH", tmp_path / "cache" / "downloads")


@contextmanager
def serve(folder, monkeypatch):
    """A web server on a folder, in the place of github.com."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(public, "GITHUB", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()


def contents():
    """Path in the repositories, as they are laid out -> content; the public runs hold the unstable ones too."""
    files = {}
    for source in ("marin", "steplaw"):
        everything = [
            run
            for name in ("processed_data", "unstable_runs")
            for run in json.loads((SAMPLE_DIR / f"{source}_{name}.json").read_text(encoding="utf-8"))
        ]
        keys = json.loads((SAMPLE_DIR / f"{source}_keys_model_split.json").read_text(encoding="utf-8"))
        keys["train"] += ["gone-1", "gone-2"]
        base = f"{NCPL}/raw/{COMMIT}/processed_data"
        files[f"{base}/{source}_processed_data.json"] = json.dumps(everything).encode()
        files[f"{base}/keys/{source}_keys_model_split.json"] = json.dumps(keys).encode()
    moe = "step-law/steplaw/raw/32a8f4cc50247695fb56cc6c9117abdf67c97763/data/moe_lr_bs_loss.csv"
    return files | {moe: (SAMPLE_DIR / "moe_lr_bs_loss.csv").read_bytes()}


@pytest.fixture
def web(tmp_path, monkeypatch):
    """The repositories with the sample in the place of the real files, and the pins of the sample's files."""
    files = contents()
    for path, content in files.items():
        (tmp_path / "web" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "web" / path).write_bytes(content)
    for builder in (Marin, StepLaw, StepLawMoE):
        pinned = builder.PUBLIC
        made = {
            role: (path, git_blob(files[f"{pinned.repository}/raw/{pinned.commit}/{path}"]))
            for role, (path, _) in pinned.files.items()
        }
        monkeypatch.setattr(builder, "PUBLIC", replace(pinned, files=made))
    with serve(tmp_path / "web", monkeypatch):
        yield tmp_path / "web"


def rows(loaded):
    return json.dumps([row for split in loaded.values() for row in split])


@pytest.mark.parametrize("source", ["marin", "steplaw"])
def test_the_public_files_of_ncpl(source, web):
    with pytest.warns(UserWarning, match="skipped") as seen:
        loaded = load_runs(source, config="intermediate")
    assert sorted(str(warning.message) for warning in seen) == [
        f"{source}: 2 of the 68 names of 'train' have no run in {source}_processed_data.json: skipped",
        f"{source}: there is no file of unstable runs: 'unstable' holds the 8 runs that no split names",
    ]
    assert rows(loaded) == rows(load_runs(source, SAMPLE_DIR, "intermediate"))
    with pytest.warns(UserWarning, match="skipped"):  # the cache does not hide what is missing
        load_runs(source, config="intermediate")
    assert len(data_hash(source)) == 64
    with pytest.warns(UserWarning, match="skipped"):
        stream = builder_class(source)().as_streaming_dataset(split="ood_val")
    assert next(iter(stream))["split"] == "ood_val"


def test_the_public_file_of_step_law(web):
    assert rows(load_runs("steplaw_moe")) == rows(load_runs("steplaw_moe", SAMPLE_DIR))
    assert data_hash("steplaw_moe") == data_hash("steplaw_moe", SAMPLE_DIR)


def test_a_wrong_blob_is_refused_and_not_kept(web):
    path = web / NCPL / "raw" / COMMIT / "processed_data" / "marin_processed_data.json"
    good = path.read_bytes()
    path.write_bytes(good.replace(b"0.1", b"0.2", 1))
    with pytest.raises(DownloadError, match=r"marin_processed_data.json at 4f6e64b014 is git blob \w{10}, expected"):
        load_runs("marin")
    path.write_bytes(good)
    with pytest.warns(UserWarning, match="skipped"):
        assert len(load_runs("marin")["train"]) == 66


def test_another_revision_is_read_unchecked_and_said_so(web):
    folder = web / NCPL / "raw"
    shutil.copytree(folder / COMMIT, folder / "newer")
    runs_file = folder / "newer" / "processed_data" / "marin_processed_data.json"
    runs_file.write_bytes(runs_file.read_bytes() + b"\n")
    with pytest.warns(UserWarning, match=f"read at revision newer of {NCPL}, whose files were not checked"):
        assert len(load_runs("marin", revision="newer")["train"]) == 66


def test_a_missing_file_is_named(web):
    (web / NCPL / "raw" / COMMIT / "processed_data" / "keys" / "marin_keys_model_split.json").unlink()
    with pytest.raises(DownloadError, match=r"could not download .*/keys/marin_keys_model_split.json .*give data_dir"):
        load_runs("marin")


def test_files_in_git_lfs_are_known_by_their_pointer():
    content = b"[1, 2]"
    pinned = replace(Marin.PUBLIC, files={"runs": ("runs.json", git_blob(lfs_pointer(content)))})
    pinned.check("runs", content)
    with pytest.raises(DownloadError, match="expected"):
        pinned.check("runs", content + b" ")


def test_blobs_are_those_of_git(tmp_path):
    (tmp_path / "file").write_bytes(b"some content\n")
    done = subprocess.run(["git", "hash-object", tmp_path / "file"], capture_output=True, text=True, check=True)
    assert git_blob(b"some content\n") == done.stdout.strip()


@pytest.mark.parametrize("source", ["marin", "steplaw", "steplaw_moe"])
def test_offline_it_is_one_line_and_status_2(source, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", f"datasets_scripts.{source}", "--output", tmp_path / "out"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)},
    )
    assert done.returncode == 2
    last = done.stderr.strip().splitlines()[-1]
    assert f"{source}: could not download https://github.com/" in last
    assert "give data_dir" in last
    assert "Traceback" not in done.stderr


# ------------------------------------------------------------------------------------------------ the Hub's data set


@pytest.fixture
def hub(monkeypatch):
    with HubServer() as server:
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield huggingface_hub.HfApi(endpoint=server.url)


def push(hub, names):
    hub.create_repo("me/logs", repo_type="dataset")
    for name in names:
        hub.upload_file(
            path_or_fileobj=(SAMPLE_DIR / Path(name).name).read_bytes(),
            path_in_repo=name,
            repo_id="me/logs",
            repo_type="dataset",
        )


@pytest.mark.filterwarnings("ignore:.*no file of unstable")
def test_the_hub_door_lists_and_reads(hub, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(public, "HfApi", lambda: hub)
    push(hub, ["logs/marin_processed_data.json", "logs/keys/marin_keys_model_split.json"])
    runs.main("marin", ["--hub", "me/logs"])
    said = capsys.readouterr().out
    assert "me/logs at " in said
    assert "runs: logs/marin_processed_data.json, splits: logs/keys/marin_keys_model_split.json" in said
    runs.main("marin", ["--hub", "me/logs", "--output", str(tmp_path / "out")])
    assert len(datasets.load_dataset(str(tmp_path / "out"), split="train")) == 66


def test_the_hub_door_says_what_lacks(hub, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(public, "HfApi", lambda: hub)
    push(hub, ["moe_lr_bs_loss.csv"])
    for arguments, expected in (
        (["--hub", "me/logs", "--output", str(tmp_path / "out")], "lacks marin_processed_data.json"),
        (["--hub", "me/none"], "me/none: could not list its files"),
    ):
        with pytest.raises(SystemExit) as stop:
            runs.main("marin", arguments)
        assert stop.value.code == 2
        assert expected in capsys.readouterr().err
