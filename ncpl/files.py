"""The one reader and writer of files: strict, within limits, and atomic.

Documents (JSON, YAML, TOML, Python assignments) are read whole, tables (CSV, TSV, JSON lines, Parquet) row by row, so
that a log of any size is read in bounded memory. `local` makes standard input a file. Every fault of a file is a
`ValueError` that names it.
"""

import csv
import functools
import io
import itertools
import json
import math
import os
import re
import shutil
import stat
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from ncpl.assignments import read_assignments
from ncpl.command_lines import read_command_line
from ncpl.errors import one_line, short
from ncpl.kinds import ACCEPTED, PEEK, encoding, kind_by_content, separator, suffix_kind
from ncpl.yaml_documents import read_yaml
from text_ncpl import read_scalar

Row = dict[str, Any]

MAX_BYTES = {"json": 2**27, "yaml": 2**19, "toml": 2**19, "python": 2**19, "shell": 2**19}
"""Bytes of a document that is read whole: what is parsed in about two seconds, JSON is the fastest."""
MAX_DEPTH = 64
"""Levels of nesting of a document."""
MAX_VALUES = 500_000
"""Values of a document that is not JSON: YAML's aliases make a short text a huge document."""
MAX_CELL = 2**20
"""Characters of a table's cell or of a text in a document."""
MAX_LINE = 2**24
"""Characters of a line."""
MAX_COLUMNS = 20_000
"""Columns of a table."""

_NOTHING = {"", "na", "n/a", "null", "none", "-", "--", "#n/a"}
_COMMA = re.compile(r"[-+]?(\d{1,3}(\.\d{3})+|\d+),\d+([eE][-+]?\d+)?", re.ASCII)
_THOUSANDS = re.compile(r"[-+]?\d{1,3}(,\d{3})+(\.\d+)?", re.ASCII)


def parse_value(text: str) -> Any:
    """`read_scalar` of a text, and the list where the text reads as one.

    >>> parse_value("1e-4"), parse_value("128"), parse_value("False"), parse_value("adamw"), parse_value("1_000")
    (0.0001, 128, False, 'adamw', '1_000')
    >>> parse_value("[(0, 0.0), (100, 1e-3)]")
    [[0, 0.0], [100, 0.001]]
    """
    text = text.strip()
    if text.startswith("["):
        # Pairs of a step and a learning rate, as Python or JSON writes them.
        try:
            return json.loads(text.translate(str.maketrans("()", "[]")))
        except (ValueError, RecursionError):
            return text
    return read_scalar(text)


def kind_of(path: str | Path) -> str:
    """The kind of a file: by its suffix, else by its first characters.

    Raises:
        ValueError: there is no such file, or it cannot be read.
    """
    kind = suffix_kind(path)
    if kind is not None:
        return kind
    with _bytes(path) as stream:
        return _told(stream)


def read_document(path: str | Path) -> Any:
    """What a JSON, YAML, TOML or Python file holds: dicts, lists, text, numbers, true, false and None.

    YAML is 1.2, without tags, its dates are text, and several documents are a list. Of a Python file only assignments
    of numbers, text and arithmetic are read; nothing is executed.

    Raises:
        ValueError: the file is missing, broken, too large or too deep, or gives a key twice; says where.
    """
    with _faults(path), _bytes(path) as stream:
        kind = suffix_kind(path) or _told(stream)
        if kind not in MAX_BYTES:
            raise ValueError(f"a file of kind {kind}, accepted: .json, .yaml, .toml or .py (assignments)")
        return _document(_text(stream, MAX_BYTES[kind]), kind)


def parse_document(text: str, kind: str = "yaml") -> Any:
    """`read_document` of text that is no file, such as a text box's.

    >>> parse_document("lr: 1e-3\\nnesterov: no\\ntime: 2:08")
    {'lr': 0.001, 'nesterov': 'no', 'time': '2:08'}
    """
    if len(text) > MAX_BYTES[kind]:
        raise ValueError(f"{len(text)} characters of {kind}, accepted: at most {MAX_BYTES[kind]}")
    return _document(text, kind)


