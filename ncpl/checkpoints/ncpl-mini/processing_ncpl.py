"""The prompt: configurations as text in which every number is one token (NCPL, arXiv 2602.10300, section 3).

`NCPLProcessor` checks configurations against the registry (`fields_ncpl`), encodes them, and turns a model's residuals
back into losses in nats per token.
"""

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from safetensors.numpy import load_file, save_file
from transformers import AutoProcessor, BatchFeature, PreTrainedTokenizerBase, ProcessorMixin
from transformers.utils import cached_file

try:
    from .calibration_ncpl import Calibration
    from .checkpoint_ncpl import ARRAYS
    from .configuration_ncpl import NCPLConfig
    from .embedded_ncpl import resolve
    from .fields_ncpl import FIELDS, SWEPT, Config, Field, check_config, max_step, training_order
    from .laws_ncpl import law_from_dict
    from .published_ncpl import ChinchillaLaw
    from .text_ncpl import as_number, listed, short
    from .upgrade_ncpl import join_arrays, split_arrays
except ImportError:
    from calibration_ncpl import Calibration
    from checkpoint_ncpl import ARRAYS
    from configuration_ncpl import NCPLConfig
    from embedded_ncpl import resolve
    from fields_ncpl import FIELDS, SWEPT, Config, Field, check_config, max_step, training_order
    from laws_ncpl import law_from_dict
    from published_ncpl import ChinchillaLaw
    from text_ncpl import as_number, listed, short
    from upgrade_ncpl import join_arrays, split_arrays

_HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token")


@dataclass
class Encoding:
    """A stretch of prompt as parallel lists: token ids, scaled values (0 at text) and which tokens are numbers."""

    ids: list[int]
    values: list[float]
    is_number: list[bool]

    def __add__(self, other: "Encoding") -> "Encoding":
        return Encoding(self.ids + other.ids, self.values + other.values, self.is_number + other.is_number)

    def __len__(self) -> int:
        return len(self.ids)

    def append(self, ids: Sequence[int], value: float, is_number: bool) -> None:
        self.ids.extend(ids)
        self.values.extend([value] * len(ids))
        self.is_number.extend([is_number] * len(ids))


# The prompt gives the steps; sequence length and vocabulary are the law's, and no published weights read them.
UNPROMPTED = ("max step", "seq len", "vocab size")


def prefix_pieces(config: Config, prompt_version: int) -> list[str | float]:
    """The prompt of a checked configuration as text pieces and scaled numbers, up to and with `max step`.

    >>> prefix_pieces({"source": "marin", "model size": 250, "max step": 500}, 1)
    ['source: marin\\n', 'model size: ', 2.5, '\\n', 'max step: ', 0.5]
    """
    fields = {name: value for name, value in config.items() if name not in UNPROMPTED}
    if prompt_version == 2:
        fields = training_order(fields)
        fields = {**{n: v for n, v in fields.items() if n not in SWEPT}, **{n: fields[n] for n in SWEPT if n in fields}}
    pieces: list[str | float] = []
    for name, value in fields.items():
        field = FIELDS.get(name)
        if field is None or not is_number(field, prompt_version):
            pieces.append(f"{name}: {value}\n")
            continue
        pieces += [f"{field.prompt_label}: ", float(value) * (field.scale or 1.0)]
        if prompt_version == 1:
            pieces.append("\n")
    return [*pieces, "max step: ", max_step(config) / 1000]


def branch_pieces(config: Config, step: float | None = None) -> list[str | float]:
    """What stands between the prefix and the target: the final loss, or the loss at a training step.

    Raises:
        ValueError: a step outside the run.

    >>> branch_pieces({"max step": 500}, 100)
    ['frac: ', 0.2, 'loss: ']
    """
    if step is None:
        return ["final loss: "]
    total = max_step(config)
    number = as_number(step)
    if number is None or not 0 < number <= total:
        raise ValueError(f"steps: got {short(step)}, expected more than 0 and at most the run's {total} training steps")
    return ["frac: ", number / total, "loss: "]


def is_number(field: Field, prompt_version: int) -> bool:
    """Whether the prompt gives the field a number token: the published table's fields, in version 2 every number."""
    return field.scale is not None or (prompt_version == 2 and field.kind in ("number", "count"))


