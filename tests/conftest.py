"""Everything offline, seeded, and on real tiny models."""

import os
import tempfile
from pathlib import Path

# Before any Hugging Face library is imported: no network, and no cache of the user's.
os.environ.update(HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1", HF_HOME=tempfile.mkdtemp(prefix="ncpl-test-"))
# One thread a process, as `accelerate launch` starts them: sums come out the same to the last bit, here and there.
os.environ["OMP_NUM_THREADS"] = "1"

import pytest
import torch
import yaml

from ncpl import Forecaster
from tests.checkpoints import save_tiny
from tests.trainings import TINY

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def real_data_dir():
    """Real run logs, which the repository does not hold: `NCPL_DATA_DIR`, else `../shared/data`."""
    folder = Path(os.environ.get("NCPL_DATA_DIR", ROOT.parent / "shared" / "data"))
    if not (folder / "marin").is_dir():
        pytest.skip(f"no real run logs at {folder}; set NCPL_DATA_DIR")
    return folder


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """A tiny checkpoint with random weights."""
    path = tmp_path_factory.mktemp("checkpoint")
    save_tiny(path)
    return path


@pytest.fixture(scope="session")
def forecaster(folder):
    return Forecaster.from_pretrained(folder)


@pytest.fixture
def tiny_recipe(tmp_path):
    """Writes the tiny recipe, with dotted keys changed, and gives the arguments of its run into `tmp_path / name`."""

    def write(name="out", **changes):
        file = tmp_path / "tiny.yaml"
        file.write_text(yaml.safe_dump(TINY))
        options = {"output_dir": str(tmp_path / name), **{key.replace("__", "."): v for key, v in changes.items()}}
        return [str(file), *(word for key, value in options.items() for word in (f"--{key}", str(value)))]

    return write


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """One whole tiny training, both stages unbroken."""
    import run_train

    folder = tmp_path_factory.mktemp("trained")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    run_train.main([str(folder / "tiny.yaml"), "--output_dir", str(folder / "out")])
    return folder / "out"
