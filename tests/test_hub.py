"""Pushing to a Hub by the real client, with everything going wrong that can."""

import hashlib
import json
import logging
import os
import shutil
import subprocess
import sys
import time
import warnings
from functools import partial
from typing import Any

import huggingface_hub.constants
import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import save_file
from transformers import AutoModel, pipeline

import ncpl_cli
from configuration_nsp import NSPConfig
from modeling_ncpl import NCPLForecaster
from modeling_nsp import NSPModel
from ncpl import hub as ncpl_hub
from ncpl.errors import CheckpointError, HubError
from ncpl.hub import push
from ncpl.hub.bundle import ROOT, bundle_files, requirements
from ncpl.hub.cards import EXAMPLES, checkpoint_card
from ncpl.recipe import Lora
from ncpl.training.model import add_adapters
from processing_ncpl import NCPLProcessor
from tests.checkpoints import CONFIGS, fresh_process, save_tiny
from tests.hub_server import Fault, HubServer
from tests.hub_server.server import TOKEN
from tests.hub_server.storage import Blob

CODE = {path.name for path in ROOT.glob("*_ncpl.py")} | {"handler.py"}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "tiny"
    save_tiny(folder)
    record = {"metrics": {}, "seed": 42}
    (folder / "training_record.json").write_text(json.dumps(record))
    (folder / "scatter.png").write_bytes(b"\x89PNG")
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "tiny")


@pytest.fixture
def carded(folder):
    """With a card of its own, so that a push needs no forecasts to write one."""
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Tiny\n")
    return folder


@pytest.fixture
def hub(monkeypatch):
    """A server that the client of this process talks to, without its seconds of waiting between attempts."""
    sleep = time.sleep
    with HubServer() as server:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.url)
        template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setattr(time, "sleep", lambda seconds: sleep(min(seconds, 0.01)))
        yield server


