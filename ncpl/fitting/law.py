"""Fits the configuration-aware law: the closed form by maximum a posteriori, then each source's residual around it."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fields_ncpl import SOURCES
from laws_ncpl import INPUTS, PRIORS, REFERENCE, ConfigurationLaw, gradient, law_terms, locate
from ncpl.fitting.residual import Part, fit_part
from ncpl.runs import Row, cell
from residual_ncpl import COORDINATES, KernelResidual

# Student-t degrees of freedom of the losses around the law: runs close to divergence scatter far.
FREEDOM = 4.0
# Scale of that distribution in the fit of the closed form, in nats.
_SPREAD = 0.004
# How much closer a source's deviations stay to those of its parent than to those of another source.
_NEAR_PARENT = 0.3


def fit(rows: Sequence[Row], *, seed: int | None = None) -> "Fit":
    """Fits the closed form and the residuals around it.

    The closed form comes first, the maximum a posteriori under `PRIORS` with Student-t errors. Model error is shared by
    all runs of a cell (same source, size and data size), so a cell's likelihood is tempered to the weight of one run (a
    coarsened posterior, Miller & Dunson 2019); taken as independent, runs overfit (docs/experiments.md). Then each
    source's residual kernel is fitted by marginal likelihood, with every run's noise weighed by how far it lies off.

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

    def parent(self, source: str) -> str | None:
        """The source that a source's deviations start from."""
        parent = SOURCES[source].parent if source in SOURCES else None
        return parent if parent in self.sources else None

    def moments(self) -> tuple[Tensor, Tensor]:
        """Prior means and standard deviations."""
        means, sds = [], []
        for kind, group, names in self.groups:
            near = _NEAR_PARENT if kind == "source" and self.parent(group) else 1.0
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
                heirs = [i for i, name in enumerate(self.sources) if group in (name, self.parent(name))]
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
        parents = [self.sources.index(self.parent(name) or name) for name in self.sources]
        inherits = torch.tensor([[float(self.parent(name) is not None)] for name in self.sources])
        sources = (table + inherits * table[parents])[runs["source"]]
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


@dataclass
class Fit:
    """A fitted law with all that its uncertainty and its held-out forecasts need; made by `fit`.

    `weight` is a run's weight in the fit of the closed form, one over the number of its cell's runs.
    """

    rows: list[Row]
    layout: _Layout
    typical: dict[str, dict[str, dict[str, Any]]]
    z: Tensor
    runs: dict[str, Tensor]
    losses: Tensor
    weight: Tensor
    parts: dict[str, Part]

    def law(self) -> ConfigurationLaw:
        mean, sd = self.layout.moments()
        values = self.layout.nested((mean + sd * self.z).numpy())
        sources = {name: dict(values[name]) for name in self.layout.sources}
        for name in sources:
            if parent := self.layout.parent(name):
                sources[name] = {key: value + values[parent][key] for key, value in values[name].items()}
        residuals = {
            source: KernelResidual(
                fields=part.fields,
                scales={name: value.numpy() for name, value in part.scales.items()},
                optimizers=list(self.layout.optimizers),
                runs={name: value.numpy() for name, value in part.points.items()},
                weights=part.alpha.numpy(),
                noise=part.noise.numpy(),
                inputs={name: self.runs[name][part.rows].numpy() for name in INPUTS},
            )
            for source, part in self.parts.items()
        }
        law = ConfigurationLaw(
            common=values["common"],
            sources=sources,
            optimizers={name: values[name] for name in self.layout.optimizers},
            typical=self.typical,
            parents={name: parent for name in sources if (parent := self.layout.parent(name))},
            residuals=residuals,
        )
        order = self.layout.columns
        places = [order.index(column) for column in law.columns]
        covariance = (sd[:, None] * self._posterior * sd)[places][:, places]
        return replace(law, posterior=torch.linalg.cholesky(covariance).numpy())

    def jacobian(self, runs: Mapping[str, Tensor]) -> Tensor:
        """Derivatives of the closed form, a row for each run."""
        c = {name: values.numpy() for name, values in self.layout.coefficients(self.z, runs).items()}
        by_coefficient = torch.from_numpy(gradient(c, {name: runs[name].numpy() for name in INPUTS}))
        columns, slopes = self.layout.slopes(runs)
        return by_coefficient[:, columns] * slopes

    @cached_property
    def _posterior(self) -> Tensor:
        """The posterior covariance of the standard scores (Laplace)."""
        slopes, weights = self.jacobian(self.runs), self.weight * _precision(self.losses - self.closed_form())
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

    def points(self, runs: Mapping[str, Tensor], fields: Sequence[str]) -> dict[str, Tensor]:
        """The residual's coordinates of runs, with these hyper-parameters."""
        c = self.layout.coefficients(self.z, runs)
        columns = [list(COORDINATES).index(name) for name in fields]
        found = locate(law_terms(c, runs, torch), runs, torch)
        return found | {"optimizer": runs["optimizer"], "fields": runs["fields"][:, columns]}


