"""Sweeps and batches of forecasts are those of one configuration at a time, from far fewer tokens."""

import itertools
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from fields_ncpl import check_config, training_order
from ncpl.configs import vary
from ncpl.forecaster import Forecaster
from ncpl.grid import Grid
from ncpl.inference import GridPrompts, Prompts, residuals
from ncpl.sweep_files import WINDOW, write_sweep
from tests.checkpoints import ADAMW, CONFIGS, losses_by_hand, tiny_model, tiny_processor

ROOT = Path(__file__).parent.parent
RATES = [1e-3, 2e-3, 5e-3]
# No calibration: the warning about it is tested elsewhere.
pytestmark = pytest.mark.filterwarnings("ignore:this checkpoint has no calibration")

GRIDS: dict[str, Any] = {
    "late fields": {"learning rate": RATES, "batch size": [64, 128, 256]},
    "one value": {"batch size": [128]},
    "early fields": {"model size": [100, 134, 300], "data size": [2.7, 5, 10]},
    "text": {"optimizer": ["adamw", "muon", "an optimizer nobody knows"], "lr": RATES},
    "experts": {"num experts": [4, 8], "top k": [1, 4], "active size": [60, 134]},
    "source and steps": {"source": ["marin", "steplaw"], "seq len": [2048, 4096], "beta1": [0.9, 0.95]},
    "strings and aliases": {"LR": ["1e-3", "2e-3"], "wd": [0, 0.1], "nesterov": [True, False]},
}
BASES = {
    "derived steps": ADAMW,
    "given steps": {**ADAMW, "max step": 5000, "seq len": 4096},
    "other fields": CONFIGS[1],
}


def every_config(config, grid):
    for point in itertools.product(*grid.values()):
        yield training_order(check_config(vary(config, dict(zip(grid, point, strict=True)))))


def lively_model():
    """Every number moves the forecast by far more than the error that is allowed."""
    model = tiny_model(number_embedding="log")
    with torch.no_grad():
        model.numbers.fc_out.weight *= 10
        model.head.weight *= 20
    return model


@pytest.fixture(scope="module", params=[1, 2], ids=["prompt1", "prompt2"])
def forecaster(request):
    processor = tiny_processor()
    processor.prompt_version = request.param
    return Forecaster.of(lively_model(), processor, "cpu")


@pytest.fixture(scope="module")
def version2():
    return Forecaster.of(lively_model(), tiny_processor(), "cpu")


@pytest.fixture(scope="module")
def large(version2):
    """A grid of more than one window, and its sweep."""
    grid = {"learning rate": np.geomspace(1e-3, 1e-2, 130).tolist(), "batch size": list(range(100, 230))}
    return grid, version2.sweep(ADAMW, grid)


@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
@pytest.mark.parametrize("base", BASES.values(), ids=BASES)
def test_a_sweep_is_one_configuration_after_the_other(forecaster, base, grid):
    swept = forecaster.sweep(base, grid)
    network = forecaster.network
    by_hand = [losses_by_hand(network.model, network.processor, one) for one in every_config(base, grid)]
    assert swept["loss"].to_numpy() == pytest.approx(by_hand, abs=1e-5)
    assert min(np.diff(np.sort(by_hand)), default=1) > 2e-5


def test_rows_are_labelled_and_in_order(version2):
    swept = version2.sweep(ADAMW, {"lr": RATES, "optimizer": ["adamw", "muon"]})
    assert swept.columns[:3].tolist() == ["learning rate", "optimizer", "loss"]
    assert swept.index.tolist() == list(range(6))
    assert swept["learning rate"].tolist() == [rate for rate in RATES for _ in range(2)]
    assert swept["optimizer"].tolist() == ["adamw", "muon"] * 3


def test_grids_larger_than_a_window(version2, large):
    grid, swept = large
    rows = [0, WINDOW - 1, WINDOW, 130 * 130 - 1]
    changes = [swept.loc[row, list(grid)].to_dict() for row in rows]
    by_hand = [
        losses_by_hand(version2.network.model, version2.network.processor, {**ADAMW, **change}) for change in changes
    ]
    assert len(swept) == 130 * 130 > WINDOW
    assert swept["loss"][rows].to_numpy() == pytest.approx(by_hand, abs=1e-5)


