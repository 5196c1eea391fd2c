"""Configurations as people have them: files, `field=value` arguments, dicts, DataFrames."""

import csv
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from fields_ncpl import FIELDS, check_config, field_name, known_seq_len

Config = dict[str, Any]

ACCEPTED = "a .yaml, .yml, .json, .jsonl or .csv file, or field=value"


def read_configs(arguments: Sequence[str]) -> tuple[list[Config], list[str]]:
    """Configurations from files and `field=value` arguments.

    Args:
        arguments: paths of files, each with one configuration or several, and assignments. Assignments change every
            configuration of the files; without files they are a configuration of their own.

    Returns:
        The configurations, unchecked, and where each comes from.

    Raises:
        ValueError: a file that cannot be read, or an argument that is neither.

    >>> read_configs(["source=marin", "learning rate=1e-3", "nesterov=true"])
    ([{'source': 'marin', 'learning rate': 0.001, 'nesterov': True}], ['arguments'])
    """
    changes: Config = {}
    configs: list[Config] = []
    origins: list[str] = []
    for argument in arguments:
        if not _is_file(argument):
            name, equals, value = argument.partition("=")
            if not equals or not name.strip():
                raise ValueError(f"{argument}: no such file, accepted: {ACCEPTED}")
            name = field_name(name) or name.strip()
            if name in changes:
                raise ValueError(f"{name}: given twice, the second time as {argument!r}")
            changes[name] = parse_value(value)
            continue
        rows = read_file(argument)
        configs += rows
        origins += [argument] if len(rows) == 1 else [f"{argument}[{i}]" for i in range(len(rows))]
    if not configs and not changes:
        raise ValueError(f"configurations: got none, accepted: {ACCEPTED}")
    if not configs:
        return [changes], ["arguments"]
    return [vary(config, changes) if changes else config for config in configs], origins


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
            raise ValueError(f"{name}: got {text!r}, expected low:high:count, positive numbers and a whole count")
        low, high, count = numbers
        values = [float(f"{value:.6g}") for value in np.geomspace(low, high, int(count))]
        field = FIELDS.get(name)
        grid[name] = list(dict.fromkeys(map(round, values))) if field is not None and field.kind == "count" else values
    return config, grid


def read_bounds(arguments: Sequence[str]) -> tuple[Config, dict[str, tuple[float, float]]]:
    """The configuration to optimise, and the bounds of the fields that are free.

    Args:
        arguments: as for `read_configs`; `field=low:high` are the bounds.

    Raises:
        ValueError: several configurations, no bounds, or what `read_configs` refuses.

    >>> read_bounds(["source=marin", "lr=1e-4:1e-2"])
    ({'source': 'marin'}, {'learning rate': (0.0001, 0.01)})
    """
    config, free = _split(arguments, ":", "field=low:high")
    bounds: dict[str, tuple[float, float]] = {}
    for name, text in free.items():
        numbers = [parse_value(part) for part in text.split(":")]
        if len(numbers) != 2 or not all(isinstance(number, int | float) for number in numbers):
            raise ValueError(f"{name}: got {text!r}, expected low:high, two numbers")
        bounds[name] = (numbers[0], numbers[1])
    return config, bounds


def read_file(path: str | Path) -> list[Config]:
    """The configurations of a file, unchecked.

    Args:
        path: YAML (a mapping, a list of mappings or several documents), JSON (an object or an array of objects), JSON
            lines, or CSV (a column for each field, a row for each configuration, empty or `nan` where a field is
            absent).

    Raises:
        ValueError: the file is missing, empty, broken or of another kind; says where.
    """
    path = Path(path)
    read = _READERS.get(path.suffix.lower())
    if read is None:
        raise ValueError(f"{path}: a file of kind {path.suffix or 'unknown'!r}, accepted: {ACCEPTED}")
    try:
        # Spreadsheets put a byte order mark in front.
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}), accepted: {ACCEPTED}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from None
    try:
        content = read(text)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    rows = content if isinstance(content, list) else [content]
    if not rows or rows == [None]:
        raise ValueError(f"{path}: holds nothing, expected at least one configuration (fields and values)")
    for i, row in enumerate(rows):
        if not isinstance(row, dict):
            at = f"{path}[{i}]" if len(rows) > 1 else str(path)
            raise ValueError(f"{at}: holds {_short(row)}, expected a mapping of fields to values")
    return rows


def parse_value(text: str) -> Any:
    """A number, true or false where the text reads as one, else the text.

    >>> parse_value("1e-4"), parse_value("128"), parse_value("False"), parse_value("adamw")
    (0.0001, 128, False, 'adamw')
    """
    text = text.strip()
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text


