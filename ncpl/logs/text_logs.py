"""A training's text log: its printed arguments and the points it printed, in whatever framework's words.

`iteration 100/ 20000 | lm loss: 7.2E+00 |`, `step 250: train loss 3.2, val loss 3.3`, `{'loss': 3.2, 'epoch': 0.1}` and
`[step=100/5000]` with `train/CrossEntropyLoss=4.2` below it are points; `hidden_size ........ 2048`,
`Namespace(lr=0.001)` and `{"n_layer": 12}` are the configuration.
"""

import functools
import json
import math
import re
from collections.abc import Iterable, Iterator
from typing import Any

from ncpl.assignments import read_assignments
from ncpl.logs.derive import number_of
from text_ncpl import read_scalar

Row = dict[str, Any]

_ESCAPES = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_ARGUMENT = re.compile(r"\s*([A-Za-z][\w.\-]*) \.{2,} ?(.*?)(?:\.*(?:updated|default))?\s*$")
# The first character comes first, which is several times as fast as to look behind it first.
_NUMBERS = re.compile(
    r"([-+\dniNI](?<![\w.].)(?:(?:(?<=\d)[\d,]*|(?<=[-+])\d[\d,]*)(?:\.\d*)?(?:[eE][-+]?\d+)?|(?<=[nN])[aA][nN]\b|"
    r"(?<=[iI])[nN][fF](?:inity)?\b))"
)
_MARK = "\0"
_MOST_NUMBERS = 1000
_PAIR = re.compile(
    r"([A-Za-z_][\w./]*(?:[ \-(][A-Za-z_][\w./)]*){0,4})\s*(\([a-z]+\))?\s*[:=#]?\s*\0([KMBT]\b)?(?:\s*/\s*(\0))?", re.I
)
_STEP = re.compile(r"(.* )?(global[ _]?step|iteration|iters?|iter_num|step|batch|num_updates|update)s?", re.I)
_MAPPING = re.compile(r"\{.*\}")
_NAMESPACE = re.compile(r"\b(?:Namespace|TrainConfig|Config)\((.*)\)\s*$")
_HELD_OUT = re.compile(r"\b(valid\w*|val|eval\w*|test)\b", re.I)
_KEPT = re.compile(
    r"loss|ppl|perplexity|bpb|entropy|(^|[ ._/])(lr|learning[ _]rate)$|^step$|^total_steps$|consumed|"
    r"tokens?[ _]seen|total[ _]tokens|time/token$|global[ _]batch[ _]size",
    re.I,
)
"""What is kept of a printed point; speeds and memory are no quantity of the run, though they may be called `flops`."""
_WORTH = re.compile(r"loss|ppl|perplexity|bpb|entropy|\d\s*/\s*\d|step|iter|batch|[:=]|\.{3}|\{|Namespace", re.I)


def read_text_log(lines: Iterable[str]) -> Iterator[tuple[str, Row]]:
    """The log's parts: `("config", values)` of its printed arguments, `("point", values)` of each point, with `step`.

    >>> log = ["  lr .......... 0.1", "iteration 10/ 200 | lm loss: 7.2E+00 |", "[step=3/9]", "  CE loss=4"]
    >>> list(read_text_log(log))  # doctest: +NORMALIZE_WHITESPACE
    [('config', {'lr': 0.1}), ('point', {'step': 10, 'total_steps': 200, 'lm loss': 7.2}),
     ('point', {'step': 3, 'total_steps': 9, 'CE loss': 4.0})]
    """
    step: Row = {}
    for line in lines:
        if not _WORTH.search(line):
            continue
        if "\x1b" in line:
            line = _ESCAPES.sub("", line)
        argument = _ARGUMENT.match(line) if " .." in line else None
        if argument is not None:
            yield "config", {argument[1]: _value(argument[2])}
            continue
        found = _structured(line)
        if found is None:
            if '"' in line and line.rstrip().endswith((",", "{")):
                # A line of a printed document, not of a log.
                continue
            found = _pairs(line)
            own: Row = {name: found[name] for name in ("step", "total_steps") if name in found}
            step = own or step
            found = step | found
        elif not any("loss" in name.lower() for name in found):
            yield "config", found
            continue
        elif step and "step" not in found and "epoch" not in found:
            found = step | found
        if "train_runtime" in found:
            # The mean over the whole run, which Trainer prints last, is no final loss.
            continue
        found = {name: value for name, value in found.items() if _is_kept(name)}
        if any(name not in ("step", "total_steps") for name in found):
            yield "point", found