def read_rows(path: str | Path) -> Iterator[Row]:
    """The rows of any file one after the other: of a table's or JSON lines' as they are read, of a document its
    mappings.

    Empty cells and `NA`, `null` are left out of a table's rows, NaN stays: a loss that is NaN says something.
    Separators (comma, semicolon, tab, bar), decimal commas, byte order marks and UTF-16 are recognised.

    Raises:
        ValueError: as `read_document`, or a table's row that does not fit its header; says where.
    """
    with _faults(path):
        if Path(path).suffix.lower() == ".parquet":
            yield from _parquet(path)
            return
        with _bytes(path) as stream:
            kind = suffix_kind(path) or _told(stream)
            if kind in ("csv", "jsonl"):
                with _decoded(stream) as text:
                    yield from (_csv if kind == "csv" else _jsonl)(text)
            elif kind in MAX_BYTES:
                yield from _mappings(_document(_text(stream, MAX_BYTES[kind]), kind))
            else:
                what = "a text log, which `ncpl import` reads" if kind == "log" else "a database"
                raise ValueError(f"{what}, accepted: {ACCEPTED}")


def read_cells(path: str | Path, count: int) -> tuple[list[str], Callable[[str], Any], Iterator[dict[str, list[str]]]]:
    """A CSV file by columns: its header, what makes a value of a cell, and blocks of `count` rows, name -> cells.

    Most cells of a long log are never looked at; `read_rows` makes a value of each.

    Raises:
        ValueError: as `read_rows`.
    """
    with _faults(path), _bytes(path) as stream, _decoded(stream) as text:
        header, mark, _ = _cells(text)

    def columns() -> Iterator[dict[str, list[str]]]:
        with _faults(path), _bytes(path) as stream, _decoded(stream) as text:
            _, _, rows = _cells(text)
            while block := list(itertools.islice(rows, count)):
                yield {
                    name: list(column) for name, column in zip(header, zip(*block, strict=True), strict=True) if name
                }

    return header, functools.partial(_cell, mark=mark), columns()


def read_growing(path: str | Path) -> list[Row]:
    """`read_rows` of a log that may still be written, JSON lines or a table: a last line without an end is left out.

    Raises:
        ValueError: as `read_rows`.
    """
    lines = list(read_lines(path))
    if len(lines) > 1 and not lines[-1].endswith("\n"):
        lines.pop()
    stream = io.StringIO("".join(lines), newline="")
    first = next((line for line in lines if line.strip()), "")
    with _faults(path):
        return list((_jsonl if first.lstrip().startswith(("{", "[")) else _csv)(stream))


def read_lines(path: str | Path) -> Iterator[str]:
    """The lines of a text file of any size.

    Raises:
        ValueError: it cannot be read, is no text, or has a line that is too long; says where.
    """
    with _faults(path), _bytes(path) as stream, _decoded(stream) as text:
        yield from _lines(text)


def read_file(path: str | Path, limit: int = 1_000_000) -> list[Row]:
    """`read_rows` as a list; a table's NaN is an absent cell here.

    Raises:
        ValueError: as there; no rows, or more than `limit`.
    """
    rows: list[Row] = []
    for row in read_rows(path):
        if len(rows) == limit:
            raise ValueError(f"{one_line(path, 120)}: more than {limit} rows, accepted: at most that many")
        rows.append(row)
    if kind_of(path) in ("csv", "parquet"):
        rows = [{name: value for name, value in row.items() if not _nothing(value)} for row in rows]
    if rows and "" in rows[0]:
        raise ValueError(f"{one_line(path, 120)}: column 1 has no name, expected a field's")
    if not rows:
        raise ValueError(
            f"{one_line(path, 120)}: holds nothing, expected at least one configuration (fields and values)"
        )
    return rows


