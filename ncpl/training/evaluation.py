"""Forecast errors measured while a model trains and after."""

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.table import Table
from transformers import EvalPrediction

from ncpl.errors import TrainingError
from ncpl.metrics import regression_metrics
from ncpl.packing import Run
from ncpl.training.data import Runs, make_targets


@dataclass
class Evaluation:
    """Forecast errors of every (split, source) cell, from one pass over all of them.

    Args:
        runs: split -> source -> runs.
        law: the prior, configurations -> losses in nats per token.
    """

    runs: Runs
    law: Callable[[Sequence[Mapping[str, Any]]], np.ndarray]
    items: list[Run] = field(init=False)
    """One item for each loss to forecast."""

    def __post_init__(self) -> None:
        self.items, self._cells = [], list[tuple[str, str, str]]()
        for split, sources in self.runs.items():
            for source, runs in sources.items():
                for run in make_targets(runs, self.law([run.config for run in runs])):
                    for point in run.points():
                        self.items.append(point)
                        self._cells.append((split, source, "final" if point.final is not None else "curve"))
        self._prior = np.array([item.prior for item in self.items])
        self._residual = np.array([item.curve[0] if item.final is None else item.final for item in self.items])

    def cells(self, residuals: np.ndarray | None = None) -> dict[str, dict[str, dict[str, dict[str, float]]]]:
        """Metrics by split, source and kind (`final` or `curve`); of the prior alone without residuals."""
        predicted = self._prior + (0.0 if residuals is None else np.asarray(residuals, np.float64))
        if not np.isfinite(predicted).all():
            raise TrainingError(
                f"{(~np.isfinite(predicted)).sum()} of {len(predicted)} forecasts are not finite; lower the learning "
                "rate, or start from another checkpoint"
            )
        observed = self._prior + self._residual
        table: dict[str, Any] = {}
        for cell in dict.fromkeys(self._cells):
            split, source, kind = cell
            at = np.array([other == cell for other in self._cells])
            metrics = regression_metrics(predicted[at], observed[at])
            table.setdefault(split, {}).setdefault(source, {})[kind] = metrics
        return table

    def gains(self, residuals: np.ndarray, split: str) -> dict[str, dict[str, float]]:
        """By how much the residuals lower the mean error of a split's sources below the prior's, in nats per token.

        Args:
            residuals: one for each item.
            split: its name.

        Returns:
            source -> `mean` and `standard_error` of its gain. Errors of runs with one optimizer, size and data size are
            correlated, so that the standard error is clustered by these three.
        """
        gains = np.abs(self._residual) - np.abs(self._residual - np.asarray(residuals, np.float64))
        fields = ("optimizer", "model size", "active size", "data size")
        groups = [str([item.config.get(name) for name in fields]) for item in self.items]
        found = {}
        for source in self.runs[split]:
            at = np.array([cell == (split, source, "final") for cell in self._cells])
            mean, off = gains[at].mean(), defaultdict[str, float](float)
            for group, value in zip(np.array(groups)[at], gains[at], strict=True):
                off[group] += value - mean
            error = math.sqrt(sum(value**2 for value in off.values())) / at.sum()
            found[source] = {"mean": float(mean), "standard_error": float(error)}
        return found

    def __call__(self, prediction: EvalPrediction) -> dict[str, float]:
        """The cells as the Trainer logs them, with each split's mean error over its sources, `SPLIT_mae`."""
        flat: dict[str, float] = {}
        for split, sources in self.cells(cast(np.ndarray, prediction.predictions)).items():
            for source, kinds in sources.items():
                for kind, metrics in kinds.items():
                    prefix = f"{split}_{source}_" + ("curve_" if kind == "curve" else "")
                    flat |= {prefix + name: value for name, value in metrics.items() if name != "n"}
            flat[f"{split}_mae"] = float(np.mean([kinds["final"]["mae"] for kinds in sources.values()]))
        return flat


def metrics_table(metrics: Mapping[str, Any], prior: Mapping[str, Any]) -> Table:
    """The final metrics beside the prior's, for people."""
    table = Table(title="forecast error, nats per token", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in ("split", "source", "loss", "n", "MAE", "RMSE", "Spearman", "bias", "prior"):
        table.add_column(name, justify="left" if name in ("split", "source", "loss") else "right", no_wrap=True)
    for split, sources in metrics.items():
        for source, kinds in sources.items():
            for kind, m in kinds.items():
                figures = [f"{m[name]:.4f}" for name in ("mae", "rmse", "spearman", "bias")]
                before = f"{prior[split][source][kind]['mae']:.4f}"
                table.add_row(split, source, kind, str(m["n"]), *figures, before)
    return table
