"""Made-up configurations of each framework in its own layout (`framework_configs/`), and the fields they must mean.

Sizes were summed matrix by matrix; null in `expected.json` is a field that the file does not give.
"""

import json
from pathlib import Path

import pytest

from ncpl import import_runs
from ncpl.files import read_document
from ncpl.logs.translate import flatten, translate

FOLDER = Path(__file__).parent / "framework_configs"
EXPECTED = json.loads((FOLDER / "expected.json").read_text())
# Read as text and never run: what follows the assignments would fail.
NANOGPT = """
# a run of a small model
wandb_log = True
dataset = 'owt'
batch_size = 12  # micro
block_size = 1024
gradient_accumulation_steps = 5 * 8
n_layer = 12
n_head = 12
n_embd = 768
learning_rate = 6e-4
max_iters = 100000
lr_decay_iters = max_iters
min_lr = learning_rate / 10
beta2 = 0.99
warmup_iters = 100
device = 'cuda'
config_keys = [k for k, v in globals().items()]
exec(open('configurator.py').read())
"""


@pytest.mark.parametrize("name", EXPECTED)
def test_a_configuration_means_these_fields(name):
    expected = dict(EXPECTED[name])
    asked = expected.pop("asked for", None)
    found = translate(flatten(read_document(FOLDER / name)))
    assert {field: found.fields.get(field) for field in expected} == pytest.approx(expected)
    if asked is not None:
        assert [need.split(" (")[0] for need in found.needs] == asked


def test_every_configuration_has_its_expectation():
    assert EXPECTED.keys() == {path.name for path in FOLDER.iterdir()} - {"expected.json"}


def test_nanogpts_python_is_read_and_not_run(tmp_path):
    (tmp_path / "train_small.py").write_text(NANOGPT)
    row = import_runs(tmp_path / "train_small.py").iloc[0]
    expected = {"batch size": 480, "seq len": 1024, "max step": 100_000, "data size": 49.152, "model size": 84.934656}
    expected |= {"beta2": 0.99, "warmup": 100, "min_lr": 6e-5, "learning rate": 6e-4}
    assert {name: row[name] for name in expected} == pytest.approx(expected)
    (tmp_path / "constant.py").write_text(NANOGPT.replace("device = 'cuda'", "decay_lr = False"))
    row = import_runs(tmp_path / "constant.py").iloc[0]
    assert (row["lr_schedule"], row["warmup"], row.get("min_lr")) == ("constant", 0, None)
