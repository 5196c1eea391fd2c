"""Accuracy against logged runs, and benchmark scores."""

import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    import pandas as pd

from ncpl.commands.shared import (
    Json,
    Level,
    Model,
    Save,
    app,
    check_folder,
    check_picture,
    load,
    print_json,
    print_table,
    quiet_loading,
    records,
    tell,
    with_notes,
)


@app.command()
def evaluate(
    model: Model = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="Folder of the run logs; default: download the public ones.")
    ] = None,
    split: Annotated[list[str] | None, typer.Option(help="train, in_val or ood_val; repeat for several.")] = None,
    level: Level = 0.9,
    output: Annotated[Path | None, typer.Option("--output", "--out", help="JSON file for the result.")] = None,
    figure: Annotated[
        Path | None, typer.Option("--save", "--figure", help="Picture of predicted against observed losses.")
    ] = None,
    calibration: Annotated[Path | None, typer.Option(help="Picture of measured against asked coverage.")] = None,
    as_json: Json = False,
) -> None:
    """Compare forecasts with what logged runs gave.

    Errors for each source and split, beside those of the model's prior and, where the data folder holds them, of the
    paper's predictions for the same runs. A source is left out, with a note, whose runs the folder does not hold or
    that the checkpoint's prior does not know.

    \b
    Example:
      ncpl evaluate --data-dir logs --output result.json --save scatter.png
    """
    check_folder(output)
    check_picture(figure)
    check_picture(calibration)
    import datasets

    from ncpl.evaluation import DEFAULT_SPLITS, evaluation_report, forecast_runs, table
    from ncpl.files import write_json

    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    forecaster = load(model)
    runs = forecast_runs(forecaster, data_dir, split or DEFAULT_SPLITS, level)
    report = evaluation_report(runs, model or "ncpl-mini", data_dir, level)
    if output is not None:
        write_json(output, report)
    if figure is not None:
        from ncpl.figures import scatter

        scatter(runs).save(figure)
    if calibration is not None:
        from ncpl.figures import reliability

        reliability(runs).save(calibration)
    if as_json:
        print_json(report)
    else:
        print_table(table(report))


@app.command()
def benchmarks(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="MODEL",
            help="Files (YAML, JSON, JSON lines, CSV) of descriptions or of runs' configurations, a Hub model's "
            "config.json, and FIELD=VALUE.",
        ),
    ] = None,
    params: Annotated[str | None, typer.Option(help="Parameters, such as 7e9.")] = None,
    tokens: Annotated[str | None, typer.Option(help="Training tokens, such as 2e12.")] = None,
    like: Annotated[str | None, typer.Option(help="A known family whose data quality is assumed.")] = None,
    level: Level = 0.9,
    model: Annotated[str, typer.Option(help="Score predictor: folder, Hub id or embedded name.")] = "nsp-base",
    save: Save = None,
    as_json: Json = False,
) -> None:
    """Forecast the benchmark scores of models that do not exist yet.

    A run's configuration gives its loss first, and the scores that go with the loss. --save draws the scores of the
    models, or without any model those of all tasks over compute.

    \b
    Examples:
      ncpl benchmarks --params 7e9 --tokens 2e12 --like Llama-2
      ncpl benchmarks models.csv --json
      ncpl benchmarks examples/marin-1b.yaml
    """
    from modeling_nsp import NSPModel
    from ncpl.configs import read_configs
    from ncpl.files import parse_value

    rows = read_configs(models, translate=False)[0] if models else []
    named = {name: parse_value(text) for name, text in (("params", params), ("tokens", tokens)) if text is not None}
    if named:
        rows.append(named)
    if not rows and save is None:
        raise ValueError("models: got none, expected files, or --params and --tokens")
    check_picture(save)
    quiet_loading(model)
    predictor = NSPModel.from_pretrained(model).eval()
    if not rows and save is not None:
        from ncpl.figures import scores_over_compute

        scores_over_compute(predictor, level=level).save(save)
        return
    found = load(None).benchmarks(rows, like, level, predictor)
    notes = found.attrs.get("notes", [])
    tell(notes)
    if save is not None:
        from ncpl.figures import scores

        scores(found, level).save(save)
    if as_json:
        print_json(with_notes(records(found), notes) if notes else records(found))
        return
    print_scores(found, level)


def print_scores(found: "pd.DataFrame", level: float) -> None:
    """The scores of each model as a table."""
    import pandas as pd

    from ncpl.nsp.benchmarks import by_task

    for row in records(found):
        tokens_text = "unknown" if math.isnan(row["tokens"]) else f"{row['tokens']:.3g}"
        outside = ", outside the sizes seen in training" if row["extrapolation"] else ""
        print(f"{row['params']:.3g} parameters, {tokens_text} tokens{outside}")
        if "loss" in row:
            print(
                f"loss {row['loss']:.4f} ({row['loss_lower']:.4f} to {row['loss_upper']:.4f}), "
                f"P(divergence) {row['divergence']:.3f}; {row['assumption']}"
            )
        scored = records(by_task(pd.Series(row)))
        ladder = [score for score in scored if score["task"].startswith("olmo_")]
        print_table(_score_rows([score for score in scored if score not in ladder], level))
        if ladder:
            print("in the setting of AI2's model ladder, whose tasks of the same name score otherwise, from the loss:")
            print_table(_score_rows(ladder, level))


def _score_rows(scored: list[dict[str, Any]], level: float) -> list[dict[str, str]]:
    rows = []
    for score in scored:
        cells = {"task": score["task"], "score": f"{score['score']:.3f}"}
        cells[f"{level * 100:g} % interval"] = f"{score['lower']:.3f} to {score['upper']:.3f}"
        if not math.isnan(score["above chance"]):
            cells["past chance"] = f"{score['above chance']:.0%}"
        rows.append(cells)
    return rows
