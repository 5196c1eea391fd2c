"""Fits a source's residual kernel by marginal likelihood, with Student-t noise by reweighting."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import minimize

from residual_ncpl import FIELD_SCALES, FIXED_SCALES, SCALES, distinct_values, residual_kernel, surface_height, surfaces

# Steps of L-BFGS for a kernel's scales, the runs' noise weighed anew after each round.
_ROUNDS = (25, 12)
# Noise in nats, over the kernel's own, of runs whose hyper-parameters vary: ablations lie so near their centre that
# marginal likelihood drives the noise to zero and overfits. The scales are learnt under the larger, the residual is
# made under the smaller.
_NUGGET = {"scales": 0.01, "residual": 0.003}
# Student-t degrees of freedom of a run's own noise.
_FREEDOM = 4.0


def scales_of(z: np.ndarray, fields: int) -> dict[str, np.ndarray]:
    """The kernel's scales at standard scores under their priors: `SCALES`, then `FIELD_SCALES` of each field."""
    out = {name: scale.median * np.exp(scale.sd * z[i]) for i, (name, scale) in enumerate(SCALES.items())}
    for i, (name, scale) in enumerate(FIELD_SCALES.items()):
        start = len(SCALES) + i * fields
        out[name] = scale.median * np.exp(scale.sd * z[start : start + fields])
    return out | {name: np.asarray(value) for name, value in FIXED_SCALES.items()}


@dataclass
class Part:
    """One source's residual: its runs' rows, noise weights and variances, and the inverse of its covariance."""

    rows: np.ndarray
    fields: list[str]
    z: np.ndarray
    points: dict[str, np.ndarray]
    weights: np.ndarray
    noise: np.ndarray
    inverse: np.ndarray
    alpha: np.ndarray

    @property
    def scales(self) -> dict[str, np.ndarray]:
        return scales_of(self.z, len(self.fields))


def fit_part(
    rows: np.ndarray,
    points: dict[str, np.ndarray],
    residuals: np.ndarray,
    fields: list[str],
    old: Part | None = None,
) -> Part:
    """One source's residual.

    Args:
        rows: places of the source's runs among all.
        points: the kernel's coordinates of these runs.
        residuals: their losses minus the closed form, in nats.
        fields: the hyper-parameters that vary among them.
        old: a residual whose scales are kept.
    """
    z = old.z if old else np.zeros(len(SCALES) + len(FIELD_SCALES) * len(fields))
    nothing = np.empty(0)
    part = Part(rows, fields, z, points, np.ones(len(rows)), nothing, nothing, nothing)
    kernel_points = points | {"distinct": distinct_values(points["fields"])}
    evidence = None if old else _Evidence(part, kernel_points, residuals)
    for iterations in (0,) if old else _ROUNDS:
        if evidence:
            found = minimize(
                evidence, part.z, jac=True, method="L-BFGS-B", options={"maxiter": iterations, "maxfun": 2 * iterations}
            )
            part.z = found.x
        scales = part.scales
        kernel = residual_kernel(scales, points, kernel_points)
        for reweigh in (True, True, False):
            part.noise = _noise(part, scales, "residual")
            part.inverse = np.linalg.inv(kernel + np.diag(part.noise))
            part.alpha = part.inverse @ residuals
            if reweigh:
                # What the smooth surface leaves of each run, in units of its own noise.
                left = part.noise * part.alpha**2 / part.weights
                part.weights = np.minimum((_FREEDOM + 1) / (_FREEDOM + left * part.weights), 1.25)
    return part


def _noise(part: Part, scales: Mapping[str, np.ndarray], purpose: str) -> np.ndarray:
    """Each run's noise variance, in squared nats."""
    nugget = _NUGGET[purpose] if part.fields else 0.0
    return ((scales["s0"] + scales["s1"] * part.points["excess"]) ** 2 + nugget**2) / part.weights


