"""Published laws beside a plan: how to share out compute, what repeated data are worth."""

import math
from dataclasses import dataclass
from typing import Any

import pandas as pd

from published_ncpl import StepLaw

# Sizes whose loss is at most this far above the lowest, in nats per token, are as good as the best.
VALLEY = 0.005
# Repetition of data (Muennighoff et al. 2023, arXiv 2305.16264, table of fitted constants).
_R_D, _R_N = 15.387756, 5.309743
_UNIQUE_RATIO = (521 / 1488) ** (1 / 0.3526596)


def effective_tokens(tokens: float, unique: float | None) -> float:
    """What repeated tokens are worth in fresh ones (arXiv 2305.16264, equation 5): after 4 epochs 93 %.

    >>> round(effective_tokens(4e9, 1e9) / 4e9, 2)
    0.93
    """
    if unique is None or tokens <= unique:
        return tokens
    return unique + unique * _R_D * (1 - math.exp(-(tokens / unique - 1) / _R_D))


def effective_params(params: float, unique: float | None) -> float:
    """What parameters are worth that are more than the unique tokens suffice for (arXiv 2305.16264, equation 6)."""
    enough = params if unique is None else _UNIQUE_RATIO * unique
    if params <= enough:
        return params
    return enough + enough * _R_N * (1 - math.exp(-(params / enough - 1) / _R_N))


@dataclass(frozen=True)
class AllocationLaw:
    """A published law `L = E + A N^-alpha + B D^-beta` of all parameters N and tokens D.

    >>> n, d = HOFFMANN.optimum(5.76e23)
    >>> f"{n:.3g} {d:.3g}"
    '3.22e+10 2.98e+12'
    """

    E: float
    A: float
    B: float
    alpha: float
    beta: float

    def optimum(self, flops: float) -> tuple[float, float]:
        """Parameters and tokens of the lowest loss where FLOPs are 6 N D (arXiv 2203.15556, equation 4)."""
        g = (self.alpha * self.A / (self.beta * self.B)) ** (1 / (self.alpha + self.beta))
        params = g * (flops / 6) ** (self.beta / (self.alpha + self.beta))
        return params, flops / 6 / params

    def loss(self, params: float, tokens: float) -> float:
        """Nats per token of its own evaluation set."""
        return self.E + self.A / params**self.alpha + self.B / tokens**self.beta


HOFFMANN = AllocationLaw(1.69, 406.4, 410.7, 0.34, 0.28)
BESIROGLU = AllocationLaw(1.8172, 482.01, 2085.43, 0.3478, 0.3658)


def kaplan_optimum(flops: float) -> tuple[float, float]:
    """Non-embedding parameters and tokens (Kaplan et al. 2020, arXiv 2001.08361, section 6): N = 1.3e9 C^0.73."""
    params = 1.3e9 * (flops / 8.64e19) ** 0.73
    return params, flops / 6 / params


def reference_allocations(flops: float, params: float, tokens: float, seq_len: int) -> pd.DataFrame:
    """What published laws give for the same FLOPs; Step Law's learning rate and batch for this plan's own size."""
    optima = {
        "Chinchilla (Hoffmann et al. 2022, approach 3)": ("all", HOFFMANN.optimum(flops)),
        "Chinchilla (Besiroglu et al. 2024)": ("all", BESIROGLU.optimum(flops)),
        "Kaplan et al. 2020": ("non-embedding", kaplan_optimum(flops)),
    }
    rows: list[dict[str, Any]] = [
        {"law": name, "counts": counts, "params": n, "tokens": d, "tokens_per_param": d / n}
        for name, (counts, (n, d)) in optima.items()
    ]
    size = {"model size": params / 1e6, "data size": tokens / 1e9, "seq len": seq_len}
    step_law = StepLaw()
    rows.append(
        {
            **{"law": "Step Law (Li et al. 2025), for this size", "counts": "non-embedding", "params": params},
            **{"tokens": tokens, "tokens_per_param": tokens / params},
            "learning rate": float(step_law.learning_rate([size])[0]),
            "batch size": float(step_law.batch_size([size])[0]),
        }
    )
    return pd.DataFrame(rows)
