"""The prompt: configurations as text in which every number is one token (NCPL, arXiv 2602.10300, section 3).

`FIELDS` is the single list of configuration fields. `NCPLProcessor` checks configurations against it, encodes them, and
turns a model's residuals back into losses in nats per token.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from numbers import Real
from typing import Any, Literal

import numpy as np
import torch
from transformers import BatchFeature, PreTrainedTokenizerBase, ProcessorMixin

try:
    from .laws_ncpl import SEQ_LEN, Calibration, ChinchillaLaw, law_from_dict
except ImportError:
    from laws_ncpl import SEQ_LEN, Calibration, ChinchillaLaw, law_from_dict

Config = Mapping[str, Any]


@dataclass(frozen=True)
class Field:
    """One configuration field.

    Args:
        name: as it stands in run logs.
        unit: what the value counts, for messages, features and tables.
        low, high: accepted values; numbers only.
        scale: factor from the value to the number token; None where the published prompt writes the value as text.
        label: the field's name in the prompt when it differs.
        kind: `"number"`, `"count"` (a whole number), `"text"` or `"flag"`.
        zero: whether 0, below `low`, is accepted too (switched off).
        aliases: other names for the same quantity in the same unit; case, spaces and underscores never matter.
    """

    name: str
    unit: str
    low: float = 0.0
    high: float = math.inf
    scale: float | None = None
    label: str = ""
    kind: Literal["number", "count", "text", "flag"] = "number"
    zero: bool = False
    aliases: tuple[str, ...] = ()

    @property
    def prompt_label(self) -> str:
        return self.label or self.name

    @property
    def accepted(self) -> str:
        """What a value has to be, for error messages."""
        if self.kind == "text":
            return f"text ({self.unit})"
        if self.kind == "flag":
            return f"true or false ({self.unit})"
        zero = "0 or " if self.zero and self.low > 0 else ""
        whole = "a whole number, " if self.kind == "count" else ""
        return f"{whole}{zero}{self.low:g} to {self.high:g} ({self.unit})"


# In training order: the order of the fields in the run logs of both sources.
FIELDS: dict[str, Field] = {
    field.name: field
    for field in (
        Field("source", "whose recipe, data and evaluation set", kind="text"),
        Field("model size", "million non-embedding parameters", 1, 1e6, 1 / 100, aliases=("non embedding params",)),
        Field("active size", "million active non-embedding parameters, MoE", 1, 1e6),
        Field("data size", "billion tokens", 0.01, 2e4, 1),
        Field("num layers", "layers", 1, 1000, 1, kind="count", aliases=("layers", "n layers", "num hidden layers")),
        Field(
            "num heads",
            "attention heads",
            1,
            1024,
            1,
            kind="count",
            aliases=("heads", "n heads", "num attention heads"),
        ),
        Field("hidden dim", "residual width", 16, 2e5, 1 / 100, kind="count", aliases=("hidden size", "d model")),
        Field("ffn dim", "feed-forward width", 16, 1e6, kind="count", aliases=("intermediate size", "d ff")),
        Field("num experts", "routed experts, MoE", 1, 1e5, kind="count"),
        Field("top k", "experts a token visits, MoE", 1, 1e4, kind="count"),
        Field("expert dim", "width of one expert, MoE", 16, 1e6, kind="count"),
        Field("shared expert dim", "width of the shared expert, MoE", 16, 1e6, kind="count", zero=True),
        Field("optimizer", "name of the optimizer", kind="text"),
        Field("learning rate", "peak learning rate", 1e-6, 0.3, 1e4, aliases=("lr", "peak lr", "max lr")),
        Field("min_lr", "final learning rate", 1e-9, 0.1, 1e4, label="minlr", zero=True),
        Field("warmup", "warmup steps", 1, 1e6, 1 / 100, kind="count", zero=True, aliases=("warmup steps",)),
        Field("weight decay", "weight decay", 1e-6, 10, 100, zero=True, aliases=("wd",)),
        Field("batch size", "sequences", 1, 2e4, 1 / 10, kind="count", aliases=("global batch size",)),
        Field("max_grad_norm", "gradient norm clip, 0 is off", 1e-3, 100, 1, zero=True, aliases=("grad clip",)),
        Field("min_lr_ratio", "final over peak learning rate", 1e-6, 1, 200, label="minlr ratio", zero=True),
        Field("adam_lr", "peak learning rate of the Adam part", 1e-7, 0.3, 1e4),
        Field("another_muon", "variant of Muon", kind="text"),
        Field("beta1", "decay rate", 0, 1),
        Field("beta2", "decay rate", 0, 1),
        Field("block_size", "preconditioner block", 1, 1e5, 1 / 50, kind="count"),
        Field("decay", "share of the run in which the learning rate decays", 0, 1),
        Field("epsilon", "added to the denominator", 1e-38, 0.1, zero=True, aliases=("eps", "adam epsilon")),
        Field("gamma", "MARS's gradient correction", 0, 10),
        Field("lr_schedule", "shape of the learning rate's decay", kind="text"),
        Field("momentum", "momentum", 0, 1),
        Field("momentum_2", "second momentum", 0, 1),
        Field("muon_epsilon", "added to the denominator", 1e-38, 0.1, zero=True),
        Field("nesterov", "Nesterov momentum", kind="flag"),
        Field("normalization", "normalisation of the update", kind="text"),
        Field("normalize_grads", "normalised gradients", kind="flag"),
        Field("partition_grads_into_blocks", "blocked preconditioner", kind="flag"),
        Field("precondition_frequency", "steps between preconditioner updates", 1, 1e5, kind="count"),
        Field("preconditioner_init_scale", "initial preconditioner", 0, 1e3),
        Field("preconditioner_lr", "learning rate of the preconditioner", 0, 10),
        Field("preconditioner_update_probability", "probability a step", 0, 1),
        Field("scion_epsilon", "added to the denominator", 1e-38, 0.1, zero=True),
        Field("shampoo_beta", "decay rate", 0, 1),
        Field("update_prob_flat_start", "steps with every update", 0, 1e6, kind="count"),
        Field("max step", "training steps", 10, 1e8, kind="count", aliases=("max steps", "steps", "train steps")),
        Field("seq len", "tokens a sequence", 16, 1e7, kind="count", aliases=("sequence length", "block len")),
    )
}

PRIOR_NEEDS = ("source", "model size", "data size")
REQUIRED = ("source", "model size", "data size", "optimizer", "learning rate", "batch size")
# Prompt version 2 puts what people sweep behind everything else, so that a sweep shares nearly the whole prompt.
SWEPT = ("data size", "batch size", "learning rate")
# Tokens an (active) parameter; real runs lie between about 1 and 1,000, and a slip of units leaves these bounds.
TOKENS_PER_PARAMETER = (0.5, 1e4)


def _plain(name: str) -> str:
    return " ".join(str(name).lower().replace("_", " ").replace("-", " ").split())


_NAMES = {_plain(alias): f.name for f in FIELDS.values() for alias in (f.name, *f.aliases)}


def field_name(name: str) -> str | None:
    """The registry's name for a field written with other case, spaces or an alias; None if there is none.

    >>> field_name("Learning_Rate"), field_name("lr"), field_name("colour")
    ('learning rate', 'learning rate', None)
    """
    return _NAMES.get(_plain(name))


def check_config(config: Config, strict: bool = True) -> dict[str, Any]:
    """A configuration under the registry's names, its values checked, in the order given.

    Args:
        config: field -> value; numbers may be strings that read as numbers.
        strict: False keeps unknown fields as text and skips ranges, plausibility and the required fields that the prior
            does not need, as other people's logs demand; a number that is not a number is an error all the same.

    Raises:
        ValueError: naming the field, what came, what is accepted and the nearest name.

    >>> check_config({"source": "marin", "model size": 134, "data_size": "2.7e0", "colour": "red"}, strict=False)
    {'source': 'marin', 'model size': 134, 'data size': 2.7, 'colour': 'red'}
    """
    if not isinstance(config, Mapping):
        raise ValueError(f"configuration: got {config!r}, expected a mapping of fields to values")
    checked: dict[str, Any] = {}
    for given, value in config.items():
        name = field_name(given)
        if name is None:
            if strict:
                near = get_close_matches(_plain(given), _NAMES, 1, 0.5)
                hint = f"did you mean {_NAMES[near[0]]!r}? " if near else ""
                raise ValueError(f"{given}: not a known field, {hint}known: {', '.join(FIELDS)}")
            checked[str(given)] = value
            continue
        if name in checked:
            raise ValueError(f"{name}: given twice, the second time as {given!r}")
        checked[name] = _check_value(FIELDS[name], value, strict)
    missing = [name for name in (REQUIRED if strict else PRIOR_NEEDS) if name not in checked]
    if missing:
        units = ", ".join(f"{name} ({FIELDS[name].unit})" for name in missing)
        raise ValueError(f"{missing[0]}: missing; a configuration needs {units}")
    if strict:
        _check_plausible(checked)
    return checked


def _check_value(field: Field, value: Any, strict: bool) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    if field.kind in ("text", "flag"):
        if value is None or (isinstance(value, float) and math.isnan(value)) or value == "":
            raise ValueError(f"{field.name}: got {value!r}, expected {field.accepted}")
        if field.kind == "flag":
            if str(value).lower() not in ("true", "false", "0", "1", "0.0", "1.0"):
                raise ValueError(f"{field.name}: got {value!r}, expected {field.accepted}")
            return str(value).lower() in ("true", "1", "1.0")
        if field.name in REQUIRED:
            if not isinstance(value, str) or not value.strip():
                raise ValueError(f"{field.name}: got {value!r}, expected {field.accepted}")
            # The logs write names in lower case; "AdamW" would be another word to the model.
            return value.strip().lower()
        return value
    number = _number(field, value)
    if not math.isfinite(number):
        raise ValueError(f"{field.name}: got {value!r}, expected {field.accepted}")
    if field.kind == "count" and number == int(number):
        # Tables make whole numbers floats where a cell is missing; as text, 128.0 is not 128.
        number = int(number)
    if not strict:
        return number
    if not (field.low <= number <= field.high or (number == 0 and field.zero)):
        # First, plain parameters and tokens instead of millions and billions of them.
        plain = {"million": 1e-6, "billion": 1e-9}.get(field.unit.split()[0], 1e-3)
        factors = (plain, 1e-3, 1e3, 1e-6, 1e6, 1e-9, 1e9)
        guesses = (number * factor for factor in factors if field.low <= number * factor <= field.high)
        # A whole number is off by a unit only if it stays whole.
        guess = next((g for g in guesses if field.kind != "count" or g == int(g)), None)
        hint = f"; did you mean {guess:.6g}?" if guess is not None else ""
        raise ValueError(f"{field.name}: got {value!r}, expected {field.accepted}{hint}")
    if field.kind == "count" and number != int(number):
        raise ValueError(f"{field.name}: got {value!r}, expected {field.accepted}")
    return number


def _number(field: Field, value: Any) -> int | float:
    if isinstance(value, str):
        try:
            return int(value) if value.strip().lstrip("+-").isdigit() else float(value)
        except ValueError:
            pass
    elif isinstance(value, Real) and not isinstance(value, bool):
        return value if isinstance(value, int) else float(value)
    raise ValueError(f"{field.name}: got {value!r}, expected {field.accepted}")


def _check_plausible(config: Config) -> None:
    """Slips of units that single ranges cannot see: fields that contradict each other by orders of magnitude."""
    _check_experts(config)
    counted = "an active size" if "active size" in config else "a model size"
    size, tokens = config.get("active size", config["model size"]), config["data size"]
    low, high = TOKENS_PER_PARAMETER
    if not low <= tokens * 1e3 / size <= high:
        raise ValueError(
            f"data size: {tokens:g} billion tokens for {counted} of {size:g} million parameters are "
            f"{tokens * 1e3 / size:.3g} tokens a parameter, expected {low:g} to {high:g}; check the units of both"
        )
    for name, made, of in _made_of(config):
        if not 0.05 <= config[name] / made <= 20:
            raise ValueError(
                f"{name}: got {config[name]:g} ({FIELDS[name].unit}), but {of} make about {made:.4g}; check the unit"
            )
    seq_len = config.get("seq len") or SEQ_LEN.get(config["source"])
    if "max step" in config and seq_len:
        trained = config["max step"] * config["batch size"] * seq_len / 1e9
        if not 0.5 <= trained / tokens <= 2:
            raise ValueError(
                f"max step: {config['max step']:g} steps of {config['batch size']:g} sequences of {seq_len} tokens are "
                f"{trained:.4g} billion tokens, but data size says {tokens:g} billion"
            )
    steps = max_step(config) if seq_len or "max step" in config else None
    if steps is not None and config.get("warmup", 0) > steps:
        raise ValueError(f"warmup: got {config['warmup']:g}, expected at most the run's {steps} training steps")


def _check_experts(config: Config) -> None:
    """What a mixture of experts needs, and what bounds what."""
    missing = [name for name in ("active size", "top k") if "num experts" in config and name not in config]
    if missing:
        raise ValueError(
            f"{missing[0]}: missing; num experts makes this a mixture of experts, which needs "
            f"active size ({FIELDS['active size'].unit}) and top k ({FIELDS['top k'].unit})"
        )
    for part, whole in (("active size", "model size"), ("top k", "num experts")):
        if {part, whole} <= config.keys() and config[part] > config[whole]:
            raise ValueError(f"{part}: got {config[part]:g}, expected at most {whole}, {config[whole]:g}")


def _made_of(config: Config) -> list[tuple[str, float, str]]:
    """Sizes in million non-embedding parameters that the shape makes: the field, the size, and the shape's fields.

    Attention is `4 h^2` a layer and a gated feed-forward layer or expert of width w `3 h w`. A mixture of experts is
    taken to have experts in every layer; real ones have a dense layer or a few. Routers are left out.
    """
    if not {"num layers", "hidden dim"} <= config.keys():
        return []
    layers, width = config["num layers"], config["hidden dim"]
    if "num experts" not in config:
        made = layers * (4 * width**2 + 3 * width * config.get("ffn dim", 3 * width)) / 1e6
        return [("model size", made, "num layers, hidden dim and ffn dim")]
    if "expert dim" not in config:
        return []
    return [
        (
            name,
            layers * (4 * width**2 + 3 * width * (config[count] * config["expert dim"] + shared)) / 1e6,
            f"num layers, hidden dim, {count}, expert dim and shared expert dim",
        )
        for shared in (config.get("shared expert dim", 0),)
        for name, count in (("model size", "num experts"), ("active size", "top k"))
    ]


def max_step(config: Config) -> int:
    """Training steps: as given, or data size over batch size x sequence length (the source's when absent).

    Raises:
        ValueError: neither `max step` nor a sequence length is known.

    >>> max_step({"source": "marin", "data size": 10.73741824, "batch size": 128})
    20480
    """
    if "max step" in config:
        return int(config["max step"])
    seq_len = config.get("seq len") or SEQ_LEN.get(config.get("source", ""))
    if "batch size" not in config:
        raise ValueError("batch size: missing; give it (sequences), or max step (training steps)")
    if not seq_len:
        raise ValueError(
            f"seq len: missing, and source {config.get('source')!r} has no known one (known: {', '.join(SEQ_LEN)}); "
            "give seq len (tokens a sequence) or max step (training steps)"
        )
    # Data sizes in logs are rounded: a run of n steps may state a hair less than n steps' tokens.
    return max(1, int(config["data size"] * 1e9 / (config["batch size"] * seq_len) + 1e-3))


def training_order(config: Config) -> dict[str, Any]:
    """The same fields in the order of the training logs; unknown fields last, as given.

    >>> list(training_order({"learning rate": 1e-3, "source": "marin"}))
    ['source', 'learning rate']
    """
    rank = {name: i for i, name in enumerate(FIELDS)}
    return dict(sorted(config.items(), key=lambda item: rank.get(item[0], len(rank))))


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


def prefix_pieces(config: Config, prompt_version: int) -> list[str | float]:
    """The prompt of a checked configuration as text pieces and scaled numbers, up to and with `max step`.

    >>> prefix_pieces({"source": "marin", "model size": 250, "max step": 500}, 1)
    ['source: marin\\n', 'model size: ', 2.5, '\\n', 'max step: ', 0.5]
    """
    fields = {name: value for name, value in config.items() if name not in ("max step", "seq len")}
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
    if isinstance(step, bool) or not isinstance(step, Real | np.generic) or not 0 < step <= total:
        raise ValueError(f"steps: got {step!r}, expected more than 0 and at most the run's {total} training steps")
    return ["frac: ", float(step) / total, "loss: "]


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
    ) -> None:
        super().__init__(tokenizer)
        if prompt_version not in (1, 2):
            raise ValueError(f"prompt_version: got {prompt_version!r}, accepted: 1 (published), 2")
        self.prompt_version = prompt_version
        self.number_token_id = number_token_id
        self.prior = dict(prior) if prior is not None else ChinchillaLaw().to_dict()
        self.strict = strict
        self.calibration = calibration
        self._law = law_from_dict(self.prior)
        self._calibrator = None if calibration is None else Calibration.from_dict(calibration, self._law)
        self._pieces: dict[str, list[int]] = {}

    @property
    def law(self) -> Any:
        """The prior: configurations -> losses in nats per token."""
        return self._law

    @property
    def calibrator(self) -> Calibration | None:
        """How far to trust the checkpoint's forecasts; None where it was not calibrated."""
        return self._calibrator

    def __call__(
        self,
        configs: Config | Sequence[Config],
        final_loss: float | Sequence[float | None] | None = None,
        steps: Sequence[float] | Sequence[Sequence[float]] | None = None,
        curve: Sequence[float] | Sequence[Sequence[float]] | None = None,
        return_tensors: str = "pt",
    ) -> BatchFeature:
        """Encodes configurations, one row for each final loss and one for each curve point.

        Args:
            configs: one configuration or a list of them.
            final_loss: the target in nats per token, one for each configuration.
            steps: training steps at which the curve's loss is the target or the question; a list for one
                configuration, a list of lists for several. Rows of one configuration stand together, its final loss
                first if `final_loss` is given.
            curve: losses in nats per token at `steps`.

        Returns:
            `input_ids`, `is_number_mask`, `number_values_filled`, `attention_mask`, `loss_mask` (true at the target)
            and, with targets, `labels` (loss minus prior); all (rows, tokens), padded on the right.

        Raises:
            ValueError: an empty batch, lengths that differ, a loss that is not a finite number, and everything
                `check_config` refuses.
        """
        batch = [configs] if isinstance(configs, Mapping) else list(configs)
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
                if losses is not None and len(losses) != len(at):
                    raise ValueError(f"curve: got {len(losses)} losses for {len(at)} steps, expected as many")
                for i, step in enumerate(at):
                    target = None if losses is None else _loss("curve", losses[i]) - float(prior)
                    rows.append((prefix + self.branch(config, step, target), target))
        return self.pad(rows, return_tensors)

    def prefix(self, config: Config) -> Encoding:
        """The prompt of a checked configuration up to and with `max step`, shared by all points of its curve."""
        return self._encode(prefix_pieces(config, self.prompt_version))

    def branch(self, config: Config, step: float | None = None, target: float | None = None) -> Encoding:
        """What follows the prefix: the question for the final loss, or for the loss at a training step."""
        return self._encode([*branch_pieces(config, step), 0.0 if target is None else target])

    def pad(self, rows: Sequence[tuple[Encoding, float | None]], return_tensors: str = "pt") -> BatchFeature:
        """Encodings that end in their target, with targets or None, as one right-padded batch."""
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
        at = loss_mask.to(logits.device).int().argmax(-1) - 1
        residual = logits.float().gather(1, at[:, None]).squeeze(1).detach().cpu().numpy()
        return self.law(checked) + residual.astype(np.float64)

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


def _per_config(name: str, values: Any, count: int) -> list[Any]:
    if values is None:
        return [None] * count
    if not isinstance(values, Iterable) or isinstance(values, str):
        raise ValueError(f"{name}: got {values!r} for {count} configurations, expected a list with one for each")
    values = list(values)
    if len(values) != count:
        raise ValueError(f"{name}: got {len(values)} for {count} configurations, expected one for each")
    return values


def _loss(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, Real | np.generic) or not math.isfinite(value):
        raise ValueError(f"{name}: got {value!r}, expected a finite loss in nats per token")
    return float(value)


NCPLProcessor.register_for_auto_class()
