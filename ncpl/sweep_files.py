"""Sweeps of any size into files: a grid is worked through in windows of its rows, so that its size costs no memory."""

import math
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Protocol

import pandas as pd
from tqdm import tqdm

from ncpl.grid import Grid
from ncpl.logs.importer import no_formula

# Rows forecast at a time: enough for a network's prompts to begin alike, few enough for any memory.
WINDOW = 16_384


class ForecastsWindows(Protocol):
    """What a sweep needs of a forecaster: the forecasts of some rows of a grid, under their numbers in it."""

    strict: bool

    def window(self, grid: Grid, start: int, stop: int, level: float) -> pd.DataFrame: ...


def forecast_grid(
    forecaster: ForecastsWindows, grid: Grid, level: float = 0.9, share: tuple[int, int] = (0, 1)
) -> Iterator[pd.DataFrame]:
    """Forecasts every combination of some fields' values, a window of rows at a time.

    Args:
        forecaster: forecasts windows.
        grid: the combinations.
        level: coverage of the interval.
        share: (i, n), for the i-th of n processes: its contiguous share of the rows.

    Yields:
        The swept fields, then `Forecaster.predict`'s columns, under the rows' numbers in the whole grid.
    """
    # Rounded up, so that the first process always has a row.
    first, last = (math.ceil(len(grid) * (share[0] + i) / share[1]) for i in (0, 1))
    with tqdm(total=last - first, desc="sweep", unit="config", delay=2, disable=share[0] > 0 or None) as progress:
        for start in range(first, last, WINDOW):
            stop = min(start + WINDOW, last)
            yield forecaster.window(grid, start, stop, level)
            progress.update(stop - start)


def write_sweep(
    forecaster: ForecastsWindows,
    config: Mapping[str, Any],
    fields: Mapping[str, Sequence[Any]],
    path: str | Path,
    level: float = 0.9,
    lowest: int = 20,
) -> pd.DataFrame:
    """Writes `forecast_grid`'s rows to a file as they come, in memory that does not grow with the grid.

    Under `accelerate launch` each process forecasts its share on its own device, and the first joins the parts.

    Args:
        forecaster: forecasts windows.
        config: the configuration that is varied.
        fields: field -> values.
        path: a `.csv` or `.parquet` file; it appears when it is complete.
        level: coverage of the interval.
        lowest: how many rows to return.

    Returns:
        The rows with the lowest losses, best first.

    Raises:
        ValueError: another kind of file, and what `Grid` refuses.
    """
    path = Path(path)
    if path.suffix not in _WRITERS:
        raise ValueError(f"{path}: a file of kind {path.suffix!r}, accepted: {', '.join(_WRITERS)}")
    grid = Grid(config, fields, forecaster.strict)
    rank, processes, gather = _processes()
    parts = [path.with_name(f"{path.name}.part{i}") for i in range(processes)]
    write, join = _WRITERS[path.suffix]
    best: list[pd.DataFrame] = []

    def frames() -> Iterator[pd.DataFrame]:
        for frame in forecast_grid(forecaster, grid, level, (rank, processes)):
            best[:] = [pd.concat([*best, frame]).nsmallest(lowest, "loss")]
            yield frame

    try:
        write(frames(), parts[rank])
    except OSError as error:
        with suppress(OSError):
            parts[rank].unlink(missing_ok=True)
        raise ValueError(f"{path}: cannot be written in {path.resolve().parent} ({error.strerror or error})") from None
    except BaseException:
        parts[rank].unlink(missing_ok=True)
        raise
    # Gathering waits for the others, whose parts are then complete.
    best = gather(best)
    if rank == 0:
        if processes > 1:
            join(parts[0], parts[1:])
        parts[0].replace(path)
    return pd.concat(best).nsmallest(lowest, "loss")


def _processes() -> tuple[int, int, Any]:
    """This process's number, how many there are, and what gathers a list over all of them."""
    if os.environ.get("WORLD_SIZE", "1") == "1":
        return 0, 1, list
    # Only here, because it brings torch.
    import torch
    from accelerate import PartialState
    from accelerate.utils import gather_object

    state = PartialState(cpu=not torch.cuda.is_available())
    return state.process_index, state.num_processes, gather_object


def _write_csv(frames: Iterable[pd.DataFrame], path: Path) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        for frame in frames:
            texts = [name for name in frame if not pd.api.types.is_numeric_dtype(frame[name])]
            frame = frame.assign(**{str(name): frame[name].map(no_formula) for name in texts})
            # One header for the whole grid, whoever writes its first row.
            frame.to_csv(file, index=False, header=frame.index[0] == 0)


def _join_csv(first: Path, others: Sequence[Path]) -> None:
    with first.open("ab") as file:
        for part in others:
            with part.open("rb") as rows:
                shutil.copyfileobj(rows, file)
            part.unlink()


def _write_parquet(frames: Iterable[pd.DataFrame], path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with ExitStack() as stack:
        writer = None
        for frame in frames:
            table = pa.Table.from_pandas(frame, preserve_index=False)
            writer = writer or stack.enter_context(pq.ParquetWriter(path, table.schema))
            writer.write_table(table)


def _join_parquet(first: Path, others: Sequence[Path]) -> None:
    import pyarrow.parquet as pq

    joined = first.with_name(f"{first.name}.joined")
    with pq.ParquetWriter(joined, pq.read_schema(first)) as writer:
        # More processes than rows: some have no part.
        for part in filter(Path.exists, (first, *others)):
            file = pq.ParquetFile(part)
            for group in range(file.num_row_groups):
                writer.write_table(file.read_row_group(group))
            part.unlink()
    joined.replace(first)


_WRITERS = {".csv": (_write_csv, _join_csv), ".parquet": (_write_parquet, _join_parquet)}
