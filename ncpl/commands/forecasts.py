"""Forecasts of configurations: one, a curve, a grid, the best."""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    import pandas as pd

    from ncpl import Forecaster
    from ncpl.drawing import Picture

from ncpl.commands.shared import (
    ROWS,
    Configs,
    Json,
    Level,
    Model,
    Save,
    Window,
    app,
    cell,
    check_folder,
    check_picture,
    forecast_rows,
    load,
    note,
    print_json,
    print_table,
    records,
    tell,
    with_notes,
    without_nan,
)


@app.command()
def predict(
    configs: Configs, model: Model = None, level: Level = 0.9, save: Save = None, as_json: Json = False
) -> None:
    """Forecast the final loss of configurations.

    --save draws one configuration in its valley over the learning rate, several beside one another.

    \b
    Examples:
      ncpl predict examples/marin-1b.yaml examples/steplaw-1b.yaml
      ncpl predict examples/marin-1b.yaml learning_rate=2e-3 batch_size=256
    """
    from ncpl.configs import read_configs

    check_picture(save)
    rows, origins = read_configs(configs)
    forecaster = load(model)
    # Checked here already, where their files are known.
    checked = forecaster.check(rows, origins if len(rows) > 1 else None)
    forecast = forecaster.predict(checked, level)
    notes = forecast.attrs["notes"]
    tell(notes)
    if save is not None:
        from ncpl import plots

        one = len(checked) == 1
        picture = _in_its_valley(forecaster, checked[0], forecast, level) if one else plots.forecasts(forecast, origins)
        picture.save(save)
    if as_json:
        rows = [{"configuration": origin, **row} for origin, row in zip(origins, records(forecast), strict=True)]
        print_json(with_notes(rows, notes))
        return
    forecast.insert(0, "configuration", origins)
    print_table(forecast_rows(forecast, level))


def _in_its_valley(
    forecaster: "Forecaster", config: dict[str, Any], forecast: "pd.DataFrame", level: float
) -> "Picture":
    from ncpl import plots
    from ncpl.views import valley

    mark = {"learning rate": float(config["learning rate"]), "loss": float(forecast["loss"].iloc[0])}
    return plots.sweep(valley(forecaster, config, level), mark)


@app.command()
def curve(
    configs: Configs,
    model: Model = None,
    points: Annotated[int, typer.Option(help="Points, evenly spaced over the run.")] = 20,
    observed: Annotated[
        Path | None, typer.Option(help="Log of the run's first part, as `ncpl watch` reads it.")
    ] = None,
    window: Window = 1,
    level: Level = 0.9,
    save: Save = None,
    as_json: Json = False,
) -> None:
    """Forecast loss curves, before a run or from its first part.

    \b
    Example:
      ncpl curve examples/marin-1b.yaml lr_schedule=wsd decay=0.2
    """
    from ncpl.configs import read_configs
    from ncpl.curves import condition, spoken
    from ncpl.run_log import read_log

    check_picture(save)
    rows, origins = read_configs(configs)
    if observed is not None and len(rows) > 1:
        raise ValueError(f"observed: got {len(rows)} configurations, the second {origins[1]}, expected one")
    seen = None if observed is None else read_log(observed)
    forecaster = load(model)
    tables = [forecaster.curve(row, points, seen, level, window) for row in rows]
    if save is not None:
        from ncpl.figures import DENSE, curves

        # Few points of the table would be drawn as a line with corners, which lies above the curve.
        drawn = [forecaster.curve(row, max(points, DENSE), seen, level, window) for row in rows]
        curves(dict(zip(origins, zip(rows, drawn, strict=True), strict=True)), seen).save(save)
    several = [table.assign(configuration=origin) for origin, table in zip(origins, tables, strict=True)]
    shown = [row for table in (several if len(rows) > 1 else tables) for row in records(table)]
    report = tables[0].attrs.get("report")
    said = [{name: cell(value) for name, value in row.items()} for row in shown]
    notes = list(dict.fromkeys(message for table in tables for message in table.attrs["notes"]))
    tell(notes)
    if as_json:
        print_json({"curve": shown, "report": report, "notes": notes} if report else with_notes(shown, notes))
    else:
        if holds := condition(report):
            # What is forecast are the rows from the log's end on.
            for row, values in zip(said, shown, strict=True):
                row["holds"] = holds if values["step"] >= tables[0].attrs["seen"] else ""
        print_table(said)
    if text := spoken(report):
        note(text)


