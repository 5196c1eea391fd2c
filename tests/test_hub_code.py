"""The code that a push sends: the installed package's, with the versions it was tested with; copies in checkpoints."""

import json
import shutil
import tomllib
import warnings
from importlib.metadata import requires

import huggingface_hub.constants
import pytest
from huggingface_hub import ModelCard
from packaging.requirements import Requirement

from ncpl.errors import CheckpointError, HubError
from ncpl.hub import push, push_code
from ncpl.hub.bundle import LIBRARIES, MARKS, ROOT, bundle_files, compatibility, renewed, requirements
from ncpl.hub.embed import CHECKPOINTS, embed
from tests.checkpoints import save_tiny
from tests.hub_server.storage import Blob, Repository
from tests.test_hub import hub  # noqa: F401  (a fixture)


@pytest.fixture
def old(tmp_path):
    """A checkpoint as a former package saved it: one module changed since, one gone, one not there yet."""
    folder = tmp_path / "old"
    save_tiny(folder)
    (folder / "modeling_ncpl.py").write_text("# as it was\n" + (folder / "modeling_ncpl.py").read_text())
    (folder / "former_ncpl.py").write_text("FORMER = 1\n")
    (folder / "pipeline_ncpl.py").unlink()
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Old\n\nMine.\n")
    return folder


def code(files):
    return {name: content for name, content in files.items() if name in bundle_files("ncpl")}


def installed(model):
    return {name: path.read_bytes() for name, path in bundle_files(model).items()}


def test_a_push_sends_the_installed_code_and_says_what_differs(hub, old):  # noqa: F811
    with pytest.warns(UserWarning, match=r"former_ncpl\.py, modeling_ncpl\.py: not the code of the installed package"):
        push(old, "me/tiny")
    files = hub.storage["me/tiny"].files()
    assert code(files) == installed("ncpl")
    assert "former_ncpl.py" not in files
    assert (old / "former_ncpl.py").exists(), "the folder stays as it is"


def test_settings_that_the_installed_code_cannot_read_are_not_pushed(hub, old):  # noqa: F811
    settings = json.loads((old / "processor_config.json").read_text())
    (old / "processor_config.json").write_text(json.dumps({**settings, "prompt_version": 99}))
    with pytest.raises(CheckpointError, match=r"processor_config\.json: the installed package cannot read it"):
        push(old, "me/tiny")
    assert not hub.requests


def test_code_alone_renews_a_repository(hub, old):  # noqa: F811
    """As a repository looks that a former package pushed; weights, settings and the owner's words stay."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        push(old, "me/tiny")
    repository = hub.storage["me/tiny"]
    stale = {
        "modeling_ncpl.py": Blob(b"# stale"),
        "former_ncpl.py": Blob(b"FORMER = 1"),
        "requirements.txt": Blob(b"transformers>=4\n"),
        "README.md": Blob(f"---\nlicense: mit\n---\nMine.\n{MARKS[0]}\nold versions\n{MARKS[1]}\nMore.\n".encode()),
    }
    before = {**repository.resolve("main").files, **stale}
    repository.commit("main", before, "as it was")
    pushed = push_code("me/tiny")
    files = repository.files()
    assert set(pushed.changed) == set(stale)
    assert code(files) == installed("ncpl")
    assert "former_ncpl.py" not in files
    assert files["requirements.txt"].decode() == requirements()
    assert ModelCard(files["README.md"].decode()).data.license == "mit"
    assert compatibility() in files["README.md"].decode()
    assert {name for name in files if files[name] != before[name].content} == set(stale) - {"former_ncpl.py"}
    assert push_code("me/tiny").changed == ()


def test_code_alone_needs_a_model_of_ours(hub, tmp_path):  # noqa: F811
    hub.storage.repositories["models", "me/other"] = other = Repository("models", "me/other")
    other.commit("main", {"config.json": Blob(b'{"model_type": "qwen3"}')}, "a language model")
    with pytest.raises(CheckpointError, match=r"me/other: expected a repository with a config\.json of model_type"):
        push_code("me/other")


def test_code_alone_without_network_blames_the_network(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match=r"^me/nowhere-yet: .*connection"):
        push_code("me/nowhere-yet")


def test_what_a_download_of_the_public_runs_needs_is_declared():
    """datasets downloads through fsspec's HTTP file system, whose own needs datasets does not declare."""
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    needs = map(Requirement, requires("fsspec") or [])
    needed = {need.name for need in needs if need.marker and need.marker.evaluate({"extra": "http"})}
    assert needed
    assert needed <= {Requirement(text).name for text in declared}


def test_requirements_are_the_packages_own():
    """One home: what `pyproject.toml` says is what a pushed checkpoint and its card promise, bounded on both sides."""
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    own = {Requirement(text).name: Requirement(text).specifier for text in declared}
    pushed = {Requirement(line).name: Requirement(line).specifier for line in requirements().splitlines()}
    assert pushed == {name: own[name] for name in LIBRARIES}
    assert any(bound.operator == "<" for bound in pushed["transformers"])
    for bound in pushed["transformers"]:
        assert bound.version in compatibility()
    assert {Requirement(text).name for text in requires("ncpl") or []} >= set(LIBRARIES), "an installed package's own"
    assert renewed("no marks") == "no marks"


def test_the_bundle_is_whole():
    """Every module of a model, and every sibling that one of them imports."""
    ncpl, nsp = bundle_files("ncpl"), bundle_files("nsp")
    assert set(ncpl) >= {path.name for path in ROOT.glob("*_ncpl.py")} | {"handler.py"}
    assert set(nsp) >= {path.name for path in ROOT.glob("*_nsp.py")}
    assert not {"ncpl_cli.py", "run_train.py"} & {*ncpl, *nsp}


@pytest.mark.parametrize("name", ["ncpl-mini", "nsp-base"])
def test_embedded_code_is_the_bundles(name):
    """After a change of the bundle: python -m ncpl.hub.embed."""
    for path in sorted((CHECKPOINTS / name).glob("*.py")):
        assert path.read_bytes() == (ROOT / path.name).read_bytes(), f"{path}: run python -m ncpl.hub.embed"


def test_embedding_writes_copies_and_removes_what_is_no_more(tmp_path):
    folder = shutil.copytree(CHECKPOINTS / "ncpl-mini", tmp_path / "ncpl-mini", symlinks=True)
    (folder / "former_ncpl.py").write_text("")
    (folder / "modeling_ncpl.py").unlink()
    (folder / "modeling_ncpl.py").symlink_to(ROOT / "modeling_ncpl.py")
    assert {"former_ncpl.py", "modeling_ncpl.py"} <= set(embed(folder))
    held = {path.name: path.read_bytes() for path in folder.glob("*.py")}
    assert held == installed("ncpl")
    assert not any(path.is_symlink() for path in folder.iterdir())
    assert embed(folder) == []
