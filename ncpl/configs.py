"""Configurations as people have them: files, `field=value` arguments, dicts, DataFrames."""

import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fields_ncpl import FIELDS, check_config, field_name, known_seq_len
from ncpl import files
from ncpl.errors import one_line, short
from ncpl.files import parse_value
from ncpl.kinds import ACCEPTED as FILES
from ncpl.kinds import KINDS
from ncpl.logs.importer import read_foreign
from ncpl.logs.translate import is_ours
from text_ncpl import listed, warn_user

Config = dict[str, Any]

ACCEPTED = f"{FILES}, a run's folder, - or field=value"
MOST_VALUES = 100_000
"""Values of one swept field."""


def read_configs(arguments: Sequence[str], translate: bool = True) -> tuple[list[Config], list[str]]:
    """Configurations from files and `field=value` arguments.

    Args:
        arguments: paths of files and folders, each with one configuration or several, in the registry's names or any
            framework's, `-` for standard input, and assignments. Assignments change every configuration of the files;
            without files they are a configuration of their own.
        translate: whether other frameworks' names are translated; False leaves every row as it is.

    Returns:
        The configurations, unchecked, and where each comes from. How names were translated is a warning.

    Raises:
        ValueError: a file that cannot be read, an argument that is neither, or a framework's configuration that lacks
            what a forecast needs; says everything that is missing at once.

    >>> read_configs(["source=marin", "learning rate=1e-3", "nesterov=true"])
    ([{'source': 'marin', 'learning rate': 0.001, 'nesterov': True}], ['arguments'])
    """
    changes: Config = {}
    for argument in arguments:
        if not _is_file(argument):
            name, equals, value = argument.partition("=")
            if not equals or not name.strip():
                shown = one_line(argument, 80) or short(argument)
                raise ValueError(f"{shown}: no such file, accepted: {ACCEPTED}")
            name = field_name(name) or name.strip()
            if name in changes:
                raise ValueError(f"{one_line(name, 80)}: given twice, the second time as {short(argument)}")
            changes[name] = parse_value(value)
    configs: list[Config] = []
    origins: list[str] = []
    with ExitStack() as stack:
        paths = {stack.enter_context(files.local(given)): given for given in filter(_is_file, arguments)}
        foreign = [path for path in paths if translate and _is_foreign(path)]
        # A model's and its trainer's file may be one configuration.
        groups = [foreign] if len(foreign) == len(paths) > 1 else [[path] for path in paths]
        for group in groups:
            if group[0] in foreign:
                rows, names = _translated(group, changes)
                for path in group:
                    names = [name.replace(str(path), paths[path], 1) for name in names]
            else:
                rows = [_without_run_columns(row) for row in files.read_file(group[0])]
                given = paths[group[0]]
                names = [given] if len(rows) == 1 else [f"{given}[{i}]" for i in range(len(rows))]
                rows = [vary(row, changes) if changes else row for row in rows]
            configs += rows
            origins += names
    if not configs and not changes:
        raise ValueError(f"configurations: got none, accepted: {ACCEPTED}")
    return (configs, origins) if configs else ([changes], ["arguments"])


def _is_foreign(path: Path) -> bool:
    return path.is_dir() or files.kind_of(path) in ("sqlite", "log") or not _first_is_ours(path)


def _translated(paths: Sequence[Path], changes: Config) -> tuple[list[Config], list[str]]:
    """The configurations of other frameworks' files; how names were translated is a warning."""
    rows, names, lines = read_foreign(paths, changes)
    for line in lines:
        warn_user(line)
    return rows, names


# What a table of runs holds beside their configurations.
RUN_COLUMNS = ("name", "final_loss", "status")


def _without_run_columns(row: Any) -> Any:
    if not isinstance(row, Mapping) or not set(RUN_COLUMNS) & row.keys():
        return row
    aside = ", ".join(name for name in RUN_COLUMNS if name in row)
    warn_user(f"columns of a table of runs are kept aside: {aside}")
    return {name: value for name, value in row.items() if name not in RUN_COLUMNS}


def _first_is_ours(path: Path) -> bool:
    first = next(files.read_rows(path), None)
    return first is None or is_ours(first)


