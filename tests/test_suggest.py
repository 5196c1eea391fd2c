"""Which runs to make next: by the posterior, within the budget, and only those that narrow the target's interval."""

import numpy as np
import pandas as pd
import pytest

from ncpl import Forecaster
from ncpl.suggest import choose
from tests.test_adapt import lab_runs


@pytest.fixture(scope="module")
def adapted():
    return Forecaster.from_pretrained().adapt(lab_runs(), source="acme")


def test_the_suggested_run_is_the_one_that_tells_most(adapted):
    pool = pd.DataFrame({"source": "acme", "model size": [60.0, 120.0, 480.0, 2000.0], "data size": 10.0})
    found = adapted.suggest(pool, budget_flops=6e15 * 700 * 10)
    assert set(found.index) <= {0, 1, 2}
    assert found.index[0] == 2
    assert found["flops"].sum() <= 6e15 * 700 * 10
    assert (found["interval"].diff().dropna() < 0).all()
    with pytest.raises(ValueError, match="budget_flops"):
        adapted.suggest(pool, budget_flops=1.0)


def test_suggestions_end_where_no_candidate_narrows_the_interval_and_say_so(adapted, tmp_path):
    pool = pd.DataFrame({"source": "acme", "model size": [60.0, 120.0, 480.0] * 20, "data size": 10.0})
    target = {"source": "acme", "model size": 2000.0, "data size": 40.0}
    found = adapted.suggest(pool, budget_flops=1e23, target=target)
    widths = np.array([found.attrs["interval_before"], *found["interval"]])
    assert 0 < len(found) < len(pool)
    assert (widths[1:] <= 0.99 * widths[:-1] + 1e-12).all()
    predicted = adapted.predict(target).iloc[0]
    assert widths[0] == pytest.approx((predicted["upper"] - predicted["lower"]) / 2, rel=0.05)
    assert "the target is 2000M parameters on 40B tokens" in found.attrs["notes"][0]
    assert "no further candidate, of " in found.attrs["notes"][1]
    none = adapted.suggest(pool[:1].assign(**{"model size": 1.0, "data size": 0.01}), 1e23, target)
    assert none.empty
    assert "no candidate, of 1 within the budget" in none.attrs["notes"][1]
    none.plot().save(tmp_path / "none.svg")


def test_choosing_follows_the_posterior_after_each_run():
    rng = np.random.default_rng(0)
    root = rng.normal(size=(6, 6))
    covariance, noise = root @ root.T, np.full(6, 0.3)
    steps = choose(covariance, noise, np.ones(6), [0, 1, 2, 3, 4], [5], 3.0)
    chosen = [step.candidate for step in steps]
    inner = covariance[np.ix_(chosen, chosen)] + np.diag(noise[chosen])
    left = covariance[5, 5] - covariance[5, chosen] @ np.linalg.solve(inner, covariance[chosen, 5])
    assert steps[-1].deviation == pytest.approx(np.sqrt(left))


@pytest.mark.parametrize("budget", [0, -1e20, float("nan"), float("inf"), "much", True])
def test_a_budget_that_is_none_is_refused_before_anything_is_read(adapted, budget):
    with pytest.raises(ValueError, match="budget_flops: got"):
        adapted.suggest([{"no": "configuration"}], budget)
