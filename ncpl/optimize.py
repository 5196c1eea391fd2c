"""The values of some fields with the lowest forecast loss, by differential evolution.

What is minimised is a callable; nothing here knows the forecaster.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import numpy as np
import pandas as pd
from scipy.optimize import differential_evolution, minimize_scalar

from fields_ncpl import FIELDS
from ncpl.errors import one_line, short

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
        field, shown = FIELDS.get(name), one_line(name, 60)
        if (
            isinstance(given, Sequence)
            and not isinstance(given, str | tuple)
            and (len(given) != 2 or field is None or field.kind in ("text", "flag"))
        ):
            if not given:
                raise ValueError(f"{shown}: got no choices, expected a list of values")
            choices[name] = list(given)
            continue
        if field is None or field.kind in ("text", "flag"):
            raise ValueError(f"{shown}: not a number, expected a numeric field, or a list of choices")
        try:
            low, high = (float(limit) for limit in given)
        except (ArithmeticError, TypeError, ValueError):
            raise ValueError(f"{shown}: got {short(given)}, expected two finite numbers, the lower first") from None
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise ValueError(f"{shown}: got {short(given)}, expected two finite numbers, the lower first")
        multiple = int(multiples.get(name, 1 if field.kind == "count" else 0))
        if multiple and math.ceil(low / multiple) > math.floor(high / multiple):
            raise ValueError(f"{name}: no multiple of {multiple} between {low:g} and {high:g}")
        axes.append(Axis(name, low, high, multiple))
    if len(bounds) > FREE_FIELDS:
        raise ValueError(f"fields: got {len(bounds)} to optimise, expected at most {FREE_FIELDS} at a time")
    return axes, choices


def check_constraints(constraints: Mapping[str, Any] | None) -> tuple[float, dict[str, int]]:
    """The most divergence that is allowed, and field -> the number that its values are multiples of.

    Raises:
        ValueError: a constraint that is none of these.

    >>> check_constraints({"divergence": 0.1, "batch size": 64})
    (0.1, {'batch size': 64})
    """
    most, multiples = MOST_DIVERGENCE, {}
    for name, value in (constraints or {}).items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"constraints: {one_line(name, 60)}: got {short(value)}, expected a number")
        if name == "divergence":
            if not 0 < value <= 1:
                raise ValueError(
                    f"constraints: divergence: got {short(value)}, expected a probability above 0, at most 1"
                )
            most = float(value)
        elif name in FIELDS and FIELDS[name].kind == "count":
            if value < 1 or value != int(value):
                raise ValueError(
                    f"constraints: {name}: got {short(value)}, expected the whole number it is a multiple of"
                )
            multiples[name] = int(value)
        else:
            known = ["divergence", *(field.name for field in FIELDS.values() if field.kind == "count")]
            near = get_close_matches(str(name), known, 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(
                f"constraints: {short(name)}: expected divergence (at most) or a counted field (a multiple){hint}"
            )
    return most, multiples


def minimise(
    forecast: Callable[[list[Point]], pd.DataFrame],
    axes: Sequence[Axis],
    choices: Mapping[str, Sequence[Any]],
    most_divergence: float = MOST_DIVERGENCE,
) -> Point:
    """The point with the lowest forecast loss whose divergence is allowed.

    For every combination of choices differential evolution (Storn & Price 1997) over all ranges, then Brent's search
    over each range alone. Deterministic.

    Args:
        forecast: points (field -> value) -> `loss` and `divergence` (NaN where it is not known).
        axes: numeric fields.
        choices: field -> values.
        most_divergence: the highest probability to diverge.
    """

    def height(points: list[Point]) -> np.ndarray:
        table = forecast(points)
        over = np.nan_to_num(table["divergence"].to_numpy(dtype=float)) - most_divergence
        return table["loss"].to_numpy(dtype=float) + 10 * np.maximum(over, 0)

    best: tuple[float, Point] = (math.inf, {})
    for fixed in _combinations(choices):

        def beside(points: list[Point], fixed: Point = fixed) -> np.ndarray:
            return height([fixed | point for point in points])

        found = _lowest(beside, axes)
        if found[0] < best[0]:
            best = found[0], fixed | found[1]
    return best[1]


def _combinations(choices: Mapping[str, Sequence[Any]]) -> list[Point]:
    points: list[Point] = [{}]
    for name, values in choices.items():
        points = [point | {name: value} for point in points for value in values]
    return points


def _lowest(height: Callable[[list[Point]], np.ndarray], axes: Sequence[Axis]) -> tuple[float, Point]:
    if not axes:
        return float(height([{}])[0]), {}

    def point(x: Sequence[float]) -> Point:
        return {axis.name: axis.value(float(value)) for axis, value in zip(axes, x, strict=True)}

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
    )
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


def flat_region(
    forecast: Callable[[list[Point]], pd.DataFrame], best: Point, axes: Sequence[Axis], within: float
) -> dict[str, Any]:
    """How far each range goes, the other fields held at their best, without the loss rising by more than `within` nats.

    Returns:
        `FIELD low` and `FIELD high` for each range.
    """
    region = {}
    lowest = float(forecast([best])["loss"].iloc[0])
    for axis in axes:
        values = [axis.value(x) for x in np.linspace(0, 1, _FLAT_POINTS)]
        losses = forecast([best | {axis.name: value} for value in values])["loss"].to_numpy(dtype=float)
        flat = [value for value, loss in zip(values, losses, strict=True) if loss <= lowest + within]
        region[f"{axis.name} low"] = min([*flat, best[axis.name]])
        region[f"{axis.name} high"] = max([*flat, best[axis.name]])
    return region
