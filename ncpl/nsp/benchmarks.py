"""Benchmark scores of models that do not exist yet, of runs with a forecast loss, and along rising compute."""

import math
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch

from feature_extraction_nsp import as_rows
from fields_ncpl import USUAL_TOKENS_PER_PARAMETER, field_name
from modeling_nsp import NSPModel
from ncpl.checkpoint import errors
from ncpl.errors import one_line, short
from ncpl.nsp.loss_link import RUN_LINK, LossLink, load_links, normal_multiple, run_size, scores_from_loss
from text_ncpl import warn_user

RUN_FIELDS = {"source", "model size", "data size", "optimizer"}
EMERGENCE_FLOPS = (1e18, 1e27)


def benchmarks(
    models: Any, like: str | None = None, level: float = 0.9, model: NSPModel | str = "nsp-base"
) -> pd.DataFrame:
    """Benchmark scores of models that do not exist yet.

    Args:
        models: a description such as `{"params": 7e9, "tokens": 2e12}`, a list of them, a DataFrame, or a Hub model
            config; see `NSPFeatureExtractor` for known scores and siblings.
        like: a known family whose data quality is assumed for all models that do not say `like` themselves.
        level: coverage of the intervals, between 0 and 1.
        model: a model, a folder, a Hub id, or the name of an embedded model.

    Returns:
        a row for each model: `params`, `tokens` (NaN where missing), for each task TASK, TASK_lower, TASK_upper and
        TASK_emergence (probability of being past chance), and `extrapolation` (outside of the sizes seen in training,
        or of the tokens a parameter of any known run).

    Raises:
        ValueError: a field, task or family that is not known, or a value out of range.

    >>> table = benchmarks([{"params": 7e9, "tokens": 2e12}])
    >>> bool((table["mmlu_lower"] < table["mmlu"]).all())
    True
    """
    predictor = load_predictor(model)
    rows = as_rows(models)
    if like is not None:
        rows = [{"like": like, **row} for row in rows]
    extracted = predictor.extractor(rows)
    with torch.no_grad():
        output = predictor(extracted)
        lower, upper = predictor.interval(output, level)
    features, mask = extracted["features"].double(), extracted["feature_mask"]
    size = features[:, :2].exp() * torch.tensor([1e9, 1e12])
    low, high = torch.tensor(predictor.config.support, dtype=torch.float64).T
    outside = ((features[:, :2] < low - 1e-6) | (features[:, :2] > high + 1e-6)) & (mask[:, :2] > 0)
    ratio = size[:, 1] / size[:, 0]
    unusual = ((ratio < USUAL_TOKENS_PER_PARAMETER[0]) | (ratio > USUAL_TOKENS_PER_PARAMETER[1])) & (mask[:, 1] > 0)
    columns: dict[str, Any] = {
        "params": size[:, 0].numpy(),
        "tokens": torch.where(mask[:, 1] > 0, size[:, 1], torch.nan).numpy(),
    }
    for i, task in enumerate(predictor.config.tasks):
        columns[task] = output.predictions[:, i].double().numpy()
        columns[f"{task}_lower"] = lower[:, i].double().numpy()
        columns[f"{task}_upper"] = upper[:, i].double().numpy()
        columns[f"{task}_emergence"] = output.emergence_scores[:, i].double().numpy()
    columns["extrapolation"] = (outside.any(1) | unusual).numpy()
    return pd.DataFrame(columns)


def by_task(row: pd.Series) -> pd.DataFrame:
    """The scores of one model, a row for each task that has one: `task`, `score`, `lower`, `upper`, `above chance`.

    Args:
        row: of a table of `benchmarks`.
    """
    tasks = [str(name).removesuffix("_lower") for name in row.index if str(name).endswith("_lower")]
    rows = [
        {
            "task": task,
            "score": float(row[task]),
            "lower": float(row[f"{task}_lower"]),
            "upper": float(row[f"{task}_upper"]),
            "above chance": float(row.get(f"{task}_emergence", math.nan)),
        }
        for task in tasks
        if task != "loss" and pd.notna(row[task])
    ]
    return pd.DataFrame(rows)


def load_predictor(model: NSPModel | str) -> NSPModel:
    """A model ready to predict, from itself, a folder, a Hub id or the name of an embedded model.

    Raises:
        CheckpointError: there is no such model, or it is of another kind.
    """
    if isinstance(model, NSPModel):
        return model.eval()
    if not isinstance(model, str | os.PathLike) or not str(model).strip():
        raise ValueError(f"model: got {short(model)}, expected an NSPModel, a folder, a Hub id or 'nsp-base'")
    with errors(f"model: {one_line(model, 100)}"):
        return NSPModel.from_pretrained(str(model)).eval()


def are_configurations(models: Any) -> bool:
    """Whether models are runs' configurations, whose loss is forecast first, rather than descriptions by size.

    Raises:
        ValueError: some of them are, and some are not.

    >>> are_configurations({"source": "marin", "model size": 300}), are_configurations({"params": 7e9})
    (True, False)
    """
    runs = [any(isinstance(name, str) and field_name(name) in RUN_FIELDS for name in row) for row in as_rows(models)]
    if any(runs) and not all(runs):
        raise ValueError(
            f"models: number {runs.index(True)} is a run's configuration and number {runs.index(False)} describes a "
            "model by its params and tokens; give the two kinds apart"
        )
    return any(runs)


