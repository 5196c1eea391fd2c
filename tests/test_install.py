"""However the project arrives, it forecasts: a zip of the repository, a copied checkpoint, a wheel, an sdist.

What git holds is tested, so commit first. `make test-install` runs this.
"""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from ncpl import Forecaster
from tests.checkpoints import ADAMW, fresh_process

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parent.parent
MINI = Path("ncpl") / "checkpoints" / "ncpl-mini"
LOAD = """
import json, sys
from transformers import AutoModel, AutoProcessor, pipeline
folder, config = sys.argv[1], json.loads(sys.argv[2])
AutoModel.from_pretrained(folder, trust_remote_code=True)
AutoProcessor.from_pretrained(folder, trust_remote_code=True)
print(json.dumps(pipeline("scaling-forecast", model=folder, trust_remote_code=True)(config)))
"""


@pytest.fixture(scope="module")
def expected():
    return pytest.approx(Forecaster.from_pretrained().predict(ADAMW).iloc[0].to_dict(), abs=1e-6)


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """The repository as a zip, unpacked as every platform unpacks it: a link would be a text file."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git repository, there is nothing to zip")
    folder = tmp_path_factory.mktemp("zip")
    run("git", "archive", "--format=zip", "--output", folder / "project.zip", "HEAD", cwd=ROOT)
    with zipfile.ZipFile(folder / "project.zip") as packed:
        packed.extractall(folder / "project")
    return folder / "project"


@pytest.fixture(scope="module")
def distributions(archive, tmp_path_factory):
    """The wheel and the source distribution that the build backend makes of the zip."""
    folder = tmp_path_factory.mktemp("dist")
    code = f"from setuptools import build_meta as b; b.build_sdist({str(folder)!r}); b.build_wheel({str(folder)!r})"
    copy = shutil.copytree(archive, tmp_path_factory.mktemp("build") / "project")
    run(sys.executable, "-c", code, cwd=copy)
    return {path.suffix: path for path in folder.iterdir()}


def run(*command, cwd, **env):
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "OMP_NUM_THREADS") if name in os.environ}
    words = [str(word) for word in command]
    done = subprocess.run(words, cwd=cwd, env=kept | env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, f"{' '.join(words)}: {done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def environment(folder, package):
    """Python of a new environment with this one's libraries and the package, but nothing of this checkout."""
    run(sys.executable, "-m", "venv", folder, cwd=folder.parent)
    python = folder / "bin" / "python"
    site = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip()
    # Up to Python 3.11 it brings a setuptools of its own, which may be too old to build with.
    run(python, "-m", "pip", "uninstall", "--quiet", "--yes", "setuptools", cwd=folder)
    # Named in a .pth file, a folder's own .pth files are not read: the editable install of this checkout stays out.
    (Path(site) / "libraries.pth").write_text(sysconfig.get_path("purelib"))
    pip = [python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    run(*pip, package, cwd=folder)
    return python


def forecast(python, folder, home):
    """The default's forecast loss by the installed `ncpl` command, away from any checkout."""
    (home / "run.json").write_text(json.dumps(ADAMW))
    said = run(python.parent / "ncpl", "predict", "run.json", "--json", cwd=home, HF_HUB_OFFLINE="1", HF_HOME=str(home))
    (result,) = json.loads(said)
    where = run(python, "-c", "import ncpl; print(ncpl.__file__)", cwd=home).strip()
    assert Path(where).is_relative_to(folder), "the installed package, and not this checkout"
    return result["loss"]


def test_a_zip_of_the_repository(archive, tmp_path, expected):
    assert not [path for path in archive.rglob("*") if path.is_symlink()]
    found = fresh_process(LOAD, archive / MINI, json.dumps(ADAMW), home=tmp_path, HF_HUB_OFFLINE="1")
    assert found == expected


def test_a_copied_checkpoint(tmp_path, expected):
    run("cp", "-r", ROOT / MINI, tmp_path / "copy", cwd=tmp_path)
    assert not [path for path in (tmp_path / "copy").iterdir() if path.is_symlink()]
    found = fresh_process(LOAD, tmp_path / "copy", json.dumps(ADAMW), home=tmp_path, HF_HUB_OFFLINE="1")
    assert found == expected


def test_pip_install_of_the_zip(archive, tmp_path, expected):
    copy = shutil.copytree(archive, tmp_path / "project")
    python = environment(tmp_path / "env", copy)
    assert forecast(python, tmp_path / "env", tmp_path) == pytest.approx(expected.expected["loss"], abs=1e-6)


def test_the_wheel_forecasts_and_brings_recipes_and_examples(distributions, tmp_path, expected):
    with zipfile.ZipFile(distributions[".whl"]) as wheel:
        names = wheel.namelist()
    tops = {name.partition("/")[0].removesuffix(".py") for name in names if ".dist-info" not in name}
    assert {top for top in tops if not top.endswith(("_ncpl", "_nsp"))} == {"ncpl", "ncpl_cli", "datasets_scripts"}
    for name in ("handler.py", "run_train.py", "recipes/ncpl-mini.yaml", "examples/marin-1b.yaml"):
        assert f"ncpl/root_files/{name}" in names
    python = environment(tmp_path / "env", distributions[".whl"])
    assert forecast(python, tmp_path / "env", tmp_path) == pytest.approx(expected.expected["loss"], abs=1e-6)
    code = "from ncpl.resources import root_file; print(root_file('recipes/ncpl-mini.yaml').read_text()[:1] != '')"
    assert run(python, "-c", code, cwd=tmp_path).strip() == "True"


def test_the_sdist_installs_and_its_tests_run(distributions, tmp_path, expected):
    python = environment(tmp_path / "env", distributions[".gz"])
    assert forecast(python, tmp_path / "env", tmp_path) == pytest.approx(expected.expected["loss"], abs=1e-6)
    shutil.unpack_archive(distributions[".gz"], tmp_path / "sdist")
    (source,) = (tmp_path / "sdist").iterdir()
    said = run(
        python, "-m", "pytest", "-q", "-n", "0", "tests/test_embedded.py", "tests/test_processing.py", cwd=source
    )
    assert " passed" in said