def write_text(path: str | Path, text: str) -> None:
    """Writes a text file at once: readers see the old file or the new one, never a part.

    Raises:
        ValueError: it cannot be written; says why.

    >>> folder = tempfile.mkdtemp()
    >>> write_text(Path(folder, "note.txt"), "hello")
    >>> Path(folder, "note.txt").read_text()
    'hello'
    """
    path = Path(path)
    part = None
    try:
        mode = stat.S_IMODE(path.stat().st_mode) if path.exists() else None
        with tempfile.NamedTemporaryFile("wb", dir=path.parent, prefix=f".{path.name[:60]}.", delete=False) as file:
            part = Path(file.name)
            file.write(text.encode("utf-8"))
            file.flush()
            os.fsync(file.fileno())
        # Temporary files are private; others' umask decides for new ones.
        part.chmod(mode if mode is not None else 0o666 & ~_umask())
        part.replace(path)
    except (OSError, UnicodeEncodeError) as error:
        if part is not None:
            part.unlink(missing_ok=True)
        reason = error.strerror if isinstance(error, OSError) else "lone surrogates are no text"
        raise ValueError(one_line(f"{one_line(path, 150)}: cannot be written ({reason})")) from None


def write_json(path: str | Path, value: Any, indent: int = 2) -> None:
    """Writes a JSON file at once, NaN and infinities as null.

    Raises:
        ValueError: it cannot be written; says why.
    """
    write_text(path, json.dumps(_finite(value), indent=indent, allow_nan=False) + "\n")


# ------------------------------------------------------------------------------------------------ bytes and text


@contextmanager
def _faults(path: str | Path) -> Iterator[None]:
    """Names the file in front of what is wrong with it, in one line."""
    try:
        yield
    except ValueError as error:
        name = one_line(path, 120)
        message = str(error)
        if not message.startswith(f"{name}: "):
            message = f"{name}{message}" if message.startswith("[") else f"{name}: {message}"
        raise ValueError(one_line(message)) from None


STANDARD_INPUT = "standard input"
"""What messages call `-`."""


@contextmanager
def local(path: str | Path) -> Iterator[Path]:
    """A path that can be read twice: standard input, `-`, is copied to a file first, which errors call by its name.

    Raises:
        ValueError: what reading it raises.
    """
    if str(path) != "-":
        yield Path(path)
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, "stdin")
        with copy.open("wb") as file:
            shutil.copyfileobj(sys.stdin.buffer, file)
        try:
            yield copy
        except ValueError as error:
            raise ValueError(str(error).replace(str(copy), STANDARD_INPUT)) from None


@contextmanager
def _bytes(path: str | Path) -> "Iterator[io.BufferedReader[Any]]":
    """A regular file whose first characters can be peeked."""
    name = one_line(path, 120)
    try:
        mode = os.stat(path).st_mode  # noqa: PTH116 - a path may hold what `Path` refuses
        if not stat.S_ISREG(mode):
            what = "a folder" if stat.S_ISDIR(mode) else "a pipe or a device"
            raise ValueError(f"{name}: is {what}, expected {ACCEPTED}")
        stream = io.BufferedReader(io.FileIO(path), PEEK)
    except OSError as error:
        raise ValueError(f"{name}: cannot be read ({error.strerror}), accepted: {ACCEPTED}") from None
    with stream:
        head = stream.peek(512)[:512].lstrip(b"\xef\xbb\xbf \r\n\t").lower()
        for start, what in _NOT_OURS.items():
            if head.startswith(start):
                raise ValueError(f"{name}: {what}, expected {ACCEPTED}")
        yield stream


_NOT_OURS = {
    b"<!doctype": "is a web page, perhaps a sign-in form, not the file itself",
    b"<html": "is a web page, perhaps a sign-in form, not the file itself",
    b"pk\x03\x04": "is a zip archive or an Excel workbook; unpack it, or save it as CSV",
    b"\x1f\x8b": "is compressed by gzip; unpack it",
}


def _told(stream: io.BufferedReader) -> str:
    return kind_by_content(stream.peek(PEEK)[:PEEK])


@contextmanager
def _decoded(stream: io.BufferedReader) -> Iterator[IO[str]]:
    text = io.TextIOWrapper(stream, encoding=encoding(stream.peek(PEEK)), newline="")
    try:
        yield text
    finally:
        # The stream below is closed by who opened it.
        text.detach()


