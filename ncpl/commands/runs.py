"""Reading anyone's runs, and the registry of fields."""

from pathlib import Path
from typing import Annotated

import typer

from ncpl.commands.shared import ROWS, Json, absent, app, cell, check_folder, note, print_json, print_table, records
from ncpl.errors import short


@app.command(name="import")
def import_(
    path: Annotated[str, typer.Argument(help="File, folder of runs, or - for standard input.")],
    mapping: Annotated[
        list[str] | None, typer.Option("--map", metavar="THEIRS=OURS", help="A column's field; repeat for several.")
    ] = None,
    evaluation: Annotated[
        str | None, typer.Option("--eval", help="Part of the name of the loss to take, where several are logged.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "--output", help="File for the runs (.csv, .jsonl, .parquet).")
    ] = None,
    as_json: Json = False,
) -> None:
    """Read run logs and configurations into one table of runs.

    Its columns are the registry's fields, which `ncpl fields` lists.

    \b
    Examples:
      ncpl import wandb_export.csv --out runs.csv
      ncpl import outputs/ --map tok="data size" --eval c4
    """
    from ncpl.logs.importer import import_runs, report_lines, write_runs

    check_folder(out)
    given = {}
    for pair in mapping or []:
        theirs, equals, ours = pair.partition("=")
        if not equals or not theirs.strip() or not ours.strip():
            raise ValueError(f"map: got {short(pair)}, expected THEIRS=OURS")
        given[theirs.strip()] = ours.strip()
    runs = import_runs(path, given, evaluation)
    if out is not None:
        write_runs(runs, out)
    report = runs.attrs["report"]
    if as_json:
        print_json({"runs": records(runs), "report": report})
        return
    for line in report_lines(report):
        note(line)
    shown = records(runs.head(ROWS))
    print_table([{name: "" if absent(value) else cell(value) for name, value in row.items()} for row in shown])
    if len(runs) > ROWS:
        note(f"the first {ROWS} of {len(runs)} runs; --out FILE or --json gives all")


@app.command()
def fields(as_json: Json = False) -> None:
    """List the fields of a configuration, their units and ranges.

    \b
    Example:
      ncpl fields
    """
    from fields_ncpl import FIELDS, REQUIRED

    rows = [
        {
            "field": field.name,
            "unit": field.unit,
            "kind": field.kind,
            "low": field.low if field.kind in ("number", "count") else None,
            "high": field.high if field.kind in ("number", "count") else None,
            "zero": field.zero,
            "required": field.name in REQUIRED,
            "aliases": list(field.aliases),
        }
        for field in FIELDS.values()
    ]
    if as_json:
        print_json(rows)
        return
    for field in FIELDS.values():
        also = f"; also {', '.join(field.aliases)}" if field.aliases else ""
        print(f"{field.name}: {field.accepted}{', required' if field.name in REQUIRED else ''}{also}")
