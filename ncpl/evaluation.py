"""Forecasts against what real runs gave: model, prior and the paper's predictions on identical runs."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from datasets_scripts.reading import SPLITS, MissingRunsError
from datasets_scripts.runs import data_hash, load_runs
from fields_ncpl import SOURCES
from ncpl.configs import check_configs
from ncpl.errors import short
from ncpl.forecaster import Forecaster
from ncpl.metrics import regression_metrics
from ncpl.record import provenance
from published_ncpl import ChinchillaLaw
from text_ncpl import did_you_mean

if TYPE_CHECKING:
    from rich.table import Table

DEFAULT_SPLITS = ("in_val", "ood_val")

PREDICTORS = {
    "model": "this model",
    "prior": "its prior alone",
    "ncpl_1p7b": "NCPL-1.7B of the paper",
    "chinchilla": "Chinchilla of the paper",
}
"""Predictor, a column of `forecast_runs` and a key of `errors` in a report -> what people read."""

_PAPER = {"ncpl_1p7b": "float64", "chinchilla": "float64"}


def forecast_runs(
    forecaster: Forecaster,
    data_dir: str | Path | None = None,
    splits: Sequence[str] = DEFAULT_SPLITS,
    level: float = 0.9,
) -> pd.DataFrame:
    """Forecasts for logged runs beside what they gave.

    A source is left out, with a warning, whose runs are not in `data_dir` or that the checkpoint's prior does not know.

    Args:
        forecaster: what is judged.
        data_dir: folder of the run logs (`datasets_scripts.runs.load_runs`), which may hold the paper's predictions as
            `SOURCE_ncpl_paper_predictions.csv`; None downloads the public logs.
        splits: among `train`, `in_val` and `ood_val`.
        level: coverage of the interval.

    Returns:
        A row for each run, losses in nats per token: `source`, `split`, `name`, `observed`; `model`, its `prior`, and
        `ncpl_1p7b` and `chinchilla`, NaN where the paper's predictions are not at hand; and `lower`, `upper`,
        `divergence` and `extrapolation` as `predict` gives them; `model size` and, of mixtures of experts, `active
        size` in million parameters; and `narrowest_level`, the coverage of the narrowest interval that holds
        the observed loss, NaN without calibration.

    Raises:
        ValueError: an unknown split, no source to judge by, or logs that are malformed or lack a file.

    >>> from datasets_scripts import SAMPLE_DIR
    >>> runs = forecast_runs(Forecaster.from_pretrained(), SAMPLE_DIR)
    >>> sorted(runs["source"].unique())
    ['marin', 'steplaw', 'steplaw_moe']
    """
    for split in splits:
        if split not in SPLITS:
            raise ValueError(f"split: got {short(split)}, accepted: {', '.join(SPLITS)}{did_you_mean(split, SPLITS)}")
    tables = []
    left_out: list[str] = []
    law = forecaster.law
    for source in SOURCES:
        if isinstance(law, ChinchillaLaw) and source not in law.coefficients:
            left_out.append(f"{source} is left out: the checkpoint's prior knows {', '.join(law.coefficients)} alone")
            continue
        try:
            runs = load_runs(source, data_dir)
        except MissingRunsError as error:
            left_out.append(f"{source} is left out: {error}")
            continue
        tables += [_judged(forecaster, source, split, runs[split], data_dir, level) for split in dict.fromkeys(splits)]
    if not tables:
        raise ValueError(left_out[0])
    for message in left_out:
        warnings.warn(message, stacklevel=2)
    return pd.concat(tables, ignore_index=True)


def _judged(
    forecaster: Forecaster, source: str, split: str, runs: Any, data_dir: str | Path | None, level: float
) -> pd.DataFrame:
    """`forecast_runs` of one split of a source."""
    rows = list(runs)
    names = [row["name"] for row in rows]
    # Not strict: what really ran is never refused.
    configs = check_configs([{**row["conf"], "max step": row["max_step"]} for row in rows], False, names)
    forecast = forecaster.predict_checked(configs, level).rename(columns={"loss": "model"})
    logged = pd.DataFrame(
        {
            "source": source,
            "split": split,
            "name": names,
            "observed": [row["final_loss"] for row in rows],
            "prior": forecaster.law(configs),
            "model size": [config["model size"] for config in configs],
            "active size": [config.get("active size", np.nan) for config in configs],
            "narrowest_level": np.nan,
        }
    )
    if forecaster.calibration is not None:
        losses, observed = forecast["model"].to_numpy(), logged["observed"].to_numpy()
        logged["narrowest_level"] = forecaster.calibration.level(configs, losses, observed)
    paper = _paper_predictions(source, data_dir)
    return pd.concat([logged, forecast], axis=1).merge(paper, how="left", on=["name", "split"])


def evaluation_report(
    runs: pd.DataFrame, model: str, data_dir: str | Path | None = None, level: float = 0.9
) -> dict[str, Any]:
    """Errors for each source and split, with where they come from.

    Args:
        runs: what `forecast_runs` gave.
        model: name of the checkpoint.
        data_dir, level: as they were there.

    Returns:
        `model`, `level`, `data` (source -> hash), `hardware`, `versions`, `commit`, `dirty` and `cells`: for each
        source and split `runs` (how many are compared), `left_out` (runs that the paper did not predict), `errors`
        (predictor -> `mae`, `rmse`, `spearman`, `bias` in nats), and, from a calibrated checkpoint, `coverage` and
        `width`; and `sizes`: for each source, split and `model_size` (million parameters; of mixtures of experts
        `active_size` too) the model's `mae` with the `low` and `high` ends of its 95 % bootstrap interval.
    """
    return {
        "model": model,
        "level": level,
        "data": {source: data_hash(source, data_dir) for source in runs["source"].unique().tolist()},
        **provenance(),
        "cells": [_cell(cell) for _, cell in runs.groupby(["source", "split"], sort=False)],
        "sizes": [
            _size(own)
            for _, own in runs.groupby(["source", "split", "model size", "active size"], sort=False, dropna=False)
        ],
    }


def table(report: dict[str, Any]) -> "Table":
    """A report's cells for people."""
    from rich import box
    from rich.table import Table

    calibrated = any("coverage" in cell for cell in report["cells"])
    shown = Table(box=box.SIMPLE_HEAD, title=f"{report['model']}: errors in nats per token", title_justify="left")
    for column in ("source", "split"):
        shown.add_column(column)
    shown.add_column("runs", justify="right")
    shown.add_column("predictor")
    for column in ("MAE", "RMSE", "Spearman", "bias"):
        shown.add_column(column, justify="right")
    if calibrated:
        shown.add_column(f"in {report['level'] * 100:g} % interval", justify="right")
        shown.add_column("mean width", justify="right")
    for cell in report["cells"]:
        best = min(errors["mae"] for errors in cell["errors"].values())
        for i, (name, errors) in enumerate(cell["errors"].items()):
            style = "[bold]{}[/bold]" if errors["mae"] == best else "{}"
            row = [cell["source"], cell["split"], str(cell["runs"])] if i == 0 else ["", "", ""]
            row += [PREDICTORS[name], style.format(f"{errors['mae']:.4f}"), f"{errors['rmse']:.4f}"]
            row += [f"{errors['spearman']:.4f}", f"{errors['bias']:+.4f}"]
            if calibrated and i == 0:
                row += [f"{cell['coverage']:.1%}", f"{cell['width']:.4f}"]
            shown.add_row(*row, end_section=i == len(cell["errors"]) - 1)
    left_out = sum(cell["left_out"] for cell in report["cells"])
    if left_out:
        shown.caption = f"{left_out} runs are left out: the paper did not predict them"
    return shown


