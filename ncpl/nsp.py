"""NSP on real leaderboards: training, protocols, baselines, the link from loss to scores, and the figure.

Protocols leave whole families out: what is known of a new model is its size (`size`), or in addition the core scores
of the next smaller model of its family (`sibling`), or three other scores of its own (`others`).
"""

import itertools
import json
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm.auto import tqdm

from configuration_nsp import CHANCE, CORE_TASKS, NSPConfig
from datasets_scripts.leaderboard import load_leaderboard
from datasets_scripts.runs import load_runs
from feature_extraction_nsp import TOKENS_PER_PARAM, NSPFeatureExtractor, as_rows
from fields_ncpl import SOURCES, field_name
from modeling_nsp import NSPModel, NSPOutput, SiblingRegression
from ncpl import record

if TYPE_CHECKING:
    from ncpl.forecaster import Forecaster

Rows = Sequence[int] | np.ndarray
PROTOCOLS = ("size", "sibling", "others")
LEVELS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98)
KNOWN_OTHERS = 3
# Emergence is scored where the question makes sense: BIG-bench's emergent tasks.
EMERGENT_PREFIX = "bb_"


# --- scores ---


@dataclass
class Scores:
    """A leaderboard as tensors.

    Args:
        names: models.
        families: their families.
        features: (models, 4) as `NSPFeatureExtractor` gives them.
        mask: (models, 4), where they are known.
        values: (models, tasks), accuracies, NaN where not measured.
        tasks: names of the tasks.
    """

    names: list[str]
    families: np.ndarray
    features: Tensor
    mask: Tensor
    values: Tensor
    tasks: list[str]

    @classmethod
    def from_table(cls, table: pd.DataFrame, tasks: Sequence[str]) -> "Scores":
        """Reads the columns that `load_leaderboard` gives."""
        rows = [
            {
                "params": row["params"],
                "tokens": row["tokens"],
                "domain": "code" if row["code"] else "general",
                "moe": bool(row["moe"]),
            }
            for row in table.to_dict("records")
        ]
        extractor = NSPFeatureExtractor(tasks, support=((-99, 99), (-99, 99)))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # missing tokens are expected here
            read = extractor(rows)
        values = torch.tensor(table[list(tasks)].to_numpy(dtype=float), dtype=torch.float32)
        families = table["family"].to_numpy(dtype=str)
        return cls(list(table["model"]), families, read["features"], read["feature_mask"], values, list(tasks))

    def folds(self, number: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """(training rows, test rows) of each fold: families apart, tests only where tokens are known.

        Rows without tokens train wherever none of their family is tested.
        """
        from sklearn.model_selection import GroupKFold

        known = np.flatnonzero(self.mask[:, 1].numpy() > 0)
        folds = []
        for _, held in GroupKFold(number).split(known, groups=self.families[known]):
            test = known[held]
            train = np.flatnonzero(~np.isin(self.families, self.families[test]))
            folds.append((train, test))
        return folds

    def sibling(self, row: int) -> int | None:
        """The largest smaller model of the same family with known tokens; None where there is none."""
        size, known = self.features[:, 0].numpy(), self.mask[:, 1].numpy() > 0
        smaller = np.flatnonzero((self.families == self.families[row]) & known & (size < size[row]))
        return int(smaller[np.argmax(size[smaller])]) if len(smaller) else None


def inputs(scores: Scores, rows: Rows, known: Sequence[Sequence[tuple[int, int]]] | None) -> dict[str, Tensor]:
    """Tensors for `NSPModel.forward`: the rows, and for each its known scores as (measured row, task)."""
    index = torch.as_tensor(np.asarray(rows), dtype=torch.long)
    given = {"features": scores.features[index], "feature_mask": scores.mask[index]}
    if known is None:
        return given
    width = max(1, *(len(pairs) for pairs in known))
    measured, task, real = (np.zeros((len(index), width), np.int64) for _ in range(3))
    for i, pairs in enumerate(known):
        for j, (row, column) in enumerate(pairs):
            measured[i, j], task[i, j], real[i, j] = row, column, 1
    measured_t, task_t = torch.from_numpy(measured), torch.from_numpy(task)
    values = scores.values[measured_t, task_t]
    present = torch.from_numpy(real).bool() & ~values.isnan()
    # 0 is the model itself, the others need only be told apart.
    models = torch.where(measured_t == index[:, None], 0, measured_t + 1)
    return {
        **given,
        "score_values": values.nan_to_num(),
        "score_tasks": task_t,
        "score_models": models,
        "score_mask": present.float(),
        "score_features": scores.features[measured_t],
        "score_feature_mask": scores.mask[measured_t],
    }


# --- recipe ---


@dataclass
class DataBlock:
    """Which leaderboard.

    Args:
        leaderboard: configuration of `datasets_scripts.leaderboard`.
        data_dir: folder of its files; null: download.
        min_scores: a task is learnt when at least so many models have a score.
    """

    leaderboard: str = "obs_scaling"
    data_dir: str | None = None
    min_scores: int = 40


@dataclass
class TrainingBlock:
    """How one model is fitted.

    Args:
        steps: optimizer steps.
        learning_rate: peak, of the closed-form part.
        encoder_learning_rate: peak, of the encoder.
        batch_size: models in a batch with known scores.
        penalty: of the squared closed-form parameters.
        encoder_decay: weight decay of the encoder.
        auxiliary_weight: of tasks beside the core ones, in the loss.
        unknown_architecture: share of examples whose architecture is hidden.
        family_inflation: factor on the fitted variance of a family's effect: the closed form follows the families it
            was fitted to more closely than it will a new one.
    """

    steps: int = 900
    learning_rate: float = 0.02
    encoder_learning_rate: float = 0.002
    batch_size: int = 48
    penalty: float = 1e-3
    encoder_decay: float = 0.1
    auxiliary_weight: float = 0.3
    unknown_architecture: float = 0.2
    family_inflation: float = 1.0


@dataclass
class EvaluationBlock:
    """How it is judged and calibrated.

    Args:
        folds: of families.
        seeds: fits of each fold; their spread is reported, intervals are calibrated on all.
    """

    folds: int = 5
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])


