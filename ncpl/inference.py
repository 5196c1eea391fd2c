"""What a checkpoint's network adds to its law, for many configurations at once.

The prompts of a window begin alike: their common tokens run through the model once and stay in its key/value cache, and
what follows is laid out as tries (`ncpl.packing.pack_rows`), in which rows that go on alike share further tokens. With
prompt version 2, which puts data size, batch size and learning rate last, a configuration of a sweep costs about four
tokens.
"""

import inspect
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from tqdm import tqdm
from transformers import DynamicCache
from transformers.utils import logging

from modeling_ncpl import NCPLForecaster
from ncpl.checkpoint import errors
from ncpl.grid import TOKENS, Grid
from ncpl.packing import Packs, pack_rows, tree_mask
from processing_ncpl import NCPLProcessor, prefix_pieces

WINDOW = 16_384
"""Rows worked on at a time: enough for rows to begin alike, few enough for any memory."""

# Tokens in a pack beside the cached ones, or this many prompts' worth if that is more: long packs copy the cache less
# often and share more, short ones attend to less in vain.
_PACK_LENGTH, _PACK_PROMPTS = 64, 4
# Tokens a forward pass: enough to fill a CPU's caches or a GPU, little enough for any memory.
_BATCH_TOKENS = {"cpu": 2_048, "cuda": 32_768}
# What the prompt's last number, the training steps, follows from.
_STEPS = ("max step", "source", *TOKENS)


class Network:
    """A checkpoint's network with its processor.

    Args:
        model: the forecaster network.
        processor: its processor.
        device: where to compute; a GPU if there is one.
    """

    def __init__(
        self, model: NCPLForecaster, processor: NCPLProcessor, device: str | torch.device | None = None
    ) -> None:
        self.device = _device(device)
        self.model = model.to(self.device).eval()
        self.processor = processor
        self._prompts: GridPrompts | None = None

    @classmethod
    def load(cls, folder: Path, device: str | torch.device | None = None) -> Self:
        """The network of a checkpoint's folder: float32 on CPU, bfloat16 elsewhere.

        Raises:
            CheckpointError: it is incomplete or damaged.
        """
        target = _device(device)
        dtype = torch.float32 if target.type == "cpu" else torch.bfloat16
        with errors(f"{folder}: its weights"), _without_bar():
            try:
                model, info = NCPLForecaster.from_pretrained(folder, dtype=dtype, output_loading_info=True)
            except RuntimeError as error:
                raise ValueError(str(error)) from error
            if info["missing_keys"]:
                names = sorted(info["missing_keys"])
                raise ValueError(f"{len(names)} tensors are missing, the first {names[0]!r}")
        with errors(f"{folder}: its processor"):
            processor = NCPLProcessor.from_pretrained(folder)
        return cls(model, processor, target)

    def residuals(self, configs: Sequence[Mapping[str, Any]]) -> np.ndarray:
        """What it adds to the law for checked configurations in training order, in nats."""
        windows = [configs[start : start + WINDOW] for start in range(0, len(configs), WINDOW)]
        with tqdm(total=len(configs), desc="forecast", unit="config", delay=2, disable=None) as progress:
            found = []
            for window in windows:
                found.append(residuals(self.model, Prompts.of(self.processor, window)))
                progress.update(len(window))
        return np.concatenate(found)

    def window_residuals(self, grid: Grid, start: int, configs: Sequence[Mapping[str, Any]]) -> np.ndarray:
        """`residuals` of `grid.configs(start, ...)`, whose prompts differ in few tokens."""
        if self._prompts is None or self._prompts.grid is not grid:
            self._prompts = GridPrompts(grid, self.processor)
        return residuals(self.model, self._prompts.window(start, configs))

    def curve(self, config: Mapping[str, Any], steps: Sequence[int]) -> np.ndarray:
        """Losses in nats per token at training steps of a checked configuration.

        Raises:
            ValueError: the checkpoint was trained on final losses alone.
        """
        if not self.model.config.curves:
            raise ValueError("curve: this checkpoint was trained on final losses alone, expected one trained on curves")
        batch = self.processor(config, steps=list(steps))
        with torch.inference_mode():
            logits = self.model(**batch.to(self.device), use_cache=False).logits
        return self.processor.losses(logits, batch["loss_mask"], [config] * len(steps))


