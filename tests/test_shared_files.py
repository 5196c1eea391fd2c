"""The public configurations of `../shared/data/configs`, with the fields that its README says they mean."""

import os
import re
from pathlib import Path
from typing import Any

import pytest

from ncpl import import_runs
from ncpl.configs import read_configs

DATA = Path(os.environ.get("NCPL_DATA_DIR") or Path(__file__).parents[2] / "shared" / "data")
# File -> fields it must mean, and what must be asked for.
CONFIGS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "olmo2_7b_raw.yaml": (
        {"num layers": 32, "hidden dim": 4096, "num heads": 32, "ffn dim": 11008, "model size": 6476.005376}
        | {"batch size": 1024, "seq len": 4096, "warmup": 2000, "min_lr_ratio": 0.1, "lr_schedule": "cosine"}
        | {"vocab size": 100278, "learning rate": 3e-4, "optimizer": "adamw", "weight decay": 0.1, "max_grad_norm": 1},
        ["data size"],
    ),
    "nanogpt_train_gpt2.py": (
        {"batch size": 480, "seq len": 1024, "max step": 600_000, "data size": 294.912, "weight decay": 0.1},
        ["model size", "learning rate"],
    ),
    "megatron_llama3_8b.json": (
        {"model size": 6979.321856, "data size": 16_000, "batch size": 128, "seq len": 8192, "warmup": 30_517}
        | {"learning rate": 1.5e-4, "min_lr": 1e-5, "lr_schedule": "cosine", "optimizer": "adamw", "beta2": 0.95},
        [],
    ),
    "steplaw_row.csv": (
        {"model size": 1073.741824, "data size": 20, "learning rate": 2.762e-3, "batch size": 736, "seq len": 2048}
        | {"source": "steplaw", "final_loss": 2.272775, "num layers": 16, "hidden dim": 2048, "max step": 13_268},
        [],
    ),
    "hf_trainer.json": (
        {"optimizer": "adamw", "learning rate": 6e-4, "max step": 20_000, "warmup": 200, "lr_schedule": "cosine"}
        | {"weight decay": 0.1, "beta2": 0.95, "max_grad_norm": 1},
        ["model size", "devices", "seq len"],
    ),
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", CONFIGS)
def test_public_configurations_mean_what_they_say(name):
    file = DATA / "configs" / name
    if not file.exists():
        pytest.skip(f"no {file}")
    expected, asked = CONFIGS[name]
    row = import_runs(file).iloc[0]
    assert {field: row[field] for field in expected} == pytest.approx(expected)
    if not asked:
        assert len(read_configs([str(file)])[0]) == 1
        return
    with pytest.raises(ValueError, match="missing") as error:
        read_configs([str(file)])
    message = str(error.value).partition("missing ")[2].partition("; add ")[0]
    assert [need.split(" (")[0].split(" or ")[0] for need in re.sub(r" \(.*?\)", "", message).split("; ")] == asked
    if name == "hf_trainer.json":
        assert "64 sequences a step on each" in message
