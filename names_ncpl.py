"""What people and frameworks call optimizers, schedules and the shapes of a decay, and the names the run logs have.

Three tables and their look-ups; what a name stands for is said elsewhere. An optimizer is mapped only where the update
is the same: another precision, another kernel or another class of one rule. `Adam` adds weight decay to the gradient,
so it is AdamW only where there is none (Loshchilov & Hutter 2019, arXiv 1711.05101).
"""

import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any

try:
    from .text_ncpl import short
except ImportError:
    from text_ncpl import short

# The optimizers of the run logs -> other names of the same update, without signs. FusedAdam (Apex, DeepSpeed,
# Transformer Engine) and DeepSpeed's CPU Adam have decoupled weight decay by default.
OPTIMIZERS: dict[str, tuple[str, ...]] = {
    "adamw": ("fusedadam", "cpuadam", "deepspeedcpuadam", "decoupledadam"),
    "cautious": ("cautiousadamw", "cadamw", "adamwcautious"),
    "kron": ("psgd", "psgdkron", "kronpsgd", "psgdkronecker"),
    "lion": ("lionw",),
    "mars": ("marsadamw", "marsw"),
    "mini": ("adammini", "miniadam", "adamwmini"),
    "mudam": (),
    "muon": ("muonwithauxadam", "singledevicemuon", "singledevicemuonwithauxadam", "muonw", "muonadamw"),
    "nadamw": ("decouplednadam",),
    "scion": (),
    "soape": ("soap", "soapw"),
    "sophia": ("sophiag", "sophiah", "sophiaw"),
}
# Other optimizers, whose names lose the words of their implementation too.
OTHER_OPTIMIZERS = ("adam", "nadam", "sgd", "adafactor", "shampoo", "dion", "lamb", "ademamix", "adagrad", "adopt")
# With weight decay 0 the first is the second.
WITHOUT_DECAY = {"adam": "adamw", "nadam": "nadamw"}
# Optimizers that no fit knows -> the nearest of the run logs, by their update.
_RELATED = {"adam": "adamw", "nadam": "nadamw", "shampoo": "soape", "dion": "muon", "ademamix": "adamw"}
_PREFIXES = "skipstep|decoupled|fused|torch|paged|distributed|apex|te|anyprecision|bnb"
_SUFFIXES = "config|optimizer|torch|fused|foreach|bnb|apex|npu|xla|anyprecision|8bit|4bit|32bit|hf|pax|cpuoffload"

# As frameworks write them (Megatron, DeepSpeed, OLMo, Levanter, Composer, transformers, torchtitan, MaxText), without
# signs and the words that every name may carry. `schedules_ncpl` says what each is.
SCHEDULE_NAMES: dict[str, tuple[str, ...]] = {
    "cosine": ("cos", "cosineannealing", "cosineannealinglr", "cosinedecay", "cosineminlr", "cosinelr"),
    "linear": ("lineardecay", "lineartozero", "linearlr", "decaylr", "polynomial"),
    "sqrt": ("1sqrt", "minussqrt", "oneminussqrt"),
    "exponential": ("exp", "exponentiallr", "exponentialdecay"),
    "wsd": ("warmupstabledecay", "stabledecay", "trapezoid", "trapezoidal", "constantcooldown", "constcooldown"),
    "constant": ("const", "constantlr", "lr", "none"),
    "inverse square root": ("inversesqrt", "invsqrt", "rsqrt", "inversesquareroot"),
    "two-stage": ("step", "multistep", "wsdcon", "twostage"),
}
SHAPE_NAMES: dict[str, tuple[str, ...]] = {
    "linear": ("lin",),
    "cosine": ("cos",),
    "sqrt": ("minussqrt", "1sqrt", "oneminussqrt", "squareroot"),
    "exponential": ("exp",),
    "step": ("constant", "drop"),
}


def _letters(name: Any) -> str:
    return "".join(letter for letter in str(name).lower() if letter.isalnum())