def test_prompts_that_begin_alike_are_computed_once(version2):
    grid = {"learning rate": np.geomspace(1e-3, 1e-2, 40).tolist(), "batch size": list(range(100, 140))}
    beginnings: set[tuple[tuple[int, float], ...]] = set()
    for config in every_config(ADAMW, grid):
        prompt = version2.network.processor.prefix(config) + version2.network.processor.branch(config)
        tokens = list(zip(prompt.ids, prompt.values, strict=True))[:-1]
        beginnings.update(tuple(tokens[: n + 1]) for n in range(len(tokens)))
    computed = []
    hook = version2.network.model.register_forward_hook(lambda _, args, __: computed.append(args[0].numel()))
    version2.sweep(ADAMW, grid)
    hook.remove()
    assert sum(computed) < 1.2 * len(beginnings)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_configurations_of_any_kind_in_one_batch(attention):
    model, processor = lively_model(), tiny_processor()
    model.set_attn_implementation(attention)
    configs = [*CONFIGS, *(vary(config, {"lr": rate}) for config in CONFIGS for rate in RATES), CONFIGS[0]]
    found = processor.law(configs) + residuals(model, Prompts.of(processor, configs))
    by_hand = [losses_by_hand(model, processor, config) for config in configs]
    assert found == pytest.approx(by_hand, abs=1e-5)
    assert found[-1] == pytest.approx(found[0], abs=1e-6)


def test_many_prompts_fill_several_forward_passes():
    model, processor = lively_model(), tiny_processor()
    rng = np.random.default_rng(0)
    changes = [
        {"model size": size, "learning rate": rate}
        for size, rate in zip(rng.uniform(50, 500, 300), rng.uniform(1e-4, 1e-2, 300), strict=True)
    ]
    configs = [{**CONFIGS[i % 3], **change} for i, change in enumerate(changes)]
    passes = []
    hook = model.register_forward_hook(lambda *_: passes.append(1))
    found = processor.law(configs) + residuals(model, Prompts.of(processor, configs))
    hook.remove()
    assert 2 < len(passes) < 30
    some = rng.choice(300, 20, replace=False)
    assert found[some] == pytest.approx([losses_by_hand(model, processor, configs[i]) for i in some], abs=1e-5)


