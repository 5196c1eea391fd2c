"""Blocks of keys, as recipes hold them: types and ranges checked by pydantic, problems told in one line.

Every key that does not exist and every value of the wrong type or range is reported at once, by its dotted name, with
what came, what is accepted and the nearest name.
"""

import types
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails, PydanticCustomError

from ncpl.files import parse_document, read_document
from text_ncpl import MOST_MESSAGE, one_line, short


def _number(value: Any) -> Any:
    """A number, or a text that reads as one; true and false are none."""
    try:
        if isinstance(value, bool):
            raise TypeError
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        raise PydanticCustomError("number", "not a number") from None
    return number if isinstance(value, str) else value


Number = Annotated[float, BeforeValidator(_number), Field(allow_inf_nan=False)]
Positive = Annotated[Number, Field(gt=0)]
NotNegative = Annotated[Number, Field(ge=0)]
Share = Annotated[Number, Field(ge=0, lt=1)]
Count = Annotated[int, BeforeValidator(_number), Field(ge=1, le=10**9)]
Seed = Annotated[int, BeforeValidator(_number), Field(ge=0, lt=2**32)]


class Block(BaseModel):
    """A block of a recipe: a key that it does not have is an error, and null stands for a key's default."""

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _drop_null(cls, values: Any) -> Any:
        # An empty block such as `data:` reads as null and means its defaults.
        return {k: v for k, v in values.items() if v is not None} if isinstance(values, Mapping) else values


B = TypeVar("B", bound=Block)


def check(block: type[B], values: Any) -> B:
    """The block in plain data.

    Args:
        block: its class.
        values: keys and values, as a YAML file holds them.

    Raises:
        ValueError: every key and value that is not accepted, in one line.

    >>> class Schedule(Block):
    ...     steps: Count
    ...     rate: Positive = 1e-3
    >>> check(Schedule, {"steps": "1e3"}).steps
    1000
    >>> check(Schedule, {"step": 10, "rate": -1})  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ValueError: rate: got -1, expected more than 0; step: not a key, did you mean steps?; steps: missing, ...
    """
    try:
        return block.model_validate(values)
    except ValidationError as error:
        # A value that fits no branch of a union is reported once for each: the first says what came.
        problems: dict[str, str] = {}
        for details in error.errors():
            key, problem = _problem(block, details)
            problems.setdefault(key, problem)
    raise ValueError(_joined(sorted(problems.values())))


def _joined(problems: Sequence[str]) -> str:
    """As many problems as a message holds, in one line, and the number of those left out."""
    for shown in range(len(problems), 0, -1):
        more = f"; and {len(problems) - shown} more" if shown < len(problems) else ""
        text = " ".join("; ".join(problems[:shown]).split()) + more
        if len(text) <= MOST_MESSAGE:
            return text
    return text[: MOST_MESSAGE - 4] + " ..."


LIMITS = {
    "greater_than": ("gt", "more than"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "less than"),
    "less_than_equal": ("le", "at most"),
}
"""pydantic's kinds of range errors: the name of the limit, and how it is told."""


def _problem(outer: type[Block], details: ErrorDetails) -> tuple[str, str]:
    """A problem's dotted key, and the problem in our terms."""
    key, block, field = _locate(outer, details["loc"])
    kind, came = details["type"], short(details["input"], 40)
    if kind == "value_error":
        text = str(details["ctx"]["error"])
        if text.partition(":")[0].partition(".")[0] in block.model_fields:
            return key, f"{key}.{text}" if key else text
        return key, f"{key}: {text}" if key else text
    if kind == "extra_forbidden":
        outside, _, name = key.rpartition(".")
        near = get_close_matches(name, block.model_fields, 1, 0.4)
        hint = f"did you mean {outside + '.' if outside else ''}{near[0]}?" if near else f"known: {_keys(block)}"
        return key, f"{key}: not a key, {hint}"
    if kind == "missing" and isinstance(details["loc"][-1], str):
        return key, f"{key}: missing, expected {_accepted(field)}"
    if kind in LIMITS:
        name, told = LIMITS[kind]
        return key, f"{key}: got {came}, expected {told} {details['ctx'][name]:g}"
    if kind == "missing":
        # A list that is too short is told of the list.
        key = key.rpartition("[")[0]
    choices = [str(choice) for choice in _choices(field)]
    near = get_close_matches(str(details["input"]), choices, 1)
    hint = f"; did you mean {near[0]}?" if near else ""
    return key, f"{key or 'recipe'}: got {came}, expected {_accepted(field, outer)}{hint}"


