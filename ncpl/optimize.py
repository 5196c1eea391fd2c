"""The values of some fields with the lowest forecast loss, by differential evolution.

What is minimised is a callable; nothing here knows the forecaster.
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from scipy.optimize import differential_evolution, minimize_scalar

from fields_ncpl import FIELDS, field_name, sequence_length
from ncpl.errors import one_line, short
from text_ncpl import as_number, did_you_mean, listed, parse_count, read_number

# More free fields than this need more forecasts than anyone waits for.
FREE_FIELDS = 6
# Configurations that will rather diverge than not are out, unless a constraint says otherwise: a run that diverges has
# no loss to be low.
MOST_DIVERGENCE = 0.5
# Candidates of a generation for each field, and generations.
_CANDIDATES, _GENERATIONS = 12, 40
# How often each field is searched alone around the best candidate, the others held.
_SWEEPS = 3
# Points at which a field's flat region is looked for.
_FLAT_POINTS = 401

Point = dict[str, Any]


@dataclass(frozen=True)
class Axis:
    """A numeric field's range; its logarithm is searched where it can be.

    Args:
        name: of the field.
        low, high: both included.
        multiple: which whole numbers are allowed; 0 where every number is.
    """

    name: str
    low: float
    high: float
    multiple: int = 0

    def place(self, value: Any) -> float:
        """Where a value lies, between 0 and 1; the middle where it is none of the range's."""
        if not isinstance(value, int | float) or not self.low <= value <= self.high:
            return 0.5
        if self.low > 0:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def value(self, x: float) -> Any:
        """The allowed value at x, between 0 and 1."""
        if x <= 0 or x >= 1:
            value = self.low if x <= 0 else self.high
        elif self.low > 0:
            value = self.low * (self.high / self.low) ** x
        else:
            value = self.low + x * (self.high - self.low)
        if not self.multiple:
            return float(value)
        most, least = math.floor(self.high / self.multiple), math.ceil(self.low / self.multiple)
        return int(min(max(round(value / self.multiple), least), most)) * self.multiple


def axes_of(bounds: Mapping[str, Any], multiples: Mapping[str, Any]) -> tuple[list[Axis], dict[str, list[Any]]]:
    """The ranges and the lists of choices among `bounds`.

    Args:
        bounds: field -> (low, high) of a number, or a list of choices.
        multiples: field -> the number that its values are multiples of.

    Raises:
        ValueError: bounds that are no range of the field, no multiple within them, or too many fields.

    >>> axes_of({"learning rate": (1e-4, 1e-2), "optimizer": ["adamw", "muon"]}, {})[1]
    {'optimizer': ['adamw', 'muon']}
    """
    axes, choices = [], {}
    for name, given in bounds.items():
        known, shown = FIELDS.get(name), one_line(name, 60)
        if (
            isinstance(given, Sequence)
            and not isinstance(given, str | tuple)
            and (len(given) != 2 or known is None or known.kind in ("text", "flag"))
        ):
            choices[name] = listed(given, shown) or []
            if not choices[name]:
                raise ValueError(f"{shown}: got no choices, expected a list of values")
            continue
        if known is None or known.kind in ("text", "flag"):
            raise ValueError(f"{shown}: not a number, expected a numeric field, or a list of choices")
        pair = listed(given, shown) or []
        read = [read_number(end) if isinstance(end, str) else as_number(end) for end in pair]
        ends = [float(end) for end in read if end is not None and math.isfinite(end)]
        if not len(ends) == len(read) == 2 or not ends[0] < ends[1]:
            raise ValueError(f"{shown}: got {short(given)}, expected two finite numbers, the lower first")
        low, high = ends
        multiple = int(multiples.get(name, 1 if known.kind == "count" else 0))
        if multiple and math.ceil(low / multiple) > math.floor(high / multiple):
            raise ValueError(f"{name}: no multiple of {multiple} between {low:g} and {high:g}")
        axes.append(Axis(name, low, high, multiple))
    if len(bounds) > FREE_FIELDS:
        raise ValueError(f"fields: got {len(bounds)} to optimise, expected at most {FREE_FIELDS} at a time")
    return axes, choices


