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

# A run is suggested where it narrows the target's interval by this share or more.
LEAST = 0.01


@dataclass(frozen=True)
class Step:
    """One suggested run: its place among the candidates, and the targets' mean deviation in nats once it is made."""

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
    fixed: float = 0.0,
    least: float = 0.0,
) -> list[Step]:
    """Runs in order, each the one that lowers the targets' mean variance most for its cost.

    A run that would narrow their interval by a smaller share than `least` is not made.

    Args:
        covariance: (configurations, configurations) of the losses, in squared nats.
        noise: (configurations,) variance of a run's own noise.
        costs: (configurations,) FLOPs.
        candidates, targets: which configurations may be run, and which are to be forecast.
        budget: FLOPs.
        most: so many runs at most.
        fixed: mean variance of the targets that no run lowers, in squared nats.
        least: share of the targets' deviation, `fixed` included.

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
        now = float(covariance[targets, targets].mean()) + fixed
        gains = (covariance[np.ix_(targets, affordable)] ** 2).mean(0)
        gains = gains / (covariance[affordable, affordable] + noise[affordable])
        telling = gains >= now * (1 - (1 - least) ** 2)
        if not telling.any():
            break
        best = affordable[int(np.where(telling, gains / costs[affordable], -1.0).argmax())]
        column = covariance[:, best].copy()
        covariance -= np.outer(column, column) / (column[best] + noise[best])
        spent += float(costs[best])
        left.remove(best)
        steps.append(Step(best, float(np.sqrt(np.maximum(covariance[targets, targets], 0).mean() + fixed))))
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
    """`Forecaster.suggest` of checked configurations: no runs where none narrows the interval by `LEAST`.

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
    steps, before = _steps(calibration, configs, candidates, wanted, budget)
    wide, now = float(calibration.score(configs, level)[wanted].mean()), before
    rows = []
    for step in steps:
        config, earlier, now = pool[step.candidate], now, step.deviation
        rows.append(
            {
                **config,
                "flops": float(costs[step.candidate]),
                "interval": wide * now,
                "why": f"narrows the target's interval by {100 * (1 - now / earlier):.0f} % to ±{wide * now:.3f}",
            }
        )
    chosen = [step.candidate for step in steps]
    columns = None if rows else [*pool[candidates[0]], "flops", "interval", "why"]
    found = pd.DataFrame(rows, index=index[chosen], columns=columns)
    found.attrs["interval_before"] = wide * before
    found.attrs["notes"] = [
        f"the target is {_named([configs[i] for i in wanted])}, whose interval is ±{wide * before:.3f} now"
    ]
    spent = float(costs[chosen].sum())
    if left := [i for i in candidates if i not in chosen and spent + costs[i] <= budget]:
        found.attrs["notes"].append(
            f"no {'further ' if steps else ''}candidate, of {len(left)} within the budget, narrows the target's "
            f"interval by {100 * LEAST:g} % or more: {spent:.3g} of {budget:.3g} FLOPs are spent"
        )
    return found


def _named(configs: Sequence[Mapping[str, Any]]) -> str:
    """Targets by their sizes, the first three of many."""
    named = [f"{config['model size']:g}M parameters on {config['data size']:g}B tokens" for config in configs[:3]]
    return ", ".join(named) + (f" and {len(configs) - 3} more" if len(configs) > 3 else "")


def _steps(
    calibration: Calibration,
    configs: Sequence[Mapping[str, Any]],
    candidates: Sequence[int],
    wanted: Sequence[int],
    budget: float,
) -> tuple[list[Step], float]:
    """The runs to make, and the targets' deviation before the first of them, in nats."""
    scale = calibration.spread(configs)
    covariance = np.outer(scale, scale) * calibration.law.covariance(configs)
    now = float((calibration.deviation(configs)[wanted] ** 2).mean())
    # A run's own noise and the drift beyond the lab's runs stay, whatever is run.
    fixed = max(now - float(covariance[wanted, wanted].mean()), 0.0)
    costs = np.array([flops(config) for config in configs])
    noise = calibration.noise(configs) ** 2
    return choose(covariance, noise, costs, candidates, wanted, budget, fixed=fixed, least=LEAST), math.sqrt(now)
