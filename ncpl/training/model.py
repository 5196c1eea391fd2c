"""The model before training, and low-rank adapters on a trained one."""

import json
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoTokenizer

from configuration_ncpl import NCPLConfig
from modeling_ncpl import NCPLForecaster
from ncpl.errors import as_path, new_folder, one_line
from ncpl.recipe import Lora, ModelBlock
from ncpl.training.backbone import scratch_config, train_tokenizer
from ncpl.training.data import LoggedRun
from processing_ncpl import NCPLProcessor


def build_model(
    block: ModelBlock,
    train: Sequence[LoggedRun],
    prior: Mapping[str, Any] | None = None,
    calibration: Mapping[str, Any] | None = None,
) -> tuple[NCPLForecaster, NCPLProcessor]:
    """The model before training, with fp32 weights, and its processor.

    Args:
        block: the recipe's.
        train: the training split, for a tokenizer from scratch.
        prior: the law's `to_dict()`, the published Chinchilla laws when absent; a checkpoint keeps its own.
        calibration: the calibration's `to_dict()`, where there is one; a checkpoint keeps its own.

    Raises:
        ValueError: the backbone or checkpoint does not load.
    """
    load = {"dtype": torch.float32, "attn_implementation": block.attn_implementation}
    hub = {} if block.revision is None else {"revision": block.revision}
    version = block.prompt_version or 1
    if block.scratch is not None:
        size = block.scratch
        tokenizer = train_tokenizer((run.config for run in train), version, size.vocab_size)
        text_config = scratch_config(len(tokenizer), size.hidden_size, size.num_layers, size.num_heads)
        config = NCPLConfig(text_config=text_config, **block.config)
        processor = NCPLProcessor(tokenizer, version, prior=prior, calibration=calibration)
        return NCPLForecaster._from_config(config, **load), processor
    if block.checkpoint is not None:
        processor = load_processor(block)
        with _load_error("checkpoint", block.checkpoint):
            # What a checkpoint does not say about training is the recipe's: the loss.
            return NCPLForecaster.from_pretrained(block.checkpoint, **block.config, **load, **hub), processor
    assert block.backbone is not None
    with _load_error("backbone", block.backbone):
        model = NCPLForecaster.from_backbone(block.backbone, config=block.config, **load, **hub)
        tokenizer = AutoTokenizer.from_pretrained(block.backbone, **hub)
    return model, NCPLProcessor(tokenizer, version, prior=prior, calibration=calibration)


def load_processor(block: ModelBlock) -> NCPLProcessor:
    """The processor of the recipe's checkpoint."""
    assert block.checkpoint is not None
    with _load_error("checkpoint", block.checkpoint):
        return NCPLProcessor.from_pretrained(block.checkpoint, revision=block.revision or "main")


@contextmanager
def _load_error(key: str, name: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ValueError(f"model.{key}: {name!r} does not load: {' '.join(str(error).split())}") from error


def add_adapters(model: NCPLForecaster, lora: Lora) -> PeftModel:
    """Low-rank adapters on the backbone; the number embedding and the head train in full (arXiv 2106.09685).

    Raises:
        ValueError: the backbone has no such layers.
    """
    config = LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.target_modules,
        modules_to_save=["numbers", "head"],
    )
    with _old_names_of_peft():
        return get_peft_model(model, config)


def name_base_class(folder: Path) -> None:
    """Writes into an adapter's settings, if the folder holds one, how `AutoPeftModel` loads its base: by `AutoModel`.

    peft writes the class itself and its module, and then refuses to import from any package but transformers.
    """
    settings = folder / "adapter_config.json"
    if settings.exists():
        base = {"base_model_class": "AutoModel", "parent_library": "transformers"}
        settings.write_text(json.dumps(json.loads(settings.read_text()) | {"auto_mapping": base}, indent=2) + "\n")


def load_adapter(adapter: str | Path) -> PeftModel:
    """An adapter that training wrote, over its base, which is found by the name the adapter holds.

    Raises:
        ValueError: the folder holds no adapter.
    """
    adapter = as_path(adapter, "adapter", "the folder of an adapter")
    settings = adapter / "adapter_config.json"
    # `Path.exists` raises where a name is longer than a file's may be.
    if not os.path.exists(settings):  # noqa: PTH110
        held = f"{one_line(adapter, 120)} holds no adapter_config.json"
        raise ValueError(f"adapter: {held}, expected a folder that training wrote")
    base = json.loads(settings.read_text())["base_model_name_or_path"]
    model = NCPLForecaster.from_pretrained(base, dtype=torch.float32)
    with _old_names_of_peft():
        return PeftModel.from_pretrained(model, str(adapter))


def merge_adapter(adapter: str | Path, output: str | Path) -> NCPLForecaster:
    """A forecaster with an adapter's changes written into its weights, saved with its processor.

    Args:
        adapter: folder of an adapter that training wrote.
        output: folder for the merged forecaster, absent or empty.

    Raises:
        ValueError: the folder holds no adapter, or the other one holds something.
    """
    output = new_folder(output, "out")
    merged = load_adapter(adapter).merge_and_unload()
    merged.save_pretrained(output)
    NCPLProcessor.from_pretrained(adapter).save_pretrained(output)
    return merged


@contextmanager
def _old_names_of_peft() -> Iterator[None]:
    """peft 0.21 asks transformers for activation checkpointing by its old name, which warns."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        yield