def as_configs(configs: Any) -> tuple[list[Config], pd.Index]:
    """What `Forecaster.predict` takes as a list of dicts, and the index of its result.

    Args:
        configs: a mapping, an iterable of mappings, a Series, or a DataFrame with a column for each field, in which a
            missing cell means that the field is absent.

    Raises:
        ValueError: nothing, or something else.

    >>> as_configs(pd.DataFrame({"source": ["marin", "steplaw"], "warmup": [100, None]}, index=["a", "b"]))[0]
    [{'source': 'marin', 'warmup': 100}, {'source': 'steplaw'}]
    """
    index = None
    if isinstance(configs, pd.DataFrame):
        twice = [str(name) for name, count in Counter(configs.columns).items() if count > 1]
        if twice:
            raise ValueError(f"{twice[0]}: the table has two columns of this name, expected one")
        index = configs.index
        rows = [_row(zip(configs.columns, cells, strict=True)) for cells in configs.itertuples(index=False, name=None)]
    elif isinstance(configs, pd.Series):
        rows = [_row(configs.items())]
    elif isinstance(configs, Mapping):
        rows = [dict(configs)]
    elif isinstance(configs, Iterable) and not isinstance(configs, str | bytes | np.ndarray):
        rows = list(configs)
    else:
        raise ValueError(f"configs: got {_short(configs)}, expected a dict, a list of dicts or a DataFrame")
    if not rows:
        raise ValueError("configs: got an empty batch, expected at least one configuration")
    return rows, pd.RangeIndex(len(rows)) if index is None else index


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
    named: Config = {}
    for given, value in fields.items():
        name = field_name(given) or str(given)
        if name in named:
            raise ValueError(f"{name}: given twice, the second time as {given!r}")
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
    if Path(argument).is_file():
        return True
    return Path(argument).suffix.lower() in _READERS and "=" not in argument


def _split(arguments: Sequence[str], marks: str, form: str) -> tuple[Config, dict[str, str]]:
    """One configuration, and the text of the assignments whose value has one of the marks."""
    free: dict[str, str] = {}
    rest = []
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if _is_file(argument) or not equals or not any(mark in value for mark in marks):
            rest.append(argument)
            continue
        name = field_name(name) or name.strip()
        if name in free:
            raise ValueError(f"{name}: given twice, the second time as {argument!r}")
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
    return {str(name): _cell(value) for name, value in cells if not (pd.api.types.is_scalar(value) and pd.isna(value))}


def _cell(value: Any) -> Any:
    """pandas makes a column's whole numbers floats where one is missing."""
    value = value.item() if isinstance(value, np.generic) else value
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _short(value: Any) -> str:
    text = repr(value)
    return f"{text if len(text) <= 60 else text[:57] + '...'} ({type(value).__name__})"


class _Yaml(yaml.SafeLoader):
    """YAML 1.2's numbers and booleans (1.1 takes 1e-4 for text and `no` for false), and no key twice."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = Counter(key.value for key, _ in node.value)
        if keys and max(keys.values()) > 1:
            line = node.start_mark.line + 1
            raise ValueError(f"{keys.most_common(1)[0][0]}: given twice in the mapping that starts at line {line}")
        return super().construct_mapping(node, deep)


_Yaml.yaml_implicit_resolvers = {
    first: [(tag, regex) for tag, regex in resolvers if tag.rpartition(":")[2] not in ("float", "bool", "int")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _tag, _regex, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?[0-9]+", "-+0123456789"),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+.0123456789",
    ),
):
    _Yaml.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^({_regex})$"), list(_first))


# In 1.1 a leading zero makes a number octal.
_Yaml.add_constructor("tag:yaml.org,2002:int", lambda _, node: int(node.value))


def _read_yaml(text: str) -> Any:
    try:
        documents = [document for document in yaml.load_all(text, _Yaml) if document is not None]
    except yaml.YAMLError as error:
        raise ValueError(f"not YAML: {' '.join(str(error).split())}") from None
    return documents[0] if len(documents) == 1 else documents


def _read_json(text: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_unique)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg} at line {error.lineno} column {error.colno}") from None


def _read_jsonl(text: str) -> list[Any]:
    rows = []
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            try:
                rows.append(json.loads(line, object_pairs_hook=_unique))
            except json.JSONDecodeError as error:
                raise ValueError(f"line {number} is not JSON: {error.msg} at column {error.colno}") from None
    return rows


def _unique(pairs: list[tuple[str, Any]]) -> Config:
    twice = [name for name, count in Counter(name for name, _ in pairs).items() if count > 1]
    if twice:
        raise ValueError(f"{twice[0]}: given twice in one object")
    return dict(pairs)


def _read_csv(text: str) -> list[Config]:
    lines = [line for line in csv.reader(text.splitlines()) if any(cell.strip() for cell in line)]
    if not lines:
        return []
    header, *rows = lines
    header = [name.strip() for name in header]
    for column, name in enumerate(header, 1):
        if not name:
            raise ValueError(f"column {column} has no name, expected a field's")
        if header.count(name) > 1:
            raise ValueError(f"{name}: there are two columns of this name, expected one")
    configs = []
    for number, row in enumerate(rows, 1):
        if len(row) != len(header):
            raise ValueError(f"row {number} has {len(row)} cells, expected {len(header)}, one for each column")
        cells = ((name, cell.strip()) for name, cell in zip(header, row, strict=True))
        configs.append({name: parse_value(cell) for name, cell in cells if cell.lower() not in ("", "nan")})
    return configs


_READERS: dict[str, Callable[[str], Any]] = {
    ".yaml": _read_yaml,
    ".yml": _read_yaml,
    ".json": _read_json,
    ".jsonl": _read_jsonl,
    ".csv": _read_csv,
}
