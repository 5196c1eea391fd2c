"""The `ncpl` command.

It lives outside the package because importing `ncpl` imports torch: `ncpl --help` must not wait for that, so every
command imports what it needs when it runs.
"""

import json
import math
import os
import sys
import warnings
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
    float, typer.Option(help="Coverage of the interval, between 0 and 1.", parser=lambda text: _coverage(text))
]
Window = Annotated[int, typer.Option(help="Steps that each logged loss is the mean of.")]
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


@app.command()
def predict(configs: Configs, model: Model = None, level: Level = 0.9, as_json: Json = False) -> None:
    """Forecast the final loss of configurations.

    \b
    Examples:
      ncpl predict examples/marin-1b.yaml examples/steplaw-1b.yaml
      ncpl predict examples/marin-1b.yaml learning_rate=2e-3 batch_size=256
    """
    from ncpl.configs import check_configs, read_configs

    rows, origins = read_configs(configs)
    forecaster = _load(model)
    # Checked here already, where their files are known.
    checked = check_configs(rows, forecaster.strict, origins if len(rows) > 1 else None)
    forecast = forecaster.predict(checked, level)
    if as_json:
        _print_json([{"configuration": origin, **row} for origin, row in zip(origins, _records(forecast), strict=True)])
        return
    forecast.insert(0, "configuration", origins)
    _print(_forecast_rows(forecast, level))
    if forecaster.calibration is not None:
        _note_extrapolation(origins, forecaster.calibration.extrapolation_by_field(checked))


@app.command()
def curve(
    configs: Configs,
    model: Model = None,
    points: Annotated[int, typer.Option(help="Points, evenly spaced over the run.")] = 20,
    observed: Annotated[Path | None, typer.Option(help="Log of the run's first part (CSV, JSON lines).")] = None,
    window: Window = 1,
    level: Level = 0.9,
    save: Annotated[Path | None, typer.Option(help="Figure of the curves, their bands and schedules.")] = None,
    as_json: Json = False,
) -> None:
    """Forecast loss curves, before a run or from its first part.

    \b
    Example:
      ncpl curve examples/marin-1b.yaml lr_schedule=wsd decay=0.2
    """
    from ncpl.configs import read_configs
    from ncpl.curves import read_log, spoken

    _check_folder(save)
    rows, origins = read_configs(configs)
    if observed is not None and len(rows) > 1:
        raise ValueError(f"observed: got {len(rows)} configurations, the second {origins[1]}, expected one")
    seen = None if observed is None else read_log(observed)
    forecaster = _load(model)
    tables = [forecaster.curve(row, points, seen, level, window) for row in rows]
    if save is not None:
        from ncpl.figures import curves

        curves(dict(zip(origins, zip(rows, tables, strict=True), strict=True)), save, seen)
    several = [table.assign(configuration=origin) for origin, table in zip(origins, tables, strict=True)]
    shown = [row for table in (several if len(rows) > 1 else tables) for row in _records(table)]
    report = tables[0].attrs.get("report")
    said = [{name: _cell(value) for name, value in row.items()} for row in shown]
    _print_json({"curve": shown, "report": report} if report else shown) if as_json else _print(said)
    if text := spoken(report):
        _note(text)


@app.command()
def watch(
    log: Annotated[Path, typer.Argument(metavar="LOG", help="Log that is being written: CSV, TSV or JSON lines.")],
    configs: Configs,
    model: Model = None,
    window: Window = 1,
    every: Annotated[float, typer.Option(help="Seconds between two looks at the log; 0 looks once.")] = 10.0,
    level: Level = 0.9,
    as_json: Json = False,
) -> None:
    """Forecast the final loss of a run while it trains, from its growing log.

    \b
    Example:
      ncpl watch train.csv examples/marin-1b.yaml
    """
    from ncpl.callback import follow
    from ncpl.configs import read_configs
    from ncpl.curves import spoken

    rows, origins = read_configs(configs)
    if len(rows) > 1:
        raise ValueError(f"configurations: got {len(rows)}, the second {origins[1]}, expected one")
    for found in follow(log, rows[0], _load(model), level, window, every or None):
        if as_json:
            print(json.dumps(_plain(found)), flush=True)
        else:
            interval = f"{level * 100:g} % {found['lower']:.4f} to {found['upper']:.4f}"
            print(f"step {found['step']:g}: final loss {found['loss']:.4f} ({interval})", flush=True)
            if text := spoken(found):
                _note(text)