def snapshot(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


LOADS = """
import importlib.util, json
from huggingface_hub import snapshot_download
from transformers import AutoConfig, AutoModel, AutoProcessor, pipeline
repo, revision, configs = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
pipe = pipeline("scaling-forecast", model=repo, revision=revision, trust_remote_code=True)
model = AutoModel.from_pretrained(repo, revision=revision, trust_remote_code=True)
processor = AutoProcessor.from_pretrained(repo, revision=revision, trust_remote_code=True)
batch = processor(configs[0])
refused = []
for load in (AutoConfig.from_pretrained, AutoModel.from_pretrained, AutoProcessor.from_pretrained,
             lambda name, **k: pipeline("scaling-forecast", model=name, **k)):
    try:
        load(repo, revision=revision, trust_remote_code=False)
    except ValueError as error:
        refused.append("trust_remote_code" in str(error))
# As the endpoint's toolkit does: the folder on sys.path, the file by its path, the class by its name.
folder = snapshot_download(repo, revision=revision)
sys.path.insert(0, folder)
# The folder's modules have the names that are hidden; they come first.
sys.meta_path = [finder for finder in sys.meta_path if not isinstance(finder, Hidden)]
spec = importlib.util.spec_from_file_location("handler", folder + "/handler.py")
module = importlib.util.module_from_spec(spec)
sys.modules["handler"] = module
spec.loader.exec_module(module)
endpoint = module.EndpointHandler(folder)
assert sys.modules["fields_ncpl"].__file__.startswith(folder)
print(json.dumps({
    "pipe": [pipe(config) for config in configs],
    "by hand": float(processor.losses(model(**batch).logits, batch["loss_mask"], configs[:1])[0]),
    "config": AutoConfig.from_pretrained(repo, revision=revision, trust_remote_code=True).model_type,
    "refused": refused,
    "endpoint": json.loads(json.dumps(endpoint({"inputs": configs[0]}))),
}))
"""


def test_pushed_and_loaded_from_an_empty_cache(hub, folder, tmp_path):
    before = snapshot(folder)
    pushed = push(folder, "me/tiny")
    repository = hub.storage["me/tiny"]
    files = repository.files()
    assert repository.history() == ["Push tiny", "initial commit"]
    assert {*before, *CODE, "README.md", "requirements.txt", "widget.json"} == files.keys()
    assert all(files[name] == content for name, content in before.items())
    assert repository.resolve("main").files["model.safetensors"].sha256, "weights go to large file storage"
    assert str(pushed) == f"{hub.url}/me/tiny/commit/{pushed.commit}"
    assert snapshot(folder) == before

    hub.storage["me/tiny"].commit("main", {}, "main goes on, the pinned revision stays")
    # A download that breaks off goes on where it was.
    hub.faults.append(Fault(match=r"GET /me/tiny/resolve/.*\.safetensors", kind="truncate"))
    got = fresh_process(LOADS, "me/tiny", pushed.commit, json.dumps(CONFIGS), home=tmp_path, **hub.environment())
    local = pipeline("scaling-forecast", model=str(folder), trust_remote_code=True)
    expected = [local(config) for config in CONFIGS]
    assert got["pipe"] == expected
    assert got["by hand"] == got["endpoint"]["loss"] == expected[0]["loss"]
    assert (got["config"], got["refused"]) == ("ncpl", [True] * 4)
    assert hub.faults[0].struck == 1


def test_an_unchanged_push_makes_no_commit_and_sends_nothing(hub, folder):
    first = push(folder, "me/tiny")
    hub.requests.clear()
    second = push(folder, "me/tiny")
    assert (second.commit, second.changed) == (first.commit, ())
    assert str(second).endswith("(unchanged)")
    assert not [line for line in hub.requests if "/commit/" in line or "/lfs/" in line]
    (folder / "training_record.json").write_text("{}")
    (folder / "README.md").write_bytes(hub.storage["me/tiny"].files()["README.md"])
    (folder / "widget.json").write_bytes(hub.storage["me/tiny"].files()["widget.json"])
    assert push(folder, "me/tiny").changed == ("training_record.json",)


def test_a_bare_name_is_the_users_own(hub, folder):
    assert push(folder, "tiny").url.startswith(f"{hub.url}/me/tiny/commit/")


def test_private_branch_pull_request_and_tag(hub, folder):
    push(folder, "me/tiny", private=True, tag="v1")
    repository = hub.storage["me/tiny"]
    assert repository.private
    assert repository.files("v1") == repository.files("main")

    (folder / "training_record.json").write_text('{"seed": 7}')
    assert "training_record.json" in push(folder, "me/tiny", revision="next").changed
    assert repository.files("next")["training_record.json"] != repository.files("main")["training_record.json"]

    request = push(folder, "me/tiny", create_pr=True)
    assert request.url == f"{hub.url}/me/tiny/discussions/1"
    assert repository.files("refs/pr/1") == repository.files("next")
    assert push(folder, "me/tiny", revision="refs/pr/1").changed == ()
    assert len(repository.history()) == 2, "main is as it was"

    with pytest.raises(HubError, match=r"tag: 'v1' names commit .* give another name"):
        push(folder, "me/tiny", tag="v1")
    assert len(repository.history()) == 2, "and nothing was written"


def test_shards_of_an_earlier_push_are_removed(hub, folder):
    push(folder, "me/tiny")
    repository = hub.storage["me/tiny"]
    old = {"model-00001-of-00002.safetensors": Blob(b"old"), "photo.jpg": Blob(b"somebody's")}
    repository.commit("main", {**repository.resolve("main").files, **old}, "an earlier push")
    assert push(folder, "me/tiny").changed == ("model-00001-of-00002.safetensors",)
    assert "photo.jpg" in repository.files()


STEPS = [
    "POST /api/repos/create",
    "GET /api/models/me/tiny$",
    "GET /api/models/me/tiny/tree",
    "POST /api/models/me/tiny/preupload",
    "POST /me/tiny.git/info/lfs",
    "PUT /lfs/",
    "POST /lfs/verify",
    "POST /api/models/me/tiny/commit",
    "POST /api/models/me/tiny/tag",
]
FAULTS: dict[str, dict[str, Any]] = {
    "429": {"status": 429},
    "500": {"status": 500},
    "503": {"status": 503},
    "dropped": {"kind": "drop"},
    "answer lost": {"kind": "lose_answer"},
    "truncated": {"kind": "truncate"},
    "slow": {"kind": "slow", "seconds": 0.2},
}


@pytest.mark.parametrize(
    ("step", "fault"),
    [
        *((step, fault) for step in STEPS for fault in ("503", "dropped", "answer lost")),
        *(
            (step, fault)
            for step in STEPS
            if "/commit" in step or "PUT" in step
            for fault in ("429", "500", "truncated", "slow")
        ),
    ],
)
def test_a_passing_fault_is_survived(hub, carded, step, fault):
    before = snapshot(carded)
    hub.faults.append(Fault(match=step, **FAULTS[fault]))
    pushed = push(carded, "me/tiny", tag="v1")
    assert hub.faults[0].struck == 1, f"the push made no request {step}"
    repository = hub.storage["me/tiny"]
    assert repository.history() == ["Push tiny", "initial commit"], "one commit, whatever was repeated"
    assert repository.files("v1") == repository.files()
    assert {name: repository.files()[name] for name in before} == before == snapshot(carded)
    assert "model.safetensors" in pushed.changed


@pytest.mark.parametrize("step", [STEPS[2], STEPS[5], STEPS[7]])
@pytest.mark.parametrize("fault", ["429", "500", "dropped"])
def test_a_lasting_fault_fails_in_one_line_and_leaves_nothing(hub, carded, step, fault, caplog, capfd):
    before = snapshot(carded)
    hub.faults.append(Fault(match=step, times=None, **FAULTS[fault]))
    with caplog.at_level(logging.DEBUG), pytest.raises(HubError) as failure:
        push(carded, "me/tiny")
    reason = {"429": "takes no more requests", "500": "answered 500", "dropped": "connection to .* failed"}[fault]
    assert failure.match(rf"^me/tiny: .*{reason}.*push again")
    assert "\n" not in str(failure.value)
    assert hub.storage["me/tiny"].files() == {}
    assert snapshot(carded) == before
    assert TOKEN not in caplog.text + "".join(capfd.readouterr()) + str(failure.value)


def test_an_interrupted_upload_goes_on_where_it_was(hub, carded):
    save_file({"second": torch.ones(5)}, carded / "adapter_extra.safetensors")
    content = (carded / "adapter_extra.safetensors").read_bytes()
    second = hashlib.sha256(content).hexdigest()
    hub.faults.append(Fault(match=f"PUT /lfs/{second}", kind="drop", times=None))
    with pytest.raises(HubError, match="files that arrived are not sent twice"):
        push(carded, "me/tiny")
    hub.faults.clear()
    push(carded, "me/tiny")
    first = hashlib.sha256((carded / "model.safetensors").read_bytes()).hexdigest()
    assert hub.requests.count(f"PUT /lfs/{first}") == 1
    assert hub.storage["me/tiny"].files()["adapter_extra.safetensors"] == content


def test_somebody_elses_commit_is_not_overwritten(hub, carded):
    push(carded, "me/tiny")
    repository = hub.storage["me/tiny"]
    theirs = {**repository.resolve("main").files, "training_record.json": Blob(b'{"seed": 1}')}
    hub.faults.append(
        Fault(match="POST .*/commit/", kind="act", action=lambda: repository.commit("main", theirs, "theirs"))
    )
    (carded / "training_record.json").write_text('{"seed": 2}')
    with pytest.raises(HubError, match="somebody else committed while this push was under way"):
        push(carded, "me/tiny")
    assert repository.history()[0] == "theirs"
    assert push(carded, "me/tiny").changed, "pushing again is a decision, and works"
    assert repository.files()["training_record.json"] == b'{"seed": 2}'


@pytest.mark.parametrize("fault", [{"kind": "lose_answer"}, {"kind": "applied", "status": 503}])
def test_a_pull_request_is_not_opened_twice(hub, carded, fault):
    """Neither where the Hub opened it and its answer was lost, nor by a second push of the same."""
    push(carded, "me/tiny")
    (carded / "training_record.json").write_text("{}")
    hub.faults.append(Fault(match="POST .*/commit/", **fault))
    opened = push(carded, "me/tiny", create_pr=True)
    assert hub.faults[0].struck == 1
    assert push(carded, "me/tiny", create_pr=True) == opened
    assert opened.url == f"{hub.url}/me/tiny/discussions/1"
    assert list(hub.storage["me/tiny"].pull_requests) == ["refs/pr/1"]
    (carded / "training_record.json").write_text('{"seed": 3}')
    assert push(carded, "me/tiny", create_pr=True).url == f"{hub.url}/me/tiny/discussions/2", "another content"


@pytest.mark.parametrize(
    ("token", "repo_id", "message"),
    [
        ("hf_" + "x" * 34, "me/tiny", "does not accept the access token.*hf auth login"),
        (TOKEN, "others/tiny", "no right to write there.*namespace 'others'"),
        (TOKEN, "me/tiny/deep", "repo id|Repo id"),
    ],
)
def test_what_the_hub_refuses(hub, carded, token, repo_id, message):
    with pytest.raises(HubError, match=message) as refusal:
        push(carded, repo_id, token=token)
    assert token not in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert not hub.storage.repositories


def test_a_token_that_expires_halfway(hub, carded):
    hub.faults.append(Fault(match="POST .*/preupload/", kind="act", action=lambda: hub.tokens.clear()))
    with pytest.raises(HubError, match="absent, expired or wrong"):
        push(carded, "me/tiny")
    assert hub.storage["me/tiny"].files() == {}


def test_offline_mode_is_said(hub, carded, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match="HF_HUB_OFFLINE"):
        push(carded, "me/tiny")


def test_a_token_in_a_file_stops_the_push(hub, carded):
    (carded / "training_record.json").write_text(json.dumps({"environment": {"HF_TOKEN": TOKEN}}))
    with pytest.raises(ValueError, match=r"training_record\.json holds an access token") as refusal:
        push(carded, "me/tiny")
    assert TOKEN not in str(refusal.value)
    assert not hub.requests


def test_a_card_with_broken_metadata_is_refused_before_anything_is_sent(hub, carded):
    (carded / "README.md").write_text("---\nlicense: [apache\n---\n")
    with pytest.raises(ValueError, match=r"Invalid metadata in README\.md"):
        push(carded, "me/tiny")
    assert hub.storage["me/tiny"].files() == {}


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: shutil.rmtree(f), "no such folder"),
        (lambda f: (f / "config.json").unlink(), "no config.json and no adapter_config.json"),
        (lambda f: (f / "model.safetensors").unlink(), "lacks model.safetensors"),
        (lambda f: (f / "tokenizer.json").unlink(), "lacks tokenizer.json"),
        (lambda f: (f / "processor_config.json").unlink(), "lacks processor_config.json"),
        (lambda f: (f / "config.json").write_text("{"), "config.json: cannot be read as JSON"),
    ],
)
def test_half_a_checkpoint_is_not_pushed(hub, carded, spoil, message):
    spoil(carded)
    with pytest.raises(CheckpointError, match=message):
        push(carded, "me/tiny")
    assert not hub.requests


