"""Fits a source's residual kernel by marginal likelihood, with Student-t noise by reweighting."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from residual_ncpl import FIELD_SCALES, SCALES, distinct_values, residual_kernel

# Steps of L-BFGS for a kernel's scales, the runs' noise weighed anew after each round.
_ROUNDS = (40, 13, 13)
# Noise in nats, over the kernel's own, of runs whose hyper-parameters vary: ablations lie so near their centre that
# marginal likelihood drives the noise to zero and overfits. The scales are learnt under the larger, the residual is
# made under the smaller.
_NUGGET = {"scales": 0.01, "residual": 0.003}
# Student-t degrees of freedom of a run's own noise.
_FREEDOM = 4.0


def scales_of(z: Tensor, fields: int) -> dict[str, Tensor]:
    """The kernel's scales at standard scores under their priors: `SCALES`, then `FIELD_SCALES` of each field."""
    out = {name: scale.median * torch.exp(scale.sd * z[i]) for i, (name, scale) in enumerate(SCALES.items())}
    for i, (name, scale) in enumerate(FIELD_SCALES.items()):
        start = len(SCALES) + i * fields
        out[name] = scale.median * torch.exp(scale.sd * z[start : start + fields])
    return out


@dataclass
class Part:
    """One source's residual: its runs' rows, noise weights and variances, and the inverse of its covariance."""

    rows: Tensor
    fields: list[str]
    z: Tensor
    points: dict[str, Tensor]
    weights: Tensor
    noise: Tensor
    inverse: Tensor
    alpha: Tensor

    @property
    def scales(self) -> dict[str, Tensor]:
        return scales_of(self.z, len(self.fields))


def minimise(objective: Callable[[Tensor], Tensor], start: Tensor, iterations: int) -> tuple[Tensor, float]:
    """L-BFGS on an objective plus the standard normal prior: the lowest point that it saw, and its value."""
    z = start.clone().requires_grad_(True)
    lowest = (start.clone(), math.inf)
    optimizer = torch.optim.LBFGS(
        [z],
        max_iter=iterations,
        max_eval=2 * iterations,
        history_size=40,
        line_search_fn="strong_wolfe",
        tolerance_change=1e-7,
        tolerance_grad=1e-5,
    )

    def closure() -> Tensor:
        nonlocal lowest
        optimizer.zero_grad()
        try:
            value = objective(z) + 0.5 * (z**2).sum()
        except torch.linalg.LinAlgError:
            value = torch.tensor(math.nan)
        if not torch.isfinite(value):
            # Overflow, or a covariance that is not positive definite: far from any optimum, turn back to the prior.
            value = 1e6 * (1 + (z**2).sum())
        value.backward()
        if (found := float(value.detach())) < lowest[1]:
            lowest = (z.detach().clone(), found)
        return value

    optimizer.step(closure)
    return lowest


def fit_part(
    rows: Tensor, points: dict[str, Tensor], residuals: Tensor, fields: list[str], old: Part | None = None
) -> Part:
    """One source's residual.

    Args:
        rows: places of the source's runs among all.
        points: the kernel's coordinates of these runs.
        residuals: their losses minus the closed form, in nats.
        fields: the hyper-parameters that vary among them.
        old: a residual whose scales are kept.
    """
    size = len(SCALES) + len(FIELD_SCALES) * len(fields)
    z = old.z if old else torch.zeros(size, dtype=torch.float64)
    nothing = torch.empty(0)
    part = Part(rows, fields, z, points, torch.ones(len(rows), dtype=torch.float64), nothing, nothing, nothing)
    kernel_points = part.points | {"distinct": distinct_values(points["fields"], torch)}

    def noise(scales: Mapping[str, Tensor], purpose: str) -> Tensor:
        nugget = _NUGGET[purpose] if fields else 0.0
        return ((scales["s0"] + scales["s1"] * part.points["excess"]) ** 2 + nugget**2) / part.weights

    def evidence(z: Tensor) -> Tensor:
        scales = scales_of(z, len(fields))
        covariance = residual_kernel(scales, part.points, kernel_points, torch) + torch.diag(noise(scales, "scales"))
        root = torch.linalg.cholesky(covariance)
        white = torch.linalg.solve_triangular(root, residuals[:, None], upper=False)
        return 0.5 * (white**2).sum() + torch.log(torch.diagonal(root)).sum()

    for iterations in (0,) if old else _ROUNDS:
        if iterations:
            part.z, _ = minimise(evidence, part.z, iterations)
        scales = part.scales
        kernel = residual_kernel(scales, part.points, kernel_points, torch)
        for reweigh in (True, True, False):
            part.noise = noise(scales, "residual")
            part.inverse = torch.linalg.inv(kernel + torch.diag(part.noise))
            part.alpha = part.inverse @ residuals
            if reweigh:
                # What the smooth surface leaves of each run, in units of its own noise.
                left = (part.noise * part.alpha) ** 2 / (part.noise * part.weights)
                part.weights = ((_FREEDOM + 1) / (_FREEDOM + left)).clamp(max=1.25)
    return part