@contextmanager
def _without_bar() -> Iterator[None]:
    """A folder's weights are there at once."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _device(device: str | torch.device | None) -> torch.device:
    # Under `accelerate launch` each process has a GPU of its own.
    own = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
    return torch.device(device or (own if torch.cuda.is_available() else "cpu"))


@dataclass(frozen=True)
class Prompts:
    """Prompts without their targets, as arrays padded on the right; each is read at its last token.

    Args:
        ids, is_number, values: (rows, tokens); values are scaled.
        lengths: (rows,), tokens of each.
    """

    ids: np.ndarray
    is_number: np.ndarray
    values: np.ndarray
    lengths: np.ndarray

    @classmethod
    def of(cls, processor: NCPLProcessor, configs: Sequence[Mapping[str, Any]]) -> "Prompts":
        """The final-loss prompts of checked configurations."""
        batch = processor.prompts(configs, return_tensors="np")
        is_number = batch["is_number_mask"] & ~batch["loss_mask"]
        return cls(batch["input_ids"], is_number, batch["number_values_filled"], batch["attention_mask"].sum(-1) - 1)

    def take(self, rows: np.ndarray) -> "Prompts":
        """Copies of some rows."""
        return Prompts(self.ids[rows], self.is_number[rows], self.values[rows], self.lengths[rows])

    @cached_property
    def common(self) -> int:
        """Number of tokens with which all rows begin, at most all but one of the shortest."""
        same = (self.ids == self.ids[0]) & (self.is_number == self.is_number[0]) & (self.values == self.values[0])
        leading = int(same.all(0).cumprod().sum())
        return min(leading, int(self.lengths.min()) - 1)


@torch.inference_mode()
def residuals(model: NCPLForecaster, prompts: Prompts) -> np.ndarray:
    """What the model adds to the prior, in nats, for each prompt; the same as one prompt at a time.

    Args:
        model: in evaluation mode; its `attn_implementation` has to take a mask (`"sdpa"`, `"eager"`).
        prompts: of any configurations; the more alike they begin, the less there is to compute.
    """
    stem = prompts.common if len(prompts.ids) > 1 else 0
    cache = _Stem(model, prompts, stem) if stem else None
    ids, is_number, values = (array[:, stem:] for array in (prompts.ids, prompts.is_number, prompts.values))
    pack_length = max(_PACK_LENGTH, _PACK_PROMPTS * ids.shape[1])
    packs = pack_rows(ids, is_number, values, prompts.lengths - stem, pack_length)
    tokens = [packs.take(torch.from_numpy(np.ascontiguousarray(array))) for array in (ids, is_number, values)]
    logits = torch.empty(packs.ends.shape)
    step = max(1, _BATCH_TOKENS.get(model.device.type, _BATCH_TOKENS["cpu"]) // packs.ends.shape[1])
    for start in range(0, len(logits), step):
        chunk = slice(start, start + step)
        logits[chunk] = _forward(model, packs, tokens, chunk, cache)
    return logits[packs.read_pack, packs.read_index].double().numpy()


def _forward(
    model: NCPLForecaster, packs: Packs, tokens: Sequence[torch.Tensor], chunk: slice, cache: "_Stem | None"
) -> torch.Tensor:
    """Logits of some packs."""
    device = model.device
    ids, is_number, values = (array[chunk].to(device, non_blocking=True) for array in tokens)
    stem = cache.length if cache else 0
    output = model(
        ids,
        is_number,
        values,
        attention_mask=tree_mask(packs.ends[chunk].to(device), model.config._attn_implementation, stem),
        position_ids=packs.positions[chunk].to(device) + stem,
        **({_cache_argument(model): cache.rows(len(ids)), "use_cache": True} if cache else {}),
    )
    return output.logits.float().cpu()


def _cache_argument(model: NCPLForecaster) -> str:
    """The backbone's name for its cache of keys and values: transformers renamed `past_key_values` to `cache`."""
    names = inspect.signature(model.model.forward).parameters
    return "cache" if "cache" in names else "past_key_values"