def comparable(runs: pd.DataFrame) -> tuple[list[str], pd.DataFrame]:
    """The predictors that there are for some runs of `forecast_runs`, and the runs that all of them predict."""
    predictors = [name for name in PREDICTORS if not runs[name].isna().all()]
    return predictors, runs.dropna(subset=predictors)


def _cell(runs: pd.DataFrame) -> dict[str, Any]:
    predictors, compared = comparable(runs)
    cell: dict[str, Any] = {
        "source": runs["source"].iloc[0],
        "split": runs["split"].iloc[0],
        "runs": len(compared),
        "left_out": len(runs) - len(compared),
        "errors": {},
    }
    for name in predictors:
        errors = regression_metrics(compared[name], compared["observed"])
        cell["errors"][name] = {key: value for key, value in errors.items() if key != "n"}
    if not compared["lower"].isna().any():
        inside = compared["observed"].between(compared["lower"], compared["upper"])
        cell["coverage"] = float(inside.mean())
        cell["width"] = float((compared["upper"] - compared["lower"]).mean())
    return cell


def _size(runs: pd.DataFrame) -> dict[str, Any]:
    active = runs["active size"].iloc[0]
    errors = (runs["model"] - runs["observed"]).abs().dropna().to_numpy()
    # Whole cells move together, so this is the spread over runs alone, not over cells.
    draws = np.random.default_rng(0).choice(errors, (2000, len(errors))).mean(1)
    return {
        "source": runs["source"].iloc[0],
        "split": runs["split"].iloc[0],
        "model_size": float(runs["model size"].iloc[0]),
        **({} if pd.isna(active) else {"active_size": float(active)}),
        "runs": len(errors),
        "mae": float(errors.mean()),
        "low": float(np.quantile(draws, 0.025)),
        "high": float(np.quantile(draws, 0.975)),
    }


def _paper_predictions(source: str, data_dir: str | Path | None) -> pd.DataFrame:
    """The published model's and the paper's Chinchilla's predictions, one for each run; none where there is no file."""
    name = f"{source}_ncpl_paper_predictions.csv"
    folders = [] if data_dir is None else [Path(data_dir).expanduser(), Path(data_dir).expanduser() / source]
    file = next((folder / name for folder in folders if (folder / name).is_file()), None)
    if file is None:
        return pd.DataFrame(columns=["name", "split", *_PAPER]).astype(_PAPER)
    found = pd.read_csv(file)
    missing = [column for column in ("name", "split", *_PAPER) if column not in found]
    if missing:
        raise ValueError(f"{file}: column {missing[0]!r} is missing, it has {list(found)}")
    if found.duplicated(["name", "split"]).any():
        raise ValueError(f"{file}: run {found['name'][found.duplicated(['name', 'split'])].iloc[0]!r} is there twice")
    return found[["name", "split", *_PAPER]].astype(_PAPER)