class _Evidence:
    """Minus the log posterior of a kernel's scales, and its gradient (Rasmussen & Williams 2006, eq. 5.9)."""

    def __init__(self, part: Part, points: Mapping[str, Any], residuals: np.ndarray) -> None:
        self.part, self.points, self.residuals = part, points, residuals
        p = part.points
        self.same = (p["optimizer"][:, None] == p["optimizer"][None]) * 1.0
        self.squares = {name: (p[name][:, None] - p[name][None]) ** 2 for name in ("rate", "batch", "size", "data")}

    def __call__(self, z: np.ndarray) -> tuple[float, np.ndarray]:
        part, fields = self.part, len(self.part.fields)
        k = scales_of(z, fields)
        noise = _noise(part, k, "scales")
        terms = self._terms(k)
        covariance = sum(terms.values()) + np.diag(noise)
        try:
            root = np.linalg.cholesky(covariance)
        except np.linalg.LinAlgError:
            # Far from any optimum: turn back to the prior.
            return 1e6 * (1 + float(z @ z)), 2e6 * z
        inverse = np.linalg.inv(covariance)
        alpha = inverse @ self.residuals
        value = 0.5 * self.residuals @ alpha + np.log(np.diagonal(root)).sum() + 0.5 * z @ z
        slope = 0.5 * (inverse - np.outer(alpha, alpha))
        by_scale = self._slopes(k, slope, terms)
        parts = [by_scale[name] * scale.sd for name, scale in (*SCALES.items(), *FIELD_SCALES.items())]
        return float(value), np.concatenate([np.atleast_1d(part) for part in parts]) + z

    def _terms(self, k: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The kernel's summands."""
        p, squares = self.part.points, self.squares
        shared, own = surfaces(k, p, p)
        height = surface_height(k, p)
        height = height[:, None] * height[None]
        terms = {
            "shared": height * shared * np.exp(-0.5 * squares["rate"] / k["lu"] ** 2),
            "own": height * own * np.exp(-0.5 * squares["rate"] / k["lu2"] ** 2),
            "cell": k["vc"] ** 2 * np.exp(-0.5 * (squares["size"] / k["lnc"] ** 2 + squares["data"] / k["ldc"] ** 2)),
        }
        if self.part.fields:
            x = p["fields"] / k["lfx"]
            far = (x**2).sum(1)[:, None] + (x**2).sum(1)[None] - 2 * x @ x.T
            cell = squares["size"] / k["ln"] ** 2 + squares["data"] / k["ld"] ** 2
            near = squares["rate"] / k["lux"] ** 2 + squares["batch"] / k["lb2"] ** 2 + cell
            terms["deviation"] = self.same * k["vo"] ** 2 * np.exp(-0.5 * cell)
            terms["interaction"] = self.same * k["vx"] ** 2 * np.exp(-0.5 * (near + far))
            runs = np.concatenate([indicator for _, indicator in self.points["distinct"]], 0)
            tables = self._tables(k)
            widths = [table.shape[1] for table in tables]
            table = np.concatenate(tables, 1)
            terms["effects"] = (table * np.repeat(k["vfs"] ** 2, widths)) @ runs + self.same * (
                (table * np.repeat(k["vf"] ** 2, widths)) @ runs
            )
        return terms

    def _tables(self, k: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """For each hyper-parameter (runs, distinct values) correlations."""
        fields = self.part.points["fields"]
        return [
            np.exp(-0.5 * ((fields[:, i, None] - values[None]) / k["lf"][i]) ** 2)
            for i, (values, _) in enumerate(self.points["distinct"])
        ]

    def _slopes(
        self, k: Mapping[str, np.ndarray], slope: np.ndarray, terms: Mapping[str, np.ndarray]
    ) -> dict[str, np.ndarray]:
        """Derivatives by the scales' logarithms."""
        p, part, squares = self.part.points, self.part, self.squares
        weighed = {name: slope * term for name, term in terms.items() if name != "effects"}

        def by_length(names: tuple[str, ...], coordinate: str, length: str) -> np.ndarray:
            return sum(np.vdot(weighed[name], squares[coordinate]) for name in names) / k[length] ** 2

        surface = weighed["shared"] + weighed["own"]
        height, diagonal = surface_height(k, p), np.diagonal(slope)
        rows = surface.sum(1) / height
        base = k["s0"] + k["s1"] * p["excess"]
        found = {
            "s0": (diagonal * 2 * base * k["s0"] / part.weights).sum(),
            "s1": (diagonal * 2 * base * k["s1"] * p["excess"] / part.weights).sum(),
            "g0": 2 * k["g0"] * rows.sum(),
            "g1": 2 * k["g1"] * (rows * p["excess"]).sum(),
            "v1": 2 * weighed["shared"].sum(),
            "v2": 2 * weighed["own"].sum(),
            "vc": 2 * weighed["cell"].sum(),
            "lu": by_length(("shared",), "rate", "lu"),
            "lb": by_length(("shared",), "batch", "lb"),
            "lu2": by_length(("own",), "rate", "lu2"),
            "lnc": by_length(("cell",), "size", "lnc"),
            "ldc": by_length(("cell",), "data", "ldc"),
            "rho": k["rho"] * (surface * (1 - self.same) / (k["rho"] + self.same)).sum() / (k["rho"] + 1),
            "vo": np.zeros(()),
            "vx": np.zeros(()),
        }
        nothing = np.zeros(len(part.fields))
        found |= dict.fromkeys(FIELD_SCALES, nothing)
        if part.fields:
            found |= {"vo": 2 * weighed["deviation"].sum(), "vx": 2 * weighed["interaction"].sum()}
            found |= self._field_slopes(k, slope, weighed["interaction"])
        beside: tuple[str, ...] = ("own",)
        near: tuple[str, ...] = ("own",)
        if part.fields:
            beside, near = ("own", "interaction"), ("own", "deviation", "interaction")
        found["lb2"] = by_length(beside, "batch", "lb2")
        found |= {"ln": by_length(near, "size", "ln"), "ld": by_length(near, "data", "ld")}
        return found

    def _field_slopes(
        self, k: Mapping[str, np.ndarray], slope: np.ndarray, interaction: np.ndarray
    ) -> dict[str, np.ndarray]:
        fields, distinct = self.part.points["fields"], self.points["distinct"]
        inside = slope * self.same
        found: dict[str, list[float]] = {name: [] for name in FIELD_SCALES}
        rows = interaction.sum(1)
        for i, table in enumerate(self._tables(k)):
            values, indicator = distinct[i]
            shared, own = (slope @ indicator.T) * table, (inside @ indicator.T) * table
            square = ((fields[:, i, None] - values[None]) / k["lf"][i]) ** 2
            found["vfs"].append(2 * k["vfs"][i] ** 2 * shared.sum())
            found["vf"].append(2 * k["vf"][i] ** 2 * own.sum())
            found["lf"].append(((k["vfs"][i] ** 2 * shared + k["vf"][i] ** 2 * own) * square).sum())
            x = fields[:, i] / k["lfx"][i]
            found["lfx"].append(2 * (rows @ x**2 - x @ interaction @ x))
        return {name: np.array(values) for name, values in found.items()}
