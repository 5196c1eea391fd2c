"""Fits the configuration-aware law: the closed form by maximum a posteriori, then each source's residual around it."""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from datasets_scripts.divergence import Row, cell
from fields_ncpl import SOURCES, sequence_length
from forms_ncpl import INPUTS, PRIORS, REFERENCE, SHAPE, gradient, law_terms, locate
from laws_ncpl import ConfigurationLaw
from ncpl.fitting.residual import Part, fit_part
from residual_ncpl import COORDINATES, KernelResidual

# Student-t degrees of freedom of the losses around the law: runs close to divergence scatter far.
FREEDOM = 4.0
# Scale of that distribution in the fit of the closed form, in nats.
_SPREAD = 0.004
# Of the fit of the shape: noise in nats at the best rate and its growth with the height above it, the variance's
# factor, the offsets' standard deviation in nats, and how often noise and robust weights are taken anew.
_NOISE, _TEMPER, _OPEN, _REWEIGHED = (0.005, 1.0), 3.0, 0.05, 5
# How much closer a source's deviations stay to those of its parent than to those of another source.
_NEAR_PARENT = 0.3


def fit(rows: Sequence[Row], *, seed: int | None = None) -> "Fit":
    """Fits the closed form and the residuals around it.

    The closed form comes first, in two steps. What runs differ by within a cell (same source, size and data size) is
    evidence of every run for the shape over learning rate and batch. A cell's level is shared by all its runs, model
    error included, so that it has the weight of one run (a coarsened posterior, Miller & Dunson 2019) in the maximum a
    posteriori of all coefficients under `PRIORS`, with Student-t errors; taken as independent, runs overfit
    (docs/experiments.md). Then each source's residual kernel is fitted by marginal likelihood, with every run's noise
    weighed by how far it lies off.

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

    def moments(self) -> tuple[np.ndarray, np.ndarray]:
        """Prior means and standard deviations."""
        means, sds = [], []
        for kind, group, names in self.groups:
            near = _NEAR_PARENT if kind == "source" and self.parent(group) else 1.0
            means += [PRIORS[name].mean if kind == "common" else 0.0 for name in names]
            sds += [near * getattr(PRIORS[name], "sd" if kind == "common" else kind) for name in names]
        return np.array(means), np.array(sds)

    def moved(self, runs: Mapping[str, np.ndarray]) -> np.ndarray:
        """Which entries of the flat vector move each run, (runs, entries)."""
        columns = []
        for kind, group, own in self.groups:
            if kind == "common":
                mine = np.ones(len(runs["d"]), dtype=bool)
            elif kind == "source":
                heirs = [i for i, name in enumerate(self.sources) if group in (name, self.parent(name))]
                mine = np.isin(runs["source"], heirs)
            else:
                mine = runs["optimizer"] == self.optimizers.index(group)
            columns += [mine] * len(own)
        return np.stack(columns, 1)

    @property
    def places(self) -> np.ndarray:
        """For each entry of the flat vector the place of its coefficient in `PRIORS`."""
        order = {name: i for i, name in enumerate(PRIORS)}
        return np.array([order[name] for _, _, names in self.groups for name in names])

    def coefficients(self, z: np.ndarray, moved: np.ndarray) -> dict[str, np.ndarray]:
        """Coefficient -> (runs,), from the flat vector and `moved`."""
        mean, sd = self.moments()
        chosen = (self.places[:, None] == np.arange(len(PRIORS))[None]) * (mean + sd * z)[:, None]
        return dict(zip(PRIORS, (moved @ chosen).T, strict=True))

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

    `weight` is a run's weight in the fit of a cell's level, one over the number of its cell's runs; `shape` what the
    runs within cells say of `SHAPE`'s coefficients: their precision, in the flat vector's units, and its centre.
    """

    rows: list[Row]
    layout: _Layout
    typical: dict[str, dict[str, dict[str, Any]]]
    z: np.ndarray
    runs: dict[str, np.ndarray]
    losses: np.ndarray
    weight: np.ndarray
    moved: np.ndarray
    shape: tuple[np.ndarray, np.ndarray]
    parts: dict[str, Part]

    def law(self) -> ConfigurationLaw:
        mean, sd = self.layout.moments()
        values = self.layout.nested(mean + sd * self.z)
        sources = {name: dict(values[name]) for name in self.layout.sources}
        for name in sources:
            if parent := self.layout.parent(name):
                sources[name] = {key: value + values[parent][key] for key, value in values[name].items()}
        residuals = {
            source: KernelResidual(
                fields=part.fields,
                scales=part.scales,
                optimizers=list(self.layout.optimizers),
                runs=part.points,
                weights=part.alpha,
                noise=part.noise,
                inputs={name: self.runs[name][part.rows] for name in INPUTS},
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
        return replace(law, posterior=np.linalg.cholesky(covariance))

    def jacobian(self, mine: np.ndarray, free: np.ndarray) -> np.ndarray:
        """Derivatives of the closed form by free entries of the flat vector, a row for each of some runs."""
        first, kind = self._alike
        kinds, place = np.unique(kind[mine], return_inverse=True)
        at = first[kinds]
        moved = self.moved[at]
        by_coefficient = gradient(
            self.layout.coefficients(self.z, moved), {name: self.runs[name][at] for name in INPUTS}
        )
        return (by_coefficient[:, self.layout.places[free]] * moved[:, free] * self.layout.moments()[1][free])[place]

    @cached_property
    def _alike(self) -> tuple[np.ndarray, np.ndarray]:
        """The first run of each kind that the closed form tells apart, and every run's kind.

        Ablations of what the residual alone reads are four in five of Marin's runs.
        """
        read = np.stack([self.runs[name] for name in (*INPUTS, "source", "optimizer")], 1)
        _, first, kind = np.unique(read, axis=0, return_index=True, return_inverse=True)
        return first, kind.reshape(-1)

    @cached_property
    def _posterior(self) -> np.ndarray:
        """The posterior covariance of the standard scores (Laplace)."""
        every = np.full(len(self.z), True)
        slopes = self.jacobian(np.arange(len(self.rows)), every)
        weights = self.weight * _precision(self.losses - self.closed_form())
        return np.linalg.inv(slopes.T @ (weights[:, None] * slopes) + np.eye(len(self.z)) + self.shape[0])

    def terms(self) -> dict[str, np.ndarray]:
        """`law_terms` at the fitted runs."""
        first, kind = self._alike
        c = self.layout.coefficients(self.z, self.moved[first])
        terms = law_terms(c, {name: self.runs[name][first] for name in INPUTS})
        return {name: values[kind] for name, values in terms.items()}

    def closed_form(self) -> np.ndarray:
        """The closed form at the fitted runs, in nats per token."""
        return self.terms()["loss"]

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
        return part.alpha / np.diagonal(part.inverse)

    def points(self, mine: np.ndarray, fields: Sequence[str]) -> dict[str, np.ndarray]:
        """The residual's coordinates of some fitted runs, with these hyper-parameters."""
        columns = [list(COORDINATES).index(name) for name in fields]
        found = {name: values[mine] for name, values in locate(self.terms(), self.runs).items()}
        own = {"optimizer": self.runs["optimizer"][mine], "fields": self.runs["fields"][mine][:, columns]}
        return found | own


def _typical(rows: Sequence[Row]) -> dict[str, dict[str, dict[str, Any]]]:
    """source -> optimizer -> field -> the most frequent value."""
    names = [*COORDINATES, "batch size", "learning rate", "lr_schedule", "min_lr", "min_lr_ratio", "lr points"]
    typical: dict[str, dict[str, dict[str, Any]]] = {}
    for source in sorted({str(row["source"]) for row in rows}):
        own = [row["conf"] for row in rows if str(row["source"]) == source]
        typical[source] = {"": {"batch size": _mode([conf["batch size"] for conf in own])}}
        if source in SOURCES:
            known = SOURCES[source]
            typical[source][""] |= {"seq len": known.seq_len, "vocab size": known.vocab_size}
            if known.warmup:
                typical[source][""]["usual warmup"] = known.warmup
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
            if shares := [_warmup_share(conf) for conf in confs if conf.get("warmup") is not None]:
                typical[source][optimizer]["usual warmup share"] = float(f"{np.median(shares):.6g}")
    return typical


def _warmup_share(conf: Mapping[str, Any]) -> float:
    """Share of a run's tokens that warmup takes."""
    return float(conf["warmup"]) * conf["batch size"] * sequence_length(conf) / (conf["data size"] * 1e9)


def _mode(values: Sequence[Any]) -> Any:
    texts = [str(value) for value in values]
    return values[texts.index(max(sorted(set(texts)), key=texts.count))]


def _runs(law: ConfigurationLaw, layout: _Layout, rows: Sequence[Row]) -> dict[str, np.ndarray]:
    """The closed form's inputs; NaN stands where a configuration has no learning rate."""
    inputs = law._inputs([row["conf"] for row in rows])
    runs = {name: inputs[name] for name in (*INPUTS, "fields")}
    runs["source"] = np.array([layout.sources.index(str(row["source"])) for row in rows])
    runs["optimizer"] = np.array([layout.optimizers.index(str(row["conf"]["optimizer"])) for row in rows])
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
    losses = np.array([row["final_loss"] for row in rows], dtype=float)

    start = np.zeros(len(layout.columns))
    if seed is not None:
        start = 0.4 * np.random.default_rng(seed).normal(size=len(start))
    count = Counter(map(cell, rows))
    weight = np.array([1 / count[cell(row)] for row in rows])
    nothing = np.zeros((len(start), len(start))), start
    found = Fit(list(rows), layout, typical, start, runs, losses, weight, layout.moved(runs), nothing, {})
    for sources, free in _teams(layout, runs):
        places = {name: np.flatnonzero(runs["source"] == layout.sources.index(name)) for name in sources}
        mine = np.sort(np.concatenate(list(places.values())))
        _fit_shape(found, mine, free)
        _fit_level(found, mine, free)
        for source, index in places.items():
            old = None if first is None or afresh else first.parts[source]
            found.parts[source] = _fit_residual(found, index, old)
    return found


def _teams(layout: _Layout, runs: Mapping[str, np.ndarray]) -> list[tuple[list[str], np.ndarray]]:
    """Sources that are fitted together, in turn, and which coefficients each of them frees.

    Dense models come first. Sources of mixtures of experts are fitted second with the shared coefficients frozen,
    because their effective size is uncertain and would bias the dense exponents.
    """
    present = [name for i, name in enumerate(layout.sources) if (runs["source"] == i).any()]
    sparse = [name for name in present if (runs["idle"][runs["source"] == layout.sources.index(name)] > 0).all()]
    dense = [name for name in present if name not in sparse]
    own = np.array([c[1] in sparse or c == ("common", "common", "experts") for c in layout.columns])
    if not dense or not sparse:
        return [(present, np.ones_like(own))]
    return [(dense, ~own), (sparse, own)]


def _fit_residual(found: Fit, index: np.ndarray, old: Part | None) -> Part:
    """The residual of one source's runs around the closed form, with the scales of `old`."""
    moving = found.runs["fields"][index].std(0) > 0
    fields = old.fields if old else [name for name, moves in zip(COORDINATES, moving, strict=True) if moves]
    return fit_part(index, found.points(index, fields), (found.losses - found.closed_form())[index], fields, old)


def _misfit(residuals: np.ndarray) -> np.ndarray:
    """Minus the log likelihood of each run's error from the closed form, Student-t."""
    return (FREEDOM + 1) / 2 * np.log1p((residuals / _SPREAD) ** 2 / FREEDOM)


def _precision(residuals: np.ndarray) -> np.ndarray:
    """Weights of half squares that have the slope of `_misfit`."""
    return (FREEDOM + 1) / (FREEDOM * _SPREAD**2 + residuals**2)


def _fit_shape(found: Fit, mine: np.ndarray, free: np.ndarray) -> None:
    """Fits the closed form to what runs differ by within a cell, whose level is left open; sets `found.shape`.

    Every run counts, tempered and robust, beside an offset of its cell and one of its optimizer there that are nearly
    free: a linear mixed model (Laird & Ware 1982), by reweighted least squares.
    """
    start, blocks = found.z, [np.flatnonzero(own) for own in _cells(found, mine)]
    for reweighed in range(_REWEIGHED):
        terms = found.terms()
        # Near the best rate a run says most of where that lies.
        above = np.clip(terms["surface"][mine], 0, 1) if reweighed else np.full(len(mine), 0.05)
        variance = _TEMPER * (_NOISE[0] + _NOISE[1] * above) ** 2
        residuals, optimizers = (found.losses - terms["loss"])[mine], found.runs["optimizer"][mine]
        roots = [
            (rows, _precision_root(residuals[rows], variance[rows], optimizers[rows], bool(reweighed)))
            for rows in blocks
        ]

        def whiten(values: np.ndarray, roots: list[tuple[np.ndarray, np.ndarray]] = roots) -> np.ndarray:
            return np.concatenate([root @ values[rows] for rows, root in roots])

        def objective(whiten: Callable[[np.ndarray], np.ndarray] = whiten) -> float:
            return (
                float((whiten((found.losses - found.closed_form())[mine]) ** 2).sum() + (found.z[free] ** 2).sum()) / 2
            )

        def equations(whiten: Callable[[np.ndarray], np.ndarray] = whiten) -> tuple[np.ndarray, np.ndarray]:
            slopes = whiten(found.jacobian(mine, free))
            downhill = slopes.T @ whiten((found.losses - found.closed_form())[mine]) - found.z[free]
            return slopes.T @ slopes + np.eye(slopes.shape[1]), downhill

        _climb_down(found, free, objective, equations)
    shaped = free & np.array([name in SHAPE for _, _, name in found.layout.columns])
    precision, slopes = found.shape[0].copy(), whiten(found.jacobian(mine, shaped))
    precision[np.ix_(shaped, shaped)] = slopes.T @ slopes
    found.shape = precision, np.where(shaped, found.z, found.shape[1])
    found.z = np.where(free & ~shaped, start, found.z)


def _cells(found: Fit, mine: np.ndarray) -> list[np.ndarray]:
    """For each cell which of some runs are its."""
    names = [cell(found.rows[i]) for i in mine]
    return [np.array([name == own for name in names]) for own in dict.fromkeys(names)]


def _precision_root(residuals: np.ndarray, variance: np.ndarray, optimizers: np.ndarray, robust: bool) -> np.ndarray:
    """A root of the precision of a cell's errors: open offsets of cell and optimizer, and Student-t noise."""
    offsets = _OPEN**2 * (1.0 + (optimizers[:, None] == optimizers[None]))
    weights = np.ones(len(residuals))
    for _ in range(2 if robust else 0):
        own = variance / weights
        left = own * np.linalg.solve(offsets + np.diag(own), residuals)
        weights = np.minimum((FREEDOM + 1) / (FREEDOM + left**2 / variance), 1.25)
    return np.linalg.inv(np.linalg.cholesky(offsets + np.diag(variance / weights)))


def _fit_level(found: Fit, mine: np.ndarray, free: np.ndarray) -> None:
    """Moves the free coefficients to their maximum a posteriori given some runs, all else in `found` held.

    A cell counts as one run for its level; what `_fit_shape` found stands beside the prior. Reweighted least squares
    (Holland & Welsch 1977).
    """
    precision = found.shape[0][np.ix_(free, free)]

    def objective() -> float:
        off = (found.z - found.shape[1])[free]
        misfit = found.weight * _misfit(found.losses - found.closed_form())
        return float(misfit[mine].sum() + ((found.z[free] ** 2).sum() + off @ precision @ off) / 2)

    def equations() -> tuple[np.ndarray, np.ndarray]:
        slopes, residuals = found.jacobian(mine, free), (found.losses - found.closed_form())[mine]
        weighed = (found.weight[mine] * _precision(residuals))[:, None] * slopes
        downhill = weighed.T @ residuals - found.z[free] - precision @ (found.z - found.shape[1])[free]
        return slopes.T @ weighed + np.eye(slopes.shape[1]) + precision, downhill

    _climb_down(found, free, objective, equations)


def _climb_down(
    found: Fit,
    free: np.ndarray,
    objective: Callable[[], float],
    equations: Callable[[], tuple[np.ndarray, np.ndarray]],
) -> None:
    """Levenberg-Marquardt: moves the free coefficients of `found` until the objective falls no more.

    Args:
        found: whose `z` is moved.
        free: which entries.
        objective: at the present `z`.
        equations: Gauss-Newton's matrix, and the direction downhill, at the present `z`.
    """
    lowest, damping, gain = objective(), 1.0, math.inf
    while gain > 1e-4:
        matrix, downhill = equations()
        z = found.z
        while True:
            step = np.linalg.solve(matrix + damping * np.diag(np.diagonal(matrix)), downhill)
            found.z = z.copy()
            found.z[free] += step
            value = objective()
            gain = lowest - (value if math.isfinite(value) else math.inf)
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
