"""Fitting NSP to some rows of a leaderboard: gradient steps, then the regressions and family effects in closed form."""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from configuration_nsp import CORE_TASKS, NSPConfig
from modeling_nsp import NSPModel
from ncpl.nsp.scores import KNOWN_OTHERS, PROTOCOLS, Rows, Scores, inputs, predict
from ncpl.recipe import NSPRecipe, NSPTraining

# Names of the closed form's parameters whose squares are penalised.
PENALISED = {"slopes", "offsets", "loadings", "architecture", "family_factors", "model_factors"}


def fit(scores: Scores, rows: Rows, recipe: NSPRecipe, seed: int, progress: bool = False, **settings: Any) -> NSPModel:
    """Fits one model to some rows of a leaderboard.

    Steps alternate between what may be known: nothing but size, a sibling's scores, some scores of the model itself. In
    each, the loss is that of the model's other scores.

    Args:
        scores: the leaderboard.
        rows: those that may be seen; other rows have no influence.
        recipe: its blocks `model` and `training` are used.
        seed: of the weights and the examples.
        progress: show a bar.
        settings: further fields of `NSPConfig`.
    """
    options, rows = recipe.training, np.asarray(rows)
    random = np.random.default_rng(seed)
    torch.manual_seed(seed)
    core = [task for task in scores.tasks if task in CORE_TASKS]
    given = {"tasks": scores.tasks, "regression_tasks": core, **_statistics(scores, rows), **recipe.model.config}
    model = NSPModel(NSPConfig(**given | settings)).train()
    optimizer, schedule, shrunk = _optimizer(model, options)
    weight = torch.tensor([1.0 if task in CORE_TASKS else options.auxiliary_weight for task in scores.tasks])
    for step in tqdm(range(options.steps), disable=not progress, desc="fit"):
        batch, known = _draw_batch(PROTOCOLS[step % 3], scores, rows, options.batch_size, random)
        tensors = inputs(scores, batch, known)
        blind = torch.from_numpy(random.random(len(batch)) < options.unknown_architecture)
        tensors["feature_mask"] = _hide_architecture(tensors["feature_mask"], blind)
        labels = scores.values[batch].clone()
        if known is not None:
            tensors["score_feature_mask"] = _hide_architecture(tensors["score_feature_mask"], blind[:, None])
            for i, pairs in enumerate(known):
                labels[i, [task for row, task in pairs if row == batch[i]]] = torch.nan
        output = model(**tensors, labels=labels, label_weights=weight.expand_as(labels))
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


def _optimizer(model: NSPModel, options: NSPTraining) -> tuple[Any, Any, list[Tensor]]:
    """AdamW with one learning rate for the closed form and one for the encoder, its schedule, what is penalised."""
    closed = [(name, p) for name, p in model.named_parameters() if not name.startswith("encoder.")]
    groups = [
        {"params": [p for _, p in closed], "lr": options.learning_rate, "weight_decay": 0.0},
        {
            "params": list(model.encoder.parameters()),
            "lr": options.encoder_learning_rate,
            "weight_decay": options.encoder_decay,
        },
    ]
    optimizer = torch.optim.AdamW(groups)
    peaks = [options.learning_rate, options.encoder_learning_rate]
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, peaks, total_steps=max(options.steps, 2))
    return optimizer, schedule, [p for name, p in closed if name.split(".")[-1] in PENALISED]


def _draw_batch(
    kind: str, scores: Scores, rows: np.ndarray, size: int, random: np.random.Generator
) -> tuple[np.ndarray, list[list[tuple[int, int]]] | None]:
    """Models of a batch, and the scores that are known of each under a protocol; all models where only size is."""
    if kind == "size":
        return rows[scores.mask[rows, 1].numpy() > 0], None
    _, family, counts = np.unique(scores.families[rows], return_inverse=True, return_counts=True)
    batch = random.choice(rows if kind == "others" else rows[counts[family] > 1], size)
    relatives = {row: rows[(scores.families[rows] == scores.families[row]) & (rows != row)] for row in batch}
    draw = _draw_sibling if kind == "sibling" else _draw_others
    measured = ~scores.values.isnan().numpy()
    return batch, [draw(row, relatives[row], scores, measured, random) for row in batch]


@torch.no_grad()
def set_regressions(model: NSPModel, scores: Scores, rows: Rows) -> None:
    """Fits both regressions on known scores to some models; the model fills in what was not measured."""
    tasks, rows = model.regression.tasks, np.asarray(rows)
    if not tasks:
        return
    index = torch.as_tensor(rows, dtype=torch.long)
    values = scores.values[index][:, tasks]
    known = [[(row, task) for task in tasks if not scores.values[row, task].isnan()] for row in rows]
    filled = torch.where(values.isnan(), predict(model, scores, rows, known).predictions[:, tasks], values)
    sizes = model.regression_sizes(scores.features[index], scores.mask[index])
    log_odds = model.regression.log_odds(filled)
    model.regression.fit(sizes, log_odds)
    model.sibling_regression.fit(sizes.double(), log_odds.double(), scores.families[rows])


@torch.no_grad()
def _inflate(model: NSPModel, factor: float) -> None:
    """Multiplies the variance of a family's effect."""
    model.effect.family_factors.mul_(math.sqrt(factor))
    model.effect.family_scales.add_(math.log(factor) / 2)


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