@dataclass
class NSPRecipe:
    """A training recipe of NSP: blocks `model` (fields of `NSPConfig`), `data`, `training`, `evaluation`.

    Args:
        model: fields of `NSPConfig`.
        data: which leaderboard.
        training: how one model is fitted.
        evaluation: how it is judged and calibrated.
        seed: of the model that is saved.
    """

    model: dict[str, Any] = field(default_factory=dict)
    data: DataBlock = field(default_factory=DataBlock)
    training: TrainingBlock = field(default_factory=TrainingBlock)
    evaluation: EvaluationBlock = field(default_factory=EvaluationBlock)
    seed: int = 0

    @classmethod
    def from_dict(cls, recipe: Mapping[str, Any]) -> "NSPRecipe":
        """Checks a recipe key by key; `kind: nsp` may stand beside the blocks.

        Raises:
            ValueError: a key that does not exist, or a value of the wrong type.

        >>> NSPRecipe.from_dict({"training": {"steps": 10}}).training.steps
        10
        """
        given = {key: value for key, value in recipe.items() if key != "kind"}
        blocks = {"data": DataBlock, "training": TrainingBlock, "evaluation": EvaluationBlock}
        _check_keys(given, cls, "")
        read: dict[str, Any] = {}
        for key, value in given.items():
            if key == "seed":
                read[key] = value
                continue
            if not isinstance(value, Mapping):
                raise ValueError(f"{key}: {value!r}, expected a block of keys")
            if key == "model":
                _check_keys(value, NSPConfig, "model.")
                read[key] = dict(value)
            else:
                _check_keys(value, blocks[key], f"{key}.")
                read[key] = blocks[key](**{name: _coerce(blocks[key], name, v, key) for name, v in value.items()})
        return cls(**read)


def _check_keys(given: Mapping[str, Any], block: Any, where: str) -> None:
    known = [f.name for f in fields(block)]
    for key in given:
        if key not in known:
            near = get_close_matches(str(key), known, 1)
            raise ValueError(
                f"{where}{key}: no such key{f', did you mean {near[0]!r}?' if near else ''}; known: {', '.join(known)}"
            )


def _coerce(block: Any, name: str, value: Any, where: str) -> Any:
    """YAML 1.1 reads 1e-3 as text; numbers of the wrong kind stop the run."""
    kind = next(f.type for f in fields(block) if f.name == name)
    if kind in (float, int) and not isinstance(value, bool):
        try:
            number = float(value)
        except (TypeError, ValueError):
            raise ValueError(f"{where}.{name}: {value!r}, expected a number") from None
        if number < 0 or (kind is int and number != int(number)):
            raise ValueError(
                f"{where}.{name}: {value!r}, expected {'an integer' if kind is int else 'a number'} from 0"
            )
        return kind(number)
    return value


# --- fitting ---


def fit(scores: Scores, rows: Rows, recipe: NSPRecipe, seed: int, progress: bool = False) -> NSPModel:
    """Fits one model to some rows of a leaderboard.

    Steps alternate between what may be known: nothing but size, a sibling's scores, some scores of the model itself. In
    each, the loss is that of the model's other scores.

    Args:
        scores: the leaderboard.
        rows: those that may be seen; other rows have no influence.
        recipe: its blocks `model` and `training` are used.
        seed: of the weights and the examples.
        progress: show a bar.
    """
    options, rows = recipe.training, np.asarray(rows)
    random = np.random.default_rng(seed)
    torch.manual_seed(seed)
    core = [task for task in scores.tasks if task in CORE_TASKS]
    given = {"tasks": scores.tasks, "regression_tasks": core, **_statistics(scores, rows), **recipe.model}
    config = NSPConfig(**given)
    model = NSPModel(config).train()
    encoder = list(model.encoder.parameters())
    closed = [(name, p) for name, p in model.named_parameters() if not name.startswith("encoder.")]
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for _, p in closed], "lr": options.learning_rate, "weight_decay": 0.0},
            {"params": encoder, "lr": options.encoder_learning_rate, "weight_decay": options.encoder_decay},
        ]
    )
    peaks = [options.learning_rate, options.encoder_learning_rate]
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, peaks, total_steps=max(options.steps, 2))
    shrunk = [p for name, p in closed if name.split(".")[-1] in _SHRUNK]
    weight = torch.tensor([1.0 if task in CORE_TASKS else options.auxiliary_weight for task in scores.tasks])
    sized = rows[scores.mask[rows, 1].numpy() > 0]
    relatives = {row: rows[(scores.families[rows] == scores.families[row]) & (rows != row)] for row in rows}
    measured = ~scores.values.isnan().numpy()
    for step in tqdm(range(options.steps), disable=not progress, desc="fit"):
        kind = PROTOCOLS[step % 3]
        if kind == "size":
            batch, known, hidden = sized, None, []
        else:
            pool = rows if kind == "others" else rows[[len(relatives[row]) > 0 for row in rows]]
            batch = random.choice(pool, options.batch_size)
            draw = _draw_sibling if kind == "sibling" else _draw_others
            known = [draw(row, relatives[row], scores, measured, random) for row in batch]
            hidden = [(i, task) for i, pairs in enumerate(known) for row, task in pairs if row == batch[i]]
        given = inputs(scores, batch, known)
        blind = torch.from_numpy(random.random(len(batch)) < options.unknown_architecture)
        given["feature_mask"] = _hide_architecture(given["feature_mask"], blind)
        if known is not None:
            given["score_feature_mask"] = _hide_architecture(given["score_feature_mask"], blind[:, None])
        labels = scores.values[batch].clone()
        if hidden:
            at, task = np.array(hidden).T
            labels[at, task] = torch.nan
        output = model(**given, labels=labels, label_weights=weight.expand_as(labels))
        loss = output.loss + options.penalty * sum(p.square().sum() for p in shrunk)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    model.eval()
    _inflate(model, options.family_inflation)
    set_regressions(model, scores, rows)
    return model


@torch.no_grad()
def set_regressions(model: NSPModel, scores: Scores, rows: Rows) -> None:
    """Stores the moments of some models' sizes and scores, from which scores are regressed on one another.

    What was not measured is filled in by the model.
    """
    regression, rows = model.regression, np.asarray(rows)
    if not regression.tasks:
        return
    index = torch.as_tensor(rows, dtype=torch.long)
    values = scores.values[index][:, regression.tasks]
    known = [[(row, task) for task in regression.tasks if not scores.values[row, task].isnan()] for row in rows]
    filled = torch.where(values.isnan(), predict(model, scores, rows, known).predictions[:, regression.tasks], values)
    sizes = model.regression_sizes(scores.features[index], scores.mask[index])
    described = torch.cat([sizes, regression.log_odds(filled)], 1)
    regression.centre.copy_(described.mean(0))
    regression.deviation.copy_(described.std(0).clamp(min=1e-3))
    expanded, _ = regression.products(described, torch.ones_like(described))
    regression.moments.copy_((expanded.double().T @ expanded.double()).float())
    _set_sibling_regression(
        model.sibling_regression, sizes.double(), described[:, regression.SIZES :].double(), scores.families[rows]
    )