# --- runs with a forecast loss ---


def benchmarks_of_runs(
    configs: Sequence[Mapping[str, Any]],
    forecast: pd.DataFrame,
    like: str | None = None,
    level: float = 0.9,
    model: NSPModel | str = "nsp-base",
) -> pd.DataFrame:
    """Benchmark scores of runs whose final loss was forecast.

    Losses of two sources do not compare, for their tokenizers and evaluation sets differ. The link assumes that **at
    equal params and tokens a well-tuned run of the source is as good as one of AI2's model ladder**, so that what
    separates their losses is an offset of the source, which was measured on run logs and whose spread widens the
    intervals. A loss above that of a well-tuned run counts as less compute.

    Args:
        configs: checked configurations. Params are their non-embedding ones, of a mixture of experts the active ones.
        forecast: a row for each: `loss`, `lower`, `upper` at `level`, `divergence`, `extrapolation`, as
            `Forecaster.predict` gives them.
        like: a known family whose data quality is assumed.
        level: coverage of the intervals, between 0 and 1.
        model: a model, a folder, a Hub id, or the name of an embedded model.

    Returns:
        the columns of `benchmarks` at params and tokens scaled to the compute that the ladder would have needed
        (TASK_emergence: at the forecast loss alone); `loss`, `loss_lower`, `loss_upper` (nats per token) and
        `divergence`; `equivalent_compute`, the ladder's compute as a share of 6 N D; `olmo_...`, tasks in the ladder's
        setting, read off the loss; and `assumption`, which says this in each row. Where the source has no measured
        offset the loss says nothing about scores: a warning, and NaN in `olmo_...` and `equivalent_compute`.
    """
    predictor, link = load_predictor(model), load_links()[RUN_LINK]
    sources = [str(config["source"]) for config in configs]
    linked = np.array([source in link.offsets for source in sources])
    if not linked.all():
        warn_user(
            f"source: no offset to the link's loss was measured for {sorted({*sources} - {*link.offsets})} (measured: "
            f"{', '.join(link.offsets)}); scores there follow from size and tokens alone"
        )
    loss, better, worse = _linked_losses(link, sources, forecast, level)
    params, tokens = np.array([run_size(config) for config in configs]).T

    def at(losses: np.ndarray) -> pd.DataFrame:
        scale = np.where(linked, link.scale(losses, params, tokens), 1.0)
        described = [
            {"params": n * s, "tokens": d * s, "moe": config.get("num experts") is not None}
            | ({"domain": "general"} if known else {})
            for n, d, s, config, known in zip(params, tokens, scale, configs, linked, strict=True)
        ]
        return benchmarks(described, like, level, predictor).assign(scale=scale)

    table = _with_loss_interval(at, loss, better, worse, predictor.config.tasks)
    scale = table.pop("scale").to_numpy()
    ladder = _ladder_scores(table.index, linked, loss, better, worse, level)
    outside = table.pop("extrapolation") | ladder.pop("extrapolation") | forecast["extrapolation"].gt(0).to_numpy()
    head = forecast[["loss", "lower", "upper", "divergence"]].reset_index(drop=True)
    head = head.rename(columns={"lower": "loss_lower", "upper": "loss_upper"})
    head = head.assign(equivalent_compute=np.where(linked, scale**2, math.nan), params=params, tokens=tokens)
    scored = table.drop(columns=["params", "tokens"])
    assumptions = [_assumption(link, source) for source in sources]
    return pd.concat([head, scored, ladder], axis=1).assign(extrapolation=outside, assumption=assumptions)


def _ladder_scores(
    index: pd.Index, linked: np.ndarray, loss: np.ndarray, better: np.ndarray, worse: np.ndarray, level: float
) -> pd.DataFrame:
    """Scores in the ladder's setting, NaN where the loss is not linked; `extrapolation`, False there."""
    if not linked.any():
        return pd.DataFrame({"extrapolation": False}, index=index)
    scores = scores_from_loss(loss[linked], better[linked], worse[linked], source=RUN_LINK, level=level)
    scores = scores.drop(columns=["loss", "setting"]).set_index(index[linked]).reindex(index)
    return scores.assign(extrapolation=scores["extrapolation"].fillna(False).astype(bool))