def _locate(outer: type[Block], location: Sequence[int | str]) -> tuple[str, type[Block], FieldInfo | None]:
    """The dotted key of a problem, the block it lies in or is about, and the key's field."""
    key, block, field = "", outer, None
    inside: type[Block] | None = outer
    for part in location:
        if isinstance(part, int):
            key += f"[{part}]"
        elif inside is not None:
            block, field = inside, inside.model_fields.get(part)
            key = f"{key}.{part}" if key else part
            inside = None if field is None else _block(field.annotation)
        # A name anywhere else is what pydantic calls the branch of a union.
    return key, inside or block, field


def _block(kind: Any) -> type[Block] | None:
    """The block that an annotation such as `Stage | None` allows."""
    for choice in (kind, *get_args(kind)):
        if isinstance(choice, type) and issubclass(choice, Block):
            return choice
    return None


def _keys(block: type[Block]) -> str:
    return ", ".join(block.model_fields)


def _choices(field: FieldInfo | None) -> list[Any]:
    kinds = [] if field is None else [field.annotation, *get_args(field.annotation)]
    return [choice for kind in kinds if get_origin(kind) is Literal for choice in get_args(kind)]


def _accepted(field: FieldInfo | None, outer: type[Block] = Block) -> str:
    return f"a block of {_keys(outer)}" if field is None else _named(field.annotation)


def _named(kind: Any) -> str:
    """What an annotation accepts, for people."""
    origin, args = get_origin(kind), [arg for arg in get_args(kind) if arg is not type(None)]
    if origin is Annotated:
        return _named(args[0])
    if origin is Literal:
        return " or ".join(map(str, args))
    if origin in (Union, types.UnionType):
        return " or ".join(map(_named, args))
    if origin in (list, tuple):
        count = f"{len(args)} " if origin is tuple else ""
        return f"a list of {count}{_named(args[0]).partition(' ')[2] or _named(args[0])}{'' if args[0] is str else 's'}"
    if (block := _block(kind)) is not None:
        return f"a block of {_keys(block)}"
    return {float: "a number", int: "an integer", bool: "true or false", str: "text"}[kind]


def describe(block: type[Block], prefix: str = "") -> list[str]:
    """All keys of a block, dotted, with what they accept and their defaults.

    >>> from ncpl.recipe import Lora
    >>> describe(Lora, "stages.full.lora.")[0]
    'stages.full.lora.r (an integer, 16)'
    """
    lines = []
    for name, field in block.model_fields.items():
        if inner := _block(field.annotation):
            lines += describe(inner, f"{prefix}{name}.")
            continue
        default = field.get_default()
        note = "required" if field.is_required() else "null" if default is None else default
        lines.append(f"{prefix}{name} ({_named(field.annotation)}, {note})")
    return lines


# ------------------------------------------------------------------------------------------------ files


def read_yaml(path: str | Path, overrides: Mapping[str, str] | None = None) -> dict[str, Any]:
    """A recipe's file with keys overridden and its default `output_dir`, unchecked; arguments as in `load_recipe`.

    Raises:
        ValueError: the file is missing or holds no blocks.
    """
    path = Path(path)
    try:
        values = read_document(path)
    except ValueError as error:
        raise ValueError(one_line(f"recipe: {error}")) from None
    if not isinstance(values, dict):
        raise ValueError(f"recipe: {path} holds {short(values)}, expected the blocks model, data and stages")
    values = {"data": {}, "output_dir": f"outputs/{path.stem}", **values}
    for key, text in (overrides or {}).items():
        _set(values, key, text)
    return values


def parse_overrides(arguments: Sequence[str]) -> dict[str, str]:
    """`--key value` and `--key=value` as a mapping.

    Raises:
        ValueError: a word that is no option, or an option without a value.

    >>> parse_overrides(["--seed", "7", "--data.config=final"])
    {'seed': '7', 'data.config': 'final'}
    """
    overrides: dict[str, str] = {}
    words = iter(arguments)
    for word in words:
        key, equals, value = word.removeprefix("--").partition("=")
        if not word.startswith("--") or not key:
            raise ValueError(f"{word}: not an option, expected --key value after the recipe")
        if not equals:
            following = next(words, None)
            if following is None or following.startswith("--"):
                raise ValueError(f"--{key}: no value came, expected --{key} VALUE")
            value = following
        overrides[key] = value
    return overrides


def _set(values: dict[str, Any], key: str, text: str) -> None:
    *blocks, last = key.split(".")
    for i, block in enumerate(blocks):
        if values.get(block) is None:
            values[block] = {}
        if not isinstance(values[block], dict):
            raise ValueError(f"{'.'.join(blocks[: i + 1])}: holds {short(values[block])}, there is no {key}")
        values = values[block]
    try:
        values[last] = parse_document(text)
    except ValueError:
        values[last] = text