def _set_sibling_regression(
    regression: SiblingRegression, sizes: Tensor, log_odds: Tensor, families: np.ndarray
) -> None:
    """Stores the moments of all pairs of a model and a smaller one of its family.

    A family weighs as the root of its number of pairs, a pair the less the larger its ratio of params, and the less
    the farther it is from the regression (Student-t, 3 degrees of freedom, by reweighting).
    """
    params = sizes[:, 0].numpy()
    model, other = np.nonzero((families[:, None] == families) & (params[:, None] > params))
    if not len(model):
        return
    _, family, counts = np.unique(families[model], return_inverse=True, return_counts=True)
    size, sibling, known = sizes[model], sizes[other], torch.ones_like(log_odds[other])
    grown, described = (size - sibling)[:, : regression.GROWTHS], torch.cat([sizes, log_odds], 1)[other]
    prior = (-0.5 * grown[:, 0]).exp() / torch.from_numpy(counts[family]).double().sqrt()
    weight = (prior / prior.sum())[:, None]
    centre = (weight * described).sum(0)
    regression.centre.copy_(centre)
    regression.deviation.copy_((weight * (described - centre).square()).sum(0).sqrt().clamp(min=1e-3))
    regression.growth.copy_((weight * grown.square()).sum(0).sqrt().clamp(min=1e-3))
    features = regression.described(size, sibling, log_odds[other], known)
    expanded = torch.cat([features, log_odds[model] - log_odds[other]], 1)
    for _ in range(5):
        regression.moments.copy_(expanded.T @ (weight * expanded))
        predicted = regression(size.float(), sibling.float(), log_odds[other].float(), known.float())
        error = (log_odds[model] - predicted).square()
        far = (error / (weight * error).sum(0)).mean(1)
        weight = prior / (3 + far)
        weight = (weight / weight.sum())[:, None]


@torch.no_grad()
def _inflate(model: NSPModel, factor: float) -> None:
    """Multiplies the variance of a family's effect."""
    model.effect.family_factors.mul_(math.sqrt(factor))
    model.effect.family_scales.add_(math.log(factor) / 2)


_SHRUNK = {"slopes", "offsets", "loadings", "architecture", "family_factors", "model_factors"}


def _statistics(scores: Scores, rows: np.ndarray) -> dict[str, Any]:
    """What the configuration says of the training data: sizes, tokens given params, shares of architectures."""
    known = rows[scores.mask[rows, 1].numpy() > 0]
    size = scores.features[known, :2].double().numpy()
    slope, intercept = np.polyfit(size[:, 0], size[:, 1], 1)
    slope = max(slope, 0.0)  # scores rise with params, also where tokens are missing
    intercept = float(np.mean(size[:, 1] - slope * size[:, 0]))
    deviation = float(np.std(size[:, 1] - slope * size[:, 0] - intercept))
    low, high = size.min(0), size.max(0)
    return {
        "tokens_prior": [intercept, float(slope), deviation],
        "feature_priors": scores.features[rows, 2:].mean(0).tolist(),
        "support": [[float(a), float(b)] for a, b in zip(low, high, strict=True)],
    }


def _draw_sibling(
    row: int, relatives: np.ndarray, scores: Scores, measured: np.ndarray, random: np.random.Generator
) -> list[tuple[int, int]]:
    """The scores of one sibling, mostly a smaller one, often the next: the core ones, or all measured, or some."""
    size = scores.features[:, 0].numpy()
    smaller = relatives[size[relatives] < size[row]]
    draw = random.random()
    if len(smaller) and draw < 0.4:
        other = smaller[np.argmax(size[smaller])]
    else:
        other = random.choice(smaller if len(smaller) and draw < 0.8 else relatives)
    tasks = np.flatnonzero(measured[other])
    style = random.random()
    if style < 0.6:
        tasks = np.array([t for t in tasks if scores.tasks[t] in CORE_TASKS])
    elif style < 0.8:
        tasks = random.choice(tasks, random.integers(1, len(tasks) + 1), replace=False)
    return [(int(other), int(task)) for task in tasks]


def _draw_others(
    row: int, relatives: np.ndarray, scores: Scores, measured: np.ndarray, random: np.random.Generator
) -> list[tuple[int, int]]:
    """Some scores of the model itself: three of the core ones mostly; now and then a sibling's too."""
    tasks = np.flatnonzero(measured[row])
    core = np.array([t for t in tasks if scores.tasks[t] in CORE_TASKS])
    if random.random() < 0.8:
        chosen = random.choice(core, min(KNOWN_OTHERS, len(core)), replace=False)
    else:
        chosen = random.choice(tasks, random.integers(1, min(6, len(tasks)) + 1), replace=False)
    known = [(int(row), int(task)) for task in chosen]
    if len(relatives) and random.random() < 0.1:
        known += _draw_sibling(row, relatives, scores, measured, random)
    return known


def _hide_architecture(mask: Tensor, blind: Tensor) -> Tensor:
    mask = mask.clone()
    mask[..., 2:] = torch.where(blind[..., None], 0.0, mask[..., 2:])
    return mask


# --- protocols ---


@torch.no_grad()
def predict(model: NSPModel, scores: Scores, rows: Rows, known: Any = None) -> NSPOutput:
    """Output of a model for rows of a leaderboard; `known` as `inputs` takes it."""
    return model(**inputs(scores, rows, known))


def triples(task: int, tasks: Sequence[int]) -> list[tuple[int, ...]]:
    """All choices of three other core tasks.

    >>> len(triples(0, range(8)))
    35
    """
    return list(itertools.combinations([t for t in tasks if t != task], KNOWN_OTHERS))


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
    multiples = reach(model, output, values)
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


def reach(model: NSPModel, output: NSPOutput, values: Tensor) -> Tensor:
    """Standard deviations (batch, tasks) at which a model's band just holds the values; by bisection."""
    low, high = torch.zeros_like(values), torch.full_like(values, 30.0)
    for _ in range(25):
        middle = (low + high) / 2
        lower, upper = model.bounds(output, middle)
        inside = (values >= lower) & (values <= upper)
        low, high = torch.where(inside, low, middle), torch.where(inside, middle, high)
    return high


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


# --- calibration ---


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
    order = np.argsort(values)
    share = np.cumsum(weights[order]) / weights.sum()
    rows = min(frame["row"].nunique() for frame in frames)
    # The split-conformal correction: (n + 1) / n of the level.
    wanted = np.minimum(np.array(LEVELS) * (rows + 1) / rows, 1.0)
    at = np.minimum(np.searchsorted(share, wanted - 1e-12), len(values) - 1)
    return np.asarray(values[order][at])


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


