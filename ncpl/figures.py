"""Figures, drawn with matplotlib (`pip install ncpl[plots]`)."""

import itertools
import math
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from curves_ncpl import RunShape
from fields_ncpl import check_config
from modeling_nsp import NSPModel
from ncpl.evaluation import PREDICTORS, comparable
from ncpl.nsp.benchmarks import benchmarks_along, compute_path, emergence_scales

# Okabe and Ito's colours, told apart by every eye; what is judged lies on top.
_STYLES: dict[str, dict[str, Any]] = {
    "chinchilla": {"color": "#999999", "marker": "x", "s": 12, "linewidths": 0.7, "alpha": 0.6},
    "prior": {"color": "#56B4E9", "marker": "+", "s": 16, "linewidths": 0.7, "alpha": 0.6},
    "ncpl_1p7b": {
        "edgecolors": "#E69F00",
        "facecolors": "none",
        "marker": "o",
        "s": 18,
        "linewidths": 0.8,
        "alpha": 0.9,
    },
    "model": {"color": "#0072B2", "marker": "o", "s": 9, "linewidths": 0, "alpha": 0.8},
}


def scatter(runs: pd.DataFrame, path: str | Path, title: str | None = None) -> None:
    """Predicted against observed final losses, a panel for each split and source.

    Args:
        runs: what `ncpl.evaluation.forecast_runs` gave.
        path: image file; its suffix says which kind.
        title: of the whole figure.

    Raises:
        ValueError: matplotlib is not installed, or the file cannot be written.
    """
    splits, sources = runs["split"].unique(), runs["source"].unique()
    figure = _figure(4.6 * len(sources), 4.4 * len(splits))
    axes = figure.subplots(len(splits), len(sources), squeeze=False)
    for i, split in enumerate(splits):
        for j, source in enumerate(sources):
            _panel(axes[i][j], runs[(runs["split"] == split) & (runs["source"] == source)])
            axes[i][j].set_title(f"{source} {split}", fontsize=11, fontweight="bold")
            if i == len(splits) - 1:
                axes[i][j].set_xlabel("observed final loss (nats per token)")
            if j == 0:
                axes[i][j].set_ylabel("predicted final loss (nats per token)")
    if title:
        figure.suptitle(title)
    _save(figure, path)


def reliability(runs: pd.DataFrame, path: str | Path) -> None:
    """Measured against asked coverage of the intervals, a line for each split and source.

    Args:
        runs: what `ncpl.evaluation.forecast_runs` gave, from a calibrated checkpoint.
        path: image file; its suffix says which kind.

    Raises:
        ValueError: the checkpoint is not calibrated, matplotlib is not installed, or the file cannot be written.
    """
    if runs["reached"].isna().all():
        raise ValueError("calibration: this checkpoint has no calibration, expected one with intervals")
    figure = _figure(4.6, 4.4)
    axes = figure.subplots()
    levels = np.linspace(0, 1, 101)
    # A source has a colour, a split a dash.
    colours = dict(zip(runs["source"].unique(), itertools.cycle(("#0072B2", "#E69F00", "#009E73")), strict=False))
    dashes = dict(zip(runs["split"].unique(), itertools.cycle(("-", "--", ":")), strict=False))
    for (source, split), own in runs.groupby(["source", "split"], sort=False):
        share = [(own["reached"] <= level).mean() for level in levels]
        axes.plot(levels, share, label=f"{source} {split}", color=colours[source], linestyle=dashes[split], lw=1.4)
    axes.axline((0, 0), slope=1, color="black", linewidth=0.8, zorder=0)
    axes.set(
        xlabel="asked coverage", ylabel="share of runs inside the interval", xlim=(0, 1), ylim=(0, 1), aspect="equal"
    )
    axes.grid(alpha=0.25, linewidth=0.5)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8, frameon=False, loc="lower right")
    _save(figure, path)


def scores_over_compute(
    model: NSPModel, tokens_per_param: float = 100.0, level: float = 0.9, tasks: Sequence[str] = ()
) -> Any:
    """Benchmark scores over training compute, a panel for each task: median, interval and emergence mark.

    Args:
        model: a trained NSP.
        tokens_per_param: tokens a parameter along the compute axis.
        level: coverage of the intervals.
        tasks: which; all when empty.

    Returns:
        a matplotlib Figure.
    """
    tasks = list(tasks) or list(model.config.tasks)
    flops = np.logspace(20, 25.5, 120)
    table = benchmarks_along(*compute_path(flops, tokens_per_param), level=level, model=model)
    marks = {row["task"]: row for row in emergence_scales(model, tokens_per_param, level).to_dict("records")}
    columns = 4
    rows = math.ceil(len(tasks) / columns)
    figure = _figure(3.1 * columns, 2.3 * rows)
    axes = figure.subplots(rows, columns, sharex=True, squeeze=False).ravel()
    for axis, task in zip(axes, tasks, strict=False):
        chance = model.config.chance[list(model.config.tasks).index(task)]
        past = chance + model.config.emergence_threshold * (1 - chance)
        _score_panel(axis, flops, table, task, chance, marks[task], past)
    for axis in axes[len(tasks) :]:
        axis.set_visible(False)
    figure.supxlabel(f"training FLOPs, at {tokens_per_param:g} tokens a parameter", fontsize=10)
    figure.supylabel(f"score: median, {level:.0%} band; red: leaves chance; dotted: chance", fontsize=10)
    return figure