def _typical(rows: Sequence[Row]) -> dict[str, dict[str, dict[str, Any]]]:
    """source -> optimizer -> field -> the most frequent value."""
    names = [*COORDINATES, "batch size", "learning rate"]
    typical: dict[str, dict[str, dict[str, Any]]] = {}
    for source in sorted({str(row["source"]) for row in rows}):
        own = [row["conf"] for row in rows if str(row["source"]) == source]
        typical[source] = {"": {"batch size": _mode([conf["batch size"] for conf in own])}}
        if source in SOURCES:
            typical[source][""] |= {"seq len": SOURCES[source].seq_len, "vocab size": SOURCES[source].vocab_size}
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
    weight = torch.tensor([1 / count[cell(row)] for row in rows], dtype=torch.float64)
    found = Fit(list(rows), layout, typical, start, runs, losses, weight, {})
    for sources, free in _teams(layout, runs):
        places = {name: torch.nonzero(runs["source"] == layout.sources.index(name))[:, 0] for name in sources}
        _fit_closed_form(found, torch.cat(list(places.values())), free)
        for source, index in places.items():
            old = None if first is None or afresh else first.parts[source]
            found.parts[source] = _fit_residual(found, index, old)
    return found


def _teams(layout: _Layout, runs: Mapping[str, Tensor]) -> list[tuple[list[str], Tensor]]:
    """Sources that are fitted together, in turn, and which coefficients each of them frees.

    Dense models come first. Sources of mixtures of experts are fitted second with the shared coefficients frozen,
    because their effective size is uncertain and would bias the dense exponents.
    """
    present = [name for i, name in enumerate(layout.sources) if bool((runs["source"] == i).any())]
    sparse = [name for name in present if bool((runs["idle"][runs["source"] == layout.sources.index(name)] > 0).all())]
    dense = [name for name in present if name not in sparse]
    own = torch.tensor([c[1] in sparse or c == ("common", "common", "experts") for c in layout.columns])
    if not dense or not sparse:
        return [(present, torch.ones_like(own))]
    return [(dense, ~own), (sparse, own)]


def _fit_residual(found: Fit, index: Tensor, old: Part | None) -> Part:
    """The residual of one source's runs around the closed form, with the scales of `old`."""
    runs = {name: values[index] for name, values in found.runs.items()}
    moving = runs["fields"].std(0) > 0 if len(index) > 1 else torch.zeros(len(COORDINATES), dtype=torch.bool)
    fields = old.fields if old else [name for name, moves in zip(COORDINATES, moving, strict=True) if moves]
    return fit_part(index, found.points(runs, fields), (found.losses - found.closed_form())[index], fields, old)


def _misfit(residuals: Tensor) -> Tensor:
    """Minus the log likelihood of each run's error from the closed form, Student-t."""
    return (FREEDOM + 1) / 2 * torch.log1p((residuals / _SPREAD) ** 2 / FREEDOM)


def _precision(residuals: Tensor) -> Tensor:
    """Weights of half squares that have the slope of `_misfit`."""
    return (FREEDOM + 1) / (FREEDOM * _SPREAD**2 + residuals**2)


def _fit_closed_form(found: Fit, mine: Tensor, free: Tensor) -> None:
    """Moves the free coefficients to their maximum a posteriori given some runs, all else in `found` held.

    Levenberg-Marquardt on reweighted least squares (Holland & Welsch 1977).
    """

    def objective() -> float:
        misfit = found.weight * _misfit(found.losses - found.closed_form())
        value = misfit[mine].sum() + (found.z[free] ** 2).sum() / 2
        return float(value) if torch.isfinite(value) else math.inf

    lowest, damping, gain = objective(), 1.0, math.inf
    while gain > 1e-4:
        slopes, residuals = found.jacobian(found.runs)[mine][:, free], (found.losses - found.closed_form())[mine]
        weighed, z = (found.weight[mine] * _precision(residuals))[:, None] * slopes, found.z
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