def _spellings(table: Mapping[str, tuple[str, ...]]) -> dict[str, str]:
    return {_letters(alias): name for name, others in table.items() for alias in (name, *others)}


_SCHEDULES_BY_SPELLING, _SHAPES_BY_SPELLING = _spellings(SCHEDULE_NAMES), _spellings(SHAPE_NAMES)
_BY_SPELLING = _spellings(OPTIMIZERS) | {name: name for name in OTHER_OPTIMIZERS}
_LONGEST_FIRST = "|".join(sorted(_BY_SPELLING, key=len, reverse=True))
_OPTIMIZER = re.compile(rf"(?:{_PREFIXES})*?({_LONGEST_FIRST})(?:{_SUFFIXES})*")


def optimizer_name(given: str) -> str:
    """The run logs' name of an optimizer as a framework writes it; another one in lower case, as it came.

    >>> [optimizer_name(name) for name in ("adamw_torch_fused", "torch.optim.AdamW", "SOAP", "Adam-mini", "My.Own")]
    ['adamw', 'adamw', 'soape', 'mini', 'my.own']
    """
    found = _OPTIMIZER.fullmatch(_letters(re.split(r"[./:]", given.strip())[-1]))
    return _BY_SPELLING[found[1]] if found else given.strip().lower()


def nearest(given: str, known: Iterable[str]) -> str | None:
    """The nearest of some known names; None where none is near.

    >>> nearest("marine", ["marin", "steplaw"]), nearest("shampoo", ["soape", "lion"]), nearest("mine", ["steplaw"])
    ('marin', 'soape', None)
    """
    names = list(known)
    if _RELATED.get(given) in names:
        return _RELATED[given]
    near = get_close_matches(given, names, 1, 0.6) or [name for name in names if len(name) > 3 and name in given]
    return near[0] if near else None


def not_fitted(field: str, given: Any, known: Iterable[str]) -> str | None:
    """What has to be said of a name that no fit knows, with the nearest; None where it is known, or nothing is.

    >>> not_fitted("source", "marine", {"marin": {}})
    "source: 'marine' is not among the fitted (marin); common values stand in; the nearest is 'marin'"
    """
    names = sorted(known)
    # What cannot be a name cannot always be printed either.
    named = given if isinstance(given, str) else short(given)
    if not names or named in names:
        return None
    near = nearest(named, names)
    hint = f"; the nearest is {near!r}" if near else ""
    return f"{field}: {short(given)} is not among the fitted ({', '.join(names)}); common values stand in{hint}"


def _plain(name: Any) -> str:
    text = _letters(str(name).rpartition(".")[2])
    for word in ("withwarmup", "with", "warmup", "scheduler", "schedule"):
        text = text.replace(word, "") if text != "warmupstabledecay" else text
    return text


def _named(field: str, value: Any, known: Mapping[str, str]) -> str:
    plain = _plain(value)
    if plain in known:
        return known[plain]
    near = get_close_matches(plain, known, 1, 0.4)
    hint = f"; did you mean {known[near[0]]!r}?" if near else ""
    names = ", ".join(dict.fromkeys(known.values()))
    raise ValueError(f"{field}: got {short(value)}, expected one of {names}{hint}")


def schedule_name(value: Any) -> str:
    """The name in `SCHEDULE_NAMES` of a schedule as a framework writes it.

    Raises:
        ValueError: an unknown schedule; says the nearest.

    >>> schedule_name("cosine_with_warmup"), schedule_name("WSD"), schedule_name("inverse_sqrt")
    ('cosine', 'wsd', 'inverse square root')
    """
    return _named("lr_schedule", value, _SCHEDULES_BY_SPELLING)


def shape_name(value: Any) -> str:
    """The name in `SHAPE_NAMES` of a cooldown's shape as a framework writes it.

    Raises:
        ValueError: an unknown shape; says the nearest.

    >>> shape_name("minus_sqrt")
    'sqrt'
    """
    return _named("cooldown shape", value, _SHAPES_BY_SPELLING)