@torch.no_grad()
def set_families(model: NSPModel, scores: Scores, rows: Rows) -> None:
    """Stores the posterior of each family's effect, given all its scores, with the model's weights."""
    core_model = model.double()
    effect, heads = core_model.effect, core_model.heads
    between, own = effect.family_covariance().double(), effect.model_covariance().double()
    rows = np.asarray(rows)
    for index, family in enumerate(model.config.families):
        members = rows[scores.families[rows] == family]
        _, prior, by_tokens = core_model._prior(scores.features[members], scores.mask[members])
        at, task = torch.nonzero(~scores.values[members].isnan(), as_tuple=True)
        values = scores.values[members][at, task].double()
        prior_at, loading = prior[at, task].double(), by_tokens[at, task].double()
        same = (at[:, None] == at[None, :]).double()
        among = between[task][:, task] + own[task][:, task] * same + loading[:, None] * loading
        logits, noise = prior_at, effect.noise_variance()[task].double()
        for _ in range(50):
            expected, slopes = heads.scores(logits, task)
            slopes = slopes.double().clamp(min=1e-3)
            total = slopes[:, None] * among * slopes + torch.diag(noise)
            weights = slopes * torch.linalg.solve(total, values - expected + slopes * (logits - prior_at))
            logits = logits + (among @ weights - (logits - prior_at)).clamp(-0.5, 0.5)
        cross = between[:, task] * slopes
        effect.known_means[index] = between[:, task] @ weights
        effect.known_covariances[index] = between - cross @ torch.linalg.solve(total, cross.T)
    model.float()


# --- baselines ---


def power_law(size: np.ndarray, theta: np.ndarray) -> np.ndarray:
    """Traditional law: error `A / N^a + E`, with ln N in units of 1e9 as `size[:, 0]`; the score is 1 - error."""
    return np.asarray(1 - (np.exp(theta[0] - np.exp(theta[1]) * size[:, 0]) + theta[2]))


def extended_law(size: np.ndarray, theta: np.ndarray) -> np.ndarray:
    """Extended law: error `A / N^a + B / D^b + E` (Hoffmann et al. 2022, eq. 2, for errors)."""
    params = np.exp(theta[0] - np.exp(theta[1]) * size[:, 0])
    return np.asarray(1 - (params + np.exp(theta[2] - np.exp(theta[3]) * size[:, 1]) + theta[4]))


def sigmoid_law(size: np.ndarray, theta: np.ndarray, chance: float) -> np.ndarray:
    """`chance + (1 - chance) sigmoid(b + n ln N + d ln D)`."""
    logits = theta[0] + size @ theta[1:3]
    return np.asarray(chance + (1 - chance) / (1 + np.exp(-logits)))


def fit_law(
    law: Callable[[np.ndarray, np.ndarray], np.ndarray],
    starts: Sequence[Sequence[float]],
    size: np.ndarray,
    y: np.ndarray,
) -> Callable[[np.ndarray], np.ndarray]:
    """Least squares from several starts; the law with its parameters."""
    from scipy.optimize import least_squares

    found = [least_squares(lambda theta: law(size, theta) - y, start, max_nfev=300) for start in starts]
    best = min(found, key=lambda result: result.cost).x
    return lambda new: law(new, best)


def baselines(scores: Scores, folds: int = 5) -> dict[str, dict[str, float]]:
    """Mean errors of plain methods under the same protocols: method -> protocol -> mean absolute error.

    `traditional`, `extended` and `sigmoid` laws of size; the sigmoid plus its sibling's residual; observational scaling
    (principal component of the known scores, Ruan et al. 2024); random forests.
    """
    from sklearn.ensemble import RandomForestRegressor
    from sklearn.linear_model import LinearRegression

    size, values = scores.features[:, :2].double().numpy(), scores.values.double().numpy()
    core = [scores.tasks.index(task) for task in CORE_TASKS]
    chance = {t: CHANCE[scores.tasks[t]] for t in core}
    sibling = {row: scores.sibling(row) for row in range(len(values)) if scores.mask[row, 1] > 0}
    errors: dict[tuple[str, str], dict[int, list[float]]] = {}

    def note(method: str, protocol: str, task: int, predicted: np.ndarray, rows: np.ndarray) -> None:
        error = np.abs(predicted - values[rows, task])
        errors.setdefault((method, protocol), {}).setdefault(task, []).extend(error[~np.isnan(error)].tolist())

    def forest(x: np.ndarray, y: np.ndarray) -> Any:
        return RandomForestRegressor(100, min_samples_leaf=2, random_state=0).fit(x, y)

    for train, test in scores.folds(folds):
        train = train[scores.mask[train, 1].numpy() > 0]  # the plain methods need tokens
        paired = [np.array([row for row in rows if sibling[row] is not None]) for rows in (train, test)]
        for task in core:
            seen = train[~np.isnan(values[train, task])]
            x, y = size[seen], values[seen, task]
            laws = {
                "traditional law, N": fit_law(power_law, [(-1, -1.5, 0.3), (0, -2.5, 0.1)], x, y),
                "extended law, N and D": fit_law(extended_law, [(-2, -1.5, -2, -1.5, 0.2), (-1, -1, -3, -1, 0.1)], x,
                y), "sigmoid, N and D": fit_law(
                    lambda s, theta, c=chance[task]: sigmoid_law(s, theta, c),  # type: ignore[misc]
                    [(-2, 0.3, 0.3), (0, 0.3, 0.3)], x, y,
                ),
                "random forest": forest(x, y).predict,
            }  # fmt: skip
            for method, law in laws.items():
                note(method, "size", task, law(size[test]), test)
            law = laws["sigmoid, N and D"]
            other = np.array([sibling[row] for row in paired[1]])
            residual = values[other, task] - law(size[other])
            note("sigmoid + sibling's residual", "sibling", task, law(size[paired[1]]) + residual, paired[1])
            both = {
                kind: np.hstack([size[rows], size[o], np.nan_to_num(values[o][:, core], nan=-0.1)])
                for kind, rows, o in (
                    ("train", paired[0], np.array([sibling[row] for row in paired[0]])),
                    ("test", paired[1], other),
                )
            }
            ok = ~np.isnan(values[paired[0], task])
            grown = forest(both["train"][ok], values[paired[0], task][ok])
            note("random forest", "sibling", task, grown.predict(both["test"]), paired[1])
            for number, others in enumerate(triples(task, core)):
                columns = list(others)
                full = [rows[~np.isnan(values[rows][:, columns]).any(axis=1)] for rows in (train, test)]
                full[0] = full[0][~np.isnan(values[full[0], task])]
                if not len(full[1]):
                    continue
                centre, deviation = values[full[0]][:, columns].mean(0), values[full[0]][:, columns].std(0)
                known = [(values[rows][:, columns] - centre) / deviation for rows in full]
                direction = np.linalg.svd(known[0], full_matrices=False)[2][0]
                share = (values[full[0], task] - chance[task]) / (1 - chance[task])
                share = share.clip(0.01, 0.99)
                line = LinearRegression().fit((known[0] @ direction)[:, None], np.log(share / (1 - share)))
                logits = line.predict((known[1] @ direction)[:, None])
                predicted = chance[task] + (1 - chance[task]) / (1 + np.exp(-logits))
                note("observational scaling", "others", task, predicted, full[1])
                if number % 7 == 0:  # a seventh of the choices, spread evenly: forests are slow
                    grown = forest(np.hstack([size[full[0]], values[full[0]][:, columns]]), values[full[0], task])
                    note(
                        "random forest", "others", task,
                        grown.predict(np.hstack([size[full[1]], values[full[1]][:, columns]])), full[1],
                    )  # fmt: skip
    table: dict[str, dict[str, float]] = {}
    for (method, protocol), by_task in errors.items():
        table.setdefault(method, {})[protocol] = float(np.mean([np.mean(e) for e in by_task.values()]))
    return table


