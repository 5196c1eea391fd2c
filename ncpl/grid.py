"""Every combination of some fields' values around one configuration, a window of rows at a time."""

import itertools
import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd

from fields_ncpl import check_config, field_name, training_order
from ncpl.configs import vary
from ncpl.errors import one_line, short
from text_ncpl import MOST_ITEMS, listed

MOST_COMBINATIONS = 10**10
"""Combinations of a grid, which is worked through in months; more are a slip."""
# What the number of training steps follows from.
TOKENS = ("data size", "batch size", "seq len")


class Grid:
    """Every combination of some fields' values around one configuration, the last field varying fastest.

    Args:
        config: the configuration that is varied; its `max step` follows data size, batch size and sequence length.
        fields: field -> values.
        strict: see `check_config`.

    Raises:
        ValueError: a field that is given twice or has no values, or a combination that `check_config` refuses.

    >>> config = {"source": "marin", "model size": 134, "data size": 2.7, "optimizer": "adamw", "learning rate": 2e-3,
    ...           "batch size": 128}
    >>> grid = Grid(config, {"batch size": [128, 256], "learning rate": [1e-3, 2e-3, 4e-3]})
    >>> len(grid), grid.configs(4, 5)[0]["learning rate"]
    (6, 0.002)
    """

    def __init__(self, config: Mapping[str, Any], fields: Mapping[str, Sequence[Any]], strict: bool = True) -> None:
        fields = {name: _values(name, values) for name, values in named_fields(fields).items()}
        _check_size(math.prod(map(len, fields.values())), MOST_COMBINATIONS, "")
        self._strict = strict
        self._config = vary(config, {})
        first = {name: values[0] for name, values in fields.items()}
        self.base = training_order(self._check(first))
        """The first combination, checked, in training order."""
        self.fields = {
            name: [self._check({**first, name: value})[name] for value in values] for name, values in fields.items()
        }
        self.shape = tuple(len(values) for values in self.fields.values())
        self._check_corners()
        self._max_step = lru_cache(65_536)(self._max_step_of)

    def __len__(self) -> int:
        return math.prod(self.shape)

    def configs(self, start: int, stop: int) -> list[dict[str, Any]]:
        """Some combinations, as checked configurations in training order."""
        columns = [
            [values[i] for i in index.tolist()]
            for values, index in zip(self.fields.values(), self.indices(start, stop), strict=True)
        ]
        rows = [self.base | dict(zip(self.fields, point, strict=True)) for point in zip(*columns, strict=True)]
        if "max step" in self.base and "max step" not in self.fields:
            for row in rows:
                row["max step"] = self._max_step(*(row.get(name) for name in TOKENS))
        return rows

    def frame(self, rows: pd.RangeIndex) -> pd.DataFrame:
        """The swept fields' values in some combinations, of the same type in all of them."""
        indices = self.indices(rows.start, rows.stop)
        columns = zip(self.fields.items(), indices, strict=True)
        return pd.DataFrame({name: pd.Series(values).to_numpy()[i] for (name, values), i in columns}, index=rows)

    def indices(self, start: int, stop: int) -> tuple[np.ndarray, ...]:
        """Of some combinations, the index of each field's value."""
        return np.unravel_index(np.arange(start, stop), self.shape)

    def _check(self, changes: Mapping[str, Any]) -> dict[str, Any]:
        return check_config(vary(self._config, changes), self._strict)

    def _check_corners(self) -> None:
        """`check_config`'s rules about several fields are monotone in each number: the grid's corners stand for it."""
        ends = []
        for name, values in self.fields.items():
            numbers = all(isinstance(value, int | float) for value in values)
            ends.append({min(values), max(values)} if numbers else values if name == "source" else values[:1])
        for corner in itertools.product(*ends):
            changes = dict(zip(self.fields, corner, strict=True))
            try:
                self._check(changes)
            except ValueError as error:
                point = ", ".join(f"{name} {value}" for name, value in changes.items())
                raise ValueError(f"{error} (at {point})") from None

    def _max_step_of(self, *tokens: Any) -> int:
        """The training steps where the configuration gives them and fields they follow from are varied."""
        known = {name: self._config[name] for name in ("max step", *TOKENS) if name in self._config}
        changes = {name: value for name, value in zip(TOKENS, tokens, strict=True) if name in self.fields}
        return int(float(vary(known, changes)["max step"]))


def check_rows(fields: Mapping[str, Any]) -> None:
    """Refuses a grid that no memory holds, before anything is made of it.

    Raises:
        ValueError: it has more than `MOST_ITEMS` combinations.
    """
    sizes = [len(values) for values in named_fields(fields).values() if isinstance(values, Sequence)]
    _check_size(math.prod(sizes), MOST_ITEMS, "; `ncpl sweep --output FILE` takes more")


def _check_size(count: int, most: int, hint: str) -> None:
    if count > most:
        raise ValueError(f"fields: got {count:.6g} combinations, expected at most {most:.6g}{hint}")


class Rows(Sequence[Mapping[str, Any]]):
    """A grid's configurations, each made when it is asked for."""

    def __init__(self, grid: Grid) -> None:
        self.grid = grid

    def __len__(self) -> int:
        return len(self.grid)

    def __getitem__(self, i: Any) -> Any:
        return self.grid.configs(i, i + 1)[0]


def named_fields(given: Mapping[str, Any]) -> dict[str, Any]:
    """The same under the registry's names.

    >>> named_fields({"lr": [1e-3]})
    {'learning rate': [0.001]}
    """
    if not isinstance(given, Mapping) or not given:
        raise ValueError(f"fields: got {short(given)}, expected a mapping of at least one field")
    named: dict[str, Any] = {}
    for name, value in given.items():
        known = field_name(name) or name
        if known in named:
            raise ValueError(f"{one_line(known, 60)}: given twice, the second time as {short(name)}")
        named[known] = value
    return named


def _values(name: str, values: Any) -> list[Any]:
    several = listed(values, one_line(name, 60))
    if several is None:
        raise ValueError(f"{one_line(name, 60)}: got {short(values)}, expected a list of values")
    if not several:
        raise ValueError(f"{one_line(name, 60)}: got no values, expected at least one")
    return several
