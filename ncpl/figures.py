"""Figures, drawn with matplotlib (`pip install ncpl[plots]`)."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ncpl.evaluation import PREDICTORS, comparable

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
