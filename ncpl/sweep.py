"""Sweeps: many configurations that differ in a few fields, at the price of the tokens in which they differ.

A grid is worked through in windows of its rows, so that its size costs no memory. The prompts of a window begin alike:
their common tokens run through the model once and stay in its key/value cache, and what follows is laid out as tries
(`ncpl.packing.pack_rows`), in which rows that go on alike share further tokens. With prompt version 2, which puts data
size, batch size and learning rate last, a configuration of a sweep costs about four tokens.
"""

import inspect
import itertools
import math
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from copy import copy
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from tqdm import tqdm
from transformers import DynamicCache

from fields_ncpl import check_config, field_name, training_order
from modeling_ncpl import NCPLForecaster
from ncpl.configs import vary
from ncpl.packing import Packs, pack_rows, tree_mask
from processing_ncpl import NCPLProcessor, prefix_pieces

if TYPE_CHECKING:
    from ncpl.forecaster import Forecaster

WINDOW = 16_384
"""Rows worked on at a time: enough for rows to begin alike, few enough for any memory."""

# Tokens in a pack beside the cached ones, or this many prompts' worth if that is more: long packs copy the cache less
# often and share more, short ones attend to less in vain.
_PACK_LENGTH, _PACK_PROMPTS = 64, 4
# Tokens a forward pass: enough to fill a CPU's caches or a GPU, little enough for any memory.
_BATCH_TOKENS = {"cpu": 2_048, "cuda": 32_768}

# What the number of training steps follows from.
_TOKENS = ("data size", "batch size", "seq len")
_STEPS = ("max step", "source", *_TOKENS)


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
        rows = [(processor.prefix(config) + processor.branch(config), None) for config in configs]
        batch = processor.pad(rows, return_tensors="np")
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