def _score_panel(
    axis: Any,
    flops: np.ndarray,
    table: pd.DataFrame,
    task: str,
    chance: float,
    mark: Mapping[Hashable, Any],
    past: float,
) -> None:
    """One task: median, interval, chance, and where it leaves chance (score `past`)."""
    axis.fill_between(flops, table[f"{task}_lower"], table[f"{task}_upper"], color="#4c72b0", alpha=0.22, lw=0)
    axis.plot(flops, table[task], color="#4c72b0")
    axis.axhline(chance, color="0.5", lw=0.8, ls=":")
    if flops[0] < mark["flops"] < flops[-1]:
        low = max(np.nan_to_num(mark["flops_lower"], nan=flops[0]), flops[0])
        high = min(np.nan_to_num(mark["flops_upper"], nan=flops[-1]), flops[-1])
        axis.plot([low, high], [past, past], color="#c44e52", lw=2, solid_capstyle="butt")
        axis.plot(mark["flops"], past, "o", color="#c44e52", ms=5)
    axis.set(xscale="log", ylim=(0, 1), xlim=(flops[0], flops[-1]))
    axis.set_title(task.removesuffix("_exact_match").removesuffix("_2_acc"), fontsize=9)
    axis.tick_params(labelsize=8)
    axis.grid(alpha=0.2)


def curves(
    runs: Mapping[str, tuple[Mapping[str, Any], pd.DataFrame]],
    path: str | Path,
    observed: Mapping[str, Sequence[float]] | None = None,
) -> None:
    """Forecast loss curves with their bands, what is observed, and the learning rates beneath.

    Args:
        runs: name -> configuration and what `Forecaster.curve` gave for it.
        path: image file; its suffix says which kind.
        observed: `step` and `loss` of the first run's first part.

    Raises:
        ValueError: matplotlib is not installed, or the file cannot be written.
    """
    figure = _figure(7.2, 5.6)
    above, beneath = figure.subplots(2, sharex=True, height_ratios=(3, 1))
    colours = itertools.cycle(("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00"))
    lows, highs = [], []
    for (name, (config, table)), colour in zip(runs.items(), colours, strict=False):
        tokens = table["tokens"].to_numpy()
        above.plot(tokens, table["loss"], color=colour, lw=1.6, label=f"{name}: {table['loss'].iloc[-1]:.3f}")
        above.fill_between(tokens, table["lower"], table["upper"], color=colour, alpha=0.18, lw=0)
        shape = RunShape.of(check_config(config, strict=False))
        share = np.linspace(0, 1, 400)
        beneath.plot(share * shape.tokens, shape.schedule.rate(share) * _peak(config), color=colour, lw=1.2)
        late = table[table["step"] >= 0.1 * shape.steps]
        lows.append(late["loss"].min())
        highs.append(late["loss"].max())
    if observed is not None:
        config, table = next(iter(runs.values()))
        scale = table["tokens"].iloc[-1] / table["step"].iloc[-1]
        seen = np.asarray(observed["step"], dtype=float) * scale
        above.scatter(seen, observed["loss"], s=7, color="black", alpha=0.6, lw=0, label="observed", zorder=3)
    room = 0.12 * (max(highs) - min(lows)) + 0.02
    above.set(ylabel="loss (nats per token)", ylim=(min(lows) - room, max(highs) + 3 * room))
    beneath.set(xlabel="tokens (billions)", ylabel="learning rate", ylim=(0, None))
    for axes in (above, beneath):
        axes.grid(alpha=0.25, linewidth=0.5)
        axes.spines[["top", "right"]].set_visible(False)
    above.legend(fontsize=8, frameon=False, loc="upper right")
    _save(figure, path)


def _peak(config: Mapping[str, Any]) -> float:
    """A configuration's peak learning rate."""
    return float(check_config(config, strict=False).get("learning rate") or 1.0)


def _figure(width: float, height: float) -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ValueError("figure: needs matplotlib, install it with: pip install ncpl[plots]") from None
    return Figure(figsize=(width, height), layout="constrained", dpi=150)


def _save(figure: Any, path: str | Path) -> None:
    try:
        figure.savefig(path)
    except OSError as error:
        raise ValueError(f"{path}: cannot be written ({error.strerror})") from None
    # An unknown suffix is a ValueError of matplotlib's own, which lists the known ones.


def _panel(axes: Any, runs: pd.DataFrame) -> None:
    predictors, runs = comparable(runs)
    for name, style in _STYLES.items():
        if name in predictors:
            error = (runs[name] - runs["observed"]).abs().mean()
            axes.scatter(runs["observed"], runs[name], label=f"{PREDICTORS[name]}, MAE {error:.4f}", **style)
    axes.axline((runs["observed"].mean(),) * 2, slope=1, color="black", linewidth=0.8, zorder=0)
    axes.set_aspect("equal", adjustable="datalim")
    axes.grid(alpha=0.25, linewidth=0.5)
    axes.spines[["top", "right"]].set_visible(False)
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(handles[::-1], labels[::-1], fontsize=8, frameon=False, loc="upper left")