class NCPLProcessor(ProcessorMixin):
    """Configurations to model inputs, and residuals to losses, around a stock tokenizer.

    Args:
        tokenizer: any text tokenizer; its pad token pads.
        prompt_version: 1, the published prompt: fields in the order given, numbers of the published table only.
            2: fields in one order with what people sweep last, every number a number token, no line breaks.
        number_token_id: id at number tokens.
        prior: a law's `to_dict()`; the published Chinchilla laws when absent. Targets are losses minus this.
        strict: whether unknown fields and implausible values are errors (see `check_config`).
        calibration: a `Calibration`'s `to_dict()`, or None: intervals, divergence and extrapolation of the forecasts.
            Without a law of its own it is of the prior.
        arrays: the large numeric parts of both where `prior` and `calibration` name them, as a saved processor's
            `law.safetensors` holds them.

    >>> processor = NCPLProcessor.from_pretrained("ncpl-mini")
    >>> config = {"source": "marin", "optimizer": "adamw", "model size": 300, "data size": 6, "learning rate": 4e-3}
    >>> sorted(processor(config | {"batch size": 128}))
    ['attention_mask', 'input_ids', 'is_number_mask', 'loss_mask', 'number_values_filled']
    """

    valid_processor_kwargs: Any = ProcessorMixin.valid_processor_kwargs

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        prompt_version: Literal[1, 2] = 1,
        number_token_id: int = 0,
        prior: Mapping[str, Any] | None = None,
        strict: bool = True,
        calibration: Mapping[str, Any] | None = None,
        arrays: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        super().__init__(tokenizer)
        if prompt_version not in (1, 2):
            raise ValueError(f"prompt_version: got {short(prompt_version)}, accepted: 1 (published), 2")
        self.prompt_version = prompt_version
        self.number_token_id = number_token_id
        self.strict = strict
        given, self.arrays = arrays or {}, dict[str, np.ndarray]()
        self._law = law_from_dict(join_arrays(ChinchillaLaw().to_dict() if prior is None else prior, given))
        # Lists from the start, as after a save: `to_dict` is the same on both sides of it.
        self.prior = json.loads(json.dumps(split_arrays(self._law.to_dict(), "prior", self.arrays)))
        self._calibrator, self.calibration = None, None
        if calibration is not None:
            self._calibrator = Calibration.from_dict(join_arrays(calibration, given), self._law)
            state = self._calibrator.to_dict(with_law=self._calibrator.law is not self._law)
            self.calibration = json.loads(json.dumps(split_arrays(state, "calibration", self.arrays)))
        self._pieces: dict[str, list[int]] = {}

    @property
    def law(self) -> Any:
        """The prior: configurations -> losses in nats per token."""
        return self._law

    @property
    def calibrator(self) -> Calibration | None:
        """How far to trust the checkpoint's forecasts; None where it was not calibrated."""
        return self._calibrator

    def to_dict(self) -> dict[str, Any]:
        """What `processor_config.json` holds: everything but `arrays`, which go into `law.safetensors`.

        `auto_map` is written by each save, and is no setting of the processor.
        """
        return {name: value for name, value in super().to_dict().items() if name not in ("arrays", "auto_map")}

    def to_json_file(self, json_file_path: str | os.PathLike) -> None:
        """Writes `processor_config.json` and, beside it, `law.safetensors`."""
        super().to_json_file(json_file_path)
        if auto_map := getattr(self, "auto_map", None):
            # Set by the save that is under way: from a Hub repository the class is found by it alone.
            path = Path(json_file_path)
            state = json.loads(path.read_text(encoding="utf-8")) | {"auto_map": auto_map}
            path.write_text(json.dumps(state, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        if self.arrays:
            save_file(self.arrays, Path(json_file_path).with_name(ARRAYS))

    # transformers takes the first base of a processor for its mixin, so that `ByName` cannot be it.
    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Self:
        """See `ByName.from_pretrained`."""
        return super().from_pretrained(resolve(pretrained_model_name_or_path), *args, **kwargs)

    @classmethod
    def get_processor_dict(
        cls, path_or_repo: str | os.PathLike, **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """As usual, with the arrays to which the file refers."""
        state, rest = super().get_processor_dict(path_or_repo, **kwargs)
        if '"array"' in json.dumps([state.get("prior"), state.get("calibration")]):
            where = {name: kwargs[name] for name in _HUB_ARGUMENTS if name in kwargs}
            state["arrays"] = load_file(cached_file(path_or_repo, ARRAYS, **where))
        return state, rest

    def __call__(
        self,
        configs: Config | Sequence[Config],
        final_loss: float | Sequence[float | None] | None = None,
        steps: Sequence[float] | Sequence[Sequence[float]] | None = None,
        curve: Sequence[float] | Sequence[Sequence[float]] | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Encodes configurations, one row for each final loss and one for each curve point.

        Args:
            configs: one configuration or a list of them.
            final_loss: the target in nats per token, one for each configuration.
            steps: training steps at which the curve's loss is the target or the question; a list for one
                configuration, a list of lists for several. Rows of one configuration stand together, its final loss
                first if `final_loss` is given.
            curve: losses in nats per token at `steps`.
            kwargs: `return_tensors`, `"pt"` when absent, or `"np"`.

        Returns:
            `input_ids`, `is_number_mask`, `number_values_filled`, `attention_mask`, `loss_mask` (true at the target)
            and, with targets, `labels` (loss minus prior); all (rows, tokens), padded on the right.

        Raises:
            ValueError: an empty batch, lengths that differ, a loss that is not a finite number, and everything
                `check_config` refuses.
        """
        batch = [configs] if isinstance(configs, Mapping) else listed(configs, "configs")
        if batch is None:
            raise ValueError(f"configs: got {short(configs)}, expected a configuration or a list of them")
        if not batch:
            raise ValueError("configs: got an empty batch, expected at least one configuration")
        one = isinstance(configs, Mapping)
        finals = _per_config("final_loss", [final_loss] if one and final_loss is not None else final_loss, len(batch))
        points = _per_config("steps", [steps] if one and steps is not None else steps, len(batch))
        curves = _per_config("curve", [curve] if one and curve is not None else curve, len(batch))
        if curve is not None and steps is None:
            raise ValueError("curve: needs steps, the training step of each loss")
        checked = [self._check(config, i, len(batch)) for i, config in enumerate(batch)]
        priors = self.law(checked) if final_loss is not None or curve is not None else np.zeros(len(batch))
        rows: list[tuple[Encoding, float | None]] = []
        for config, prior, final, at, losses in zip(checked, priors, finals, points, curves, strict=True):
            prefix = self.prefix(config)
            if at is None or final is not None:
                target = None if final is None else _loss("final_loss", final) - float(prior)
                rows.append((prefix + self.branch(config, target=target), target))
            if at is not None:
                at, losses = _of_one("steps", at), None if losses is None else _of_one("curve", losses)
                if losses is not None and len(losses) != len(at):
                    raise ValueError(f"curve: got {len(losses)} losses for {len(at)} steps, expected as many")
                for i, step in enumerate(at):
                    target = None if losses is None else _loss("curve", losses[i]) - float(prior)
                    rows.append((prefix + self.branch(config, step, target), target))
        return self.pad(rows, _tensor_type(kwargs))

    def prefix(self, config: Config) -> Encoding:
        """The prompt of a checked configuration up to and with `max step`, shared by all points of its curve."""
        return self._encode(prefix_pieces(config, self.prompt_version))

    def branch(self, config: Config, step: float | None = None, target: float | None = None) -> Encoding:
        """What follows the prefix: the question for the final loss, or for the loss at a training step."""
        return self._encode([*branch_pieces(config, step), 0.0 if target is None else target])

    def prompts(self, configs: Sequence[Config], return_tensors: str = "pt") -> BatchFeature:
        """The questions for the final losses of checked configurations, as `__call__` encodes them.

        Args:
            configs: what `check_config` gives.
            return_tensors: `"pt"` or `"np"`.
        """
        return self.pad([(self.prefix(config) + self.branch(config), None) for config in configs], return_tensors)

    def pad(self, rows: Sequence[tuple[Encoding, float | None]], return_tensors: str = "pt") -> BatchFeature:
        """Encodings that end in their target, with targets or None, as one right-padded batch.

        Raises:
            ValueError: some rows have a target, and some have none.
        """
        size = max(len(row) for row, _ in rows)
        pad_id = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else 0
        shape = (len(rows), size)
        batch = {
            "input_ids": np.full(shape, pad_id, np.int64),
            "is_number_mask": np.zeros(shape, bool),
            "number_values_filled": np.zeros(shape, np.float32),
            "attention_mask": np.zeros(shape, np.int64),
            "loss_mask": np.zeros(shape, bool),
        }
        for i, (row, _) in enumerate(rows):
            n = len(row)
            batch["input_ids"][i, :n] = row.ids
            batch["is_number_mask"][i, :n] = row.is_number
            batch["number_values_filled"][i, :n] = row.values
            batch["attention_mask"][i, :n] = 1
            batch["loss_mask"][i, n - 1] = True
        targets = [target for _, target in rows]
        if any(target is not None for target in targets):
            if any(target is None for target in targets):
                raise ValueError("final_loss: some rows have a target and some have none, expected all or none")
            batch["labels"] = np.where(batch["loss_mask"], np.array(targets, np.float32)[:, None], np.float32(0))
        return BatchFeature(batch, tensor_type=return_tensors)

    def losses(self, logits: torch.Tensor, loss_mask: torch.Tensor, configs: Sequence[Config]) -> np.ndarray:
        """Losses in nats per token: prior plus the residual read one position before each row's target.

        Args:
            logits: (rows, tokens), a model's output for a batch of this processor.
            loss_mask: (rows, tokens), the batch's.
            configs: one configuration a row.
        """
        checked = [self._check(config, i, len(configs)) for i, config in enumerate(configs)]
        return self.law(checked) + self.residuals(logits, loss_mask)

    def residuals(self, logits: torch.Tensor, loss_mask: torch.Tensor) -> np.ndarray:
        """What the model adds to the prior, in nats: the logit one position before each row's target."""
        at = loss_mask.to(logits.device).int().argmax(-1) - 1
        return logits.float().gather(1, at[:, None]).squeeze(1).detach().cpu().numpy().astype(np.float64)

    def decode(self, batch: Mapping[str, Any] | BatchFeature, row: int = 0) -> str:
        """A row of a batch as text, its numbers in place in the fields' own units; the last is the residual target."""
        ids, values = batch["input_ids"][row].tolist(), batch["number_values_filled"][row].tolist()
        numbers, real = batch["is_number_mask"][row].tolist(), batch["attention_mask"][row].tolist()
        scales = {f"{f.prompt_label}: ": f.scale or 1.0 for f in FIELDS.values() if is_number(f, self.prompt_version)}
        scales["max step: "] = 1 / 1000
        out, text = "", list[int]()
        for token, value, number, keep in zip(ids, values, numbers, real, strict=True):
            if not keep:
                break
            if not number:
                text.append(token)
                continue
            piece = self.tokenizer.decode(text, clean_up_tokenization_spaces=False)
            label = piece.rsplit("\n", 1)[-1]
            out += f"{piece}{value / scales.get(label, 1.0):.6g}"
            text = []
        return out + self.tokenizer.decode(text, clean_up_tokenization_spaces=False)

    @property
    def model_input_names(self) -> list[str]:
        return ["input_ids", "is_number_mask", "number_values_filled", "attention_mask", "loss_mask"]

    def _check(self, config: Config, index: int, count: int) -> dict[str, Any]:
        try:
            return check_config(config, self.strict)
        except ValueError as error:
            raise ValueError(f"configs[{index}]: {error}" if count > 1 else str(error)) from None

    def _encode(self, pieces: Sequence[str | float]) -> Encoding:
        """Each text piece is tokenized on its own, without special tokens; there are few, so they are kept."""
        out = Encoding([], [], [])
        for piece in pieces:
            if not isinstance(piece, str):
                out.append([self.number_token_id], float(piece), True)
                continue
            if piece not in self._pieces:
                self._pieces[piece] = self.tokenizer.encode(piece, add_special_tokens=False)
            out.append(self._pieces[piece], 0.0, False)
        return out


def _tensor_type(kwargs: Mapping[str, Any]) -> str:
    """`return_tensors`, by itself or in one of transformers' groups of a processor's arguments; `"pt"` when absent.

    Raises:
        TypeError: another argument.
    """
    groups = ("common_kwargs", "text_kwargs")
    given = {name: value for group in groups for name, value in (kwargs.get(group) or {}).items()}
    given |= {name: value for name, value in kwargs.items() if name not in groups}
    if unknown := sorted(given.keys() - {"return_tensors"}):
        raise TypeError(f"{unknown[0]}: no such argument; accepted: configs, final_loss, steps, curve, return_tensors")
    kind = given.get("return_tensors", "pt")
    if not isinstance(kind, str) or kind not in ("pt", "np"):
        raise ValueError(f"return_tensors: got {short(kind)}, accepted: pt, np")
    return str(kind)


def _per_config(name: str, values: Any, count: int) -> list[Any]:
    if values is None:
        return [None] * count
    several = listed(values, name)
    if several is None:
        raise ValueError(f"{name}: got {short(values)} for {count} configurations, expected a list with one for each")
    if len(several) != count:
        raise ValueError(f"{name}: got {len(several)} for {count} configurations, expected one for each")
    return several


def _of_one(name: str, values: Any) -> list[Any]:
    """The steps of one configuration's curve, or the losses at them."""
    several = listed(values, name)
    if several is None:
        raise ValueError(f"{name}: got {short(values)}, expected a list of numbers for each configuration")
    return several


def _loss(name: str, value: Any) -> float:
    number = as_number(value)
    if number is None or not math.isfinite(number):
        raise ValueError(f"{name}: got {short(value)}, expected a finite loss in nats per token")
    return float(number)


NCPLProcessor.register_for_auto_class()
# Imported by itself, not as a checkpoint's own code: transformers' Auto classes then know it.
if not __package__:
    AutoProcessor.register(NCPLConfig, NCPLProcessor, exist_ok=True)
