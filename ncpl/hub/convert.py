"""Published NCPL checkpoints (`OptimizerStudy/NCPL-final`, `-intermediate`) to folders that `AutoModel` loads."""

import os
import pickle
import shutil
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer

from configuration_ncpl import NCPLConfig
from fields_ncpl import REQUIRED
from modeling_ncpl import PUBLISHED_PREFIXES, NCPLForecaster, from_published
from ncpl.checkpoint import errors
from ncpl.errors import CheckpointError, as_path, new_folder, one_line, short
from processing_ncpl import NCPLProcessor

WEIGHTS = "pytorch_model.bin"
BACKBONE = "Qwen/Qwen3-1.7B"
LISTED = 20
"""Keys that a refusal lists of each kind before it counts the rest."""
PROBES: list[dict[str, Any]] = [
    dict(zip(REQUIRED, ("marin", 134.2, 2.7, "adamw", 2e-3, 128), strict=True)),
    dict(zip(REQUIRED, ("steplaw", 214.7, 11.4, "adamw", 1e-3, 352), strict=True)),
]
"""Configurations of the forward pass that closes a conversion."""


def convert(
    published: str | Path,
    out: str | Path,
    backbone: str | Path = BACKBONE,
    revision: str | None = None,
    curves: bool = False,
) -> Path:
    """Writes a published checkpoint as a folder that `AutoModel`, `AutoProcessor` and `pipeline` load.

    The folder appears once it has been read back: every weight equal to the published one, a forward pass finite.

    Args:
        published: a folder with `pytorch_model.bin`, the file itself, or a repo id; read as weights alone.
        out: folder to write, absent or empty.
        backbone: folder or repo id of the language model the checkpoint was trained on, for its configuration and
            tokenizer; its weights are not needed.
        revision: of `published`, when it is a repo id.
        curves: whether it was trained on points of loss curves, as NCPL-intermediate was.

    Raises:
        CheckpointError: a file that is absent or unreadable, or weights that do not fit, with the missing keys, the
            unexpected keys and the shapes that differ.
        ValueError: `out` holds something.
    """
    out, named = new_folder(out, "out"), as_path(backbone, "backbone", "a folder or a repo id of a language model")
    if not isinstance(curves, bool):
        raise ValueError(f"curves: got {short(curves)}, expected true or false")
    state = read_published(_weights_file(published, revision))
    with errors(str(named)):
        config = NCPLConfig(text_config=AutoConfig.from_pretrained(named), curves=curves)
        processor = NCPLProcessor(AutoTokenizer.from_pretrained(named))
    with torch.device("meta"):
        model = NCPLForecaster(config)
    _check_fit(state, model.state_dict())
    model.load_state_dict(from_published(state), assign=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as scratch:
        model.save_pretrained(scratch)
        processor.save_pretrained(scratch)
        verify(scratch, state)
        out.mkdir(exist_ok=True)
        for file in Path(scratch).iterdir():
            shutil.move(file, out / file.name)
    return out


def read_published(file: str | Path) -> dict[str, Tensor]:
    """The weights of a published file, under its keys without `module.`.

    Raises:
        CheckpointError: not a file of weights alone, or none of the published layouts.
    """
    file = Path(file)
    try:
        # Zip archives, every torch since 1.6 writes them, need not be read into memory.
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(f"{file}: cannot be read as a file of weights alone: {reason}") from error
    state = content
    for wrapper in ("model_state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            state = content[wrapper]
            break
    if not isinstance(state, Mapping) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        found = sorted(map(str, content)) if isinstance(content, Mapping) else type(content).__name__
        raise CheckpointError(f"{file}: expected weights under 'model_state_dict' or 'model', found {found}")
    return {str(key).removeprefix("module."): value for key, value in state.items()}


def verify(folder: str | Path, published: Mapping[str, Tensor]) -> None:
    """Reads a converted folder back: the same weights, none missing or new, and a finite forecast for each probe.

    Raises:
        CheckpointError: what differs.
    """
    model, info = NCPLForecaster.from_pretrained(folder, dtype="auto", output_loading_info=True)
    wrong = {kind: sorted(map(str, keys)) for kind, keys in info.items() if keys}
    if wrong:
        raise CheckpointError(f"{folder}: does not load whole: {wrong}")
    loaded = model.state_dict()
    expected = from_published(published)
    # Number embedding and head load in fp32 whatever they were stored in.
    changed = [key for key, value in expected.items() if not torch.equal(loaded[key], value.to(loaded[key].dtype))]
    if changed:
        raise CheckpointError(f"{folder}: weights differ from the published ones after writing: {_listed(changed)}")
    processor = NCPLProcessor.from_pretrained(folder)
    batch = processor(PROBES)
    vocabulary = model.get_input_embeddings().num_embeddings
    if int(batch["input_ids"].max()) >= vocabulary:
        raise CheckpointError(
            f"{folder}: the tokenizer gives ids up to {int(batch['input_ids'].max())}, the model embeds {vocabulary}; "
            "take the tokenizer of the backbone the checkpoint was trained on"
        )
    with torch.no_grad():
        losses = processor.losses(model.eval()(**batch).logits, batch["loss_mask"], PROBES)
    if not torch.from_numpy(losses).isfinite().all():
        raise CheckpointError(
            f"{folder}: a forward pass gives {losses.tolist()} nats per token, expected finite losses"
        )


def _weights_file(published: str | Path, revision: str | None) -> Path:
    path = as_path(published, "published", f"a folder with {WEIGHTS}, the file, or a repo id")
    if not isinstance(revision, str | None):
        raise ValueError(f"revision: got {short(revision)}, expected a branch, a tag or a commit of {path}")
    # `Path.is_file` raises where a name is longer than a file's may be.
    if os.path.isfile(path):  # noqa: PTH113
        return path
    if os.path.isdir(path):  # noqa: PTH112
        if (path / WEIGHTS).is_file():
            return path / WEIGHTS
        found = sorted(file.name for file in path.iterdir())
        raise CheckpointError(f"{path}: no {WEIGHTS} in this folder, found {found or 'nothing'}")
    try:
        return Path(hf_hub_download(str(published), WEIGHTS, revision=revision))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as error:
        named = one_line(published, 150)
        raise CheckpointError(f"{named}: no such folder or file, and no repository with {WEIGHTS}") from error


def _check_fit(state: Mapping[str, Tensor], model: Mapping[str, Tensor]) -> None:
    """Compares under the published names, which the user can look up in the file."""
    expected = {}
    for name, value in model.items():
        old, new = next((old, new) for old, new in PUBLISHED_PREFIXES.items() if name.startswith(new))
        expected[old + name.removeprefix(new)] = tuple(value.shape)
    missing = [key for key in expected if key not in state]
    unexpected = [key for key in state if key not in expected]
    shapes = [
        f"{key} {tuple(state[key].shape)}, expected {shape}"
        for key, shape in expected.items()
        if key in state and tuple(state[key].shape) != shape
    ]
    broken = [key for key, value in state.items() if not value.isfinite().all()]
    kinds = (
        ("missing keys", missing),
        ("unexpected keys", unexpected),
        ("shapes that differ", shapes),
        ("weights that are not finite", broken),
    )
    wrong = [f"{kind}: {_listed(keys)}" for kind, keys in kinds if keys]
    if wrong:
        raise CheckpointError(f"the checkpoint does not fit the backbone's configuration; {'; '.join(wrong)}")


def _listed(keys: Sequence[str]) -> str:
    more = f" and {len(keys) - LISTED} more" if len(keys) > LISTED else ""
    return f"{', '.join(keys[:LISTED])}{more} ({len(keys)})"
