"""The `evaluate` module: loadable from its folder, and equal to the package's own metrics."""

from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from ncpl.metrics import regression_metrics

evaluate = pytest.importorskip("evaluate", reason="evaluate is not installed")
FOLDER = Path(__file__).parent.parent / "metrics" / "scaling_forecast"


@pytest.fixture(scope="module")
def metric():
    return evaluate.load(str(FOLDER))


def test_it_agrees_with_the_package_and_scipy(metric):
    generator = np.random.default_rng(0)
    observed = generator.normal(3, 0.3, 50).round(1)  # with ties
    predicted = observed + generator.normal(0.01, 0.05, 50)
    got = metric.compute(predictions=predicted, references=observed)
    expected = regression_metrics(predicted, observed)
    assert got == pytest.approx({name: expected[name] for name in ("mae", "rmse", "bias", "spearman")}, abs=1e-12)
    assert got["spearman"] == pytest.approx(stats.spearmanr(predicted, observed).statistic)


def test_intervals(metric):
    got = metric.compute(
        predictions=[2.0, 3.0, 4.0], references=[2.1, 3.0, 5.0], lower=[1.9, 2.9, 3.9], upper=[2.1, 3.1, 4.1]
    )
    assert got["coverage"] == pytest.approx(2 / 3)
    assert got["width"] == pytest.approx(0.2)
    with pytest.raises(ValueError, match="both or neither"):
        metric.compute(predictions=[2.0], references=[2.0], lower=[1.0])


def test_batches_add_up(metric):
    for prediction, reference in [(2.0, 2.5), (3.0, 2.9)]:
        metric.add(predictions=prediction, references=reference)
    assert metric.compute()["mae"] == pytest.approx(0.3)
