"""Errors of forecast losses, as an `evaluate` metric."""

import datasets
import evaluate
import numpy as np

DESCRIPTION = """How far forecasts of pretraining losses are from what the runs gave: mean absolute error, root mean
square error and bias in nats per token, Spearman's rank correlation, and, with intervals, their coverage and width."""

INPUTS = """
Args:
    predictions: forecast losses, nats per token.
    references: observed losses, nats per token.
    lower, upper: ends of the forecasts' intervals, both or neither.

Returns:
    mae, rmse, bias (mean of prediction minus reference), spearman (NaN where it is not defined), and with intervals
    coverage (share of references inside) and width (mean, nats per token).
"""

CITATION = "arXiv:2602.10300"


class ScalingForecast(evaluate.Metric):
    """`evaluate.load("metrics/scaling_forecast").compute(predictions=..., references=...)`."""

    def _info(self) -> evaluate.MetricInfo:
        loss = datasets.Value("float64")
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            inputs_description=INPUTS,
            citation=CITATION,
            features=datasets.Features({"predictions": loss, "references": loss}),
        )

    def _compute(
        self,
        predictions: list[float],
        references: list[float],
        lower: list[float] | None = None,
        upper: list[float] | None = None,
    ) -> dict[str, float]:
        predicted, observed = np.asarray(predictions), np.asarray(references)
        error = predicted - observed
        result = {
            "mae": float(np.abs(error).mean()),
            "rmse": float(np.sqrt((error**2).mean())),
            "bias": float(error.mean()),
            "spearman": spearman(predicted, observed),
        }
        if (lower is None) != (upper is None):
            raise ValueError("lower, upper: got one of them, expected both or neither")
        if lower is not None and upper is not None:
            low, high = np.asarray(lower, float), np.asarray(upper, float)
            if low.shape != observed.shape or high.shape != observed.shape:
                raise ValueError(f"lower, upper: got {low.size} and {high.size} for {observed.size} references")
            result["coverage"] = float(((low <= observed) & (observed <= high)).mean())
            result["width"] = float((high - low).mean())
        return result


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's rank correlation, ties at their mean rank."""
    x, y = ranks(a), ranks(b)
    x, y = x - x.mean(), y - y.mean()
    scale = np.sqrt((x @ x) * (y @ y))
    return float(x @ y / scale) if scale > 0 else float("nan")


def ranks(values: np.ndarray) -> np.ndarray:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]