def read_grid(arguments: Sequence[str]) -> tuple[Config, dict[str, list[Any]]]:
    """The configuration of a sweep, and the values of the swept fields.

    Args:
        arguments: as for `read_configs`; `field=a,b,c` and `field=low:high:count` (in equal ratios) are swept.

    Raises:
        ValueError: several configurations, nothing to sweep, or what `read_configs` refuses.

    >>> read_grid(["source=marin", "lr=1e-3:4e-3:3", "optimizer=adamw,muon"])
    ({'source': 'marin'}, {'learning rate': [0.001, 0.002, 0.004], 'optimizer': ['adamw', 'muon']})
    """
    config, swept = _split(arguments, ",:", "field=a,b,c or field=low:high:count")
    grid: dict[str, list[Any]] = {}
    for name, text in swept.items():
        if ":" not in text:
            grid[name] = [parse_value(part) for part in text.split(",")]
            continue
        numbers = [parse_value(part) for part in text.split(":")]
        if len(numbers) != 3 or not all(_positive(number) for number in numbers) or numbers[2] != int(numbers[2]):
            raise ValueError(
                f"{one_line(name, 60)}: got {short(text)}, expected low:high:count, positive numbers and a whole count"
            )
        if numbers[2] > MOST_VALUES:
            raise ValueError(
                f"{one_line(name, 60)}: got {short(text)}, expected at most {MOST_VALUES} values of one field"
            )
        low, high, count = numbers
        values = [float(f"{value:.6g}") for value in np.geomspace(low, high, int(count))]
        field = FIELDS.get(name)
        grid[name] = list(dict.fromkeys(map(round, values))) if field is not None and field.kind == "count" else values
    return config, grid


def read_bounds(arguments: Sequence[str]) -> tuple[Config, dict[str, Any]]:
    """The configuration to optimise, and the bounds or choices of the fields that are free.

    Args:
        arguments: as for `read_configs`; `field=low:high` are bounds, `field=a,b,c` choices.

    Raises:
        ValueError: several configurations, no bounds, or what `read_configs` refuses.

    >>> read_bounds(["source=marin", "lr=1e-4:1e-2", "optimizer=adamw,muon"])
    ({'source': 'marin'}, {'learning rate': (0.0001, 0.01), 'optimizer': ['adamw', 'muon']})
    """
    config, free = _split(arguments, ":,", "field=low:high or field=a,b,c")
    bounds: dict[str, Any] = {}
    for name, text in free.items():
        if "," in text:
            bounds[name] = [parse_value(part) for part in text.split(",")]
            continue
        numbers = [parse_value(part) for part in text.split(":")]
        if len(numbers) != 2 or not all(isinstance(number, int | float) for number in numbers):
            raise ValueError(f"{one_line(name, 60)}: got {short(text)}, expected low:high, two numbers")
        bounds[name] = (numbers[0], numbers[1])
    return config, bounds


def as_configs(configs: Any, name: str = "configs") -> tuple[list[Config], pd.Index]:
    """What `Forecaster.predict` takes as a list of dicts, and the index of its result.

    Args:
        configs: a mapping, an iterable of mappings, a Series, or a DataFrame with a column for each field, in which a
            missing cell means that the field is absent.
        name: the argument's, for messages.

    Raises:
        ValueError: nothing, or something else.

    >>> as_configs(pd.DataFrame({"source": ["marin", "steplaw"], "warmup": [100, None]}, index=["a", "b"]))[0]
    [{'source': 'marin', 'warmup': 100}, {'source': 'steplaw'}]
    """
    index = None
    if isinstance(configs, pd.DataFrame):
        twice = [one_line(name, 80) for name, count in Counter(configs.columns).items() if count > 1]
        if twice:
            raise ValueError(f"{twice[0]}: the table has two columns of this name, expected one")
        index = configs.index
        rows = [_row(zip(configs.columns, cells, strict=True)) for cells in configs.itertuples(index=False, name=None)]
    elif isinstance(configs, pd.Series):
        rows = [_row(configs.items())]
    elif isinstance(configs, Mapping):
        rows = [dict(configs)]
    else:
        several = listed(configs, name)
        if several is None:
            kind = type(configs).__name__
            raise ValueError(f"{name}: got {short(configs)} ({kind}), expected a dict, a list of dicts or a DataFrame")
        rows = several
    if not rows:
        raise ValueError(f"{name}: got an empty batch, expected at least one configuration")
    return rows, pd.RangeIndex(len(rows)) if index is None else index


