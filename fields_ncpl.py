"""The registry of configuration fields and of the sources whose runs are known, and the one check of configurations.

Every other module reads names, units, ranges and aliases from here. `check_config` is the single door through which a
configuration enters; nothing behind it checks again.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Literal

import numpy as np

try:
    from .names_ncpl import WITHOUT_DECAY, optimizer_name, schedule_name, shape_name
    from .text_ncpl import as_number, one_line, parse_count, read_number, short, warn_user
except ImportError:
    from names_ncpl import WITHOUT_DECAY, optimizer_name, schedule_name, shape_name
    from text_ncpl import as_number, one_line, parse_count, read_number, short, warn_user

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
        sizes: million non-embedding (active) parameters of its smallest and largest runs.
        tokens: billion tokens of its shortest and longest runs.
        ratios: fewest and most tokens a parameter of its runs.
    """

    name: str
    title: str
    seq_len: int
    vocab_size: int
    licence: str
    parent: str | None = None
    warmup: int | None = None
    sizes: tuple[float, float] | None = None
    tokens: tuple[float, float] | None = None
    ratios: tuple[float, float] | None = None


SOURCES: dict[str, Source] = {
    source.name: source
    for source in (
        Source("marin", "Marin", 4096, 128_256, "Apache-2.0", None, None, (134, 537), (2.68, 48.4), (20, 320)),
        Source("steplaw", "StepLaw", 2048, 65_536, "none stated", None, 2000, (214, 537), (4, 100), (18.6, 466)),
        Source(
            "steplaw_moe", "StepLawMoE", 2048, 65_536, "none stated", "steplaw", 2000, (187, 1242), (2, 20), (1.6, 107)
        ),
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
        Field("model size", "million non-embedding parameters", 0.1, 1e7, 1 / 100, aliases=("non embedding params",)),
        Field("active size", "million active non-embedding parameters, MoE", 0.1, 1e7),
        Field("data size", "billion tokens", 0.001, 1e5, 1),
        Field(
            "num layers",
            "layers",
            1,
            1000,
            1,
            kind="count",
            aliases=("layers", "n layers", "n layer", "num hidden layers", "num blocks", "depth"),
        ),
        Field(
            "num heads",
            "attention heads",
            1,
            1024,
            1,
            kind="count",
            aliases=("heads", "n heads", "n head", "num attention heads"),
        ),
        Field(
            "hidden dim",
            "residual width",
            8,
            2e5,
            1 / 100,
            kind="count",
            aliases=("hidden size", "d model", "n embd", "width", "embedding dim", "model dim"),
        ),
        Field(
            "ffn dim",
            "feed-forward width",
            8,
            1e6,
            kind="count",
            aliases=("intermediate size", "intermediate dim", "d ff", "ffn hidden size"),
        ),
        Field("num experts", "routed experts, MoE", 1, 1e5, kind="count", aliases=("n routed experts",)),
        Field("top k", "experts a token visits, MoE", 1, 1e4, kind="count", aliases=("num experts per tok",)),
        Field("expert dim", "width of one expert, MoE", 8, 1e6, kind="count", aliases=("moe intermediate size",)),
        Field("shared expert dim", "width of the shared expert, MoE", 16, 1e6, kind="count", zero=True),
        Field("optimizer", "name of the optimizer", kind="text"),
        Field("learning rate", "peak learning rate", 1e-6, 1, 1e4, aliases=("lr", "peak lr", "max lr")),
        Field("min_lr", "final learning rate", 1e-12, 1, 1e4, label="minlr", zero=True, aliases=("final lr", "end lr")),
        Field(
            "warmup",
            "warmup steps",
            1,
            1e6,
            1 / 100,
            kind="count",
            zero=True,
            aliases=("warmup steps", "warmup iters", "num warmup steps", "lr warmup steps", "lr warmup iters"),
        ),
        Field("weight decay", "weight decay", 1e-8, 100, 100, zero=True, aliases=("wd",)),
        Field(
            "batch size",
            "sequences",
            1,
            2e5,
            1 / 10,
            kind="count",
            aliases=("global batch size", "global train batch size", "gbs"),
        ),
        Field(
            "max_grad_norm",
            "gradient norm clip, 0 is off",
            1e-3,
            1000,
            1,
            zero=True,
            aliases=("grad clip", "clip grad", "gradient clipping", "grad clip norm", "gradient clip val"),
        ),
        Field("min_lr_ratio", "final over peak learning rate", 1e-6, 1, 200, label="minlr ratio", zero=True),
        Field("adam_lr", "peak learning rate of the Adam part", 1e-7, 0.3, 1e4),
        Field("another_muon", "variant of Muon", kind="text"),
        Field("beta1", "decay rate", 0, 1, aliases=("adam beta1",)),
        Field("beta2", "decay rate", 0, 1, aliases=("adam beta2",)),
        Field("block_size", "preconditioner block", 1, 1e5, 1 / 50, kind="count"),
        Field("decay", "share of the run in which the learning rate decays", 0, 1),
        Field(
            "epsilon", "added to the denominator", 1e-38, 0.1, zero=True, aliases=("eps", "adam eps", "adam epsilon")
        ),
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
        Field(
            "max step",
            "training steps",
            1,
            1e9,
            kind="count",
            aliases=("max steps", "steps", "train steps", "num train steps", "train iters", "max iters", "total steps"),
        ),
        Field(
            "seq len",
            "tokens a sequence",
            8,
            1e7,
            kind="count",
            aliases=("sequence length", "seq length", "block len", "context length", "max seq len", "max seq length"),
        ),
        Field(
            "vocab size",
            "entries of the vocabulary",
            16,
            1e7,
            kind="count",
            aliases=("vocabulary size", "vocabulary", "n vocab"),
        ),
    )
}

