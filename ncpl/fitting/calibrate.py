"""Fits what a forecast is trusted by: intervals from held-out errors, divergence, the envelope of the training runs."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.optimize import minimize

from calibration_ncpl import DRIFT, Calibration, Trees, divergence_features, divergence_odds, envelope
from datasets_scripts.divergence import Row, cell, diverged
from laws_ncpl import ConfigurationLaw
from ncpl.fitting.law import Fit, fit


def fit_calibration(rows: Sequence[Row], unstable: Sequence[Row] = (), *, seed: int = 0) -> Calibration:
    """The calibration of `fit`: see `calibrate`."""
    return calibrate(fit(rows), unstable, seed=seed)


def _fit_scale(errors: np.ndarray, known: np.ndarray, excess: np.ndarray, weight: np.ndarray) -> dict[str, float]:
    """The standard deviation's constants by Laplace-distributed errors, which heavy tails hardly move.

    The posterior is believed to within a factor: cells left out hardly move away from the rest, and say little of how
    it grows.
    """
    centre, spread = np.log([1.0, 0.1, 0.002]), np.array([0.5, 1.0, 1.0])

    def objective(z: np.ndarray) -> float:
        a, b, c = np.exp(centre + spread * z)
        total = np.sqrt((a * known) ** 2 + (b * excess) ** 2 + c**2)
        return float((weight * (np.log(total) + math.sqrt(2) * np.abs(errors) / total)).sum() + z @ z / 2)

    values = np.exp(centre + spread * minimize(objective, np.zeros(3), method="BFGS").x)
    return dict(zip(("known", "excess", "noise"), [float(f"{v:.6g}") for v in values], strict=True))


def _envelopes(rows: Sequence[Row]) -> dict[str, dict[str, list[float]]]:
    """source -> field -> the lowest and highest value; under `""` those of all sources.

    Under "source optimizer" the learning rates and batches of that optimizer's own runs.
    """
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        conf = row["conf"]
        tuned = {name: conf.get(name) for name in ("source", "learning rate", "batch size", "seq len")}
        pair = f"{row['source']} {conf.get('optimizer')}"
        for group, seen in (("", conf), (str(row["source"]), conf), (pair, tuned)):
            groups.setdefault(group, []).append(seen)
    return {group: envelope(seen) for group, seen in groups.items()}


def _usual_rates(rows: Sequence[Row]) -> dict[str, float]:
    rates: dict[str, list[float]] = {}
    for row in rows:
        rates.setdefault(str(row["conf"]["optimizer"]), []).append(math.log(row["conf"]["learning rate"]))
    return {name: float(np.median(values)) for name, values in sorted(rates.items())}


def _fit_divergence(
    law: ConfigurationLaw, rows: Sequence[Row], unstable: Sequence[Row], usual: Mapping[str, float], seed: int
) -> Trees:
    """Boosted trees (Friedman 2001) for the probability that a run diverges."""
    from sklearn.ensemble import GradientBoostingClassifier

    runs = [*rows, *unstable]
    labels = np.array(diverged(runs))
    if labels.all() or not labels.any():
        rate = (labels.sum() + 0.5) / (len(labels) + 1)
        zero = np.zeros(1, np.int64)
        return Trees(math.log(rate / (1 - rate)), zero, zero - 1, np.zeros(1), zero, zero, np.zeros(1))
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
    arrays = {name: np.array(values) for name, values in nodes.items()}
    return Trees(start=float(math.log(start[1] / start[0])), roots=np.array(roots), **arrays)


def cross_validate_divergence(
    law: ConfigurationLaw, rows: Sequence[Row], unstable: Sequence[Row], *, folds: int = 5, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Which runs diverged, and the probabilities given by trees that saw no run of the same cell."""
    runs = [*rows, *unstable]
    names = sorted({cell(row) for row in runs})
    drawn = dict(zip(names, np.random.default_rng(seed).permutation(len(names)) % folds, strict=True))
    fold = np.array([drawn[cell(row)] for row in runs])
    labels, probabilities = np.array(diverged(runs)), np.empty(len(runs))
    for k in range(folds):
        inside = [run for run, f in zip(runs, fold, strict=True) if f != k]
        usual = _usual_rates(inside)
        trees = _fit_divergence(law, inside, [], usual, seed)
        held = np.flatnonzero(fold == k)
        odds = divergence_odds(trees, law, [runs[i]["conf"] for i in held], usual)
        probabilities[held] = 1 / (1 + np.exp(-odds))
    return labels, probabilities


def calibrate(fitted: Fit, unstable: Sequence[Row] = (), *, seed: int = 0) -> Calibration:
    """Fits intervals, divergence and the envelope.

    Every cell of source, size and data size is forecast by a law that has seen no run of it, and the largest size
    of each source that has three or more by one that has seen no run of that size. The intervals' standard
    deviation and quantiles come from these errors alone.

    Args:
        unstable: runs that diverged or went unstable, with or without a loss.
        seed: of the divergence trees.
    """
    law = fitted.law()
    cells = [cell(row) for row in fitted.rows]
    observed = np.array([row["final_loss"] for row in fitted.rows])
    held = [(fitted.held_out_cells, np.full(len(cells), True))]
    for source in fitted.layout.sources:
        sizes = sorted({name[1:3] for name in cells if name[0] == source}, key=lambda size: size[1])
        if len(sizes) > 2:
            largest = np.array([name[:3] == (source, *sizes[-1]) for name in cells])
            # Afresh: scales that have seen the larger models would make these errors too small.
            held.append((fitted._held_out(["held" if out else "kept" for out in largest], "held", True), largest))
    errors = np.concatenate([found["loss"][chosen] - observed[chosen] for found, chosen in held])
    known = np.concatenate([found["known"][chosen] for found, chosen in held])
    rows = [row for _, chosen in held for row, mine in zip(fitted.rows, chosen, strict=True) if mine]
    excess = law.evaluate([row["conf"] for row in rows]).points["excess"]
    sources = np.array([str(row["source"]) for row in rows])
    weight = np.concatenate([fitted.weight[chosen] for _, chosen in held])
    scale, scores = {}, {}
    for source in ("", *fitted.layout.sources):
        mine = sources == source if source else np.full(len(sources), True)
        scale[source] = _fit_scale(errors[mine], known[mine], excess[mine], weight[mine]) | {"drift": DRIFT}
        s = scale[source]
        total = np.sqrt((s["known"] * known[mine]) ** 2 + (s["excess"] * excess[mine]) ** 2 + s["noise"] ** 2)
        quantiles = np.quantile(
            np.abs(errors[mine]) / total, np.linspace(0, 1, 201), weights=weight[mine], method="inverted_cdf"
        )
        scores[source] = [float(f"{quantile:.4g}") for quantile in quantiles]
    usual = _usual_rates([*fitted.rows, *unstable])
    return Calibration(
        law=law,
        envelope=_envelopes(fitted.rows),
        scale=scale,
        scores=scores,
        trees=_fit_divergence(law, fitted.rows, unstable, usual, seed),
        optimizers=usual,
    )