@app.command()
def sweep(
    configs: Configs,
    model: Model = None,
    level: Level = 0.9,
    output: Annotated[
        Path | None, typer.Option(help="File for all rows (.csv, .parquet), of a grid of any size.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Forecast every combination of some fields' values.

    FIELD=A,B,C gives a field's values, FIELD=LOW:HIGH:COUNT so many of them in equal ratios.

    \b
    Example:
      ncpl sweep examples/marin-1b.yaml lr=1e-3:1e-2:9 batch_size=64,128,256
    """
    from ncpl.configs import read_grid

    _check_folder(output)
    config, grid = read_grid(configs)
    forecaster = _load(model)
    if output is None:
        forecast = forecaster.sweep(config, grid, level)
        shown = forecast if as_json or len(forecast) <= _ROWS else forecast.nsmallest(_ROWS, "loss")
        if len(shown) < len(forecast):
            _note(f"the {_ROWS} lowest losses of {len(forecast)}; --output FILE or --json gives all")
    else:
        from ncpl.sweep_files import write_sweep

        shown = write_sweep(forecaster, config, grid, output, level, _ROWS)
        if os.environ.get("RANK", "0") != "0":
            # `accelerate launch` runs several processes; one of them speaks.
            return
        _note(f"all rows are in {output}; these are the lowest losses")
    if as_json:
        _print_json(_records(shown))
    else:
        _print(_forecast_rows(shown, level))


@app.command()
def optimize(configs: Configs, model: Model = None, level: Level = 0.9, as_json: Json = False) -> None:
    """Find the values within bounds to bet on: those with the lowest loss to expect.

    FIELD=LOW:HIGH makes a field free within its bounds.

    \b
    Example:
      ncpl optimize examples/marin-1b.yaml lr=1e-4:1e-2 batch_size=32:1024
    """
    from ncpl.configs import read_bounds

    config, bounds = read_bounds(configs)
    best = _load(model).optimize(config, bounds, level).to_frame().T
    if as_json:
        _print_json(_records(best)[0])
    else:
        _print(_forecast_rows(best, level))


@app.command()
def evaluate(
    model: Model = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="Folder of the run logs; default: download the public ones.")
    ] = None,
    split: Annotated[list[str] | None, typer.Option(help="train, in_val or ood_val; repeat for several.")] = None,
    level: Level = 0.9,
    output: Annotated[Path | None, typer.Option(help="JSON file for the result.")] = None,
    figure: Annotated[Path | None, typer.Option(help="Image file for predicted against observed losses.")] = None,
    calibration: Annotated[Path | None, typer.Option(help="Image file for measured against asked coverage.")] = None,
    as_json: Json = False,
) -> None:
    """Compare forecasts with what logged runs gave.

    Errors for each source and split, beside those of the model's prior and, where the data folder holds them, of the
    paper's predictions for the same runs. A source is left out, with a note, whose runs the folder does not hold or
    that the checkpoint's prior does not know.

    \b
    Example:
      ncpl evaluate --data-dir logs --output result.json --figure scatter.png
    """
    _check_folder(output)
    _check_folder(figure)
    _check_folder(calibration)
    import datasets

    from ncpl.evaluation import DEFAULT_SPLITS, evaluation_report, forecast_runs, table

    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    forecaster = _load(model)
    runs = forecast_runs(forecaster, data_dir, split or DEFAULT_SPLITS, level)
    report = evaluation_report(runs, model or "ncpl-mini", data_dir, level)
    if output is not None:
        _write(output, json.dumps(_plain(report), indent=2, allow_nan=False) + "\n")
    if figure is not None:
        from ncpl.figures import scatter

        scatter(runs, figure)
    if calibration is not None:
        from ncpl.figures import reliability

        reliability(runs, calibration)
    if as_json:
        _print_json(report)
    else:
        _print(table(report))


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
    figure: Annotated[Path | None, typer.Option(help="Picture of all tasks over compute (.png, .svg, .pdf).")] = None,
    as_json: Json = False,
) -> None:
    """Forecast the benchmark scores of models that do not exist yet.

    A run's configuration gives its loss first, and the scores that go with the loss.

    \b
    Examples:
      ncpl benchmarks --params 7e9 --tokens 2e12 --like Llama-2
      ncpl benchmarks models.csv --json
      ncpl benchmarks examples/marin-1b.yaml
    """
    from modeling_nsp import NSPModel
    from ncpl.configs import read_configs
    from ncpl.files import parse_value
    from ncpl.nsp.benchmarks import are_configurations, benchmarks

    rows = read_configs(models, translate=False)[0] if models else []
    named = {name: parse_value(text) for name, text in (("params", params), ("tokens", tokens)) if text is not None}
    if named:
        rows.append(named)
    if not rows and figure is None:
        raise ValueError("models: got none, expected files, or --params and --tokens")
    _check_folder(figure)
    _quiet_loading(model)
    predictor = NSPModel.from_pretrained(model).eval()
    if figure is not None:
        from ncpl.figures import scores_over_compute

        scores_over_compute(predictor, level=level).savefig(figure, dpi=150)
    if not rows:
        return
    if are_configurations(rows):
        from ncpl import Forecaster

        found = Forecaster.from_pretrained().benchmarks(rows, like, level, predictor)
    else:
        found = benchmarks(rows, like, level, predictor)
    if as_json:
        _print_json(_records(found))
        return
    for row in _records(found):
        tokens_text = "unknown" if math.isnan(row["tokens"]) else f"{row['tokens']:.3g}"
        outside = ", outside the sizes seen in training" if row["extrapolation"] else ""
        print(f"{row['params']:.3g} parameters, {tokens_text} tokens{outside}")
        if "loss" in row:
            print(
                f"loss {row['loss']:.4f} ({row['loss_lower']:.4f} to {row['loss_upper']:.4f}), "
                f"P(divergence) {row['divergence']:.3f}; {row['assumption']}"
            )
        _print(
            [
                {
                    "task": task,
                    "score": f"{row[task]:.3f}",
                    f"{level * 100:g} % interval": f"{row[f'{task}_lower']:.3f} to {row[f'{task}_upper']:.3f}",
                    "past chance": f"{row[f'{task}_emergence']:.0%}" if f"{task}_emergence" in row else "",
                }
                for task in (name.removesuffix("_lower") for name in row if name.endswith("_lower"))
                if task in row and task != "loss" and not math.isnan(row[task])
            ]
        )


@app.command()
def push(
    names: Annotated[list[str], typer.Argument(metavar="[FOLDER] REPO", help="What to push, and where: owner/name.")],
    space: Annotated[bool, typer.Option("--space", help="Push the demo Space; takes REPO alone.")] = False,
    dataset: Annotated[
        str | None, typer.Option(help="Push the runs of marin, steplaw or steplaw_moe; takes REPO alone.")
    ] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Folder of the run logs; default: the public ones.")] = None,
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    revision: Annotated[str | None, typer.Option(help="Branch, created if need be, or refs/pr/N.")] = None,
    pr: Annotated[bool, typer.Option("--pr", help="Open a pull request.")] = False,
    tag: Annotated[str | None, typer.Option(help="Name for the commit.")] = None,
    message: Annotated[str | None, typer.Option(help="Title of the commit.")] = None,
    base_model: Annotated[str | None, typer.Option(help="Repo id of an adapter's base, if it names a folder.")] = None,
    code_only: Annotated[bool, typer.Option("--code-only", help="Renew a repository's code alone.")] = False,
    as_json: Json = False,
) -> None:
    """Push a checkpoint, an adapter, a data set or the Space to the Hugging Face Hub, in one commit.

    Example: ncpl push outputs/ncpl-mini me/ncpl-mini --tag v1

    Example: ncpl push --dataset marin me/ncpl-marin

    Example: ncpl push --code-only me/ncpl-mini
    """
    kinds = [space, dataset is not None, code_only]
    if len(names) != (1 if any(kinds) else 2) or sum(kinds) > 1:
        raise ValueError(
            f"push: got {' '.join(names)}; expected FOLDER REPO, or REPO with --space, --code-only or --dataset SOURCE"
        )
    from ncpl import hub

    repo_id = names[-1]
    options: hub.PushOptions = {"revision": revision, "create_pr": pr, "tag": tag, "message": message}
    options["private"] = private or None
    if space:
        pushed = hub.push_space(repo_id, **options)
    elif code_only:
        pushed = hub.push_code(repo_id, **options)
    elif dataset is not None:
        pushed = hub.push_dataset(dataset, repo_id, data_dir=data_dir, **options)
    else:
        pushed = hub.push(names[0], repo_id, base_model=base_model, **options)
    if as_json:
        _print_json({"url": pushed.url, "commit": pushed.commit, "changed": list(pushed.changed)})
    else:
        print(pushed)


@app.command()
def card(
    folder: Annotated[Path, typer.Argument(help="A checkpoint or an adapter, with its result files.")],
    repo: Annotated[str, typer.Argument(help="Where it will go: owner/name.")],
    as_json: Json = False,
) -> None:
    """Write a checkpoint's model card, README.md, from the result files beside it.

    Those are training_record.json, evaluation.json (of ncpl evaluate --output) and widget.json, forecasts for the
    card's examples, which is made here if there is none.

    Example: ncpl card outputs/ncpl-mini me/ncpl-mini
    """
    from ncpl.hub import cards

    text = cards.checkpoint_card(folder, repo)
    widget = folder / cards.WIDGET
    if not widget.exists() and cards.is_forecaster(folder):
        _write(widget, json.dumps(cards.widget_examples(folder), indent=2) + "\n")
        text = cards.checkpoint_card(folder, repo)
    _write(folder / "README.md", text)
    if as_json:
        _print_json({"card": str(folder / "README.md")})
    else:
        print(folder / "README.md")


@app.command()
def convert(
    published: Annotated[str, typer.Argument(help="Folder with pytorch_model.bin, the file, or a repo id.")],
    out: Annotated[Path, typer.Argument(help="Folder to write, absent or empty.")],
    backbone: Annotated[
        str, typer.Option(help="Folder or repo id of the language model, for configuration and tokenizer.")
    ] = "Qwen/Qwen3-1.7B",
    revision: Annotated[str | None, typer.Option(help="Of the published repository.")] = None,
    curves: Annotated[bool, typer.Option("--curves", help="Trained on loss curves, as NCPL-intermediate.")] = False,
    as_json: Json = False,
) -> None:
    """Convert a published NCPL checkpoint to a folder that AutoModel loads, and verify it.

    Example: ncpl convert OptimizerStudy/NCPL-final ncpl-qwen3-1.7b
    """
    from ncpl.hub.convert import convert

    written = convert(published, out, backbone, revision, curves)
    if as_json:
        _print_json({"folder": str(written)})
    else:
        print(written)


@app.command()
def merge(
    adapter: Annotated[str, typer.Argument(help="Folder or repo id of an adapter.")],
    out: Annotated[Path, typer.Argument(help="Folder for the merged checkpoint.")],
    as_json: Json = False,
) -> None:
    """Write an adapter's changes into its base: a checkpoint without adapter.

    Example: ncpl merge me/ncpl-mini-lora merged
    """
    from ncpl.download import fetch
    from ncpl.training.model import merge_adapter

    merge_adapter(fetch(adapter), out)
    if as_json:
        _print_json({"folder": str(out)})
    else:
        print(out)


@app.command(name="import")
def import_(
    path: Annotated[str, typer.Argument(help="File, folder of runs, or - for standard input.")],
    mapping: Annotated[
        list[str] | None, typer.Option("--map", metavar="THEIRS=OURS", help="A column's field; repeat for several.")
    ] = None,
    evaluation: Annotated[
        str | None, typer.Option("--eval", help="Part of the name of the loss to take, where several are logged.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="File for the runs (.csv, .jsonl, .parquet).")] = None,
    as_json: Json = False,
) -> None:
    """Read anyone's run logs and configurations into one table of the registry's fields.

    \b
    Examples:
      ncpl import wandb_export.csv --out runs.csv
      ncpl import outputs/ --map tok="data size" --eval c4
    """
    from ncpl.logs.importer import import_runs, report_lines, write_runs

    _check_folder(out)
    given = {}
    for pair in mapping or []:
        theirs, equals, ours = pair.partition("=")
        if not equals or not theirs.strip() or not ours.strip():
            raise ValueError(f"map: got {pair!r}, expected THEIRS=OURS")
        given[theirs.strip()] = ours.strip()
    runs = import_runs(path, given, evaluation)
    if out is not None:
        write_runs(runs, out)
    report = runs.attrs["report"]
    if as_json:
        _print_json({"runs": _records(runs), "report": report})
        return
    for line in report_lines(report):
        _note(line)
    shown = _records(runs.head(_ROWS))
    _print([{name: "" if _absent(value) else _cell(value) for name, value in row.items()} for row in shown])
    if len(runs) > _ROWS:
        _note(f"the first {_ROWS} of {len(runs)} runs; --out FILE or --json gives all")


@app.command()
def fields(as_json: Json = False) -> None:
    """List the fields of a configuration with their units, ranges and aliases.

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
        _print_json(rows)
        return
    for field in FIELDS.values():
        also = f"; also {', '.join(field.aliases)}" if field.aliases else ""
        print(f"{field.name}: {field.accepted}{', required' if field.name in REQUIRED else ''}{also}")


def _absent(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def main() -> None:
    """Runs the command; a user's error becomes one line and exit status 2, with the traceback under `--debug`."""
    # Libraries' own warnings (deprecations, unclosed files) are not for users.
    warnings.showwarning = lambda message, category, *_: _note(str(message)) if category is UserWarning else None
    try:
        sys.exit(app(prog_name="ncpl", standalone_mode=False))
    except typer.exceptions.TyperException as error:
        _fail(error.format_message())
    except ValueError as error:
        _show_traceback()
        _fail(str(error))
    except BrokenPipeError:
        # Whoever read the output has had enough; the interpreter must not write to it again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except OSError as error:
        # Full and read-only disks, and networks that are not there.
        if error.errno is None:
            raise
        _show_traceback()
        _fail(f"{error.filename or 'file'}: {error.strerror}")
    except (KeyboardInterrupt, typer.Abort):
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def _show_traceback() -> None:
    if "--debug" in sys.argv:
        import traceback

        traceback.print_exc()


# Rows of a sweep that a person is shown.
_ROWS = 30
# Configurations whose extrapolation is spelt out.
_NOTES = 5
_FORECAST = ("loss", "lower", "upper", "divergence", "extrapolation")


def _load(model: str | None) -> "Forecaster":
    from ncpl import Forecaster

    return Forecaster.from_pretrained(model)


def _quiet_loading(model: str | None) -> None:
    """A folder's and an embedded model's weights are there at once; a download deserves its bar."""
    from transformers.utils import logging

    if model is None or "/" not in model or Path(model).is_dir() or not sys.stderr.isatty():
        logging.disable_progress_bar()


def _forecast_rows(forecast: "pd.DataFrame", level: float) -> list[dict[str, str]]:
    """Inputs as they are, then the loss, and what the calibration says where there is one."""
    rows = []
    for row in _records(forecast):
        cells = {name: _cell(value) for name, value in row.items() if name not in _FORECAST}
        cells["loss (nats per token)"] = f"{row['loss']:.4f}"
        if not math.isnan(row["lower"]):
            cells[f"{level * 100:g} % interval"] = f"{row['lower']:.4f} to {row['upper']:.4f}"
            cells["P(divergence)"] = f"{row['divergence']:.3f}"
            cells["extrapolation"] = f"{row['extrapolation']:.2f}"
        rows.append(cells)
    return rows


def _note_extrapolation(origins: list[str], distances: list[dict[str, float]]) -> None:
    """Says what lies outside the training runs; distances are logarithms of factors."""
    outside = [(origin, far) for origin, far in zip(origins, distances, strict=True) if far]
    for origin, far in outside[:_NOTES]:
        fields = (
            f"{name} (unknown)" if name in ("source", "optimizer") else f"{name} ({math.exp(distance):.2g} times)"
            for name, distance in far.items()
        )
        _note(f"{origin} lies outside the training runs in {', '.join(fields)}")
    if len(outside) > _NOTES:
        _note(f"and {len(outside) - _NOTES} other configurations do so too")


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _records(table: "pd.DataFrame") -> list[dict[str, Any]]:
    return [{str(name): value for name, value in row.items()} for row in table.to_dict("records")]


def _plain(value: Any) -> Any:
    """JSON has no NaN: what is absent is null."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _print_json(value: Any) -> None:
    print(json.dumps(_plain(value), indent=2, allow_nan=False))


def _print(shown: "list[dict[str, str]] | Table") -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    if isinstance(shown, Table):
        table = shown
    else:
        table = Table(box=box.SIMPLE_HEAD)
        for name in shown[0]:
            table.add_column(name, justify="left" if name == "configuration" else "right")
        for row in shown:
            table.add_row(*row.values())
    # A pipe has no width: rows are kept whole.
    Console(width=None if sys.stdout.isatty() else 200).print(table)


def _coverage(text: str | float) -> float:
    """typer's own message would not say what came."""
    try:
        if 0 < float(text) < 1:
            return float(text)
    except ValueError:
        pass
    raise typer.BadParameter(f"got {text!r}, expected a coverage between 0 and 1")


def _check_folder(path: Path | None) -> None:
    """Better said before the work than after."""
    if path is not None and (not path.parent.is_dir() or path.is_dir()):
        what = "is a folder" if path.is_dir() else f"there is no folder {path.parent}"
        raise ValueError(f"{path}: cannot be written, {what}; accepted: a file in an existing folder")


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ValueError(f"{path}: cannot be written ({error.strerror})") from None


def _note(message: str) -> None:
    from text_ncpl import one_line

    print(f"note: {one_line(message, 2000)}", file=sys.stderr)


def _fail(message: str) -> NoReturn:
    from text_ncpl import one_line

    print(f"error: {one_line(message)}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()
