"""Tiny trainings for tests: their recipe, how they are launched, and what they leave."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import safetensors.torch
from transformers import TrainerCallback

from ncpl.training.output import LOG

ROOT = Path(__file__).parent.parent

# Three steps of 22 runs an epoch, and a checkpoint each.
TINY: dict[str, Any] = {
    "model": {
        "scratch": {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "vocab_size": 400},
        "prompt_version": 2,
        "number_embedding": "log",
    },
    "data": {"sources": ["steplaw"], "data_dir": "sample", "config": "final"},
    "stages": {
        "frozen": {"epochs": 2, "batch_size": 22, "learning_rate": 1e-2, "evaluations": 6},
        "full": {"epochs": 2, "batch_size": 22, "learning_rate": 1e-2, "evaluations": 6, "warmup": 2},
    },
    "seed": 1,
}


def weights(folder, name="model.safetensors"):
    return safetensors.torch.load_file(folder / name)


def loss_curve(folder):
    """Everything logged of both stages that does not measure time."""
    log = json.loads((folder / LOG).read_text())
    timed = ("_per_second", "_per_s", "_runtime", "_time")
    return {
        name: [{k: v for k, v in row.items() if not k.endswith(timed)} for row in rows if "train_runtime" not in row]
        for name, rows in log.items()
    }


def losses(folder, stage):
    return [row["loss"] for row in loss_curve(folder)[stage] if "loss" in row]


class Died(Exception):  # noqa: N818
    """The machine was taken away."""


class Interrupt(TrainerCallback):
    """Dies in the middle of a stage, as a machine that is taken away."""

    def __init__(self, learning, step):
        self.learning, self.step = learning, step

    def on_step_end(self, args, state, control, model=None, **kwargs):
        frozen = not next(model.model.parameters()).requires_grad
        if state.global_step == self.step and frozen == (self.learning == "frozen"):
            raise Died


def differences(folder, reference):
    """Largest absolute difference of any weight."""
    ours, theirs = weights(folder), weights(reference)
    return max((ours[name] - theirs[name]).abs().max().item() for name in theirs)


def launch(arguments, *options):
    command = [sys.executable, "-m", "accelerate.commands.launch", *options, "run_train.py", *arguments]
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    return subprocess.Popen(
        command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