def _text(stream: io.BufferedReader, limit: int) -> str:
    data = stream.read(limit + 1)
    if len(data) > limit:
        raise ValueError(
            f"more than {limit:,} bytes, accepted: at most that many; JSON lines and CSV may be of any size"
        )
    try:
        return data.decode(encoding(data))
    except UnicodeDecodeError as error:
        raise ValueError(f"not {error.encoding.upper()} text ({error.reason} at byte {error.start})") from None


def _lines(stream: IO[str]) -> Iterator[str]:
    """Lines of bounded length."""
    number = 0
    while True:
        number += 1
        try:
            line = stream.readline(MAX_LINE + 1)
        except UnicodeDecodeError as error:
            raise ValueError(f"line {number} is not {error.encoding.upper()} text ({error.reason})") from None
        if not line:
            return
        if len(line) > MAX_LINE:
            raise ValueError(f"line {number} has more than {MAX_LINE:,} characters, accepted: at most that many")
        yield line


# ------------------------------------------------------------------------------------------------ documents


def _document(text: str, kind: str) -> Any:
    readers = {"json": _json, "yaml": read_yaml, "toml": _toml, "python": read_assignments, "shell": read_command_line}
    try:
        value = readers[kind](text)
        return _plain(value, math.inf if kind == "json" else MAX_VALUES)
    except RecursionError:
        raise ValueError(f"nested more than {MAX_DEPTH} levels deep, accepted: at most that many") from None


def _plain(value: Any, limit: float = math.inf) -> Any:
    """The same in plain Python values, within the limits.

    Raises:
        ValueError: too deep, too many values, too long a text, or a value of another kind.
    """
    count = 0

    def walk(value: Any, depth: int) -> Any:
        nonlocal count
        count += 1
        if depth > MAX_DEPTH:
            raise ValueError(f"nested more than {MAX_DEPTH} levels deep, accepted: at most that many")
        if count > limit:
            raise ValueError(f"more than {limit:,} values, accepted: at most that many")
        if _is_short(value):
            return value
        if isinstance(value, dict):
            found = {str(key): walk(item, depth + 1) for key, item in value.items()}
            if len(found) < len(value):
                raise ValueError(f"a key given twice, as text and as a number, among {short(list(value))}")
            return found
        if isinstance(value, list | tuple):
            return [walk(item, depth + 1) for item in value]
        if isinstance(value, str) and len(value) > MAX_CELL:
            raise ValueError(f"a text of {len(value):,} characters, accepted: at most {MAX_CELL:,}")
        if value is None or isinstance(value, bool | int | float | str):
            return value
        if hasattr(value, "isoformat"):
            return value.isoformat()
        raise ValueError(f"holds a value of type {type(value).__name__}, expected text, numbers, lists and mappings")

    return walk(value, 0)


def _mappings(document: Any) -> Iterator[Row]:
    rows = document if isinstance(document, list) else [document]
    for number, row in enumerate(rows):
        if row is None and len(rows) == 1:
            return
        if not isinstance(row, dict):
            at = f"[{number}]: " if len(rows) > 1 else ""
            raise ValueError(f"{at}holds {short(row)} ({type(row).__name__}), expected a mapping of fields to values")
        yield row


def _json(text: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_unique)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg} at line {error.lineno} column {error.colno}") from None


def _unique(pairs: list[tuple[str, Any]]) -> Row:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"{one_line(twice, 60)}: given twice in one object")
    return found


_DECODER = json.JSONDecoder(object_pairs_hook=_unique)


def _toml(text: str) -> Any:
    import tomllib

    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"not TOML: {error}") from None


# ------------------------------------------------------------------------------------------------ tables


def _csv(stream: IO[str]) -> Iterator[Row]:
    header, mark, rows = _cells(stream)
    for cells in rows:
        named = ((name, _cell(cell, mark)) for name, cell in zip(header, cells, strict=True))
        yield {name: value for name, value in named if value is not None}