class Grid:
    """Every combination of some fields' values around one configuration, the last field varying fastest.

    Args:
        processor: what turns configurations into prompts.
        config: the configuration that is varied; its `max step` follows data size, batch size and sequence length.
        fields: field -> values.

    Raises:
        ValueError: a field that is given twice or has no values, or a combination that `check_config` refuses.

    >>> from ncpl.training.backbone import train_tokenizer
    >>> config = {"source": "marin", "model size": 134, "data size": 2.7, "optimizer": "adamw", "learning rate": 2e-3,
    ...           "batch size": 128}
    >>> processor = NCPLProcessor(train_tokenizer([config] * 2), prompt_version=2)
    >>> grid = Grid(processor, config, {"batch size": [128, 256], "learning rate": [1e-3, 2e-3, 4e-3]})
    >>> len(grid), grid.configs(4, 5)[0]["learning rate"]
    (6, 0.002)
    """

    def __init__(
        self, processor: NCPLProcessor, config: Mapping[str, Any], fields: Mapping[str, Sequence[Any]]
    ) -> None:
        fields = {name: _values(name, values) for name, values in named_fields(fields).items()}
        self._processor = processor
        self._config = vary(config, {})
        first = {name: values[0] for name, values in fields.items()}
        self.base = training_order(self._check(first))
        """The first combination, checked, in training order."""
        self.fields = {
            name: [self._check({**first, name: value})[name] for value in values] for name, values in fields.items()
        }
        self.shape = tuple(len(values) for values in self.fields.values())
        self._check_corners()
        self._max_step = lru_cache(65_536)(self._max_step_of)
        self._steps_number = lru_cache(65_536)(self._steps_number_of)
        self._numbers = {name: self._scaled(name) for name in fields}

    def __len__(self) -> int:
        return math.prod(self.shape)

    def configs(self, start: int, stop: int) -> list[dict[str, Any]]:
        """Some combinations, as checked configurations in training order."""
        columns = [
            [values[i] for i in index.tolist()]
            for values, index in zip(self.fields.values(), self._indices(start, stop), strict=True)
        ]
        rows = [self.base | dict(zip(self.fields, point, strict=True)) for point in zip(*columns, strict=True)]
        if "max step" in self.base and "max step" not in self.fields:
            for row in rows:
                row["max step"] = self._max_step(*(row.get(name) for name in _TOKENS))
        return rows

    def frame(self, rows: pd.RangeIndex) -> pd.DataFrame:
        """The swept fields' values in some combinations, of the same type in all of them."""
        indices = self._indices(rows.start, rows.stop)
        columns = zip(self.fields.items(), indices, strict=True)
        return pd.DataFrame({name: pd.Series(values).to_numpy()[i] for (name, values), i in columns}, index=rows)

    def prompts(self, start: int, configs: Sequence[Mapping[str, Any]]) -> Prompts:
        """The prompts of `configs(start, ...)`: one for each combination of texts is encoded, the rest are numbers."""
        indices = dict(zip(self.fields, self._indices(start, start + len(configs)), strict=True))
        texts = [name for name, numbers in self._numbers.items() if numbers is None]
        group = np.zeros(len(configs), np.int64)
        for name in texts:
            group = group * len(self.fields[name]) + indices[name]
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
        if any(name in self.fields for name in _STEPS):
            steps = [self._steps_number(*(config.get(name) for name in _STEPS)) for config in configs]
            prompts.values[rows, at[:, -1]] = steps
        return prompts

    def _indices(self, start: int, stop: int) -> tuple[np.ndarray, ...]:
        """Of some combinations, the index of each field's value."""
        return np.unravel_index(np.arange(start, stop), self.shape)

    def _check(self, changes: Mapping[str, Any]) -> dict[str, Any]:
        return check_config(vary(self._config, changes), self._processor.strict)

    def _check_corners(self) -> None:
        """`check_config`'s rules about several fields are monotone in each number: the grid's corners stand for it."""
        ends = []
        for name, values in self.fields.items():
            numbers = all(isinstance(value, int | float) for value in values)
            ends.append({min(values), max(values)} if numbers else values if name == "source" else values[:1])
        for corner in itertools.product(*ends):
            changes = dict(zip(self.fields, corner, strict=True))
            try:
                self._check(changes)
            except ValueError as error:
                point = ", ".join(f"{name} {value}" for name, value in changes.items())
                raise ValueError(f"{error} (at {point})") from None

    def _max_step_of(self, *tokens: Any) -> int:
        """The training steps where the configuration gives them and fields they follow from are varied."""
        known = {name: self._config[name] for name in ("max step", *_TOKENS) if name in self._config}
        changes = {name: value for name, value in zip(_TOKENS, tokens, strict=True) if name in self.fields}
        return int(float(vary(known, changes)["max step"]))

    def _steps_number_of(self, *values: Any) -> float:
        """The prompt's last number, from the fields it follows from."""
        config = {name: value for name, value in zip(_STEPS, values, strict=True) if value is not None}
        return prefix_pieces(config, self._processor.prompt_version)[-1]  # type: ignore[return-value]

    def _scaled(self, name: str) -> np.ndarray | None:
        """(values, numbers): the prompt's numbers for each value of a field; None if it is text in the prompt."""
        version = self._processor.prompt_version
        prompts = [prefix_pieces(self.base | {name: value}, version) for value in self.fields[name]]
        texts = {tuple(piece for piece in pieces if isinstance(piece, str)) for pieces in prompts}
        if len(texts) > 1:
            return None
        # Training steps come last and follow from several fields.
        return np.array([[piece for piece in pieces if not isinstance(piece, str)][:-1] for pieces in prompts])


def named_fields(given: Mapping[str, Any]) -> dict[str, Any]:
    """The same under the registry's names.

    >>> named_fields({"lr": [1e-3]})
    {'learning rate': [0.001]}
    """
    if not isinstance(given, Mapping) or not given:
        raise ValueError(f"fields: got {given!r}, expected a mapping of at least one field")
    named: dict[str, Any] = {}
    for name, value in given.items():
        known = field_name(name) or str(name)
        if known in named:
            raise ValueError(f"{known}: given twice, the second time as {name!r}")
        named[known] = value
    return named


def _values(name: str, values: Any) -> list[Any]:
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise ValueError(f"{name}: got {values!r}, expected a list of values")
    values = list(values)
    if not values:
        raise ValueError(f"{name}: got no values, expected at least one")
    return values


