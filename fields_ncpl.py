"""The registry of configuration fields and of the sources whose runs are known, and the one check of configurations.

Every other module reads names, units, ranges and aliases from here. `check_config` is the single door through which a
configuration enters; nothing behind it checks again.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from numbers import Real
from typing import Any, Literal

import numpy as np

Config = Mapping[str, Any]


@dataclass(frozen=True)
class Source:
    """What a source's logs leave unsaid: a lab's recipe, data and evaluation set.

    Args:
        name: as the field `source` names it, and its folder.
        title: as its builder class and people write it.
        seq_len: tokens a sequence.
        vocab_size: entries of its tokenizer's vocabulary.
        licence: of its run logs.
        parent: source with the same lab, data and evaluation set; its deviations start from that one's.
        warmup: steps of warmup of every run, where the logs leave it out.
    """

    name: str
    title: str
    seq_len: int
    vocab_size: int
    licence: str
    parent: str | None = None
    warmup: int | None = None


SOURCES: dict[str, Source] = {
    source.name: source
    for source in (
        Source("marin", "Marin", 4096, 128_256, "Apache-2.0"),
        Source("steplaw", "StepLaw", 2048, 65_536, "none stated", warmup=2000),
        Source("steplaw_moe", "StepLawMoE", 2048, 65_536, "none stated", parent="steplaw", warmup=2000),
    )
}
# Where neither the configuration nor its source says.
DEFAULT_SEQ_LEN, DEFAULT_VOCAB_SIZE = 2048, 65_536


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
        Field("cooldown shape", "linear, cosine, sqrt or exponential", kind="text"),
        Field("lr points", "pairs (step, learning rate) that stand in for a schedule", kind="text"),
        Field("max step", "training steps", 10, 1e8, kind="count", aliases=("max steps", "steps", "train steps")),
        Field("seq len", "tokens a sequence", 16, 1e7, kind="count", aliases=("sequence length", "block len")),
    )
}

PRIOR_NEEDS = ("source", "model size", "data size")
REQUIRED = ("source", "model size", "data size", "optimizer", "learning rate", "batch size")
# Prompt version 2 puts what people sweep behind everything else, so that a sweep shares nearly the whole prompt.
SWEPT = ("data size", "batch size", "learning rate")
# Tokens an (active) parameter. Real runs lie between about 1 and 60,000 (Qwen3-0.6B); a slip of units leaves these
# bounds.
TOKENS_PER_PARAMETER = (0.5, 1e5)
# How people write counts of parameters and tokens: "302M", "7B", "15T".
SUFFIXES = {"K": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}
_PLAIN_UNITS = {"million": 1e6, "billion": 1e9}


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
        if name == "learning rate" and isinstance(value, list | tuple):
            # A rate for each of some steps: the schedule, and its peak.
            checked["lr points"], value = value, _peak(value)
        checked[name] = _check_value(FIELDS[name], value, strict)
    missing = [name for name in (REQUIRED if strict else PRIOR_NEEDS) if name not in checked]
    if missing:
        units = ", ".join(f"{name} ({FIELDS[name].unit})" for name in missing)
        raise ValueError(f"{missing[0]}: missing; a configuration needs {units}")
    if strict:
        _check_plausible(checked)
    return checked


def _peak(points: Any) -> Any:
    """The highest rate of pairs (step, learning rate); what came where they are not pairs."""
    try:
        return max(float(rate) for _, rate in points)
    except (TypeError, ValueError):
        return points


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
        plain = 1 / _PLAIN_UNITS.get(field.unit.split()[0], 1e3)
        factors = (plain, 1e-3, 1e3, 1e-6, 1e6, 1e-9, 1e9)
        guesses = (number * factor for factor in factors if field.low <= number * factor <= field.high)
        # A whole number is off by a unit only if it stays whole.
        guess = next((g for g in guesses if field.kind != "count" or g == int(g)), None)
        hint = f"; did you mean {guess:.6g}?" if guess is not None else ""
        raise ValueError(f"{field.name}: got {value!r}, expected {field.accepted}{hint}")
    if field.kind == "count" and number != int(number):
        raise ValueError(f"{field.name}: got {value!r}, expected {field.accepted}")
    return number


def parse_count(text: str) -> float | None:
    """A count with a suffix as a plain number; None where it is none.

    >>> parse_count("302M"), parse_count("1.5 T"), parse_count("7")
    (302000000.0, 1500000000000.0, None)
    """
    scale = SUFFIXES.get(text.strip()[-1:].upper())
    try:
        return None if scale is None else float(text.strip()[:-1]) * scale
    except ValueError:
        return None


def is_code(name: str) -> bool:
    """Whether a model's name says that it was trained on code: it contains "code", but not "decode" or "encode".

    >>> is_code("lab/StarCoder-7B"), is_code("lab/my-decoder-7B")
    (True, False)
    """
    return re.search(r"(?<!de)(?<!en)code", name, re.IGNORECASE) is not None


def _number(field: Field, value: Any) -> int | float:
    if isinstance(value, str):
        unit = _PLAIN_UNITS.get(field.unit.split()[0])
        if unit is not None and (count := parse_count(value)) is not None:
            return count / unit
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
    seq_len = known_seq_len(config)
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


def known_seq_len(config: Config) -> int | None:
    """Tokens a sequence: the configuration's own, else its source's; None where neither is known.

    >>> known_seq_len({"source": "marin"}), known_seq_len({"source": "mine"})
    (4096, None)
    """
    if config.get("seq len"):
        return config["seq len"]
    source = SOURCES.get(str(config.get("source")))
    return source.seq_len if source else None


def sequence_length(config: Config) -> float:
    """Tokens a sequence: the configuration's own, else its source's, else 2048."""
    return float(known_seq_len(config) or DEFAULT_SEQ_LEN)


def max_step(config: Config) -> int:
    """Training steps: as given, or data size over batch size x sequence length (the source's when absent).

    Raises:
        ValueError: neither `max step` nor a sequence length is known.

    >>> max_step({"source": "marin", "data size": 10.73741824, "batch size": 128})
    20480
    """
    if "max step" in config:
        return int(config["max step"])
    seq_len = known_seq_len(config)
    if "batch size" not in config:
        raise ValueError("batch size: missing; give it (sequences), or max step (training steps)")
    if not seq_len:
        raise ValueError(
            f"seq len: missing, and source {config.get('source')!r} has no known one (known: {', '.join(SOURCES)}); "
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