def _linked_losses(
    link: LossLink, sources: Sequence[str], forecast: pd.DataFrame, level: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Losses on the link's scale: as forecast, and at the ends of an interval that holds the offset's spread too."""
    offset, spread = np.array([link.offsets.get(source, (math.nan, math.nan)) for source in sources]).T
    loss, lower, upper = (forecast[name].to_numpy() - offset for name in ("loss", "lower", "upper"))
    reach = normal_multiple(level) * spread
    return loss, loss - np.hypot(loss - lower, reach), loss + np.hypot(upper - loss, reach)


def _with_loss_interval(
    at: Callable[[np.ndarray], pd.DataFrame],
    loss: np.ndarray,
    better: np.ndarray,
    worse: np.ndarray,
    tasks: Sequence[str],
) -> pd.DataFrame:
    """Scores at a loss, their intervals widened by the scores at the ends of its interval."""
    table = at(loss)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # said for the middle already
        low, high = at(worse), at(better)
    for task in tasks:
        score = table[task]
        lower = score - np.hypot(score - low[task], score - table[f"{task}_lower"])
        upper = score + np.hypot(high[task] - score, table[f"{task}_upper"] - score)
        table[f"{task}_lower"], table[f"{task}_upper"] = lower.clip(lower=0), upper.clip(upper=1)
    return table


def _assumption(link: LossLink, source: str) -> str:
    if source not in link.offsets:
        return f"nothing is known of the loss scale of {source}: scores from size and tokens alone"
    offset, deviation = link.offsets[source]
    return (
        f"the loss of {source} is taken {offset:+.2f} nats (standard deviation {deviation:.2f}) off the model ladder's "
        "at equal params and tokens; its data as good as the ladder's"
    )


# --- along rising compute ---


def benchmarks_along(
    params: Any, tokens: Any, like: str | None = None, level: float = 0.9, model: NSPModel | str = "nsp-base"
) -> pd.DataFrame:
    """Benchmark scores along a path of sizes, such as the frontier of a plan.

    Args:
        params: parameter counts, one for each point.
        tokens: pretraining tokens, one for each point.
        like: a known family whose data quality is assumed; a general-purpose dense model of a new family when absent.
        level: coverage of the intervals, between 0 and 1.
        model: a model, a folder, a Hub id, or the name of an embedded model.

    Returns:
        the columns of `benchmarks`, and `flops` = 6 params tokens.

    Raises:
        ValueError: counts out of range, of unequal number, or a family that is not known.

    >>> table = benchmarks_along([1e9, 7e9], [2e10, 1.4e11], like="Llama-2")
    >>> bool(table["hellaswag"].is_monotonic_increasing)
    True
    """
    params, tokens = (np.atleast_1d(np.asarray(counts, dtype=float)) for counts in (params, tokens))
    if len(params) != len(tokens):
        raise ValueError(f"tokens: {len(tokens)} counts for {len(params)} params, expected one for each")
    rows = [{"params": n, "tokens": d, "domain": "general", "moe": False} for n, d in zip(params, tokens, strict=True)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the path leaves the training data on purpose; `extrapolation` says where
        return benchmarks(rows, like, level, model).assign(flops=6 * params * tokens)


def compute_path(flops: np.ndarray, tokens_per_param: float) -> tuple[np.ndarray, np.ndarray]:
    """Params and tokens of models of given training FLOPs 6 N D at a fixed number of tokens a parameter.

    >>> [f"{count[0]:.3g}" for count in compute_path(np.array([1.2e22]), 20.0)]
    ['1e+10', '2e+11']
    """
    params = np.sqrt(flops / (6 * tokens_per_param)).clip(1e6)
    return params, flops / (6 * params)


def emergence_marks(path: pd.DataFrame, level: float = 0.9) -> pd.DataFrame:
    """Where along a path of rising compute each task is predicted to leave chance, with an interval.

    Past chance is a score above chance + 10 % of the way to 1 (`emergence_threshold`). The mark is where that is as
    likely as not; the interval's ends are where its probability passes (1 - level) / 2 and (1 + level) / 2.

    Args:
        path: of `benchmarks_along`, in order of `flops`.
        level: coverage of the interval, between 0 and 1.

    Returns:
        a row for each task: `task`, `flops`, `flops_lower`, `flops_upper`; NaN: not within the path.
    """
    flops, rows = path["flops"].to_numpy(), []
    for column in [name for name in path.columns if str(name).endswith("_emergence")]:
        probability = path[column].to_numpy()
        ends = []
        for wanted in (0.5, (1 - level) / 2, (1 + level) / 2):
            past = np.flatnonzero(probability >= wanted)
            ends.append(float(flops[past[0]]) if len(past) else math.nan)
        task = str(column).removesuffix("_emergence")
        rows.append({"task": task, "flops": ends[0], "flops_lower": ends[1], "flops_upper": ends[2]})
    return pd.DataFrame(rows)


def emergence_scales(
    model: NSPModel | str = "nsp-base", tokens_per_param: float = 20.0, level: float = 0.9, like: str | None = None
) -> pd.DataFrame:
    """`emergence_marks` along 1e18 to 1e27 FLOPs.

    Args:
        model: a model, a folder, a Hub id, or the name of an embedded model.
        tokens_per_param: tokens a parameter along the path (20: compute-optimal, Hoffmann et al. 2022).
        level: coverage of the interval, between 0 and 1.
        like: a known family whose data quality is assumed.
    """
    low, high = np.log10(EMERGENCE_FLOPS)
    path = compute_path(np.logspace(low, high, 361), tokens_per_param)
    return emergence_marks(benchmarks_along(*path, like, level, model), level)
