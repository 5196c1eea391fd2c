"""What users give and are told: the one parser of numbers, the one form of a message, the check of a level."""

import re
import sys
import warnings
from collections.abc import Iterable
from decimal import Decimal
from difflib import get_close_matches
from itertools import islice
from numbers import Integral, Real
from typing import Any

# How people write counts of parameters and tokens: "302M", "7B", "15T".
SUFFIXES = {"K": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}
MOST_MESSAGE = 300
"""Characters of a message."""
MOST_ITEMS = 5_000_000
"""Of what is given to be iterated and is held in memory."""


def one_line(message: object, limit: int = MOST_MESSAGE) -> str:
    """A message as one line of printable text: white space collapsed, control characters escaped, the end cut.

    Terminals obey control characters, and lone surrogates cannot be printed at all.

    >>> one_line("lr:\\n  got '\\x1b[31mred'"), one_line("x" * 400)[-5:], len(one_line("x" * 400))
    ("lr: got '\\\\x1b[31mred'", 'xx...', 300)
    """
    text = " ".join(str(message)[: 20 * limit].split())
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return text if len(text) <= limit else text[: limit - 3] + "..."


def short(value: object, limit: int = 60) -> str:
    """How a value appears in a message: its `repr`, cut.

    >>> short("adamw"), short(list(range(100)), 12)
    ("'adamw'", '[0, 1, 2,...')
    """
    try:
        return one_line(repr(value), limit)
    except Exception:
        return f"a {type(value).__name__} that cannot be printed"


def did_you_mean(given: object, known: Iterable[object], cutoff: float = 0.6) -> str:
    """The end of a message that names the nearest of some known names; empty where none is near.

    >>> did_you_mean("marine", ["marin", "steplaw"]), did_you_mean("mine", ["steplaw"])
    ("; did you mean 'marin'?", '')
    """
    text = given[:MOST_MESSAGE] if isinstance(given, str) else ""
    near = get_close_matches(text, [str(name) for name in known], 1, cutoff)
    return f"; did you mean {near[0]!r}?" if near else ""


def listed(given: Any, name: str) -> list[Any] | None:
    """What a user gives to be iterated, as a list; None where it cannot be, or is text or bytes.

    Args:
        given: by a user.
        name: the argument's, for messages.

    Raises:
        ValueError: it has more than `MOST_ITEMS` items.

    >>> listed(range(3), "steps"), listed("abc", "steps")
    ([0, 1, 2], None)
    """
    if isinstance(given, str | bytes | bytearray | memoryview):
        return None
    try:
        # numpy's and torch's arrays of no dimensions are `Iterable` and cannot be iterated.
        rows = list(islice(given, MOST_ITEMS + 1))
    except TypeError:
        return None
    if len(rows) > MOST_ITEMS:
        raise ValueError(f"{name}: got more than {MOST_ITEMS} items, expected fewer")
    return rows


# Modules between a user's line and a warning: ours, by their ends wherever they lie, and what calls them.
_BETWEEN = re.compile(r"(ncpl|datasets_scripts|transformers|torch|contextlib)(\..*)?|(.*\.)?\w+_(ncpl|nsp)")


def warn_user(message: str) -> None:
    """A warning at the line of the user's own code that led to it, however deep inside ours it arises.

    >>> with warnings.catch_warnings(record=True) as caught:
    ...     warn_user("rather far")
    >>> str(caught[0].message)
    'rather far'
    """
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and _BETWEEN.fullmatch(frame.f_globals.get("__name__", "")):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, stacklevel=level)


_NUMBER = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)([eE][-+]?\d+)?", re.ASCII)


def read_number(text: str) -> int | float | None:
    """The number that a text reads as, in ASCII digits; None where it is none. The one parser of numbers.

    >>> read_number("1e-4"), read_number(" 128 "), read_number("1_000"), read_number("nan"), read_number("9" * 400)
    (0.0001, 128, None, nan, inf)
    """
    text = text.strip()
    if text.lower().lstrip("+-") in ("nan", "inf", "infinity", ".nan", ".inf"):
        return float(text.lower().replace(".", ""))
    if len(text) > 400 or not _NUMBER.fullmatch(text):
        return None
    # A whole number of more digits may be none that a float holds: it becomes infinite, as 1e400 does.
    return int(text) if text.lstrip("+-").isdigit() and len(text) <= 300 else float(text)


def read_scalar(text: str) -> bool | int | float | str:
    """True, false or a number where a text reads as one, else the text without the blanks around it.

    >>> read_scalar("1e-4"), read_scalar(" False"), read_scalar("adamw "), read_scalar("1_000")
    (0.0001, False, 'adamw', '1_000')
    """
    text = text.strip()
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    number = read_number(text)
    return text if number is None else number


def as_number(value: object) -> int | float | None:
    """A number as Python's own int or float, whatever its type; None where it is none, or more than a float holds.

    >>> as_number(3), as_number(0.5), as_number("3"), as_number(True), as_number(10**400)
    (3, 0.5, None, None, None)
    """
    if isinstance(value, bool) or not isinstance(value, Real | Decimal):
        return None
    try:
        number = float(value)
        return int(value) if isinstance(value, Integral) else number
    except (ArithmeticError, TypeError, ValueError):
        return None


def parse_count(text: str) -> float | None:
    """A count with a suffix as a plain number; None where it is none.

    >>> parse_count("302M"), parse_count("1.5 T"), parse_count("7")
    (302000000.0, 1500000000000.0, None)
    """
    text = text.strip()
    scale, number = SUFFIXES.get(text[-1:].upper()), read_number(text[:-1])
    return None if scale is None or number is None else number * scale


# Lowest and highest coverage that can be asked of an interval: below, its width is lost in rounding; above, too few
# held-out runs lie beyond it to calibrate one.
LEAST_LEVEL, MOST_LEVEL = 1e-6, 0.999


def check_level(level: object, calibrated: bool = True) -> float:
    """The coverage that an interval is asked to have, checked.

    Args:
        level: a number between 0 and 1, at most `MOST_LEVEL`.
        calibrated: whether the checkpoint has intervals at all.

    Raises:
        ValueError: something else, or a checkpoint without intervals.

    >>> check_level(0.9)
    0.9
    """
    number = as_number(level)
    if number is None or not LEAST_LEVEL <= number <= MOST_LEVEL:
        raise ValueError(f"level: got {short(level)}, expected a coverage between 0 and 1 (at most {MOST_LEVEL})")
    if not calibrated:
        raise ValueError(f"level: got {short(level)}, but this checkpoint has no calibration and so no intervals")
    return float(number)


def parse_level(text: str) -> float:
    """`check_level` of a number as people type it.

    >>> parse_level("0.5")
    0.5
    """
    number = read_number(text)
    return check_level(text if number is None else number)