def check_within(within: object) -> float:
    """Nats over the lowest loss, checked.

    >>> check_within(0.002)
    0.002
    """
    number = as_number(within)
    if number is None or not 0 <= number < math.inf:
        raise ValueError(f"within: got {short(within)}, expected nats over the lowest loss, 0 or more")
    return float(number)


def resting(start: Mapping[str, Any], fields: Mapping[str, Sequence[Any]], idle: Collection[str]) -> Point:
    """Where fields without effect stay: at their start where that is allowed, else at the first value.

    Args:
        start: field -> where it starts.
        fields: field -> the ends of its range, or its choices.
        idle: the fields without effect.

    >>> resting({"weight decay": 0.1}, {"weight decay": [0.01, 1.0], "warmup": [0, 16]}, {"weight decay", "warmup"})
    {'weight decay': 0.1, 'warmup': 0}
    """
    found = {}
    for name, values in fields.items():
        if name in idle:
            value = start.get(name)
            numbers = all(isinstance(known, int | float) for known in (value, *values))
            allowed = min(values) <= value <= max(values) if numbers else value in values
            found[name] = value if allowed else values[0]
    return found


def moving(
    axes: Sequence[Axis], choices: Mapping[str, list[Any]], held: Point
) -> tuple[list[Axis], dict[str, list[Any]]]:
    """The ranges and choices of the fields that are not held."""
    return [a for a in axes if a.name not in held], {name: own for name, own in choices.items() if name not in held}


@dataclass(frozen=True)
class Constraints:
    """What a configuration must hold to be chosen.

    Args:
        divergence: its highest probability to diverge.
        batch_tokens: the most tokens of a batch.
        multiples: counted field -> the number that its values are multiples of.
    """

    divergence: float = MOST_DIVERGENCE
    batch_tokens: float = math.inf
    multiples: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, given: Mapping[str, Any] | None) -> "Constraints":
        """The constraints that somebody states.

        Raises:
            ValueError: a constraint that is none of these.

        >>> Constraints.of({"divergence": 0.1, "batch size": 64}).multiples
        {'batch size': 64}
        """
        limits, multiples = {"divergence": MOST_DIVERGENCE, "batch tokens": math.inf}, {}
        if not isinstance(given, Mapping | None):
            raise ValueError(f"constraints: got {short(given)}, expected a mapping of their names to numbers")
        for stated, asked in (given or {}).items():
            name = stated if stated in limits else (field_name(stated) or stated)
            value = as_number(asked)
            if value is None or math.isnan(value):
                raise ValueError(f"constraints: {one_line(name, 60)}: got {short(asked)}, expected a number")
            if name == "divergence" and not 0 < value <= 1:
                raise ValueError(
                    f"constraints: divergence: got {short(value)}, expected a probability above 0, at most 1"
                )
            if name == "batch tokens" and not value > 0:
                raise ValueError(f"constraints: batch tokens: got {short(value)}, expected the most tokens of a batch")
            if name in limits:
                limits[name] = float(value)
            elif name in FIELDS and FIELDS[name].kind == "count":
                if not 1 <= value <= FIELDS[name].high or value != int(value):
                    raise ValueError(
                        f"constraints: {name}: got {short(value)}, expected the whole number it is a multiple of"
                    )
                multiples[name] = int(value)
            else:
                known = [*limits, *(known.name for known in FIELDS.values() if known.kind == "count")]
                raise ValueError(
                    f"constraints: {short(name)}: expected divergence (at most), batch tokens (at most) or a counted "
                    f"field (a multiple){did_you_mean(name, known)}"
                )
        return cls(limits["divergence"], limits["batch tokens"], multiples)

    def broken(self, configs: Sequence[Mapping[str, Any]], divergence: np.ndarray) -> np.ndarray:
        """By how much configurations are beyond the limits, 0 where they hold them."""
        over = np.maximum(np.nan_to_num(divergence) - self.divergence, 0)
        if math.isfinite(self.batch_tokens):
            tokens = np.array([float(config["batch size"]) * sequence_length(config) for config in configs])
            over = over + np.maximum(np.log(tokens) - math.log(self.batch_tokens), 0)
        return over


