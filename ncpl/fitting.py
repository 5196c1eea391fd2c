"""Fits the configuration-aware law, its calibration and the baselines to run logs.

Rows are dicts as the dataset builders give them: `source`, `conf` (field -> value), `final_loss` (nats per token,
None where the run has none). Everything is deterministic under its seed.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fields_ncpl import SOURCES, sequence_length
from laws_ncpl import (
    COORDINATES,
    INPUTS,
    PRIORS,
    REFERENCE,
    Calibration,
    ChinchillaLaw,
    ConfigurationLaw,
    KaplanLaw,
    KernelResidual,
    Trees,
    divergence_features,
    gradient,
    law_terms,
    locate,
    residual_kernel,
)

Row = Mapping[str, Any]
# Student-t degrees of freedom of the losses around the law: runs close to divergence scatter far.
_FREEDOM = 4.0
# Scale of that distribution in the fit of the closed form, in nats.
_SPREAD = 0.004
# Steps of L-BFGS for a kernel's scales, the runs' noise weighed anew after each round.
_ROUNDS = (40, 13, 13)
# Noise in nats, over the kernel's own, of runs whose hyper-parameters vary: ablations repeat their centre so closely
# that marginal likelihood believes every one of them, and then does not carry over to another centre. The scales are
# learnt under the larger, the residual is made under the smaller.
_NUGGET = {"scales": 0.01, "residual": 0.003}
# How much closer a source's deviations stay to those of its kin than to those of a stranger.
_KINSHIP = 0.3
# Nats above the best run of the same source, size and data size from which a run counts as diverged.
DIVERGED = 0.3


def cell(row: Row) -> tuple[str, float, float, float]:
    """What runs of one comparison share: source, model size, of which active, and data size (within rounding)."""
    conf = row["conf"]
    size = float(conf["model size"])
    active = float(conf.get("active size", size))
    return str(row["source"]), round(size, 1), round(active, 1), round(float(conf["data size"]), 2)


def fit(rows: Sequence[Row], *, seed: int | None = None) -> "Fit":
    """Fits the closed form and the residuals around it.

    The closed form comes first, the maximum a posteriori under `PRIORS` with Student-t errors. What it gets wrong it
    gets wrong for all the runs of a cell together, so that these count as one witness (a coarsened posterior, Miller &
    Dunson 2019); taken as independent they overfit (docs/experiments.md). Then each source's residual kernel, by
    marginal likelihood, with every run's noise weighed by how far it lies off.

    Args:
        rows: finished runs.
        seed: of a random starting point, to see how much hangs on it; the prior's means when absent.

    Raises:
        ValueError: no rows, or a row without a loss.

    >>> law = fit(example_rows()).law()
    >>> law.sources.keys() == {"mine"}
    True
    """
    return _fit(rows, seed)


def fit_prior(rows: Sequence[Row], *, seed: int | None = None) -> ConfigurationLaw:
    """The law of `fit`."""
    return fit(rows, seed=seed).law()


def random_folds(rows: Sequence[Row], folds: int = 5, *, seed: int = 0) -> list[str]:
    """A fold for each row at random; runs with equal losses in one cell (one run under two names) stay together.

    >>> len(set(random_folds(example_rows(), 3)))
    3
    """
    alike = [str((cell(row), row["conf"].get("optimizer"), row["final_loss"])) for row in rows]
    names = sorted(set(alike))
    drawn = dict(zip(names, np.random.default_rng(seed).permutation(len(names)) % folds, strict=True))
    return [str(drawn[name]) for name in alike]


@dataclass(frozen=True)
class _Layout:
    """Where each coefficient stands in the flat vector, which holds standard scores under the priors."""

    sources: tuple[str, ...]
    optimizers: tuple[str, ...]

    @property
    def by_source(self) -> list[str]:
        return [name for name, prior in PRIORS.items() if prior.source]

    @property
    def by_optimizer(self) -> list[str]:
        return [name for name, prior in PRIORS.items() if prior.optimizer]

    @property
    def groups(self) -> list[tuple[str, str, list[str]]]:
        """(kind, name, coefficients) in order."""
        return [
            ("common", "common", list(PRIORS)),
            *(("source", name, self.by_source) for name in self.sources),
            *(("optimizer", name, self.by_optimizer) for name in self.optimizers),
        ]

    def kin(self, source: str) -> str | None:
        """The source that a source's deviations start from."""
        parent = SOURCES[source].parent if source in SOURCES else None
        return parent if parent in self.sources else None

    def moments(self) -> tuple[Tensor, Tensor]:
        """Prior means and standard deviations."""
        means, sds = [], []
        for kind, group, names in self.groups:
            near = _KINSHIP if kind == "source" and self.kin(group) else 1.0
            means += [PRIORS[name].mean if kind == "common" else 0.0 for name in names]
            sds += [near * getattr(PRIORS[name], "sd" if kind == "common" else kind) for name in names]
        return torch.tensor(means, dtype=torch.float64), torch.tensor(sds, dtype=torch.float64)

    def slopes(self, runs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """What the flat vector does to the coefficients, linearly.

        Returns:
            For each of its entries the place of its coefficient in `PRIORS`, and (runs, entries) that coefficient's
            derivatives.
        """
        names, columns, moved = list(PRIORS), [], []
        for kind, group, own in self.groups:
            if kind == "common":
                mine = torch.ones(len(runs["d"]), dtype=torch.bool)
            elif kind == "source":
                heirs = [i for i, name in enumerate(self.sources) if group in (name, self.kin(name))]
                mine = torch.isin(runs["source"], torch.tensor(heirs))
            else:
                mine = runs["optimizer"] == self.optimizers.index(group)
            columns += [names.index(name) for name in own]
            moved += [mine] * len(own)
        return torch.tensor(columns), torch.stack(moved, 1) * self.moments()[1]

    def coefficients(self, z: Tensor, runs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        mean, sd = self.moments()
        values = mean + sd * z
        common, rest = values[: len(PRIORS)], values[len(PRIORS) :]
        cut = len(self.sources) * len(self.by_source)
        table = rest[:cut].reshape(len(self.sources), -1)
        kin = [self.sources.index(self.kin(name) or name) for name in self.sources]
        inherits = torch.tensor([[float(self.kin(name) is not None)] for name in self.sources])
        sources = (table + inherits * table[kin])[runs["source"]]
        optimizers = rest[cut:].reshape(len(self.optimizers), -1)[runs["optimizer"]]
        c = dict(zip(PRIORS, common, strict=True))
        for i, name in enumerate(self.by_source):
            c[name] = c[name] + sources[:, i]
        for i, name in enumerate(self.by_optimizer):
            c[name] = c[name] + optimizers[:, i]
        return c

    @property
    def columns(self) -> list[tuple[str, str, str]]:
        """(kind, group, coefficient) of each entry of the flat vector."""
        return [(kind, group, name) for kind, group, names in self.groups for name in names]

    def nested(self, values: np.ndarray) -> dict[str, dict[str, float]]:
        """The flat vector's values under `common`, each source and each optimizer."""
        out: dict[str, dict[str, float]] = {}
        at = 0
        for _, group, names in self.groups:
            out[group] = {
                name: float(f"{value:.9g}") for name, value in zip(names, values[at : at + len(names)], strict=True)
            }
            at += len(names)
        return out


# Scale of the residual kernel -> (prior mean of its logarithm, sd); those in _BY_FIELD have one value a field.
_SCALES: dict[str, tuple[float, float]] = {
    "s0": (math.log(0.0012), 0.3),
    "s1": (math.log(0.08), 0.5),
    "g0": (math.log(0.003), 0.7),
    "g1": (math.log(0.07), 0.5),
    "v1": (0.0, 0.5),
    "lu": (math.log(0.7), 0.4),
    "lb": (math.log(1.1), 0.4),
    "v2": (0.0, 0.5),
    "lu2": (math.log(0.6), 0.4),
    "lb2": (math.log(0.9), 0.4),
    "ln": (math.log(0.8), 0.4),
    "ld": (0.0, 0.4),
    "vc": (math.log(0.003), 0.5),
    "lnc": (math.log(0.7), 0.3),
    "ldc": (0.0, 0.3),
    "rho": (0.0, 0.5),
    "vo": (math.log(0.002), 0.5),
    "vx": (math.log(0.004), 0.7),
}
_BY_FIELD: dict[str, tuple[float, float]] = {
    "vf": (math.log(0.003), 0.8),
    "vfs": (math.log(0.002), 0.8),
    "lf": (math.log(0.7), 0.4),
    "lfx": (math.log(0.8), 0.4),
}


def _scales(z: Tensor, fields: int) -> dict[str, Tensor]:
    out = {name: torch.exp(mean + sd * z[i]) for i, (name, (mean, sd)) in enumerate(_SCALES.items())}
    for i, (name, (mean, sd)) in enumerate(_BY_FIELD.items()):
        start = len(_SCALES) + i * fields
        out[name] = torch.exp(mean + sd * z[start : start + fields])
    return out


@dataclass
class _Part:
    """One source's residual: noise weights and variances, kernel, and the inverse of its covariance."""

    fields: list[str]
    z: Tensor
    points: dict[str, Tensor]
    weights: Tensor
    noise: Tensor
    inverse: Tensor
    alpha: Tensor

    @property
    def scales(self) -> dict[str, Tensor]:
        return _scales(self.z, len(self.fields))


@dataclass
class Fit:
    """A fitted law with all that its uncertainty and its held-out forecasts need; made by `fit`.

    `witness` is a run's weight in the fit of the closed form, one over the number of its cell's runs.
    """

    rows: list[Row]
    layout: _Layout
    typical: dict[str, dict[str, dict[str, Any]]]
    z: Tensor
    runs: dict[str, Tensor]
    losses: Tensor
    witness: Tensor
    parts: dict[str, _Part]

    def law(self) -> ConfigurationLaw:
        mean, sd = self.layout.moments()
        values = self.layout.nested((mean + sd * self.z).numpy())
        sources = {name: dict(values[name]) for name in self.layout.sources}
        for name in sources:
            if kin := self.layout.kin(name):
                sources[name] = {key: value + values[kin][key] for key, value in values[name].items()}
        residuals = {
            source: KernelResidual(
                fields=part.fields,
                scales={name: _short(value) for name, value in part.scales.items()},
                runs={
                    name: [self.layout.optimizers[i] for i in value] if name == "optimizer" else _short(value)
                    for name, value in part.points.items()
                },
                weights=_short(part.alpha, 9),
                noise=_short(part.noise),
            )
            for source, part in self.parts.items()
        }
        law = ConfigurationLaw(
            common=values["common"],
            sources=sources,
            optimizers={name: values[name] for name in self.layout.optimizers},
            typical=self.typical,
            residuals=residuals,
        )
        order = self.layout.columns
        places = [order.index(column) for column in law.columns]
        covariance = (sd[:, None] * self._posterior * sd)[places][:, places]
        root = torch.linalg.cholesky(covariance)
        return replace(law, posterior=[_short(row[: i + 1], 6) for i, row in enumerate(root)])

    def jacobian(self, runs: Mapping[str, Tensor]) -> Tensor:
        """Derivatives of the closed form, a row for each run."""
        by_coefficient = gradient(self.layout.coefficients(self.z, runs), runs)
        columns, slopes = self.layout.slopes(runs)
        return by_coefficient[:, columns] * slopes

    @cached_property
    def _posterior(self) -> Tensor:
        """The posterior covariance of the standard scores (Laplace)."""
        slopes, weights = self.jacobian(self.runs), self.witness * _precision(self.losses - self.closed_form())
        hessian = slopes.T @ (weights[:, None] * slopes)
        return torch.linalg.inv(hessian + torch.eye(len(self.z), dtype=torch.float64))

    def closed_form(self) -> Tensor:
        """The closed form at the fitted runs, in nats per token."""
        return law_terms(self.layout.coefficients(self.z, self.runs), self.runs, torch)["loss"]

    def held_out(self, groups: Sequence[str], *, only: str | None = None) -> np.ndarray:
        """Forecasts of each group of rows by a law that has not seen it, in nats per token.

        The refits start anew from the prior's means and keep this fit's kernels' scales.

        Args:
            groups: the group of each row.
            only: forecast this group alone; the other rows' forecasts are NaN.
        """
        return self._held_out(groups, only)["loss"]

    def _held_out(self, groups: Sequence[str], only: str | None = None, afresh: bool = False) -> dict[str, np.ndarray]:
        """`held_out`'s forecasts as `loss`, with the law's `risk` and `known` uncertainty.

        `afresh` refits the kernels' scales too.
        """
        found = {name: np.full(len(self.rows), np.nan) for name in ("loss", "risk", "known")}
        for group in sorted(set(groups)) if only is None else [only]:
            outside = np.array([name == group for name in groups])
            kept = [row for row, out in zip(self.rows, outside, strict=True) if not out]
            law = _fit(kept, None, self, afresh).law()
            held = [row["conf"] for row, out in zip(self.rows, outside, strict=True) if out]
            for name, forecast in (("loss", law), ("risk", law.risk)):
                found[name][outside] = forecast(held)
            found["known"][outside] = law.uncertainty(held)["known"]
            if not np.isfinite(found["loss"][outside] + found["known"][outside]).all():
                raise FloatingPointError(f"the fit without {group} has no finite forecasts")
        return found

    @cached_property
    def held_out_cells(self) -> dict[str, np.ndarray]:
        """Each cell of source, size and data size forecast by a law that has not seen it.

        `loss`, and that law's `risk` and `known` uncertainty, in nats per token.
        """
        return self._held_out([str(cell(row)) for row in self.rows])

    def left_out_errors(self, source: str) -> np.ndarray:
        """Errors of each of a source's rows forecast from all others, law and kernel held (R & W, eq. 5.12)."""
        part = self.parts[source]
        return (part.alpha / torch.diagonal(part.inverse)).numpy()

    def calibration(self, unstable: Sequence[Row] = (), *, seed: int = 0) -> Calibration:
        """Fits intervals, divergence and the envelope.

        Every cell of source, size and data size is forecast by a law that has seen no run of it, and the largest size
        of each source that has three or more by one that has seen no run of that size. The intervals' standard
        deviation and quantiles come from these errors alone.

        Args:
            unstable: runs that diverged or went unstable, with or without a loss.
            seed: of the divergence trees.
        """
        law = self.law()
        cells = [cell(row) for row in self.rows]
        observed = np.array([row["final_loss"] for row in self.rows])
        held = [(self.held_out_cells, np.full(len(cells), True))]
        for source in self.layout.sources:
            sizes = sorted({name[1:3] for name in cells if name[0] == source}, key=lambda size: size[1])
            if len(sizes) > 2:
                largest = np.array([name[:3] == (source, *sizes[-1]) for name in cells])
                # Afresh: scales that have seen the larger models would make these errors too small.
                held.append((self._held_out(["held" if out else "kept" for out in largest], "held", True), largest))
        errors = np.concatenate([found["loss"][chosen] - observed[chosen] for found, chosen in held])
        known = np.concatenate([found["known"][chosen] for found, chosen in held])
        rows = [row for _, chosen in held for row, mine in zip(self.rows, chosen, strict=True) if mine]
        excess = law.points([row["conf"] for row in rows])[0]["excess"]
        sources = np.array([str(row["source"]) for row in rows])
        witness = np.concatenate([self.witness.numpy()[chosen] for _, chosen in held])
        scale, scores = {}, {}
        for source in ("", *self.layout.sources):
            mine = sources == source if source else np.full(len(sources), True)
            scale[source] = _fit_scale(errors[mine], known[mine], excess[mine], witness[mine])
            s = scale[source]
            total = np.sqrt((s["known"] * known[mine]) ** 2 + (s["excess"] * excess[mine]) ** 2 + s["noise"] ** 2)
            quantiles = np.quantile(
                np.abs(errors[mine]) / total, np.linspace(0, 1, 201), weights=witness[mine], method="inverted_cdf"
            )
            scores[source] = [float(f"{quantile:.4g}") for quantile in quantiles]
        usual = _usual_rates([*self.rows, *unstable])
        return Calibration(
            law=law,
            envelope=_envelopes(self.rows),
            scale=scale,
            scores=scores,
            trees=_fit_divergence(law, self.rows, unstable, usual, seed),
            optimizers=usual,
        )

    def _points(self, runs: Mapping[str, Tensor], part: _Part) -> dict[str, Tensor]:
        c = self.layout.coefficients(self.z, runs)
        columns = [list(COORDINATES).index(name) for name in part.fields]
        found = locate(law_terms(c, runs, torch), runs, torch)
        return found | {"optimizer": runs["optimizer"], "fields": runs["fields"][:, columns]}


def _short(value: Any, digits: int = 7) -> Any:
    """A tensor as numbers of so many digits, in the nesting of its shape."""
    if value.ndim == 0:
        return float(f"{float(value):.{digits}g}")
    return [_short(part, digits) for part in value]


def _typical(rows: Sequence[Row]) -> dict[str, dict[str, dict[str, Any]]]:
    """source -> optimizer -> field -> the most frequent value."""
    names = [*COORDINATES, "batch size", "learning rate"]
    typical: dict[str, dict[str, dict[str, Any]]] = {}
    for source in sorted({str(row["source"]) for row in rows}):
        own = [row["conf"] for row in rows if str(row["source"]) == source]
        typical[source] = {"": {"batch size": _mode([conf["batch size"] for conf in own])}}
        widths = [
            float(conf["hidden dim"]) * math.sqrt(REFERENCE["model size"] / conf.get("active size", conf["model size"]))
            for conf in own
            if conf.get("hidden dim")
        ]
        if widths:
            # At the reference size: it goes with the root of the size.
            typical[source][""]["hidden dim"] = float(f"{np.median(widths):.6g}")
        for optimizer in sorted({str(conf["optimizer"]) for conf in own}):
            confs = [conf for conf in own if str(conf["optimizer"]) == optimizer]
            found = {name: [conf[name] for conf in confs if conf.get(name) is not None] for name in names}
            typical[source][optimizer] = {name: _mode(values) for name, values in found.items() if values}
    return typical


def _mode(values: Sequence[Any]) -> Any:
    texts = [str(value) for value in values]
    return values[texts.index(max(sorted(set(texts)), key=texts.count))]


def _runs(law: ConfigurationLaw, layout: _Layout, rows: Sequence[Row]) -> dict[str, Tensor]:
    """The closed form's inputs; NaN stands where a configuration has no learning rate."""
    inputs = law._inputs([row["conf"] for row in rows])
    runs = {name: torch.tensor(inputs[name]) for name in (*INPUTS, "fields")}
    runs["source"] = torch.tensor([layout.sources.index(str(row["source"])) for row in rows])
    runs["optimizer"] = torch.tensor([layout.optimizers.index(str(row["conf"]["optimizer"])) for row in rows])
    return runs


def _minimise(objective: Callable[[Tensor], Tensor], start: Tensor, iterations: int) -> tuple[Tensor, float]:
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


def _fit(rows: Sequence[Row], seed: int | None, first: Fit | None = None, afresh: bool = True) -> Fit:
    """The whole fit; of some of the rows of `first` with its layout, and, unless `afresh`, its kernels' scales."""
    if not rows:
        raise ValueError("rows: got none, expected finished runs")
    for i, row in enumerate(rows):
        if row["final_loss"] is None or not math.isfinite(row["final_loss"]):
            raise ValueError(
                f"rows[{i}]: final_loss is {row['final_loss']!r}, expected a finite loss in nats per token"
            )
    if first is None:
        layout = _Layout(
            tuple(sorted({str(row["source"]) for row in rows})),
            tuple(sorted({str(row["conf"]["optimizer"]) for row in rows})),
        )
        typical = _typical(rows)
    else:
        layout, typical = first.layout, first.typical
    runs = _runs(replace(ConfigurationLaw.example(), typical=typical), layout, rows)
    losses = torch.tensor([row["final_loss"] for row in rows], dtype=torch.float64)

    start = torch.zeros(len(layout.moments()[0]), dtype=torch.float64)
    if seed is not None:
        start = 0.4 * torch.randn(len(start), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    count = Counter(map(cell, rows))
    witness = torch.tensor([1 / count[cell(row)] for row in rows], dtype=torch.float64)
    found = Fit(list(rows), layout, typical, start, runs, losses, witness, {})
    for sources, free in _teams(layout, runs):
        places = {name: torch.nonzero(runs["source"] == layout.sources.index(name))[:, 0] for name in sources}
        _fit_closed_form(found, torch.cat(list(places.values())), free)
        for source, index in places.items():
            _fit_part(found, source, index, None if first is None or afresh else first.parts[source])
    return found


def _teams(layout: _Layout, runs: Mapping[str, Tensor]) -> list[tuple[list[str], Tensor]]:
    """Sources that are fitted together, in turn, and which coefficients each of them frees.

    Dense models come first. Sources of mixtures of experts follow with the common values held: they borrow from the
    dense ones and lend nothing, for their size is not one number (what an expert is worth varies by more than a law of
    one size can say) and would bend the dense models' exponents.
    """
    present = [name for i, name in enumerate(layout.sources) if bool((runs["source"] == i).any())]
    sparse = [name for name in present if bool((runs["idle"][runs["source"] == layout.sources.index(name)] > 0).all())]
    dense = [name for name in present if name not in sparse]
    own = torch.tensor([c[1] in sparse or c == ("common", "common", "experts") for c in layout.columns])
    if not dense or not sparse:
        return [(present, torch.ones_like(own))]
    return [(dense, ~own), (sparse, own)]


def _misfit(residuals: Tensor) -> Tensor:
    """Minus the log likelihood of each run's error from the closed form, Student-t."""
    return (_FREEDOM + 1) / 2 * torch.log1p((residuals / _SPREAD) ** 2 / _FREEDOM)


def _precision(residuals: Tensor) -> Tensor:
    """Weights of half squares that have the slope of `_misfit`."""
    return (_FREEDOM + 1) / (_FREEDOM * _SPREAD**2 + residuals**2)


def _fit_closed_form(found: Fit, mine: Tensor, free: Tensor) -> None:
    """Moves the free coefficients to their maximum a posteriori given some runs, all else in `found` held.

    Levenberg-Marquardt on reweighted least squares (Holland & Welsch 1977).
    """

    def objective() -> float:
        misfit = found.witness * _misfit(found.losses - found.closed_form())
        value = misfit[mine].sum() + (found.z[free] ** 2).sum() / 2
        return float(value) if torch.isfinite(value) else math.inf

    lowest, damping, gain = objective(), 1.0, math.inf
    while gain > 1e-4:
        slopes, residuals = found.jacobian(found.runs)[mine][:, free], (found.losses - found.closed_form())[mine]
        weighed, z = (found.witness[mine] * _precision(residuals))[:, None] * slopes, found.z
        hessian = slopes.T @ weighed + torch.eye(slopes.shape[1], dtype=torch.float64)
        downhill = weighed.T @ residuals - z[free]
        while True:
            step = torch.linalg.solve(hessian + damping * torch.diag(torch.diagonal(hessian)), downhill)
            found.z = z.masked_scatter(free, z[free] + step)
            gain = lowest - objective()
            if gain > 0:
                lowest, damping = lowest - gain, max(damping / 4, 1e-6)
                break
            damping *= 4
            if damping > 1e6:
                found.z = z
                return


def _fit_part(found: Fit, source: str, index: Tensor, old: _Part | None) -> None:
    """One source's kernel by marginal likelihood, with Student-t noise by reweighting; with the scales of `old`."""
    runs = {name: values[index] for name, values in found.runs.items()}
    residuals = (found.losses - found.closed_form())[index]
    moving = runs["fields"].std(0) > 0 if len(index) > 1 else torch.zeros(len(COORDINATES), dtype=torch.bool)
    fields = old.fields if old else [name for name, moves in zip(COORDINATES, moving, strict=True) if moves]
    size = len(_SCALES) + len(_BY_FIELD) * len(fields)
    z = old.z if old else torch.zeros(size, dtype=torch.float64)
    nothing = torch.empty(0)
    part = _Part(fields, z, {}, torch.ones(len(index), dtype=torch.float64), nothing, nothing, nothing)
    part.points = found._points(runs, part)
    found.parts[source] = part

    def noise(scales: Mapping[str, Tensor], purpose: str) -> Tensor:
        nugget = _NUGGET[purpose] if fields else 0.0
        return ((scales["s0"] + scales["s1"] * part.points["excess"]) ** 2 + nugget**2) / part.weights

    def evidence(z: Tensor) -> Tensor:
        scales = _scales(z, len(fields))
        covariance = residual_kernel(scales, part.points, part.points, torch) + torch.diag(noise(scales, "scales"))
        root = torch.linalg.cholesky(covariance)
        white = torch.linalg.solve_triangular(root, residuals[:, None], upper=False)
        return 0.5 * (white**2).sum() + torch.log(torch.diagonal(root)).sum()

    for iterations in (0,) if old else _ROUNDS:
        if iterations:
            part.z, _ = _minimise(evidence, part.z, iterations)
        scales = part.scales
        kernel = residual_kernel(scales, part.points, part.points, torch)
        for reweigh in (True, True, False):
            part.noise = noise(scales, "residual")
            part.inverse = torch.linalg.inv(kernel + torch.diag(part.noise))
            part.alpha = part.inverse @ residuals
            if reweigh:
                # What the smooth surface leaves of each run, in units of its own noise.
                left = (part.noise * part.alpha) ** 2 / (part.noise * part.weights)
                part.weights = ((_FREEDOM + 1) / (_FREEDOM + left)).clamp(max=1.25)


def fit_calibration(rows: Sequence[Row], unstable: Sequence[Row] = (), *, seed: int = 0) -> Calibration:
    """The calibration of `fit`: see `Fit.calibration`."""
    return fit(rows).calibration(unstable, seed=seed)


def _fit_scale(errors: np.ndarray, known: np.ndarray, excess: np.ndarray, witness: np.ndarray) -> dict[str, float]:
    """The standard deviation's constants by Laplace-distributed errors, which heavy tails hardly move.

    The posterior is believed to within a factor: cells left out hardly move away from the rest, and say little of how
    it grows.
    """
    e, s, x, w = (torch.tensor(values, dtype=torch.float64) for values in (errors, known, excess, witness))
    centre = torch.log(torch.tensor([1.0, 0.1, 0.002], dtype=torch.float64))
    spread = torch.tensor([0.5, 1.0, 1.0], dtype=torch.float64)

    def objective(z: Tensor) -> Tensor:
        a, b, c = torch.exp(centre + spread * z)
        total = torch.sqrt((a * s) ** 2 + (b * x) ** 2 + c**2)
        return (w * (torch.log(total) + math.sqrt(2) * torch.abs(e) / total)).sum()

    z, _ = _minimise(objective, torch.zeros(3, dtype=torch.float64), 200)
    values = torch.exp(centre + spread * z)
    return dict(zip(("known", "excess", "noise"), [float(f"{v:.6g}") for v in values], strict=True))


def _envelopes(rows: Sequence[Row]) -> dict[str, dict[str, list[float]]]:
    """source -> field -> the lowest and highest value; under `""` those of all sources."""
    envelopes: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        conf = row["conf"]
        values = {
            name: conf.get(name)
            for name in ("model size", "active size", "data size", "learning rate", "weight decay", "warmup")
        }
        values["batch tokens"] = conf["batch size"] * sequence_length(conf)
        for source in ("", str(row["source"])):
            own = envelopes.setdefault(source, {})
            for name, value in values.items():
                if value is not None and float(value) > 0:
                    low, high = own.get(name, (float(value), float(value)))
                    own[name] = [min(low, float(value)), max(high, float(value))]
    return envelopes


def _usual_rates(rows: Sequence[Row]) -> dict[str, float]:
    rates: dict[str, list[float]] = {}
    for row in rows:
        rates.setdefault(str(row["conf"]["optimizer"]), []).append(math.log(row["conf"]["learning rate"]))
    return {name: float(np.median(values)) for name, values in sorted(rates.items())}


def diverged(rows: Sequence[Row]) -> np.ndarray:
    """Which runs diverged: no loss, or more than `DIVERGED` nats above the best run of the same cell.

    >>> conf = {"model size": 100, "data size": 2}
    >>> diverged([{"source": "mine", "conf": conf, "final_loss": loss} for loss in (3.0, 3.2, 3.4, None)]).tolist()
    [False, False, True, True]
    """
    best: dict[Any, float] = {}
    for row in rows:
        if row["final_loss"] is not None and math.isfinite(row["final_loss"]):
            best[cell(row)] = min(best.get(cell(row), math.inf), row["final_loss"])
    return np.array(
        [
            row["final_loss"] is None
            or not math.isfinite(row["final_loss"])
            or row["final_loss"] > best[cell(row)] + DIVERGED
            for row in rows
        ],
        dtype=bool,
    )


def _fit_divergence(
    law: ConfigurationLaw, rows: Sequence[Row], unstable: Sequence[Row], usual: Mapping[str, float], seed: int
) -> Trees:
    """Boosted trees (Friedman 2001) for the probability that a run diverges."""
    from sklearn.ensemble import GradientBoostingClassifier

    runs = [*rows, *unstable]
    labels = diverged(runs)
    if labels.all() or not labels.any():
        rate = (labels.sum() + 0.5) / (len(labels) + 1)
        return Trees(math.log(rate / (1 - rate)), [0], [-1], [0.0], [0], [0], [0.0])
    features = divergence_features(law, [row["conf"] for row in runs], usual)
    model = GradientBoostingClassifier(
        n_estimators=300,
        learning_rate=0.04,
        max_depth=4,
        min_samples_leaf=8,
        max_features=0.4,
        subsample=0.8,
        random_state=seed,
    ).fit(features, labels)
    return trees_of(model)


def trees_of(model: Any) -> Trees:
    """A fitted binary `GradientBoostingClassifier` as plain arrays."""
    nodes: dict[str, list[Any]] = {name: [] for name in ("feature", "threshold", "left", "right", "value")}
    roots = []
    for (regressor,) in model.estimators_:
        tree, root = regressor.tree_, len(nodes["feature"])
        roots.append(root)
        leaf = tree.children_left < 0
        nodes["feature"] += np.where(leaf, -1, tree.feature).tolist()
        # scikit-learn compares in float32; seven digits keep a threshold between its neighbours.
        nodes["threshold"] += [float(f"{value:.7g}") for value in np.where(leaf, 0.0, tree.threshold)]
        nodes["left"] += np.where(leaf, 0, tree.children_left + root).tolist()
        nodes["right"] += np.where(leaf, 0, tree.children_right + root).tolist()
        values = np.where(leaf, model.learning_rate * tree.value[:, 0, 0], 0.0)
        nodes["value"] += [float(f"{value:.5g}") for value in values]
    start = model.init_.class_prior_
    return Trees(start=float(math.log(start[1] / start[0])), roots=roots, **nodes)


def cross_validate_divergence(
    law: ConfigurationLaw, rows: Sequence[Row], unstable: Sequence[Row], *, folds: int = 5, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Which runs diverged, and the probabilities given by trees that saw no run of the same cell."""
    runs = [*rows, *unstable]
    names = sorted({cell(row) for row in runs})
    drawn = dict(zip(names, np.random.default_rng(seed).permutation(len(names)) % folds, strict=True))
    fold = np.array([drawn[cell(row)] for row in runs])
    labels, probabilities = diverged(runs), np.empty(len(runs))
    for k in range(folds):
        inside = [run for run, f in zip(runs, fold, strict=True) if f != k]
        usual = _usual_rates(inside)
        trees = _fit_divergence(law, inside, [], usual, seed)
        held = np.flatnonzero(fold == k)
        probabilities[held] = trees(divergence_features(law, [runs[i]["conf"] for i in held], usual))
    return labels, probabilities


def fit_chinchilla(rows: Sequence[Row]) -> ChinchillaLaw:
    """Hoffmann et al. 2022's law for each source, by their Huber loss on log losses, over all its runs."""
    return ChinchillaLaw(
        {source: _least(own, _chinchilla, _CHINCHILLA_STARTS) for source, own in _by_source(rows).items()}
    )


def fit_kaplan(rows: Sequence[Row]) -> KaplanLaw:
    """Kaplan et al. 2020's law for each source, by the same loss."""
    return KaplanLaw({source: _least(own, _kaplan, _KAPLAN_STARTS) for source, own in _by_source(rows).items()})


def _by_source(rows: Sequence[Row]) -> dict[str, list[Row]]:
    return {s: [row for row in rows if str(row["source"]) == s] for s in sorted({str(row["source"]) for row in rows})}


# Logarithms of the coefficients.
_CHINCHILLA_STARTS = [[math.log(v) for v in (a, alpha, 0.8, 0.3, 1.8)] for a in (2.0, 5.0) for alpha in (0.2, 0.4)]
_KAPLAN_STARTS = [[math.log(v) for v in (8.8e7, alpha, 5.4e4, 0.095)] for alpha in (0.05, 0.076, 0.12)]


def _chinchilla(log: np.ndarray, n: np.ndarray, d: np.ndarray) -> np.ndarray:
    a, alpha, b, beta, c = np.exp(log)
    return a * n**-alpha + b * d**-beta + c


def _kaplan(log: np.ndarray, n: np.ndarray, d: np.ndarray) -> np.ndarray:
    n_c, alpha_n, d_c, alpha_d = np.exp(log)
    return ((n_c / n) ** (alpha_n / alpha_d) + d_c / d) ** alpha_d


def _least(rows: Sequence[Row], law: Callable[..., np.ndarray], starts: Sequence[Sequence[float]]) -> list[float]:
    from scipy.optimize import least_squares

    n, d = (np.array([float(row["conf"][name]) for row in rows]) for name in ("model size", "data size"))
    target = np.log([row["final_loss"] for row in rows])
    found = [
        least_squares(lambda log: np.log(law(log, n, d)) - target, start, loss="huber", f_scale=1e-3, max_nfev=2000)
        for start in starts
    ]
    return np.exp(min(found, key=lambda result: result.cost).x).tolist()


def _features(rows: Sequence[Row]) -> np.ndarray:
    """Plain features for the baselines: logarithms of the four scales, hyper-parameters, one-hot optimizers and
    sources."""
    law = ConfigurationLaw.example()
    inputs = law._inputs([row["conf"] for row in rows])
    return np.column_stack([inputs[name] for name in (*INPUTS, "fields")])


def baseline_forecasts(name: str, rows: Sequence[Row], held: Sequence[Row], *, seed: int = 0) -> np.ndarray:
    """Losses that a general-purpose learner, fitted to each source and optimizer's names as one-hot columns, gives.

    Args:
        name: `"gradient-boosted trees"` or `"gaussian process"` (scikit-learn, log features).
        rows: runs to fit.
        held: runs to forecast.
        seed: of the learner.
    """
    from sklearn.ensemble import HistGradientBoostingRegressor
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel

    losses = np.empty(len(held))
    for source, own in _by_source(rows).items():
        mine = np.flatnonzero([str(row["source"]) == source for row in held])
        if not len(mine):
            continue
        names = sorted({str(row["conf"]["optimizer"]) for row in own})

        def columns(chosen: Sequence[Row], names: Sequence[str] = names) -> np.ndarray:
            hot = np.array([[str(row["conf"]["optimizer"]) == name for name in names] for row in chosen], dtype=float)
            return np.hstack([_features(chosen), hot])

        x, z = columns(own), columns([held[int(i)] for i in mine])
        keep = x.std(0) > 0
        x, z = (
            (x[:, keep] - x[:, keep].mean(0)) / x[:, keep].std(0),
            (z[:, keep] - x[:, keep].mean(0)) / x[:, keep].std(0),
        )
        y = np.array([row["final_loss"] for row in own])
        if name == "gradient-boosted trees":
            model: Any = HistGradientBoostingRegressor(
                loss="absolute_error",
                max_iter=500,
                learning_rate=0.05,
                max_leaf_nodes=15,
                random_state=seed,
                max_features=0.5,
            )
        elif name == "gaussian process":
            kernel = ConstantKernel(1.0) * RBF(np.full(x.shape[1], 3.0), (0.3, 100)) + WhiteKernel(1e-2, (1e-5, 1))
            model = GaussianProcessRegressor(kernel, normalize_y=True, optimizer=_few_steps, random_state=seed)
        else:
            raise ValueError(f"name: got {name!r}, accepted: 'gradient-boosted trees', 'gaussian process'")
        losses[mine] = model.fit(x, y).predict(z)
    return losses


def _few_steps(objective: Callable[..., Any], start: np.ndarray, bounds: np.ndarray) -> tuple[np.ndarray, float]:
    """scikit-learn's optimizer of kernels, stopped after 15 steps: the rest brings nothing and takes an hour."""
    from scipy.optimize import minimize

    found = minimize(objective, start, jac=True, bounds=bounds, method="L-BFGS-B", options={"maxiter": 15})
    return found.x, float(found.fun)


def example_rows() -> list[dict[str, Any]]:
    """Made-up runs that follow the law at its prior means, for examples and tests.

    >>> len(example_rows())
    96
    """
    law = ConfigurationLaw.example()
    rows: list[dict[str, Any]] = [
        {
            "name": f"made-up-{size}-{data}-{rate}-{batch}",
            "source": "mine",
            "conf": {
                "source": "mine",
                "model size": size,
                "data size": data,
                "optimizer": "adamw",
                "learning rate": rate,
                "batch size": batch,
            },
        }
        for size in (100.0, 200.0, 400.0)
        for data in (4.0, 16.0)
        for rate in (5e-4, 1e-3, 2e-3, 4e-3)
        for batch in (64, 128, 256, 512)
    ]
    losses = law.closed_form([row["conf"] for row in rows])
    return [{**row, "final_loss": float(loss)} for row, loss in zip(rows, losses, strict=True)]