def test_bfloat16_agrees_as_far_as_it_can(version2):
    grid = GRIDS["late fields"]
    half = Forecaster.of(lively_model().to(torch.bfloat16), version2.network.processor, "cpu")
    assert half.sweep(ADAMW, grid)["loss"].to_numpy() == pytest.approx(
        version2.sweep(ADAMW, grid)["loss"].to_numpy(), abs=0.1
    )


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ({}, "fields: got {}, expected a mapping of at least one field"),
        ({"lr": []}, "learning rate: got no values"),
        ({"optimizer": "adamw"}, "optimizer: got 'adamw', expected a list of values"),
        ({"lr": np.array(3)}, "learning rate: got array(3), expected a list of values"),
        ({"lr": [1e-3], "learning_rate": [2e-3]}, "learning rate: given twice, the second time as 'learning_rate'"),
        ({"lr": [1e-3, 3]}, "learning rate: got 3, expected"),
        ({"lr": [1e-3, "fast"]}, "learning rate: got 'fast', expected"),
        ({"colour": ["red"]}, "colour: not a known field"),
        # Either end is accepted beside the other field's first value, both together are not.
        ({"batch size": [16, 1024], "warmup": [0, 2000]}, "training steps (at batch size 1024, warmup 2000)"),
        ({"model size": [134, 1_000_000], "data size": [20, 2]}, "tokens a parameter, expected 0.005 to 200000"),
    ],
)
def test_bad_grids(version2, grid, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        version2.sweep(ADAMW, grid)


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_files_hold_the_sweep(version2, large, tmp_path, kind):
    grid, swept = large
    path = tmp_path / f"sweep.{kind}"
    lowest = write_sweep(version2, ADAMW, grid, path, lowest=7)
    written = pd.read_csv(path) if kind == "csv" else pd.read_parquet(path)
    pd.testing.assert_frame_equal(written, pd.DataFrame(swept), check_index_type=False)
    pd.testing.assert_frame_equal(pd.DataFrame(lowest), pd.DataFrame(swept.nsmallest(7, "loss")))
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_columns_keep_their_type_in_every_window(version2):
    """Whole numbers alone in one window, others in the next, are one column of a file."""
    grid = Grid(ADAMW, {"data size": [2, 3, 2.5]})
    assert grid.frame(pd.RangeIndex(0, 2))["data size"].dtype == grid.frame(pd.RangeIndex(2, 3))["data size"].dtype


def test_files_of_other_kinds_are_refused(version2, tmp_path):
    with pytest.raises(ValueError, match=r"a file of kind '.xlsx', accepted: .csv, .parquet"):
        write_sweep(version2, ADAMW, {"lr": RATES}, tmp_path / "sweep.xlsx")


def test_a_failed_sweep_leaves_no_result(version2, tmp_path):
    with pytest.raises(ValueError, match="learning rate"):
        write_sweep(version2, ADAMW, {"lr": [1e-3, 3]}, tmp_path / "sweep.csv")
    assert not list(tmp_path.iterdir())


def test_the_numbers_of_a_grid_are_the_processor_s(forecaster):
    """Prompts filled in by columns against prompts encoded one by one, bit for bit."""
    grid = Grid(BASES["given steps"], {"data size": [2, 2.7], **GRIDS["late fields"]})
    configs = grid.configs(3, 15)
    processor = forecaster.network.processor
    ours, theirs = GridPrompts(grid, processor).window(3, configs), Prompts.of(processor, configs)
    inside = np.arange(theirs.ids.shape[1]) < theirs.lengths[:, None]
    for name in ("ids", "is_number", "values"):
        assert np.array_equal(np.where(inside, getattr(ours, name), 0), np.where(inside, getattr(theirs, name), 0))
    assert np.array_equal(ours.lengths, theirs.lengths)


LAUNCHED = """
import sys
from ncpl.forecaster import Forecaster
from ncpl.sweep_files import write_sweep
from tests.checkpoints import ADAMW, tiny_processor
from tests.test_sweep import lively_model

forecaster = Forecaster.of(lively_model(), tiny_processor(), "cpu")
for path in sys.argv[1:]:
    best = write_sweep(forecaster, ADAMW, {"lr": [1e-3, 2e-3, 5e-3], "batch size": [64, 128, 256]}, path)
    # The line at once: the other process writes to the same pipe.
    sys.stdout.write(f"{best['loss'].min()}\\n")
write_sweep(forecaster, ADAMW, {"lr": [1e-3]}, sys.argv[1] + ".one.parquet")
"""


@pytest.mark.slow
def test_processes_share_a_sweep(version2, tmp_path):
    script = tmp_path / "launched.py"
    script.write_text(LAUNCHED)
    paths = [tmp_path / "sweep.csv", tmp_path / "sweep.parquet"]
    settings = ROOT / "recipes" / "accelerate" / "ddp-cpu.yaml"
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", settings, script, *paths]
    done = subprocess.run(
        list(map(str, command)), cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-4000:]
    swept = version2.sweep(ADAMW, GRIDS["late fields"])
    for written in (pd.read_csv(paths[0]), pd.read_parquet(paths[1])):
        pd.testing.assert_frame_equal(written, pd.DataFrame(swept), atol=1e-6)
    assert [float(line) for line in done.stdout.split()] == pytest.approx([swept["loss"].min()] * 4)
    assert len(pd.read_parquet(f"{paths[0]}.one.parquet")) == 1
    assert not list(tmp_path.glob("*.part*"))


def test_grids_that_nothing_holds_are_refused_at_once(forecaster, tmp_path):
    fields = {name: [1e-3 * (1 + i / 1e6) for i in range(1000)] for name in ("learning rate", "weight decay")}
    fields["beta1"] = [0.9 + i / 1e6 for i in range(1000)]
    with pytest.raises(ValueError, match=r"fields: got 1e\+09 combinations, expected at most 5e\+06"):
        forecaster.sweep(ADAMW, fields)
    fields["beta2"] = fields["beta1"]
    with pytest.raises(ValueError, match=r"fields: got 1e\+12 combinations, expected at most 1e\+10"):
        write_sweep(forecaster, ADAMW, fields, tmp_path / "x.csv")


@pytest.mark.parametrize("name", ["x.csv", "x.parquet"])
def test_a_folder_that_cannot_be_written_is_named(forecaster, name):
    with pytest.raises(ValueError, match=rf"/proc/{name}: cannot be written in /proc \("):
        write_sweep(forecaster, ADAMW, {"learning rate": [1e-3, 2e-3]}, Path("/proc") / name)


def test_a_spreadsheet_computes_no_cell(tmp_path):
    write_sweep(
        Forecaster.from_pretrained(), {**ADAMW, "seq len": 4096}, {"source": ["=1+1", "@sum"]}, tmp_path / "x.csv"
    )
    cells = [line.split(",")[0] for line in (tmp_path / "x.csv").read_text().splitlines()]
    assert cells == ["source", "'=1+1", "'@sum"]