@functools.lru_cache(4096)
def _is_kept(name: str) -> bool:
    return bool(_KEPT.search(name))


def _structured(line: str) -> Row | None:
    """What a JSON object, a Python dict or a namespace on the line holds; None where there is none."""
    mapping = _MAPPING.search(line) if "{" in line else None
    namespace = _NAMESPACE.search(line) if "(" in line else None
    if namespace is not None:
        return _python(f"x = dict({namespace[1]})")
    if mapping is None or ":" not in mapping[0]:
        return None
    try:
        value = json.loads(mapping[0])
    except (ValueError, RecursionError):
        return _python(f"x = {mapping[0]}")
    return value if isinstance(value, dict) and value else None


def _python(text: str) -> Row | None:
    try:
        value = read_assignments(text).get("x")
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) and value else None


@functools.lru_cache(4096)
def _template(shape: str) -> tuple[tuple[str, int, bool], ...]:
    """What the numbers of a line are, by the line's text between them: (name, place of the number, with a unit).

    The step is called `step`, the run's length `total_steps`. A log repeats a few shapes of lines.

    Args:
        shape: the line with `_MARK` for each number.
    """
    held_out = _HELD_OUT.search(shape)
    found: dict[str, tuple[str, int, bool]] = {}
    kind = ""
    for match in _PAIR.finditer(shape):
        name, remark, unit, of = match[1].strip(), match[2], match[3], match[4]
        place = shape.count(_MARK, 0, match.end(1))
        at = re.search(r" at (iteration|step)$", name)
        if (_STEP.fullmatch(name) and not re.search(r"per |skipped|nan |number of|time", name)) or at:
            if not remark and ("step" not in found or (name.lower() == "step" and not of)):
                found["step"] = ("step", place, False)
            if of and not remark:
                found["total_steps"] = ("total_steps", place + 1, False)
            continue
        if re.search(r"loss", name, re.I):
            kind = name
        elif name.lower() in ("val", "train", "valid", "test") and kind:
            # `loss train: 3.2, val: 3.3`
            name = f"{name} loss"
        if held_out is not None and not _HELD_OUT.search(name) and "train" not in name.lower():
            name = f"validation {name}" if re.search(r"loss|ppl|perplexity|bpb", name, re.I) else name
        name = re.sub(r" (value|PPL)$", lambda end: "" if end[1] == "value" else " ppl", name)
        # Rounded: no batch is told exactly by 1.05M.
        if _KEPT.search(name) and not (unit and "batch" in name.lower()):
            found.setdefault(name, (name, place, bool(unit)))
    return tuple(found.values())


def _pairs(line: str) -> Row:
    """Names and numbers of one line, the step and the run's length under these names."""
    parts = _NUMBERS.split(line.replace(_MARK, " "))
    if len(parts) > 2 * _MOST_NUMBERS:
        return {}
    row: Row = {}
    for name, place, unit in _template(" ".join(_MARK.join(parts[::2]).split())):
        text = parts[2 * place + 1]
        if name in ("step", "total_steps"):
            text = text.replace(",", "")
            if text.isdigit():
                row[name] = int(text)
        elif name not in row:
            row[name] = _number(text, parts[2 * place + 2][:1] if unit else "")
    return row


def _number(text: str, unit: str) -> float | int:
    try:
        return float(text) if not unit else _scaled(text, unit)
    except ValueError:
        return _scaled(text, unit)


def _scaled(text: str, unit: str) -> float | int:
    number = number_of(text.replace(",", "") + unit, counted=True)
    return math.nan if number is None else number


def _value(text: str) -> Any:
    """A printed argument's value; Python prints `None` for one that is not set."""
    value = read_scalar(text)
    return None if value == "None" else value
