"""Folders that are no checkpoints, or broken ones: one line each, through every door that opens a folder."""

import json
import pickle
import shutil
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from handler import EndpointHandler
from ncpl import Forecaster
from ncpl.hub.cards import checkpoint_card
from ncpl.hub.embed import CHECKPOINTS
from ncpl.hub.files import checkpoint_files
from tests.checkpoints import ADAMW, save_tiny
from tests.work import Elements, calls


class Code:
    def __reduce__(self):
        return (exec, ("raise SystemExit('code in the checkpoint was executed')",))


def settings(name, **changes):
    """A settings file with some values replaced; None removes one."""

    def spoil(folder):
        state = json.loads((folder / name).read_text()) | changes
        (folder / name).write_text(json.dumps({k: v for k, v in state.items() if v is not None}))

    return spoil


def content(name, text):
    return lambda folder: (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())


def tensors(**changes):
    """Weights with some tensors replaced; None removes one."""

    def spoil(folder):
        state = load_file(folder / "model.safetensors")
        for name, value in changes.items():
            state[name.replace("__", ".")] = value
        kept = {k: v for k, v in state.items() if v is not None}
        save_file(kept, folder / "model.safetensors", {"format": "pt"})

    return spoil


SPOILS: dict[str, Any] = {
    "config list": content("config.json", "[]"),
    "config number": content("config.json", "3"),
    "config empty": content("config.json", ""),
    "config null": content("config.json", "null"),
    "config binary": content("config.json", b"\xff\xfe\x00\x01" * 9),
    "config deep": content("config.json", "[" * 100_000),
    "config of another model": settings("config.json", model_type="qwen3"),
    "config without text_config": settings("config.json", text_config=None),
    "text_config list": settings("config.json", text_config=[]),
    "text_config text": settings("config.json", text_config="qwen3"),
    "text_config of nothing": settings("config.json", text_config={"model_type": "nothing"}),
    "negative size": settings("config.json", text_config={"model_type": "qwen3", "hidden_size": -1}),
    "huge size": settings(
        "config.json", text_config={"model_type": "qwen3", "hidden_size": 10**9, "vocab_size": 10**9}
    ),
    "model_type list": settings("config.json", model_type=[]),
    "processor list": content("processor_config.json", "[]"),
    "processor cut": content("processor_config.json", '{"prompt_version": 2'),
    "prompt version": settings("processor_config.json", prompt_version="eleven"),
    "prior list": settings("processor_config.json", prior=[1]),
    "prior of nothing": settings("processor_config.json", prior={"kind": "nothing"}),
    "prior without values": settings("processor_config.json", prior={"kind": "chinchilla"}),
    "calibration list": settings("processor_config.json", calibration=[1]),
    "calibration empty": settings("processor_config.json", calibration={}),
    "weights empty": content("model.safetensors", b""),
    "weights text": content("model.safetensors", "weights"),
    "weights pickle": content("model.safetensors", pickle.dumps(Code())),
    "weights cut": lambda f: content("model.safetensors", (f / "model.safetensors").read_bytes()[:-99])(f),
    "weights absent": lambda f: (f / "model.safetensors").unlink(),
    "weights a folder": lambda f: ((f / "model.safetensors").unlink(), (f / "model.safetensors").mkdir()),
    "pickle alone": lambda f: (
        (f / "model.safetensors").unlink(),
        content("pytorch_model.bin", pickle.dumps(Code()))(f),
    ),
    "head of another shape": tensors(head__weight=np.ones((1, 7), np.float32)),
    "head absent": tensors(head__weight=None),
    "NaN in the head": tensors(head__weight=np.full((1, 32), np.nan, np.float32)),
    "tokenizer absent": lambda f: (f / "tokenizer.json").unlink(),
    "tokenizer list": content("tokenizer.json", "[]"),
    "law arrays text": content("law.safetensors", "law"),
    "law arrays absent": lambda f: (f / "law.safetensors").unlink(),
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A tiny network that has an effect, with the default's calibrated law."""
    folder = tmp_path_factory.mktemp("hostile") / "whole"
    save_tiny(folder)
    shutil.copyfile(CHECKPOINTS / "ncpl-mini" / "law.safetensors", folder / "law.safetensors")
    mini = json.loads((CHECKPOINTS / "ncpl-mini" / "processor_config.json").read_text())
    settings("processor_config.json", prior=mini["prior"], calibration=mini["calibration"])(folder)
    return folder


def forecast(folder):
    """A forecast, and what is saved again."""
    forecaster = Forecaster.from_pretrained(folder)
    forecaster.predict(ADAMW)
    forecaster.save_pretrained(folder.parent / "again")


DOORS: dict[str, Any] = {
    "forecaster": lambda folder: forecast(folder),
    "handler": lambda folder: EndpointHandler(str(folder))({"inputs": ADAMW}),
    "push": checkpoint_files,
    "card": lambda folder: checkpoint_card(folder, "me/tiny"),
}
# The whole checkpoint takes 340,000 calls and 140,000 elements of tensors; a model of the default's size has 1.7e9.
MOST_CALLS = 2_000_000
MOST_ELEMENTS = 1_000_000
# What a door does not read it cannot refuse.
UNREAD = {
    "push": {
        *("config without text_config", "text_config list", "text_config text", "text_config of nothing"),
        *("negative size", "huge size", "weights empty", "weights text", "weights pickle", "weights cut"),
        *("head of another shape", "head absent", "NaN in the head", "prompt version", "prior list"),
        *("prior of nothing", "prior without values", "calibration list", "calibration empty", "tokenizer list"),
        *("law arrays text", "law arrays absent", "config of another model", "model_type list", "processor list"),
        "processor cut",
    },
    "card": {name for name in SPOILS if not name.startswith("config") or name == "config of another model"}
    | {"config without text_config"},
}
# Loading through transformers takes a second each: most of these are left to `make test-slow`.
FAST = {"config list", "text_config list", "prior list", "weights pickle", "head of another shape", "NaN in the head"}
CASES = [
    pytest.param(door, name, marks=[pytest.mark.slow] if door in ("forecaster", "handler") and name not in FAST else [])
    for door in DOORS
    for name in SPOILS
]


@pytest.mark.parametrize(("door", "name"), CASES, ids=[f"{door}, {name}" for door in DOORS for name in SPOILS])
def test_a_broken_checkpoint_is_one_line(saved, tmp_path, door, name):
    folder = shutil.copytree(saved, tmp_path / "tiny")
    SPOILS[name](folder)
    try:
        with calls() as called, Elements() as made:
            DOORS[door](folder)
    except (ValueError, ArithmeticError) as refusal:
        message = str(refusal)
        assert message.isprintable(), message
        assert len(message) < 300 + len(str(folder)), message
    else:
        assert name in UNREAD.get(door, set()), "it was taken for a whole checkpoint"
    assert called.count < MOST_CALLS
    assert made.count < MOST_ELEMENTS


def test_the_whole_checkpoint_opens_every_door(saved, tmp_path):
    for door in DOORS.values():
        door(shutil.copytree(saved, tmp_path / str(id(door))))