class _Stem:
    """Keys and values of the tokens with which all prompts begin, computed once."""

    def __init__(self, model: NCPLForecaster, prompts: Prompts, length: int) -> None:
        self.length = length
        row = (array[:1, :length] for array in (prompts.ids, prompts.is_number, prompts.values))
        ids, is_number, values = (torch.from_numpy(array.copy()).to(model.device) for array in row)
        self._cache = DynamicCache(config=model.config.text_config)
        model(ids, is_number, values, **{_cache_argument(model): self._cache, "use_cache": True})

    def rows(self, count: int) -> DynamicCache:
        """A cache for so many rows, to which a forward pass may append."""
        cache = copy(self._cache)
        cache.layers = [copy(layer) for layer in self._cache.layers]
        for layer in cache.layers:
            layer.keys, layer.values = (state.expand(count, -1, -1, -1) for state in (layer.keys, layer.values))
        return cache


class GridPrompts:
    """The prompts of a grid's combinations.

    Args:
        grid: the combinations.
        processor: what turns configurations into prompts.
    """

    def __init__(self, grid: Grid, processor: NCPLProcessor) -> None:
        self.grid, self._processor = grid, processor
        self._steps_number = lru_cache(65_536)(self._steps_number_of)
        self._numbers = {name: self._scaled(name) for name in grid.fields}

    def window(self, start: int, configs: Sequence[Mapping[str, Any]]) -> Prompts:
        """The prompts of `grid.configs(start, ...)`.

        One for each combination of texts is encoded, the rest are numbers.
        """
        indices = dict(zip(self.grid.fields, self.grid.indices(start, start + len(configs)), strict=True))
        texts = [name for name, numbers in self._numbers.items() if numbers is None]
        group = np.zeros(len(configs), np.int64)
        for name in texts:
            group = group * len(self.grid.fields[name]) + indices[name]
        _, first, group = np.unique(group, return_index=True, return_inverse=True)
        templates = Prompts.of(self._processor, [configs[i] for i in first])
        # Texts differ between templates, the numbers' fields and order do not.
        at = np.nonzero(templates.is_number)[1].reshape(len(first), -1)[group]
        prompts = templates.take(group)
        rows = np.arange(len(configs))
        for name, numbers in self._numbers.items():
            if numbers is not None:
                for slot in np.flatnonzero((numbers != numbers[0]).any(0)):
                    prompts.values[rows, at[:, slot]] = numbers[indices[name], slot]
        if any(name in self.grid.fields for name in _STEPS):
            steps = [self._steps_number(*(config.get(name) for name in _STEPS)) for config in configs]
            prompts.values[rows, at[:, -1]] = steps
        return prompts

    def _steps_number_of(self, *values: Any) -> float:
        """The prompt's last number, from the fields it follows from."""
        config = {name: value for name, value in zip(_STEPS, values, strict=True) if value is not None}
        return prefix_pieces(config, self._processor.prompt_version)[-1]  # type: ignore[return-value]

    def _scaled(self, name: str) -> np.ndarray | None:
        """(values, numbers): the prompt's numbers for each value of a field; None if it is text in the prompt."""
        version = self._processor.prompt_version
        prompts = [prefix_pieces(self.grid.base | {name: value}, version) for value in self.grid.fields[name]]
        texts = {tuple(piece for piece in pieces if isinstance(piece, str)) for pieces in prompts}
        if len(texts) > 1:
            return None
        # Training steps come last and follow from several fields.
        return np.array([[piece for piece in pieces if not isinstance(piece, str)][:-1] for pieces in prompts])