# --- loss to scores ---

LINK_FILE = "loss_link.json"
# The link of configurations: its runs cover the sizes that losses are forecast for, with one recipe.
RUN_LINK = "olmo_ladder"
LINK_NOTES = {
    "olmo_ladder": "C4-en validation loss per token of the dolma2 tokenizer; 5-shot ranked-choice accuracies of OLMES",
    "gadre_open_lm": "C4 validation loss per token of the GPT-NeoX tokenizer; accuracies of LLM-Foundry's heavy suite",
}


@dataclass
class LossLink:
    """Scores of one evaluation setting as sigmoids of its C4 loss (Gadre et al. 2024; Bhagia et al. 2024).

    `score = chance + (top - chance) sigmoid(steepness (middle - loss))`.

    Args:
        source: leaderboard it was fitted on.
        tasks: task -> (chance, top, steepness, middle, standard deviation of the residual).
        losses: lowest and highest loss seen, nats per token.
        errors: task -> mean absolute error where the fit did not see the family.
        law: (a, alpha, b, beta, e) of its finished runs' loss `a N^-alpha + b D^-beta + e`, in units of 1e9.
        offsets: source of run logs -> (loss above that law at equal N and D, its standard deviation), nats per token.
    """

    source: str
    tasks: dict[str, tuple[float, float, float, float, float]]
    losses: tuple[float, float]
    errors: dict[str, float]
    law: tuple[float, float, float, float, float]
    offsets: dict[str, tuple[float, float]] = field(default_factory=dict)

    def __call__(self, loss: np.ndarray, task: str) -> np.ndarray:
        """Scores of one task at losses in nats per token."""
        return _link(np.asarray(loss, dtype=float), *self.tasks[task][:4])

    def expected(self, params: Any, tokens: Any) -> np.ndarray:
        """Loss of this setting's own finished runs, nats per token, at params and tokens (counts)."""
        a, alpha, b, beta, e = self.law
        return np.asarray(a * (np.asarray(params) / 1e9) ** -alpha + b * (np.asarray(tokens) / 1e9) ** -beta + e)

    def scale(self, loss: np.ndarray, params: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """Factor s of both params and tokens at which this setting's own runs would have the loss; 0.01 to 100."""
        low, high = (np.full(np.shape(loss), end) for end in (math.log(0.01), math.log(100.0)))
        for _ in range(40):
            middle = (low + high) / 2
            worse = self.expected(params * np.exp(middle), tokens * np.exp(middle)) > loss
            low, high = np.where(worse, middle, low), np.where(worse, high, middle)
        return np.asarray(np.exp(high))


def _link(loss: np.ndarray, chance: float, top: float, steepness: float, middle: float) -> np.ndarray:
    return np.asarray(chance + (top - chance) * (1 + np.tanh(steepness * (middle - loss) / 2)) / 2)


def fit_loss_link(table: pd.DataFrame, source: str) -> LossLink:
    """Fits a `LossLink` to a leaderboard with losses; a task is kept when it beats its mean on families left out.

    Args:
        table: of `load_leaderboard`.
        source: its name.
    """
    from datasets_scripts.leaderboard import chance as blind_guess

    if source == "olmo_ladder":  # early checkpoints are far from any finished model
        table = table[table["loss"] < table["loss"].quantile(0.9)]
    finished = table[table["flag"].isna() & table["loss"].notna()]
    law = _fit_loss_law(*(finished[c].to_numpy(dtype=float) for c in ("params", "tokens", "loss")))
    tasks, errors = {}, {}
    for task in [column for column in table.columns if column.startswith(source.split("_")[0] + "_")]:
        rows = table[table[task].notna() & table["loss"].notna()]
        loss, score, families = (rows[c].to_numpy() for c in ("loss", task, "family"))
        low = blind_guess(task) or float(np.quantile(score, 0.02))
        predicted = np.full(len(rows), np.nan)
        for family in np.unique(families):
            out = families == family
            predicted[out] = _link(loss[out], low, *_fit_link(loss[~out], score[~out], low))
        if np.abs(predicted - score).mean() >= 0.8 * np.abs(score - score.mean()).mean():
            continue  # no signal of the loss in this task: saying so is better than a line
        top, steepness, middle = _fit_link(loss, score, low)
        tasks[task] = (low, top, steepness, middle, float(np.std(predicted - score)))
        errors[task] = float(np.abs(predicted - score).mean())
    return LossLink(source, tasks, (float(table["loss"].min()), float(table["loss"].max())), errors, law)


def _fit_loss_law(params: np.ndarray, tokens: np.ndarray, loss: np.ndarray) -> tuple[float, float, float, float, float]:
    from scipy.optimize import least_squares

    n, d = np.log(params / 1e9), np.log(tokens / 1e9)

    def residual(theta: np.ndarray) -> np.ndarray:
        return np.exp(theta[0] - theta[1] * n) + np.exp(theta[2] - theta[3] * d) + theta[4] - loss

    a, alpha, b, beta, e = least_squares(residual, [0.0, 0.3, 0.0, 0.3, 2.0], loss="soft_l1", f_scale=0.05).x
    return math.exp(a), float(alpha), math.exp(b), float(beta), float(e)


def fit_offsets(link: LossLink, runs: Mapping[str, Sequence[tuple[Mapping[str, Any], float]]]) -> None:
    """Measures how far the losses of run logs lie above a link's, and stores it with the link.

    The best of at least five runs at the same params and tokens is taken for well-tuned; its distance from the link's
    own loss at those params and tokens is the offset.

    Args:
        link: the link.
        runs: source -> (configuration, final loss in nats per token) of each run.
    """
    for source, pairs in runs.items():
        by_size: dict[tuple[float, float], list[float]] = {}
        for config, loss in pairs:
            by_size.setdefault(_size(config), []).append(loss)
        found = [min(losses) - float(link.expected(*size)) for size, losses in by_size.items() if len(losses) >= 5]
        if len(found) > 1:
            link.offsets[source] = (float(np.median(found)), float(np.std(found, ddof=1)))


def _size(config: Mapping[str, Any]) -> tuple[float, float]:
    """Non-embedding params, of a mixture the active ones, and tokens of a configuration; counts."""
    return float(config.get("active size") or config["model size"]) * 1e6, float(config["data size"]) * 1e9


def _fit_link(loss: np.ndarray, score: np.ndarray, low: float) -> tuple[float, float, float]:
    from scipy.optimize import least_squares

    def residual(theta: np.ndarray) -> np.ndarray:
        return _link(loss, low, low + (1 - low) / (1 + np.exp(-theta[0])), np.exp(theta[1]), theta[2]) - score

    best = min(
        (least_squares(residual, start, loss="soft_l1", f_scale=0.05) for start in ((2, 0.5, 2.5), (0, 1.0, 3.0))),
        key=lambda result: result.cost,
    ).x
    return float(low + (1 - low) / (1 + np.exp(-best[0]))), float(np.exp(best[1])), float(best[2])


def scores_from_loss(
    loss: Any, lower: Any = None, upper: Any = None, *, source: str = "olmo_ladder", level: float = 0.9
) -> pd.DataFrame:
    """Benchmark scores that follow from a forecast C4 loss: the end of the road configuration -> loss -> scores.

    Losses of different tokenizers and validation sets do not compare: the loss must be that of `source`'s setting,
    which the table's column `setting` states. The scores are in that setting too, not the Open LLM Leaderboard's.

    Args:
        loss: nats per token, one or many.
        lower: lower end of the loss's interval, where there is one; widens the band of the scores.
        upper: upper end of it.
        source: `olmo_ladder` or `gadre_open_lm`.
        level: coverage of the band, between 0 and 1.

    Returns:
        a row for each loss: `loss`, and for each task TASK, TASK_lower, TASK_upper; `extrapolation` where the loss is
        outside of those the link has seen; `setting`.

    Raises:
        ValueError: an unknown source, or a loss that is not positive.

    >>> bool(scores_from_loss(2.8)["olmo_hellaswag"].between(0.25, 1).all())
    True
    """
    links = load_links()
    if source not in links:
        raise ValueError(f"source: unknown {source!r}, accepted are {', '.join(links)}")
    link = links[source]
    losses = np.atleast_1d(np.asarray(loss, dtype=float))
    if not (losses > 0).all():
        raise ValueError(f"loss: {losses[~(losses > 0)][0]!r}, accepted is a loss above 0 in nats per token")
    if not 0 < level < 1:
        raise ValueError(f"level: {level!r}, accepted is a coverage between 0 and 1")
    multiple = float(torch.distributions.Normal(0.0, 1.0).icdf(torch.tensor((1 + level) / 2)))
    ends = [losses if end is None else np.atleast_1d(np.asarray(end, dtype=float)) for end in (upper, lower)]
    columns: dict[str, Any] = {"loss": losses}
    for task, (chance, *_, deviation) in link.tasks.items():
        middle, worst, best = (link(at, task) for at in (losses, *ends))
        columns[task] = middle
        columns[f"{task}_lower"] = np.maximum(middle - np.hypot(middle - worst, multiple * deviation), min(chance, 0.2))
        columns[f"{task}_upper"] = np.minimum(middle + np.hypot(best - middle, multiple * deviation), 1.0)
    columns["extrapolation"] = (losses < link.losses[0]) | (losses > link.losses[1])
    columns["setting"] = LINK_NOTES[source]
    return pd.DataFrame(columns)


def load_links() -> dict[str, LossLink]:
    """The fitted links that come along with the package, by source."""
    path = Path(__file__).parent / "checkpoints" / "nsp-base" / LINK_FILE
    if not path.exists():
        raise ValueError(f"{path} is missing; run_train.py recipes/nsp-base.yaml makes it")
    return {name: LossLink(**link) for name, link in json.loads(path.read_text()).items()}


# --- the user's door ---


def benchmarks(
    models: Any,
    like: str | None = None,
    level: float = 0.9,
    model: NSPModel | str = "nsp-base",
    forecaster: "Forecaster | None" = None,
) -> pd.DataFrame:
    """Benchmark scores of models that do not exist yet.

    Args:
        models: a description such as `{"params": 7e9, "tokens": 2e12}`, a list of them, a DataFrame, or a Hub model
            config; see `NSPFeatureExtractor` for known scores and siblings. Or configurations of runs as
            `Forecaster.predict` takes them: what they add is said below.
        like: a known family whose data quality is assumed for all models that do not say `like` themselves.
        level: coverage of the bands, between 0 and 1.
        model: a model, a folder, a Hub id, or the name of an embedded model.
        forecaster: forecasts the losses of configurations; the embedded default when absent.

    Returns:
        a row for each model: `params`, `tokens` (NaN where missing), for each task TASK, TASK_lower, TASK_upper and
        TASK_emergence (probability of being past chance), and `extrapolation` (outside of the sizes seen in training,
        or of the tokens a parameter of any known run).

        Configurations have `loss`, `loss_lower`, `loss_upper` (nats per token) and `divergence` too, and tasks in the
        setting of AI2's model ladder (`olmo_...`), read off the loss. Losses of two sources do not compare, for their
        tokenizers and evaluation sets differ. The link assumes that **at equal params and tokens a well-tuned run of
        the source is as good as the ladder's**, so that what separates their losses is an offset of the source, which
        was measured on run logs and whose spread widens the bands. A loss above that of a well-tuned run counts as less
        compute: `equivalent_compute` is the share of 6 N D that the ladder would have needed, and the other tasks'
        scores are those of params and tokens scaled to it (TASK_emergence: at the forecast loss alone). `assumption`
        says this in each row. Where the source has no measured offset the loss says nothing about scores: a warning,
        `olmo_...` and `equivalent_compute` are NaN.
        Params are the configuration's non-embedding ones, of a mixture of experts the active ones.

    Raises:
        ValueError: a field, task or family that is not known, or a value out of range.

    >>> table = benchmarks([{"params": 7e9, "tokens": 2e12}])
    >>> bool((table["mmlu_lower"] < table["mmlu"]).all())
    True
    """
    predictor = NSPModel.from_pretrained(model).eval() if isinstance(model, str) else model
    rows = as_rows(models)
    runs = [_is_configuration(row) for row in rows]
    if any(runs) and not all(runs):
        raise ValueError(
            f"models: number {runs.index(True)} is a run's configuration and number {runs.index(False)} describes a "
            "model by its params and tokens; give the two kinds apart"
        )
    if any(runs):
        return _benchmarks_of_runs(models, like, level, predictor, forecaster)
    if like is not None:
        rows = [{"like": like, **row} for row in rows]
    extracted = predictor.extractor(rows)
    with torch.no_grad():
        output = predictor(extracted)
        lower, upper = predictor.interval(output, level)
    features, mask = extracted["features"].double(), extracted["feature_mask"]
    size = features[:, :2].exp() * torch.tensor([1e9, 1e12])
    bounds = torch.tensor(predictor.config.support, dtype=torch.float64).T
    outside = ((features[:, :2] < bounds[0] - 1e-6) | (features[:, :2] > bounds[1] + 1e-6)) & (mask[:, :2] > 0)
    few, many = TOKENS_PER_PARAM
    ratio = size[:, 1] / size[:, 0]
    odd = ((ratio < few) | (ratio > many)) & (mask[:, 1] > 0)
    columns: dict[str, Any] = {
        "params": size[:, 0].numpy(),
        "tokens": torch.where(mask[:, 1] > 0, size[:, 1], torch.nan).numpy(),
    }
    for i, task in enumerate(predictor.config.tasks):
        columns[task] = output.predictions[:, i].double().numpy()
        columns[f"{task}_lower"] = lower[:, i].double().numpy()
        columns[f"{task}_upper"] = upper[:, i].double().numpy()
        columns[f"{task}_emergence"] = output.emergence_scores[:, i].double().numpy()
    columns["extrapolation"] = (outside.any(1) | odd).numpy()
    return pd.DataFrame(columns)


RUN_FIELDS = {"source", "model size", "data size", "optimizer"}


def _is_configuration(row: Mapping[str, Any]) -> bool:
    return any(field_name(str(name)) in RUN_FIELDS for name in row)


def _benchmarks_of_runs(
    runs: Any, like: str | None, level: float, predictor: NSPModel, forecaster: "Forecaster | None"
) -> pd.DataFrame:
    """`benchmarks` of configurations: their loss, its scale, and scores at that scale and at the ends of its band."""
    from ncpl.configs import as_configs, check_configs
    from ncpl.forecaster import Forecaster

    forecaster = Forecaster.from_pretrained() if forecaster is None else forecaster
    configs = check_configs(as_configs(runs)[0], forecaster.processor.strict)
    forecast = forecaster.predict_checked(configs, level)
    link = load_links()[RUN_LINK]
    sources = [str(config["source"]) for config in configs]
    known = np.array([source in link.offsets for source in sources])
    if not known.all():
        warnings.warn(
            f"source: no offset to the link's loss was measured for {sorted({*sources} - {*link.offsets})} (measured: "
            f"{', '.join(link.offsets)}); scores there follow from size and tokens alone",
            stacklevel=3,
        )
    offset, spread = np.array([link.offsets.get(source, (math.nan, math.nan)) for source in sources]).T
    params, tokens = np.array([_size(config) for config in configs]).T
    # Loss in the link's scale: as forecast, then at the worse and at the better end of a band that has the offset's.
    loss, ends = forecast["loss"].to_numpy() - offset, [forecast[end].to_numpy() - offset for end in ("upper", "lower")]
    multiple = float(torch.distributions.Normal(0.0, 1.0).icdf(torch.tensor((1 + level) / 2)))
    worse = loss + np.hypot(ends[0] - loss, multiple * spread)
    better = loss - np.hypot(loss - ends[1], multiple * spread)

    def at(losses: np.ndarray) -> tuple[np.ndarray, pd.DataFrame]:
        scale = np.where(known, link.scale(losses, params, tokens), 1.0)
        described = [
            {"params": n * s, "tokens": d * s, "moe": config.get("num experts") is not None}
            | ({"domain": "general"} if here else {})
            for n, d, s, config, here in zip(params, tokens, scale, configs, known, strict=True)
        ]
        return scale, benchmarks(described, like, level, predictor)

    scale, table = at(loss)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # said for the middle already
        low, high = at(worse)[1], at(better)[1]
    for task in predictor.config.tasks:
        middle = table[task]
        table[f"{task}_lower"] = middle - np.hypot(middle - low[task], middle - table[f"{task}_lower"])
        table[f"{task}_upper"] = middle + np.hypot(high[task] - middle, table[f"{task}_upper"] - middle)
        for side, outer in (("lower", np.maximum), ("upper", np.minimum)):
            table[f"{task}_{side}"] = outer(table[f"{task}_{side}"], float(side == "upper"))
    linked = pd.DataFrame(index=table.index)
    if known.any():
        linked = scores_from_loss(loss[known], better[known], worse[known], source=RUN_LINK, level=level)
        linked = linked.set_index(table.index[known]).reindex(table.index)
        table["extrapolation"] |= linked.pop("extrapolation").fillna(False).astype(bool)
        linked = linked.drop(columns=["loss", "setting"])
    table["extrapolation"] |= forecast["extrapolation"].gt(0).to_numpy()
    said = {
        source: (
            f"the loss of {source} is taken {link.offsets[source][0]:+.2f} nats (standard deviation "
            f"{link.offsets[source][1]:.2f}) off the model ladder's at equal params and tokens; its data as good as "
            "the ladder's"
            if source in link.offsets
            else f"nothing is known of the loss scale of {source}: scores from size and tokens alone"
        )
        for source in sources
    }
    head = pd.DataFrame(
        {
            "loss": forecast["loss"].to_numpy(),
            "loss_lower": forecast["lower"].to_numpy(),
            "loss_upper": forecast["upper"].to_numpy(),
            "divergence": forecast["divergence"].to_numpy(),
            "equivalent_compute": np.where(known, scale**2, math.nan),
            "params": params,
            "tokens": tokens,
        }
    )
    outside = table.pop("extrapolation")
    scored = table.drop(columns=["params", "tokens"])
    return pd.concat([head, scored, linked], axis=1).assign(
        extrapolation=outside, assumption=[said[source] for source in sources]
    )


def emergence_scales(
    model: NSPModel, tokens_per_param: float = 20.0, level: float = 0.9, like: str | None = None
) -> pd.DataFrame:
    """The smallest compute at which each task is predicted to leave chance, with an interval.

    Past means a score above chance + 10 % of the way to 1 (`emergence_threshold`). The scale is where that is as
    likely as not; the interval's ends are where its probability passes (1 - level) / 2 and (1 + level) / 2.

    Args:
        model: a trained predictor.
        tokens_per_param: models along the way have so many tokens a parameter (20: compute-optimal, Hoffmann et al.
        2022). level: of the interval, between 0 and 1.
        like: a known family whose data quality is assumed.

    Returns:
        a row for each task: `task`, `flops`, `flops_lower`, `flops_upper`; NaN: not within 1e18 to 1e27 FLOPs.
    """
    flops = np.logspace(18, 27, 361)
    table = along_compute(model, flops, tokens_per_param, level, like)
    rows = []
    for task in model.config.tasks:
        chance = table[f"{task}_emergence"].to_numpy()
        ends = []
        for wanted in (0.5, (1 - level) / 2, (1 + level) / 2):
            past = np.flatnonzero(chance >= wanted)
            ends.append(float(flops[past[0]]) if len(past) else math.nan)
        rows.append({"task": task, "flops": ends[0], "flops_lower": ends[1], "flops_upper": ends[2]})
    return pd.DataFrame(rows)


def along_compute(
    model: NSPModel, flops: np.ndarray, tokens_per_param: float, level: float = 0.9, like: str | None = None
) -> pd.DataFrame:
    """`benchmarks` of general-purpose dense models of rising compute, with a column `flops` = 6 params tokens."""
    params = np.sqrt(flops / (6 * tokens_per_param)).clip(1e6)
    rows = [
        {"params": p, "tokens": f / (6 * p), "domain": "general", "moe": False}
        for p, f in zip(params, flops, strict=True)
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the way leaves the training data on purpose; the bands say so
        return benchmarks(rows, like, level, model).assign(flops=flops)


def plot_scales(model: NSPModel, tokens_per_param: float = 100.0, level: float = 0.9, tasks: Sequence[str] = ()) -> Any:
    """Figure of tasks x compute: median, band, and the emergence scale with its interval.

    Args:
        model: a trained predictor.
        tokens_per_param: models along the way have so many tokens a parameter.
        level: of bands and intervals.
        tasks: which; all when empty.

    Returns:
        a matplotlib Figure.
    """
    from matplotlib.figure import Figure

    tasks = list(tasks) or list(model.config.tasks)
    flops = np.logspace(20, 25.5, 120)
    table = along_compute(model, flops, tokens_per_param, level)
    scales = emergence_scales(model, tokens_per_param, level).set_index("task")
    columns = 4
    rows = math.ceil(len(tasks) / columns)
    figure = Figure(figsize=(3.1 * columns, 2.3 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, sharex=True, squeeze=False).ravel()
    for axis, task in zip(axes, tasks, strict=False):
        chance = model.config.chance[list(model.config.tasks).index(task)]
        axis.fill_between(flops, table[f"{task}_lower"], table[f"{task}_upper"], color="#4c72b0", alpha=0.22, lw=0)
        axis.plot(flops, table[task], color="#4c72b0")
        axis.axhline(chance, color="0.5", lw=0.8, ls=":")
        scale = scales.loc[task]
        past = chance + model.config.emergence_threshold * (1 - chance)
        if flops[0] < scale["flops"] < flops[-1]:
            low = max(np.nan_to_num(scale["flops_lower"], nan=flops[0]), flops[0])
            high = min(np.nan_to_num(scale["flops_upper"], nan=flops[-1]), flops[-1])
            axis.plot([low, high], [past, past], color="#c44e52", lw=2, solid_capstyle="butt")
            axis.plot(scale["flops"], past, "o", color="#c44e52", ms=5)
        axis.set(xscale="log", ylim=(0, 1), xlim=(flops[0], flops[-1]))
        axis.set_title(task.removesuffix("_exact_match").removesuffix("_2_acc"), fontsize=9)
        axis.tick_params(labelsize=8)
        axis.grid(alpha=0.2)
    for axis in axes[len(tasks) :]:
        axis.set_visible(False)
    figure.supxlabel(f"training FLOPs, at {tokens_per_param:g} tokens a parameter", fontsize=10)
    figure.supylabel(f"score: median, {level:.0%} band; red: leaves chance; dotted: chance", fontsize=10)
    return figure


# --- training ---


def train(recipe: Mapping[str, Any], output_dir: str | Path, progress: bool = True) -> dict[str, Any]:
    """Trains, judges, calibrates and saves a predictor: the whole of `run_train.py recipes/nsp-base.yaml`.

    Args:
        recipe: blocks `model`, `data`, `training`, `evaluation`, and `seed`; see `NSPRecipe`.
        output_dir: folder for the model, its extractor, the loss links and `nsp_record.json`.
        progress: show bars.

    Returns:
        the record: `recipe`, `metrics` (leave-family-out), `hardware`, `versions`, `commit`, `seeds`.

    Raises:
        ValueError: a key or value of the recipe, or files of the leaderboard.
    """
    plan, output = NSPRecipe.from_dict(recipe), Path(output_dir)
    table = load_leaderboard(plan.data.leaderboard, plan.data.data_dir)
    tasks = plan.model.get("tasks") or [
        t for t in CHANCE if t in table and table[t].notna().sum() >= plan.data.min_scores
    ]
    scores = Scores.from_table(table, tasks)
    judged = cross_validate(scores, plan, progress)
    everything = np.arange(len(scores.names))
    families = sorted(set(scores.families))
    plan.model = {**plan.model, "tasks": list(tasks), "families": families, **calibration(judged, tasks, plan)}
    model = fit(scores, everything, plan, plan.seed, progress)
    set_families(model, scores, everything)
    output.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(output)
    model.extractor.save_pretrained(output)
    links: dict[str, LossLink] = {}
    for source in LINK_NOTES:
        try:
            losses = load_leaderboard(source, plan.data.data_dir)
        except ValueError as error:
            warnings.warn(f"no link from loss to scores by {source}: {error}", stacklevel=2)
            continue
        links[source] = fit_loss_link(losses, source)
    if RUN_LINK in links:
        fit_offsets(links[RUN_LINK], _run_logs(plan.data.data_dir))
    if links:
        told = {source: asdict(link) for source, link in links.items()}
        (output / LINK_FILE).write_text(json.dumps(rounded(told), indent=1) + "\n")
    state = record.git_state()
    result = {
        "recipe": {k: v for k, v in recipe.items() if k != "data"} | {"leaderboard": plan.data.leaderboard},
        "metrics": summarize(judged, tasks, plan),
        "models": len(scores.names),
        "families": len(families),
        "seeds": plan.evaluation.seeds,
        "hardware": record.hardware(),
        "versions": record.versions(),
        "commit": state["commit"] if state else None,
    }
    (output / "nsp_record.json").write_text(json.dumps(rounded(result), indent=1) + "\n")
    return result


def _run_logs(data_dir: str | None) -> dict[str, list[tuple[Mapping[str, Any], float]]]:
    """Training runs of every source in a folder: (configuration, final loss in nats per token)."""
    found = {}
    for source in SOURCES:
        try:
            runs = load_runs(source, data_dir)["train"]
        except ValueError as error:
            warnings.warn(f"the losses of {source} get no place on the link's scale: {error}", stacklevel=3)
            continue
        found[source] = list(zip(runs["conf"], runs["final_loss"], strict=True))
    return found


def calibration(judged: Mapping[str, pd.DataFrame], tasks: Sequence[str], recipe: NSPRecipe) -> dict[str, Any]:
    """Fields of `NSPConfig` that held-out families decide: interval quantiles and the emergence calibration."""
    config = NSPConfig(**{**recipe.model, "tasks": list(tasks)})
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
    threshold = NSPConfig(**{**recipe.model, "tasks": list(tasks)}).emergence_threshold
    if judged["size"]["task"].str.startswith(EMERGENT_PREFIX).any():
        figures["emergence"] = emergence_figures(judged["size"], threshold)
    return figures


def rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, Mapping):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(item) for item in value]
    return value
