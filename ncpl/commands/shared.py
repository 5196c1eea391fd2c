"""What the commands share: the app, common arguments, tables, JSON, notes and errors."""

import json
import math
import os
import sys
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

if TYPE_CHECKING:
    import pandas as pd
    from rich.table import Table

    from ncpl import Forecaster

# Without markup `--help` needs no rich, which would take most of its time.
app = typer.Typer(name="ncpl", add_completion=False, rich_markup_mode=None)

Configs = Annotated[
    list[str],
    typer.Argument(
        metavar="CONFIG",
        help="Files (YAML, JSON, JSON lines, CSV) and FIELD=VALUE. With files, the values change each configuration.",
    ),
]

Model = Annotated[str | None, typer.Option(help="Checkpoint folder or Hub id; default: the embedded ncpl-mini.")]

Level = Annotated[
    float, typer.Option(help="Coverage of the interval, between 0 and 1.", parser=lambda text: coverage(text))
]

Window = Annotated[int, typer.Option(help="Steps that each logged loss is the mean of.")]

Save = Annotated[Path | None, typer.Option(help="Picture of the result (.png, .pdf, .svg, .html).")]

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


@app.callback(invoke_without_command=True)
def ncpl(
    context: typer.Context,
    show_version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Forecast what an LLM pretraining run will give, before it is run.

    \b
    Example:
      ncpl predict examples/marin-1b.yaml
    """
    if show_version:
        print(f"ncpl {version('ncpl')}")
    elif context.invoked_subcommand is None:
        print(context.get_help())
    elif context.invoked_subcommand != "train":
        # A law's matrices are small: several threads mostly wait for each other. Read when numpy is imported.
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def absent(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def show_traceback() -> None:
    if "--debug" in sys.argv:
        import traceback

        traceback.print_exc()


# Columns of a table that fit 80 characters.
MOST_COLUMNS = 6
# Rows of a sweep that a person is shown.
ROWS = 30

# Columns of words, which read from the left.
WORDS = ("", "configuration", "published law", "optimizer", "task")

FORECAST = ("loss", "lower", "upper", "divergence", "extrapolation")


def load(model: str | None) -> "Forecaster":
    from ncpl import Forecaster

    return Forecaster.from_pretrained(model)


def quiet_loading(model: str | None) -> None:
    """A folder's and an embedded model's weights are there at once; a download deserves its bar."""
    from transformers.utils import logging

    if model is None or "/" not in model or Path(model).is_dir() or not sys.stderr.isatty():
        logging.disable_progress_bar()


def forecast_rows(forecast: "pd.DataFrame", level: float) -> list[dict[str, str]]:
    """Inputs as they are, then the loss, and what the calibration says where there is one."""
    from calibration_ncpl import distance_in_words

    rows = []
    for row in records(forecast):
        cells = {name: cell(value) for name, value in row.items() if name not in FORECAST}
        cells["loss (nats per token)"] = f"{row['loss']:.4f}"
        if not math.isnan(row["lower"]):
            cells[f"{level * 100:g} % interval"] = f"{row['lower']:.4f} to {row['upper']:.4f}"
            cells["P(divergence)"] = f"{row['divergence']:.3f}"
            cells["extrapolation"] = f"{row['extrapolation']:.2f} {distance_in_words(row['extrapolation'])}"
        rows.append(cells)
    return rows


def with_notes(rows: list[dict[str, Any]], notes: list[str]) -> list[dict[str, Any]]:
    """Records for JSON, each with what has to be known of the forecasts."""
    return [{**row, "notes": notes} for row in rows]


def cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def records(table: "pd.DataFrame") -> list[dict[str, Any]]:
    return [{str(name): value for name, value in row.items()} for row in table.to_dict("records")]


def without_nan(value: Any) -> Any:
    """JSON has no NaN: what is absent is null."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def print_json(value: Any) -> None:
    print(json.dumps(without_nan(value), indent=2, allow_nan=False))


def print_table(shown: "list[dict[str, str]] | Table") -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    if isinstance(shown, Table):
        table = shown
    elif len(shown) == 1 and len(shown[0]) > MOST_COLUMNS:
        # One value a line, where 80 columns would cut them.
        table = Table(box=box.SIMPLE, show_header=False)
        for name, value in shown[0].items():
            table.add_row(name, value)
    else:
        table = Table(box=box.SIMPLE_HEAD)
        for name in shown[0]:
            table.add_column(name, justify="left" if name in WORDS else "right")
        for row in shown:
            table.add_row(*row.values())
    # A pipe has no width: rows are kept whole.
    Console(width=None if sys.stdout.isatty() else 200).print(table)


def coverage(text: str | float) -> float:
    """typer's own message would not say what came."""
    from text_ncpl import parse_level

    try:
        return parse_level(str(text))
    except ValueError as error:
        raise typer.BadParameter(str(error).removeprefix("level: ")) from None


def check_folder(path: Path | None) -> None:
    """Better said before the work than after."""
    if path is not None and (not path.parent.is_dir() or path.is_dir()):
        what = "is a folder" if path.is_dir() else f"there is no folder {path.parent}"
        raise ValueError(f"{path}: cannot be written, {what}; accepted: a file in an existing folder")


def check_picture(path: Path | None) -> None:
    """The same for a picture, whose suffix says its kind."""
    check_folder(path)
    if path is not None:
        from ncpl.drawing import check_suffix

        check_suffix(path)


# What this command has noted already.
_noted: set[str] = set()


def note(message: str) -> None:
    """Prints a note beside the output, once."""
    from text_ncpl import one_line

    if message not in _noted:
        _noted.add(message)
        print(f"note: {one_line(message, 2000)}", file=sys.stderr)


def tell(notes: list[str]) -> None:
    """Prints a forecast's notes."""
    for message in notes:
        note(message)


def forget_notes() -> None:
    """For the next command of one process."""
    _noted.clear()


def fail(message: str) -> NoReturn:
    from text_ncpl import one_line

    print(f"error: {one_line(message)}", file=sys.stderr)
    sys.exit(2)