def forecast_grid(
    forecaster: "Forecaster",
    config: Mapping[str, Any],
    fields: Mapping[str, Sequence[Any]],
    level: float = 0.9,
    share: tuple[int, int] = (0, 1),
) -> Iterator[pd.DataFrame]:
    """Forecasts every combination of some fields' values, a window of rows at a time.

    Args:
        forecaster: the model, its processor and its calibration.
        config, fields: as for `Grid`.
        level: coverage of the interval.
        share: (i, n), for the i-th of n processes: its contiguous share of the rows.

    Yields:
        The swept fields, then `Forecaster.predict`'s columns, under the rows' numbers in the whole grid.

    Raises:
        ValueError: what `Grid` refuses.
    """
    grid = Grid(forecaster.processor, config, fields)
    # Rounded up, so that the first process always has a row.
    first, last = (math.ceil(len(grid) * (share[0] + i) / share[1]) for i in (0, 1))
    with tqdm(total=last - first, desc="sweep", unit="config", delay=2, disable=share[0] > 0 or None) as progress:
        for start in range(first, last, WINDOW):
            configs = grid.configs(start, min(start + WINDOW, last))
            forecast = forecaster.columns(configs, residuals(forecaster.model, grid.prompts(start, configs)), level)
            rows = pd.RangeIndex(start, start + len(configs))
            yield pd.concat([grid.frame(rows), forecast.set_index(rows)], axis=1)
            progress.update(len(configs))


def write_sweep(
    forecaster: "Forecaster",
    config: Mapping[str, Any],
    fields: Mapping[str, Sequence[Any]],
    path: str | Path,
    level: float = 0.9,
    lowest: int = 20,
) -> pd.DataFrame:
    """Writes `forecast_grid`'s rows to a file as they come, in memory that does not grow with the grid.

    Under `accelerate launch` each process forecasts its share on its own device, and the first joins the parts.

    Args:
        forecaster, config, fields, level: as for `forecast_grid`.
        path: a `.csv` or `.parquet` file; it appears when it is complete.
        lowest: how many rows to return.

    Returns:
        The rows with the lowest losses, best first.

    Raises:
        ValueError: another kind of file, and what `forecast_grid` refuses.
    """
    path = Path(path)
    if path.suffix not in _WRITERS:
        raise ValueError(f"{path}: a file of kind {path.suffix!r}, accepted: {', '.join(_WRITERS)}")
    state = PartialState(cpu=forecaster.device.type == "cpu")
    if forecaster.device.type == "cuda":
        forecaster.device = state.device
        forecaster.model.to(state.device)
    parts = [path.with_name(f"{path.name}.part{i}") for i in range(state.num_processes)]
    write, join = _WRITERS[path.suffix]
    part = parts[state.process_index]
    best: list[pd.DataFrame] = []

    def frames() -> Iterator[pd.DataFrame]:
        share = (state.process_index, state.num_processes)
        for frame in forecast_grid(forecaster, config, fields, level, share):
            best[:] = [pd.concat([*best, frame]).nsmallest(lowest, "loss")]
            yield frame

    try:
        write(frames(), part)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    best = gather_object(best)
    state.wait_for_everyone()
    if state.is_main_process:
        if len(parts) > 1:
            join(parts[0], parts[1:])
        parts[0].replace(path)
    return pd.concat(best).nsmallest(lowest, "loss")


def _write_csv(frames: Iterable[pd.DataFrame], path: Path) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        for frame in frames:
            # One header for the whole grid, whoever writes its first row.
            frame.to_csv(file, index=False, header=frame.index[0] == 0)


def _join_csv(first: Path, others: Sequence[Path]) -> None:
    with first.open("ab") as file:
        for part in others:
            with part.open("rb") as rows:
                shutil.copyfileobj(rows, file)
            part.unlink()


def _write_parquet(frames: Iterable[pd.DataFrame], path: Path) -> None:
    with ExitStack() as stack:
        writer = None
        for frame in frames:
            table = pa.Table.from_pandas(frame, preserve_index=False)
            writer = writer or stack.enter_context(pq.ParquetWriter(path, table.schema))
            writer.write_table(table)


def _join_parquet(first: Path, others: Sequence[Path]) -> None:
    joined = first.with_name(f"{first.name}.joined")
    with pq.ParquetWriter(joined, pq.read_schema(first)) as writer:
        # More processes than rows: some have no part.
        for part in filter(Path.exists, (first, *others)):
            file = pq.ParquetFile(part)
            for group in range(file.num_row_groups):
                writer.write_table(file.read_row_group(group))
            part.unlink()
    joined.replace(first)


_WRITERS = {".csv": (_write_csv, _join_csv), ".parquet": (_write_parquet, _join_parquet)}