def _cells(stream: IO[str]) -> tuple[list[str], str, Iterator[list[str]]]:
    """A table's header, its separator and the cells of its rows."""
    lines = _lines(stream)
    first = next((line for line in lines if line.strip() and not line.startswith("#")), "")
    mark = separator(first)
    if first.lower().startswith("sep=") and len(first.strip()) <= 5:
        # Spreadsheets name the separator in a line of its own.
        mark, first = first.strip()[4:] or ",", next((line for line in lines if line.strip()), "")
    old = csv.field_size_limit(MAX_CELL)
    try:
        reader = csv.reader(_chain(first, lines), delimiter=mark)
        header = [name.strip() for name in next(reader, [])]
    except csv.Error as error:
        raise ValueError(f"not a table: {error} (accepted: at most {MAX_CELL:,} characters a cell)") from None
    finally:
        csv.field_size_limit(old)
    _check_header(header)
    return header, mark, _checked(reader, header)


def _checked(reader: "Iterator[list[str]]", header: list[str]) -> Iterator[list[str]]:
    # Spreadsheets end every line with a separator; data frames number the rows in a first column.
    unnamed = [column for column, name in enumerate(header) if column and not name]
    width = len(header)
    old = csv.field_size_limit(MAX_CELL)
    try:
        for number, cells in enumerate(reader, 1):
            if len(cells) != width or not cells[0]:
                if not any(cell.strip() for cell in cells):
                    continue
                while len(cells) > width and not cells[-1].strip():
                    cells.pop()
                if len(cells) != width:
                    raise ValueError(f"row {number} has {len(cells)} cells, expected {width}, one for each column")
            for column in unnamed:
                if cells[column].strip():
                    raise ValueError(f"column {column + 1} has no name, expected a field's")
            yield cells
    except csv.Error as error:
        raise ValueError(f"not a table: {error} (accepted: at most {MAX_CELL:,} characters a cell)") from None
    finally:
        csv.field_size_limit(old)


def _chain(first: str, rest: Iterator[str]) -> Iterator[str]:
    yield first
    yield from rest


def _check_header(header: list[str]) -> None:
    if len(header) > MAX_COLUMNS:
        raise ValueError(f"{len(header):,} columns, accepted: at most {MAX_COLUMNS:,}")
    twice = [name for name, count in Counter(header).items() if count > 1 and name]
    if twice:
        raise ValueError(f"{one_line(twice[0], 60)}: there are two columns of this name, expected one")
    if header and all(isinstance(parse_value(name), int | float) for name in header if name):
        raise ValueError("the first row holds numbers alone, expected the names of the columns")


def _cell(text: str, mark: str) -> Any:
    """A cell's value; None where there is none."""
    text = text.strip()
    if text.lower() in _NOTHING:
        return None
    if "," in text:
        if mark != "," and _COMMA.fullmatch(text):
            return float(text.replace(".", "").replace(",", "."))
        if _THOUSANDS.fullmatch(text):
            return parse_value(text.replace(",", ""))
    return parse_value(text)


def _jsonl(stream: IO[str]) -> Iterator[Row]:
    for number, line in enumerate(_lines(stream), 1):
        if not line.strip():
            continue
        try:
            row = _DECODER.decode(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"line {number} is not JSON: {error.msg} at column {error.colno}") from None
        except RecursionError:
            raise ValueError(f"line {number} is nested too deep, accepted: at most {MAX_DEPTH} levels") from None
        except ValueError as error:
            raise ValueError(f"line {number}: {error}") from None
        if not isinstance(row, dict):
            raise ValueError(f"line {number} holds {short(row)}, expected a mapping of fields to values")
        plain = all(_is_short(v) or (type(v) is dict and all(map(_is_short, v.values()))) for v in row.values())
        yield row if plain else _plain(row)


def _is_short(value: Any) -> bool:
    """Whether a value is plain and within the limits at first sight."""
    kind = type(value)
    return kind is float or kind is int or (kind is str and len(value) <= MAX_CELL) or kind is bool or value is None


def _parquet(path: str | Path) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with _bytes(path):
        pass
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=10_000):
                for row in batch.to_pylist():
                    yield {name: value for name, value in _plain(row).items() if not _nothing(value)}
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"not Parquet: {error}") from None


def _nothing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


# ------------------------------------------------------------------------------------------------ writing


def _finite(value: Any) -> Any:
    """JSON has no NaN: what is absent is null."""
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