PRIOR_NEEDS = ("source", "model size", "data size")
REQUIRED = ("source", "model size", "data size", "optimizer", "learning rate", "batch size")
# Prompt version 2 puts what people sweep behind everything else, so that a sweep shares nearly the whole prompt.
SWEPT = ("data size", "batch size", "learning rate")
_PLAIN_UNITS = {"million": 1e6, "billion": 1e9}
# Tokens an (active) parameter: smoke runs have 0.01, the longest runs of small models nearly 1e5.
TOKENS_PER_PARAMETER = (0.005, 2e5)
# What most runs have; where another unit of size or data would bring a configuration here, the unit may have slipped.
USUAL_TOKENS_PER_PARAMETER = (0.5, 1e4)
MOST_TEXT = 200  # characters of a text value


def _plain(name: str) -> str:
    return " ".join(name.lower().replace("_", " ").replace("-", " ").split())


_NAMES = {_plain(alias): f.name for f in FIELDS.values() for alias in (f.name, *f.aliases)}


def field_name(name: str) -> str | None:
    """The registry's name for a field written with other case, spaces or an alias; None if there is none.

    >>> field_name("Learning_Rate"), field_name("lr"), field_name("colour")
    ('learning rate', 'learning rate', None)
    """
    if not isinstance(name, str):
        raise ValueError(f"field: got {short(name)} as a name, expected text")
    return _NAMES.get(_plain(name))


def check_config(config: Config, strict: bool = True) -> dict[str, Any]:
    """A configuration under the registry's names, its values checked, in the order given.

    Args:
        config: field -> value; numbers may be strings that read as numbers, sizes and tokens also `"302M"`, `"2T"`.
        strict: False keeps unknown fields as text and skips ranges, plausibility and the required fields that the prior
            does not need, as other people's logs demand; a number that is not a number is an error all the same.

    Raises:
        ValueError: naming the field, what came, what is accepted and the nearest name, in one line.

    >>> check_config({"source": "marin", "model size": "134M", "data_size": "2.7e0", "colour": "red"}, strict=False)
    {'source': 'marin', 'model size': 134, 'data size': 2.7, 'colour': 'red'}
    """
    try:
        return _check_config(config, strict)
    except ValueError as error:
        raise ValueError(one_line(error)) from None


