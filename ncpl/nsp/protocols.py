"""Leave-family-out evaluation of NSP, and the calibration of its intervals and emergence probabilities by it.

Protocols leave whole families out: what is known of a new model is its size (`size`), or in addition the core scores
of the next smaller model of its family (`sibling`), or three other scores of its own (`others`).
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm.auto import tqdm

from configuration_nsp import CHANCE, CORE_TASKS, NSPConfig
from modeling_nsp import NSPModel, NSPOutput
from ncpl.nsp.fit import fit
from ncpl.nsp.loss_link import bisect
from ncpl.nsp.scores import KNOWN_OTHERS, PROTOCOLS, Rows, Scores, predict, triples
from ncpl.recipe import NSPRecipe

LEVELS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98)
# Emergence is scored where the question makes sense: BIG-bench's emergent tasks.
EMERGENT_PREFIX = "bb_"


def judge(model: NSPModel, scores: Scores, rows: Rows, architecture_known: bool = True) -> dict[str, pd.DataFrame]:
    """Predictions for held-out rows under each protocol.

    Returns:
        for each protocol rows `row`, `task`, `value`, `prediction`, `multiple` (of standard deviations that reach the
        value), `known` (the others' names, under `others`), and under `size` `emergence`.
    """
    rows = np.asarray(rows)
    if not architecture_known:
        mask = scores.mask.clone()
        mask[:, 2:] = 0
        scores = Scores(scores.names, scores.families, scores.features, mask, scores.values, scores.tasks)
    core = [scores.tasks.index(task) for task in CORE_TASKS]
    found: dict[str, list[pd.DataFrame]] = {protocol: [] for protocol in PROTOCOLS}
    output = predict(model, scores, rows)
    found["size"].append(_frame(model, scores, rows, output, range(len(scores.tasks))))
    siblings = {row: scores.sibling(row) for row in rows}
    with_sibling = [row for row in rows if siblings[row] is not None]
    if with_sibling:
        known = [[(siblings[row], task) for task in core] for row in with_sibling]
        output = predict(model, scores, with_sibling, known)
        found["sibling"].append(_frame(model, scores, with_sibling, output, range(len(scores.tasks))))
    for task in core:
        cases = list(itertools.product(triples(task, core), rows))
        output = predict(
            model, scores, [row for _, row in cases], [[(row, t) for t in others] for others, row in cases]
        )
        frame = _frame(model, scores, [row for _, row in cases], output, [task])
        names = np.array(["+".join(scores.tasks[t] for t in others) for others, _ in cases])
        found["others"].append(frame.assign(known=names[frame.index]))
    return {name: pd.concat(frames) if frames else pd.DataFrame() for name, frames in found.items()}


def _frame(model: NSPModel, scores: Scores, rows: Rows, output: NSPOutput, tasks: Sequence[int]) -> pd.DataFrame:
    values = scores.values[torch.as_tensor(np.asarray(rows))]
    multiples = multiples_to_cover(model, output, values)
    frames = []
    for task in tasks:
        frames.append(
            pd.DataFrame(
                {
                    "row": rows,
                    "task": scores.tasks[task],
                    "value": values[:, task].numpy(),
                    "prediction": output.predictions[:, task].numpy(),
                    "multiple": multiples[:, task].numpy(),
                    "emergence": output.emergence_scores[:, task].numpy(),
                }
            )
        )
    return pd.concat(frames).dropna(subset="value")


def multiples_to_cover(model: NSPModel, output: NSPOutput, values: Tensor) -> Tensor:
    """Standard deviations (batch, tasks) at which a model's interval just holds the values, at most 30."""

    def outside(multiples: np.ndarray) -> np.ndarray:
        lower, upper = model.bounds(output, torch.from_numpy(multiples))
        return ~((values >= lower) & (values <= upper)).numpy()

    return torch.from_numpy(bisect(outside, np.zeros(values.shape, np.float32), np.full(values.shape, 30, np.float32)))


def cross_validate(
    scores: Scores, recipe: NSPRecipe, progress: bool = False, architecture_known: bool = True
) -> dict[str, pd.DataFrame]:
    """Leave-family-out predictions of all protocols, with columns `fold` and `seed`; every fit blind to its fold."""
    found: dict[str, list[pd.DataFrame]] = {protocol: [] for protocol in PROTOCOLS}
    jobs = list(itertools.product(enumerate(scores.folds(recipe.evaluation.folds)), recipe.evaluation.seeds))
    for (fold, (train, test)), seed in tqdm(jobs, disable=not progress, desc="leave-family-out"):
        model = fit(scores, train, recipe, seed)
        judged = judge(model, scores, test, architecture_known)
        choice = choose_known(model, scores, train)
        judged["others"]["chosen"] = judged["others"]["known"] == judged["others"]["task"].map(choice)
        for name, frame in judged.items():
            found[name].append(frame.assign(fold=fold, seed=seed))
    return {name: pd.concat(frames, ignore_index=True) for name, frames in found.items()}


def choose_known(model: NSPModel, scores: Scores, rows: Rows) -> dict[str, str]:
    """For each core task the three others that serve it best in the rows the model was fitted to, joined by `+`."""
    frame = judge(model, scores, [row for row in rows if scores.mask[row, 1] > 0])["others"]
    errors = frame.assign(error=(frame["value"] - frame["prediction"]).abs().to_numpy())
    best = errors.pivot_table(values="error", index="task", columns="known").idxmin(axis=1)
    return {str(task): str(known) for task, known in best.items()}


def mean_error(frame: pd.DataFrame) -> float:
    """Mean absolute error: of each core task over its rows, then over the tasks."""
    core = frame[frame["task"].isin(CORE_TASKS)]
    return float((core["value"] - core["prediction"]).abs().groupby(core["task"]).mean().mean())


def ensemble_error(frame: pd.DataFrame) -> float:
    """`mean_error` of the seeds' mean prediction."""
    keys = [name for name in ("row", "task", "known") if name in frame.columns]
    return mean_error(frame.groupby(keys, as_index=False)[["value", "prediction"]].mean())


def conformal_multiples(frames: Sequence[pd.DataFrame], tasks: Sequence[str], prior_rows: int = 100) -> np.ndarray:
    """Half-widths (tasks, levels) in standard deviations that held a share of held-out scores; `LEVELS` says which.

    A task's own quantile is shrunk towards that of all tasks, which counts as `prior_rows` scores. Each protocol has
    the same weight.
    """
    pooled = _quantiles(frames)
    table = []
    for task in tasks:
        own = [frame[frame["task"] == task] for frame in frames]
        own = [frame for frame in own if len(frame)]
        if not own:
            table.append(pooled)
            continue
        rows = own[0]["row"].nunique()
        table.append((rows * _quantiles(own) + prior_rows * pooled) / (rows + prior_rows))
    return np.array(table)


def _quantiles(frames: Sequence[pd.DataFrame]) -> np.ndarray:
    values = np.concatenate([frame["multiple"] for frame in frames])
    weights = np.concatenate([np.full(len(frame), 1 / len(frame)) for frame in frames])
    rows = min(frame["row"].nunique() for frame in frames)
    # The split-conformal correction: (n + 1) / n of the level.
    wanted = np.minimum(np.array(LEVELS) * (rows + 1) / rows, 1.0)
    return np.quantile(values, wanted, weights=weights, method="inverted_cdf")


def coverage(judged: Mapping[str, pd.DataFrame], tasks: Sequence[str], level: float = 0.9) -> dict[str, float]:
    """Share of held-out core scores inside their band, by protocol; each fold's bands are calibrated on the others."""
    column, inside = LEVELS.index(level), {}
    for name, frame in judged.items():
        held = []
        for fold in frame["fold"].unique():
            others = [other[other["fold"] != fold] for other in judged.values()]
            limits = dict(zip(tasks, conformal_multiples(others, tasks)[:, column], strict=True))
            own = frame[(frame["fold"] == fold) & frame["task"].isin(CORE_TASKS)]
            held.append(own["multiple"] <= own["task"].map(limits))
        inside[name] = float(pd.concat(held).mean())
    return inside


def calibrate_emergence(frame: pd.DataFrame, threshold: float, slope: float, intercept: float) -> tuple[float, float]:
    """Slope and intercept of `NSPConfig.emergence_calibration` that fit held-out tasks (Platt 1999).

    Args:
        frame: of the protocol `size`, made with the given slope and intercept.
        threshold: share of the way from chance to 1.
        slope: of the model that made the frame.
        intercept: of that model.
    """
    from sklearn.linear_model import LogisticRegression

    past = is_past(frame, threshold)
    score = frame["emergence"].to_numpy().clip(1e-6, 1 - 1e-6)
    raw = (np.log(score / (1 - score)) - intercept) / slope
    fitted = LogisticRegression(C=100.0).fit(raw[:, None], past)
    return float(fitted.coef_[0, 0]), float(fitted.intercept_[0])


def _calibrated_emergence(frame: pd.DataFrame, threshold: float, past: pd.Series) -> pd.Series:
    """Probabilities of each fold by a calibration on the other folds."""
    found = pd.Series(0.0, index=frame.index)
    for fold in frame["fold"].unique():
        own = frame["fold"] == fold
        if past[~own].nunique() < 2:
            found[own] = frame.loc[own, "emergence"]
            continue
        # Slope 1 and intercept 0: a calibration of the given probabilities.
        slope, intercept = calibrate_emergence(frame[~own], threshold, 1.0, 0.0)
        score = frame.loc[own, "emergence"].clip(1e-6, 1 - 1e-6)
        found[own] = 1 / (1 + np.exp(-(slope * np.log(score / (1 - score)) + intercept)))
    return found


def is_past(frame: pd.DataFrame, threshold: float) -> np.ndarray:
    """Whether each row's task has left chance: value > chance + threshold (1 - chance)."""
    chance = frame["task"].map(CHANCE).to_numpy()
    return np.asarray(frame["value"].to_numpy() > chance + threshold * (1 - chance))


def emergence_figures(frame: pd.DataFrame, threshold: float) -> dict[str, Any]:
    """AUROC and Brier score of emergence on held-out families: of all BIG-bench scores, and the mean of the tasks'.

    `calibrated`: the same after each fold was calibrated on the others, as the saved model is on all, with the share
    that was past chance in fifths of the forecast probability.
    """
    from sklearn.metrics import brier_score_loss, roc_auc_score

    frame = frame[frame["task"].str.startswith(EMERGENT_PREFIX)]
    past = pd.Series(is_past(frame, threshold), index=frame.index)
    calibrated = _calibrated_emergence(frame, threshold, past)
    bins = np.minimum((calibrated * 5).astype(int), 4)
    by_task = {
        task: float(roc_auc_score(past[own.index], own["emergence"]))
        for task, own in frame.groupby("task")
        if past[own.index].nunique() == 2
    }
    return {
        "auroc": float(roc_auc_score(past, frame["emergence"])),
        "auroc_mean_of_tasks": float(np.mean(list(by_task.values()))),
        "auroc_by_task": by_task,
        "brier": float(brier_score_loss(past, frame["emergence"])),
        "calibrated": {
            "brier": float(brier_score_loss(past, calibrated)),
            "brier_of_the_base_rate": float(past.mean() * (1 - past.mean())),
            "reliability": [
                {
                    "forecast": float(calibrated[bins == b].mean()),
                    "share_past": float(past[bins == b].mean()),
                    "scores": int((bins == b).sum()),
                }
                for b in range(5)
                if (bins == b).any()
            ],
        },
        "share_past": float(past.mean()),
        "scores": len(frame),
    }


def calibration(judged: Mapping[str, pd.DataFrame], tasks: Sequence[str], recipe: NSPRecipe) -> dict[str, Any]:
    """Fields of `NSPConfig` that held-out families decide: interval quantiles and the emergence calibration."""
    config = NSPConfig(**{**recipe.model.config, "tasks": list(tasks)})
    size = judged["size"]
    emergent = size[size["task"].str.startswith(EMERGENT_PREFIX)]
    fields_: dict[str, Any] = {
        "interval_levels": list(LEVELS),
        "interval_quantiles": conformal_multiples(list(judged.values()), tasks).round(4).tolist(),
    }
    if len(emergent):
        fitted = calibrate_emergence(emergent, config.emergence_threshold, *config.emergence_calibration)
        fields_["emergence_calibration"] = [round(value, 4) for value in fitted]
    return fields_


def summarize(judged: Mapping[str, pd.DataFrame], tasks: Sequence[str], recipe: NSPRecipe) -> dict[str, Any]:
    """Figures of leave-family-out predictions: errors with their spread over seeds, coverage, emergence."""
    figures: dict[str, Any] = {"coverage_90": coverage(judged, tasks)}
    for name, frame in judged.items():
        by_seed = [mean_error(own) for _, own in frame.groupby("seed")]
        core = frame[frame["task"].isin(CORE_TASKS)]
        figures[name] = {
            "mae": float(np.mean(by_seed)),
            "mae_by_seed": by_seed,
            "mae_of_seed_mean": ensemble_error(frame),
            "mae_by_task": (core["value"] - core["prediction"]).abs().groupby(core["task"]).mean().to_dict(),
            "models": int(core["row"].nunique()),
        }
    others = judged["others"]
    if "chosen" in others:
        # Which three to know is chosen for each task on the fold's training families alone.
        by_seed = [mean_error(own) for _, own in others[others["chosen"]].groupby("seed")]
        figures["others"]["chosen_in_training"] = {"mae": float(np.mean(by_seed)), "mae_by_seed": by_seed}
    # A user who may choose which three to measure: each choice is judged on the five that are left.
    by_choice = {
        known: float((own["value"] - own["prediction"]).abs().groupby(own["task"]).mean().mean())
        for known, own in others.groupby("known")
        if own["task"].nunique() == len(CORE_TASKS) - KNOWN_OTHERS
    }
    best = min(by_choice, key=lambda known: by_choice[known])
    figures["others"]["best_choice"] = {"known": best, "mae_of_the_other_five": by_choice[best]}
    threshold = NSPConfig(**{**recipe.model.config, "tasks": list(tasks)}).emergence_threshold
    if judged["size"]["task"].str.startswith(EMERGENT_PREFIX).any():
        figures["emergence"] = emergence_figures(judged["size"], threshold)
    return figures