def test_a_trainings_own_state_stays_at_home(hub, carded):
    (carded / "checkpoint-5").mkdir()
    for name in ("optimizer.pt", "checkpoint-5/config.json", "trainer_state.json", ".cache.json"):
        (carded / name).write_text("{}")
    with pytest.warns(
        UserWarning, match="3 files are not part of a checkpoint and not pushed: checkpoint-5/config.json"
    ):
        push(carded, "me/tiny")
    names = hub.storage["me/tiny"].files().keys()
    assert not {"optimizer.pt", "trainer_state.json", ".cache.json", "checkpoint-5/config.json"} & names


def test_no_warning_without_a_reason(hub, carded):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        push(carded, "me/tiny")


def test_the_endpoint_files_are_ours(hub, folder):
    push(folder, "me/tiny")
    files = hub.storage["me/tiny"].files()
    assert files["handler.py"] == (ncpl_hub.ROOT / "handler.py").read_bytes()
    assert files["requirements.txt"].decode() == requirements()


@pytest.fixture
def adapter(saved, tmp_path):
    """An adapter over a local folder, as peft leaves it, boilerplate card included."""
    folder = tmp_path / "adapter"
    processor = NCPLProcessor.from_pretrained(saved)
    model = NCPLForecaster.from_pretrained(saved)
    add_adapters(model, Lora(r=2)).save_pretrained(folder)
    processor.save_pretrained(folder)
    assert "[More Information Needed]" in (folder / "README.md").read_text()
    return folder