def _check_config(config: Config, strict: bool) -> dict[str, Any]:
    if not isinstance(config, Mapping):
        raise ValueError(f"configuration: got {short(config)}, expected a mapping of fields to values")
    checked: dict[str, Any] = {}
    for given, value in config.items():
        name = field_name(given)
        if name is None:
            if strict:
                raise ValueError(unknown_field(given))
            checked[given] = value
            continue
        if name in checked:
            raise ValueError(f"{name}: given twice, the second time as {short(given)}")
        if name == "learning rate" and isinstance(value, list | tuple):
            # A rate for each of some steps: the schedule, and its peak.
            checked["lr points"], value = value, _peak(value)
        checked[name] = _check_value(FIELDS[name], value, strict)
    if checked.get("weight decay") == 0 and checked.get("optimizer") in WITHOUT_DECAY:
        checked["optimizer"] = WITHOUT_DECAY[checked["optimizer"]]
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
    except (ArithmeticError, TypeError, ValueError):
        return points


# Names that are near a field's and mean another quantity -> what they mean.
_OTHERS = {
    **dict.fromkeys(
        ("num params", "n params", "params", "parameters", "num parameters"),
        "all parameters; the field is model size (million non-embedding parameters)",
    ),
    "tokens": "a count; the field is data size (billion tokens)",
    "warmup ratio": "a share; the field is warmup (steps)",
    "train batch size": "of one device or of all; the field is batch size (sequences a step, of all devices)",
    "micro batch size": "of one device; the field is batch size (sequences a step, of all devices)",
    "per device train batch size": "of one device; the field is batch size (sequences a step, of all devices)",
    "num kv heads": "no field; num heads counts the query heads",
}


def unknown_field(given: str) -> str:
    """The message about a name that is no field: the nearest field if one is near, never one of another quantity.

    >>> unknown_field("learning rat")[:65]
    "learning rat: not a known field, did you mean 'learning rate'? kn"
    """
    plain = _plain(given)
    near = get_close_matches(plain, _NAMES, 1, 0.8)
    hint = f"did you mean {_NAMES[near[0]]!r}? " if near else ""
    if plain in _OTHERS:
        hint = f"it is {_OTHERS[plain]}; "
    listed = ", ".join(list(FIELDS)[:6])
    return f"{one_line(given, 80)}: not a known field, {hint}known: {listed}, ... (`ncpl fields` lists all)"


def _check_value(field: Field, value: Any, strict: bool) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    refused = f"{field.name}: got {short(value)}, expected {field.accepted}"
    if field.kind in ("text", "flag"):
        return _check_text(field, value, refused, strict)
    number = _number(field, value, refused)
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
        raise ValueError(refused + hint)
    if field.kind == "count" and number != int(number):
        raise ValueError(refused)
    return number


def is_code(name: str) -> bool:
    """Whether a model's name says that it was trained on code: it contains "code", but not "decode" or "encode".

    >>> is_code("lab/StarCoder-7B"), is_code("lab/my-decoder-7B")
    (True, False)
    """
    return re.search(r"(?<!de)(?<!en)code", name, re.IGNORECASE) is not None


# Fields with a closed list of names.
_NAMED = {"lr_schedule": schedule_name, "cooldown shape": shape_name}