@dataclass(frozen=True)
class Search:
    """What is searched: the loss over some fields of one configuration, within constraints.

    Args:
        forecast: whole configurations -> `loss`, and `divergence` (NaN where it is not known).
        config: a point (field -> value) -> its whole configuration.
        axes: numeric fields.
        choices: field -> values.
        constraints: what a point must hold.
    """

    forecast: Callable[[list[Mapping[str, Any]]], pd.DataFrame]
    config: Callable[[Point], Mapping[str, Any]]
    axes: Sequence[Axis]
    choices: Mapping[str, Sequence[Any]]
    constraints: Constraints

    def height(self, points: list[Point]) -> np.ndarray:
        """Losses in nats per token, and much more where a constraint is broken."""
        configs = [self.config(point) for point in points]
        table = self.forecast(configs)
        broken = self.constraints.broken(configs, table["divergence"].to_numpy(dtype=float))
        return table["loss"].to_numpy(dtype=float) + np.where(broken > 0, 1 + 10 * broken, 0)

    def lowest(self, start: Mapping[str, Any], held: Point | None = None) -> tuple[float, Point]:
        """The lowest height and its point.

        For every combination of choices differential evolution (Storn & Price 1997) over all ranges, then Brent's
        search over each range alone. Deterministic.

        Args:
            start: values that are tried too, where they are within the ranges.
            held: field -> the value that is kept.
        """
        held = held or {}
        axes = [axis for axis in self.axes if axis.name not in held]
        choices = {name: values for name, values in self.choices.items() if name not in held}
        best: tuple[float, Point] = (math.inf, {})
        for fixed in _combinations(choices):

            def beside(points: list[Point], fixed: Point = held | fixed) -> np.ndarray:
                return self.height([fixed | point for point in points])

            found = _lowest(beside, axes, start)
            if found[0] < best[0]:
                best = found[0], held | fixed | found[1]
        return best

    def at_bounds(self, best: Point) -> list[str]:
        """Says which fields are best at an end of their range."""
        return [
            f"{axis.name}: the best value, {best[axis.name]:g}, is a bound; better ones may lie beyond"
            for axis in self.axes
            if best[axis.name] in (axis.low, axis.high)
        ]

    def worth(self, best: float, start: Mapping[str, Any]) -> dict[str, Any]:
        """What each field that starts somewhere is worth.

        Args:
            best: the lowest loss.
            start: field -> where it starts.

        Returns:
            `FIELD start` and `FIELD worth`, nats given up where it stays there and the others are at their best.
        """
        worth: dict[str, Any] = {}
        for name in (*(axis.name for axis in self.axes), *self.choices):
            if start.get(name) is not None:
                kept = self.forecast([self.config(self.lowest(start, {name: start[name]})[1])])
                lost = max(float(kept["loss"].iloc[0]) - best, 0.0)
                worth |= {f"{name} start": start[name], f"{name} worth": lost}
        return worth

    def flat(self, best: Point, within: float) -> dict[str, Any]:
        """How far each range goes, the others at their best, without the loss rising by more than `within` nats.

        Returns:
            `FIELD low` and `FIELD high` for each range.
        """
        region = {}
        lowest = float(self.height([best])[0])
        for axis in self.axes:
            values = [axis.value(x) for x in np.linspace(0, 1, _FLAT_POINTS)]
            heights = self.height([best | {axis.name: value} for value in values])
            flat = [value for value, height in zip(values, heights, strict=True) if height <= lowest + within]
            region[f"{axis.name} low"] = min([*flat, best[axis.name]])
            region[f"{axis.name} high"] = max([*flat, best[axis.name]])
        return region


def _combinations(choices: Mapping[str, Sequence[Any]]) -> list[Point]:
    points: list[Point] = [{}]
    for name, values in choices.items():
        points = [point | {name: value} for point in points for value in values]
    return points