def test_an_adapter_needs_a_base_that_others_can_load(hub, saved, adapter):
    before = snapshot(adapter)
    with pytest.raises(
        CheckpointError, match=r"the adapter's base is the local folder .*give its repo id as base_model"
    ):
        push(adapter, "me/tiny-lora")
    assert not hub.requests
    push(adapter, "me/tiny-lora", base_model="me/tiny")
    files = hub.storage["me/tiny-lora"].files()
    assert json.loads(files["adapter_config.json"])["base_model_name_or_path"] == "me/tiny"
    card = ModelCard(files["README.md"].decode())
    assert (card.data.base_model, card.data.library_name) == ("me/tiny", "peft")
    assert str(saved).encode() not in b"".join(files.values()), "no path of this machine"
    assert "[More Information Needed]" not in card.text
    assert snapshot(adapter) == before


def test_half_an_adapter_is_not_pushed(hub, adapter):
    (adapter / "adapter_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"lacks adapter_model\.safetensors"):
        push(adapter, "me/tiny-lora", base_model="me/tiny")


LOADS_ADAPTER = """
import json
from transformers import AutoModel, AutoProcessor
repo, config = sys.argv[1], json.loads(sys.argv[2])
model = AutoModel.from_pretrained(repo, trust_remote_code=True)
processor = AutoProcessor.from_pretrained(repo, trust_remote_code=True)
batch = processor(config)
print(json.dumps(processor.losses(model(**batch).logits, batch["loss_mask"], [config]).item()))
"""


def test_train_push_load_adapt_push_load(hub, tmp_path):
    """`examples/hub_roundtrip.py` as a user runs it, then its adapter in a process without this project."""
    done = subprocess.run(
        [sys.executable, ncpl_hub.ROOT / "examples" / "hub_roundtrip.py", "me", "--folder", tmp_path, "--epochs", "1"],
        env={**os.environ, **hub.environment(), "HF_HOME": str(tmp_path / "home")},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert TOKEN not in done.stdout + done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["forecast"] != result["adapted"]
    for repo in (result["base"], result["adapter"]):
        repository = hub.storage[repo]
        assert len(repository.history()) == 2, "one commit on top of the first"
        files = repository.files()
        assert json.loads(files["training_record.json"])["metrics"]
        assert ModelCard(files["README.md"].decode()).data.eval_results
        assert not any(TOKEN.encode() in content or str(tmp_path).encode() in content for content in files.values())
    assert hub.storage[result["base"]].private
    config = json.dumps(next(iter(EXAMPLES.values())))
    assert (
        fresh_process(LOADS_ADAPTER, result["adapter"], config, home=tmp_path, **hub.environment()) == result["adapted"]
    )


def command(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["ncpl", *map(str, arguments)])
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        ncpl_cli.main()
    return end.value.code or 0, *capsys.readouterr()


def test_a_dry_run_checks_and_sends_nothing(hub, carded, monkeypatch, capsys):
    run = partial(command, monkeypatch, capsys)
    status, out, _ = run("push", carded, "me/tiny", "--dry-run")
    assert status == 0
    assert "nothing was sent; a push to me/tiny sends" in out
    assert "model.safetensors" in out
    assert not hub.requests
    (carded / "notes.md").write_text(f"token {TOKEN}")
    assert run("push", carded, "me/tiny", "--dry-run")[0] == 2


def test_damaged_weights_are_not_pushed(hub, carded):
    weights = carded / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"model\.safetensors: no whole safetensors file"):
        push(carded, "me/tiny")
    assert not hub.requests


def test_a_strangers_model_is_not_pushed(hub, carded):
    (carded / "config.json").write_text('{"model_type": "bert"}')
    for door in (lambda: push(carded, "me/tiny"), lambda: checkpoint_card(carded, "me/tiny")):
        with pytest.raises(CheckpointError, match=r"config\.json: model_type: got 'bert', expected ncpl or nsp"):
            door()
    assert not hub.requests


def test_a_bad_name_is_refused_before_anything_is_read():
    with pytest.raises(HubError, match=r"^repo: got 'bad name', expected owner/name"):
        push("/nonexistent", "bad name")


def test_a_pushed_embedded_checkpoint_goes_by_the_repositorys_name(hub, tmp_path):
    folder = shutil.copytree(ROOT / "ncpl" / "checkpoints" / "nsp-base", tmp_path / "nsp-base")
    push(folder, "me/scores")
    card = hub.storage["me/scores"].files()["README.md"].decode()
    assert 'from_pretrained("me/scores"' in card
    assert '"nsp-base"' not in card


def test_commands(hub, saved, carded, adapter, tmp_path, monkeypatch, capsys):
    """`ncpl push`, `card` and `merge` as typed; what they do is tested above."""
    run = partial(command, monkeypatch, capsys)
    status, out, _ = run("push", carded, "me/tiny", "--private", "--tag", "v1", "--json")
    assert status == 0
    assert json.loads(out)["commit"] == hub.storage["me/tiny"].tags["v1"]
    assert hub.storage["me/tiny"].private
    assert "(unchanged)" in run("push", carded, "me/tiny")[1]

    (carded / "README.md").unlink()
    assert run("card", carded, "me/tiny")[1].strip() == str(carded / "README.md")
    assert (carded / "README.md").read_text() == checkpoint_card(carded, "me/tiny")
    assert json.loads((carded / "widget.json").read_text()).keys() == EXAMPLES.keys()

    assert run("merge", adapter, tmp_path / "merged")[0] == 0
    merged, base = NCPLForecaster.from_pretrained(tmp_path / "merged"), NCPLForecaster.from_pretrained(saved)
    assert merged.state_dict().keys() == base.state_dict().keys()
    processor = NCPLProcessor.from_pretrained(tmp_path / "merged")
    batch = processor(CONFIGS)
    over = AutoModel.from_pretrained(adapter)
    torch.testing.assert_close(merged(**batch).logits, over(**batch).logits, atol=2e-6, rtol=1e-5)

    for arguments, message in [
        (["push", carded], "expected FOLDER REPO"),
        (["push", "--space", carded, "me/tiny"], "expected FOLDER REPO"),
        (["push", tmp_path / "nowhere", "me/tiny"], "no such folder"),
        (["push", "--dataset", "marinn", "me/runs"], "did you mean 'marin'"),
        (["card", tmp_path / "nowhere", "me/tiny"], "no config.json"),
        (["convert", carded, tmp_path / "out"], "no pytorch_model.bin in this folder"),
        (["merge", "nobody/nothing", tmp_path / "out"], "nobody/nothing: no such repository"),
        (["merge", saved, tmp_path / "out"], "no adapter_config.json"),
    ]:
        status, _, error = run(*arguments)
        assert (status, error.count("\n")) == (2, 1), error
        assert message in error


def test_a_score_predictor_is_pushed_whole(hub, tmp_path):
    model = NSPModel(NSPConfig())
    model.save_pretrained(tmp_path / "nsp")
    model.extractor.save_pretrained(tmp_path / "nsp")
    push(tmp_path / "nsp", "me/nsp-base")
    files = hub.storage["me/nsp-base"].files()
    assert {*snapshot(tmp_path / "nsp"), "README.md", *bundle_files("nsp")} == files.keys()
    assert "feature_extraction_nsp.py" in files
    assert files["modeling_nsp.py"] == (ROOT / "modeling_nsp.py").read_bytes()