def _check_text(field: Field, value: Any, refused: str, strict: bool) -> Any:
    if value is None or (isinstance(value, float) and math.isnan(value)) or (isinstance(value, str) and not value):
        raise ValueError(refused)
    if field.kind == "flag":
        word = str(value).lower() if isinstance(value, str | bool | int | float) else ""
        if word not in ("true", "false", "0", "1", "0.0", "1.0"):
            raise ValueError(refused)
        return word in ("true", "1", "1.0")
    value = value.tolist() if isinstance(value, np.ndarray) else value
    if not isinstance(value, str | int | float | list | tuple | Mapping):
        raise ValueError(refused)
    if isinstance(value, str):
        if len(value) > MOST_TEXT:
            raise ValueError(f"{field.name}: got {len(value)} characters, expected at most {MOST_TEXT} ({field.unit})")
        if any(not c.isprintable() for c in value):
            raise ValueError(f"{field.name}: got {short(value)}, expected printable text ({field.unit})")
    if field.name in REQUIRED:
        if not isinstance(value, str) or not value.strip():
            raise ValueError(refused)
        # The logs write names in lower case; "AdamW" would be another word to the model.
        return optimizer_name(value) if field.name == "optimizer" else value.strip().lower()
    if field.name in _NAMED:
        try:
            return _NAMED[field.name](value)
        except ValueError:
            if strict:
                raise
    return value


def _number(field: Field, value: Any, refused: str) -> int | float:
    """A field's number, finite, in the field's unit."""
    number: int | float | None = None
    if isinstance(value, str):
        number, unit, counted = read_number(value), _PLAIN_UNITS.get(field.unit.split()[0]), parse_count(value)
        if number is None and unit is not None and counted is not None:
            # "302M" counts parameters or tokens themselves.
            number = float(f"{counted / unit:.12g}")
            number = int(number) if number.is_integer() else number
    else:
        number = as_number(value)
    if number is None or not math.isfinite(number):
        raise ValueError(refused)
    return number


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
    lengths = [seq_len] if seq_len else [16, 2**20]  # what somebody may train with
    trained = [config.get("max step", 0) * config["batch size"] * length / 1e9 for length in lengths]
    if "max step" in config and not trained[0] / 2 <= tokens <= trained[-1] * 2:
        raise ValueError(
            f"max step: {config['max step']:g} steps of {config['batch size']:g} sequences of "
            f"{' to '.join(map(str, lengths))} tokens are {' to '.join(f'{some:.4g}' for some in trained)} billion "
            f"tokens, but data size says {tokens:g} billion"
        )
    steps = max_step(config) if seq_len or "max step" in config else None
    if steps is not None and config.get("warmup", 0) > steps:
        raise ValueError(f"warmup: got {config['warmup']:g}, expected at most the run's {steps} training steps")
    _check_slips(config, "active size" if "active size" in config else "model size")


def _check_slips(config: Config, sized: str) -> None:
    """Size or tokens in another unit, where that unit would bring the configuration back to what is trained.

    A known source's own runs decide: far outside them, and among them in another unit, is a slip. Of an unknown source
    it is only a suspicion, because smoke runs and long runs of small models are real.
    """
    source = SOURCES.get(str(config.get("source")))
    size, tokens = config[sized], config["data size"]
    for name, value, known in (
        (sized, size, source.sizes if source else None),
        ("data size", tokens, source.tokens if source else None),
    ):
        for factor in (1e-3, 1e3, 1e-6, 1e6):
            meant = value * factor
            ratio = tokens * 1e3 / meant if name == sized else meant * 1e3 / size
            if source is not None and known is not None and source.ratios is not None:
                far = not known[0] / 30 <= value <= known[1] * 30
                if far and _within(meant, known) and _within(ratio, source.ratios):
                    raise ValueError(
                        f"{name}: got {value:g}, but {source.name}'s runs have {known[0]:g} to {known[1]:g} "
                        f"({FIELDS[name].unit}); did you mean {meant:.6g}?"
                    )
            elif not _within(tokens * 1e3 / size, USUAL_TOKENS_PER_PARAMETER) and 2 <= ratio <= 500:
                warn_user(
                    f"{tokens * 1e3 / size:.3g} tokens a parameter ({tokens:g} billion tokens, {size:g} million "
                    f"parameters) are far from what is trained; should {name} be {meant:.6g} ({FIELDS[name].unit})?"
                )
                return


def _within(value: float, limits: tuple[float, float]) -> bool:
    """Whether a value lies within limits that are rounded."""
    return limits[0] * 0.99 <= value <= limits[1] * 1.01


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