def known_columns(table: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """The columns of a table that are fields, and a note of the others; the whole table where none is a field.

    >>> table, notes = known_columns(pd.DataFrame({"lr": [1e-3], "who": ["me"]}))
    >>> list(table), notes
    (['lr'], ['columns kept aside, which are no fields: who'])
    """
    known = [name for name in table.columns if isinstance(name, str) and field_name(name) is not None]
    aside = [name if isinstance(name, str) else short(name) for name in table.columns if name not in known]
    if not aside or not known:
        return table, []
    return table[known], [f"columns kept aside, which are no fields: {one_line(', '.join(aside))}"]


def one_config(config: Any) -> Config:
    """What a user gives as one configuration, unchecked.

    Raises:
        ValueError: several, or something else.

    >>> one_config([{"source": "marin"}])
    {'source': 'marin'}
    """
    rows, _ = as_configs(config, "config")
    if len(rows) > 1:
        raise ValueError(f"config: got {len(rows)} configurations, expected one to vary")
    if not isinstance(rows[0], Mapping):
        raise ValueError(f"config: got {short(rows[0])}, expected a mapping of fields to values")
    return rows[0]


def places(configs: Any, index: pd.Index, name: str = "configs") -> list[str] | None:
    """What messages call each configuration of a table or a list; None of one that stands alone.

    >>> places([{"source": "marin"}], pd.RangeIndex(1)), places({"source": "marin"}, pd.RangeIndex(1))
    (['configs[0]'], None)
    """
    if isinstance(configs, Mapping | pd.Series):
        return None
    form = "row {}" if isinstance(configs, pd.DataFrame) else f"{name}[{{}}]"
    return [form.format(short(at)) for at in index]


def check_configs(configs: Sequence[Any], strict: bool = True, origins: Iterable[Any] | None = None) -> list[Config]:
    """Each configuration checked (`fields_ncpl.check_config`).

    Args:
        configs: configurations.
        strict: as there.
        origins: what to call each in messages; its position when absent.

    Raises:
        ValueError: what is wrong, after the name of the configuration where there are several.
    """
    checked = []
    names = (f"configs[{i}]" for i in range(len(configs))) if origins is None else origins
    for config, name in zip(configs, names, strict=True):
        try:
            checked.append(check_config(config, strict))
        except ValueError as error:
            raise ValueError(f"{name}: {error}" if len(configs) > 1 or origins is not None else str(error)) from None
    return checked


def by_name(fields: Mapping[str, Any]) -> Config:
    """The same under the registry's names; unknown names stay.

    Raises:
        ValueError: a field that stands there twice.

    >>> by_name({"lr": 1e-3, "colour": "red"})
    {'learning rate': 0.001, 'colour': 'red'}
    """
    if not isinstance(fields, Mapping):
        raise ValueError(f"configuration: got {short(fields)}, expected a mapping of fields to values")
    named: Config = {}
    for given, value in fields.items():
        name = field_name(given) or given
        if name in named:
            raise ValueError(f"{one_line(name, 60)}: given twice, the second time as {short(given)}")
        named[name] = value
    return named


def vary(config: Mapping[str, Any], changes: Mapping[str, Any]) -> Config:
    """A configuration with some fields changed; `max step` follows the data size, batch size and sequence length.

    >>> vary({"source": "marin", "max step": 1000}, {"seq len": 2048})["max step"]
    2000
    >>> vary({"data size": 10, "batch size": 128, "max step": 1000}, {"batch_size": 256})
    {'data size': 10, 'batch size': 256, 'max step': 500}
    """
    old = by_name(config)
    new = old | by_name(changes)
    if "max step" in old and new["max step"] == old["max step"]:
        try:
            factor = float(new.get("data size", 1)) / float(old.get("data size", 1))
            factor *= _tokens_a_step(old) / _tokens_a_step(new)
            if factor != 1 and math.isfinite(factor):
                new["max step"] = max(1, round(float(old["max step"]) * factor))
        except (ArithmeticError, TypeError, ValueError):
            # A value that is no number: the check that follows says which.
            pass
    return new


def _tokens_a_step(config: Config) -> float:
    return float(config.get("batch size", 1)) * float(known_seq_len(config) or 1)


def _is_file(argument: str) -> bool:
    """`a=b.yaml` may be either: what exists is a file."""
    if argument == "-":
        return True
    # `Path.exists` raises where a name is longer than a file's may be, and takes an empty one for the folder.
    there = os.path.exists(argument)  # noqa: PTH110
    return there or (Path(argument).suffix.lower() in KINDS and "=" not in argument)


def _split(arguments: Sequence[str], marks: str, form: str) -> tuple[Config, dict[str, str]]:
    """One configuration, and the text of the assignments whose value has one of the marks."""
    free: dict[str, str] = {}
    rest = []
    for argument in arguments:
        name, equals, value = argument.partition("=")
        listed = value.lstrip().startswith("[")
        if _is_file(argument) or not equals or listed or not any(mark in value for mark in marks):
            rest.append(argument)
            continue
        name = field_name(name) or name.strip()
        if name in free:
            raise ValueError(f"{one_line(name, 60)}: given twice, the second time as {short(argument)}")
        free[name] = value
    if not free:
        raise ValueError(f"fields: got none to vary, expected {form}")
    configs, origins = read_configs(rest)
    if len(configs) > 1:
        raise ValueError(f"configurations: got {len(configs)}, the second {origins[1]}, expected one to vary")
    return configs[0], free


def _positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf


def _row(cells: Iterable[tuple[Any, Any]]) -> Config:
    return {name: _cell(value) for name, value in cells if not _absent(value)}


def _absent(value: Any) -> bool:
    """Whether a table's cell stands for nothing."""
    try:
        return pd.api.types.is_scalar(value) and bool(pd.isna(value))
    except ArithmeticError:
        # A signalling NaN is a value, which the check of configurations refuses.
        return False


def _cell(value: Any) -> Any:
    """pandas makes a column's whole numbers floats where one is missing."""
    value = value.item() if isinstance(value, np.generic) else value
    return int(value) if isinstance(value, float) and value.is_integer() else value