def _lowest(
    height: Callable[[list[Point]], np.ndarray], axes: Sequence[Axis], start: Mapping[str, Any]
) -> tuple[float, Point]:
    if not axes:
        return float(height([{}])[0]), {}

    def point(x: Sequence[float]) -> Point:
        return {axis.name: axis.value(float(value)) for axis, value in zip(axes, x, strict=True)}

    try:
        found = differential_evolution(
            lambda x: height([point(column) for column in np.atleast_2d(x.T)]),
            [(0.0, 1.0)] * len(axes),
            vectorized=True,
            updating="deferred",
            polish=False,
            popsize=_CANDIDATES,
            maxiter=_GENERATIONS,
            tol=1e-6,
            seed=0,
            x0=[axis.place(start.get(axis.name)) for axis in axes],
        )
    except RuntimeError as error:
        # scipy's word for an error of the function itself, such as a configuration that is refused.
        raise (error.__cause__ if isinstance(error.__cause__, ValueError) else error) from None
    x, value = found.x.copy(), float(np.min(found.fun))
    for sweep in range(_SWEEPS):
        reach = 0.1 / 3**sweep
        for i in range(len(axes)):
            low, high = max(x[i] - reach, 0.0), min(x[i] + reach, 1.0)

            def along(at: float, i: int = i) -> float:
                return float(height([point([*x[:i], at, *x[i + 1 :]])])[0])

            tried = minimize_scalar(along, bounds=(low, high), method="bounded", options={"xatol": 1e-4, "maxiter": 20})
            ends = {float(tried.x): float(tried.fun)} | {end: along(end) for end in (low, high) if end in (0.0, 1.0)}
            at = min(ends, key=lambda end: ends[end])
            if ends[at] < value:
                x[i], value = at, ends[at]
    return value, point(x)


def constraints_of(multiples: Sequence[str], divergence: float | None, batch_tokens: str | None) -> dict[str, Any]:
    """`Constraints.of`'s mapping from a shell's words, such as `batch_size=64`.

    >>> constraints_of(["batch_size=64"], 0.1, "4M")
    {'batch size': 64, 'divergence': 0.1, 'batch tokens': 4000000.0}
    """
    found: dict[str, Any] = {}
    for text in multiples:
        name, sign, value = text.partition("=")
        number = read_number(value)
        if not sign or number is None:
            raise ValueError(f"multiple: got {short(text)}, expected FIELD=N, such as batch_size=64")
        found[field_name(name) or name] = number
    if divergence is not None:
        found["divergence"] = divergence
    if batch_tokens is not None:
        tokens = read_number(batch_tokens) or parse_count(batch_tokens)
        if tokens is None:
            raise ValueError(f"batch tokens: got {short(batch_tokens)}, expected a count such as 4e6 or 4M")
        found["batch tokens"] = float(tokens)
    return found


def optimized_tables(found: pd.Series, level: float, within: float) -> list[list[dict[str, str]]]:
    """What a person is shown of `Forecaster.optimize`'s result: the fields, a row each, then the forecast."""
    from calibration_ncpl import distance_in_words

    def text(value: Any) -> str:
        return f"{value:.4g}" if isinstance(value, float) else str(value)

    fields = []
    for name in list(found.index)[: list(found.index).index("loss")]:
        reach = f"{text(found[f'{name} low'])} to {text(found[f'{name} high'])}" if f"{name} low" in found else ""
        worth = f"{found[f'{name} worth']:.4f}" if f"{name} worth" in found else ""
        fields.append(
            {"": name, "start": text(found.get(f"{name} start", "")), "best": text(found[name])}
            | {f"within {within:g} nats": reach, "worth (nats)": worth}
        )
    forecast = {"loss (nats per token)": f"{found['loss']:.4f}"}
    if "risk" in found:
        forecast |= {
            f"{level * 100:g} % interval": f"{found['lower']:.4f} to {found['upper']:.4f}",
            "risk": f"{found['risk']:.4f}, the best rate's place is not known exactly",
            "loss to expect": f"{found['expected']:.4f}",
            "P(divergence)": f"{found['divergence']:.3f}",
            "extrapolation": f"{found['extrapolation']:.2f} {distance_in_words(found['extrapolation'])}",
        }
    return [fields, [{"": name, "forecast": value} for name, value in forecast.items()]]
