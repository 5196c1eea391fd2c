"""Which runs to make next: those that tell most of a target for their FLOPs, by the fit's own posterior.

Sequential design by expected posterior variance (MacKay 1992; Cohn et al. 1996): a Gaussian posterior's variance does
not depend on the loss that a run will give, so the gain of a run is known before it is made.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from adapted_ncpl import flops
from calibration_ncpl import Calibration
from text_ncpl import as_number, short


@dataclass(frozen=True)
class Step:
    """One suggested run: its place among the candidates, and the targets' mean deviation once it is made."""

    candidate: int
    deviation: float


def choose(
    covariance: np.ndarray,
    noise: np.ndarray,
    costs: np.ndarray,
    candidates: Sequence[int],
    targets: Sequence[int],
    budget: float,
    most: int | None = None,
) -> list[Step]:
    """Runs in order, each the one that lowers the targets' mean variance most for its cost.

    Args:
        covariance: (configurations, configurations) of the losses, in squared nats.
        noise: (configurations,) variance of a run's own noise.
        costs: (configurations,) FLOPs.
        candidates, targets: which configurations may be run, and which are to be forecast.
        budget: FLOPs.
        most: so many runs at most.

    >>> covariance = np.array([[1.0, 0.1, 0.9], [0.1, 1.0, 0.1], [0.9, 0.1, 1.0]])
    >>> [step.candidate for step in choose(covariance, np.full(3, 0.1), np.ones(3), [0, 1], [2], 1.0)]
    [0]
    """
    covariance, left, spent = covariance.copy(), list(candidates), 0.0
    steps: list[Step] = []
    targets = list(targets)
    while affordable := [i for i in left if spent + costs[i] <= budget * (1 + 1e-9)]:
        if most is not None and len(steps) == most:
            break
        gains = (covariance[np.ix_(targets, affordable)] ** 2).mean(0)
        gains = gains / (covariance[affordable, affordable] + noise[affordable]) / costs[affordable]
        best = affordable[int(gains.argmax())]
        column = covariance[:, best].copy()
        covariance -= np.outer(column, column) / (column[best] + noise[best])
        spent += float(costs[best])
        left.remove(best)
        steps.append(Step(best, float(np.sqrt(np.maximum(covariance[targets, targets], 0).mean()))))
    return steps


def check_budget(budget: object) -> float:
    """A budget in FLOPs, checked.

    Raises:
        ValueError: no positive number.

    >>> check_budget(10**20)
    1e+20
    """
    number = as_number(budget)
    if number is None or not 0 < number < math.inf:
        raise ValueError(f"budget_flops: got {short(budget)}, expected FLOPs (6ND) above 0, such as 1e20")
    return float(number)


def suggestions(
    calibration: Calibration,
    pool: Sequence[Mapping[str, Any]],
    index: pd.Index,
    targets: Sequence[Mapping[str, Any]],
    budget: float,
    level: float,
) -> pd.DataFrame:
    """`Forecaster.suggest` of checked configurations.

    Args:
        calibration: of the checkpoint.
        pool: the candidates, and `index` their names.
        targets: to be forecast; the candidates beyond the budget, or else the dearest one, when empty.
        budget: FLOPs.
        level: coverage of the intervals.

    Raises:
        ValueError: no candidate fits into the budget.
    """
    costs = np.array([flops(config) for config in pool])
    candidates = [i for i in range(len(pool)) if costs[i] <= budget]
    configs = [*pool, *targets]
    wanted = list(range(len(pool), len(configs)))
    if not wanted:
        wanted = [i for i in range(len(pool)) if costs[i] > budget] or [int(costs.argmax())]
        candidates = [i for i in candidates if i not in wanted]
    if not candidates:
        raise ValueError(
            f"budget_flops: got {budget:g}, expected at least the cheapest candidate's {costs.min():.3g} (6ND)"
        )
    scale = calibration.spread(configs)
    covariance = np.outer(scale, scale) * calibration.law.covariance(configs)
    noise = calibration.noise(configs) ** 2
    wide = calibration.score(configs, level)[wanted].mean()
    now = float(np.sqrt(covariance[wanted, wanted].mean()))
    steps = choose(covariance, noise, np.array([flops(config) for config in configs]), candidates, wanted, budget)
    rows = []
    for step in steps:
        config, before, now = pool[step.candidate], now, step.deviation
        rows.append(
            {
                **config,
                "flops": float(costs[step.candidate]),
                "interval": wide * now,
                "why": f"narrows the target's interval by {100 * (1 - now / before):.0f} % to ±{wide * now:.3f}",
            }
        )
    found = pd.DataFrame(rows, index=index[[step.candidate for step in steps]])
    named = [f"{configs[i]['model size']:g}M parameters on {configs[i]['data size']:g}B tokens" for i in wanted]
    more = f" and {len(named) - 3} more" if len(named) > 3 else ""
    found.attrs["notes"] = [f"the target is {', '.join(named[:3])}{more}"]
    return found