@app.command()
def watch(
    log: Annotated[
        Path, typer.Argument(metavar="LOG", help="Log that is being written: CSV, JSON lines, what a training prints.")
    ],
    configs: Configs,
    model: Model = None,
    window: Window = 1,
    every: Annotated[float, typer.Option(help="Seconds between two looks at the log; 0 looks once.")] = 10.0,
    level: Level = 0.9,
    as_json: Json = False,
) -> None:
    """Forecast the final loss of a run from its growing log.

    \b
    Example:
      ncpl watch train.csv examples/marin-1b.yaml
    """
    from ncpl.configs import read_configs
    from ncpl.run_log import read_log

    rows, origins = read_configs(configs)
    if len(rows) > 1:
        raise ValueError(f"configurations: got {len(rows)}, the second {origins[1]}, expected one")
    # The first forecast may take a while, or its first point.
    seen = len(read_log(log)["loss"])
    if not every and not seen:
        raise ValueError(f"{log}: no points yet, expected at least one step with its loss")
    note(f"{log}: {seen} points" if seen else f"{log}: no points yet, waiting for the first")
    from ncpl.curves import condition, spoken
    from ncpl.live import follow

    told: set[str] = set()
    for found in follow(log, rows[0], load(model), level, window, every or None):
        tell([message for message in found["notes"] if message not in told])
        told.update(found["notes"])
        if as_json:
            print(json.dumps(without_nan(found)), flush=True)
        else:
            interval = f"{level * 100:g} % {found['lower']:.4f} to {found['upper']:.4f}"
            loss = " ".join(text for text in (f"{found['loss']:.4f}", condition(found)) if text)
            print(f"step {found['step']:g}: final loss {loss} ({interval})", flush=True)
            if text := spoken(found):
                note(text)


@app.command()
def sweep(
    configs: Configs,
    model: Model = None,
    level: Level = 0.9,
    output: Annotated[
        Path | None, typer.Option("--output", "--out", help="File for all rows (.csv, .parquet); a grid of any size.")
    ] = None,
    save: Save = None,
    as_json: Json = False,
) -> None:
    """Forecast every combination of some fields' values.

    FIELD=A,B,C gives a field's values, FIELD=LOW:HIGH:COUNT so many of them in equal ratios. --save draws one field, or
    two numeric ones; not with --output, whose grid may be of any size.

    \b
    Example:
      ncpl sweep examples/marin-1b.yaml lr=1e-3:1e-2:9 batch_size=64,128,256
    """
    from ncpl.configs import read_grid

    check_folder(output)
    check_picture(save)
    if save is not None and output is not None:
        raise ValueError(
            "save: given with --output, which writes rows one after the other and keeps none for a picture; "
            "run the sweep a second time with --save and without --output"
        )
    config, grid = read_grid(configs)
    forecaster = load(model)
    if output is None:
        forecast = forecaster.sweep(config, grid, level)
        tell(forecast.attrs["notes"])
        if save is not None:
            forecast.plot().save(save)
        shown: pd.DataFrame = forecast if as_json or len(forecast) <= ROWS else forecast.nsmallest(ROWS, "loss")
        if len(shown) < len(forecast):
            note(f"the {ROWS} lowest losses of {len(forecast)}; --output FILE or --json gives all")
    else:
        from ncpl.sweep_files import write_sweep

        shown = write_sweep(forecaster, config, grid, output, level, ROWS)
        if os.environ.get("RANK", "0") != "0":
            # `accelerate launch` runs several processes; one of them prints.
            return
        note(f"all rows are in {output}; these are the lowest losses")
    if as_json:
        print_json(with_notes(records(shown), shown.attrs.get("notes", [])))
    else:
        print_table(forecast_rows(shown, level))


@app.command()
def optimize(
    configs: Configs,
    model: Model = None,
    multiple: Annotated[
        list[str] | None, typer.Option(help="FIELD=N: the field is a multiple of N, as batch_size=64; repeatable.")
    ] = None,
    divergence: Annotated[float | None, typer.Option(help="Highest probability to diverge; default: 0.5.")] = None,
    batch_tokens: Annotated[str | None, typer.Option(help="Most tokens of a batch, such as 4e6 or 4M.")] = None,
    within: Annotated[float, typer.Option(help="Nats over the lowest loss that count as equally good.")] = 0.002,
    level: Level = 0.9,
    save: Save = None,
    as_json: Json = False,
) -> None:
    """Find the values of some fields with the lowest loss.

    FIELD=LOW:HIGH makes a field free within its bounds, FIELD=A,B among choices. For each: where it starts, its best
    value, how far it goes while the loss stays within --within nats, and what it is worth: the loss given up if it
    stays at its start while the others are at their best.

    \b
    Examples:
      ncpl optimize examples/marin-1b.yaml lr=1e-4:1e-2 batch_size=32:1024
      ncpl optimize examples/marin-1b.yaml lr=1e-4:1e-2 optimizer=adamw,muon
      ncpl optimize examples/marin-1b.yaml batch_size=32:1024 --multiple batch_size=64
    """
    from ncpl.configs import read_bounds
    from ncpl.optimize import constraints_of, optimized_tables

    check_picture(save)
    constraints = constraints_of(multiple or [], divergence, batch_tokens)
    config, bounds = read_bounds(configs)
    found = load(model).optimize(config, bounds, level, constraints=constraints, within=within)
    notes = found.attrs["notes"]
    tell(notes)
    if save is not None:
        found.plot().save(save)
    if as_json:
        print_json(with_notes(records(found.to_frame().T), notes)[0])
        return
    for rows in optimized_tables(found, level, within):
        print_table(rows)
