"""Benchmark scores that follow from a validation loss, and the loss of a source on the scale of a link."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import pandas as pd

from datasets_scripts.leaderboard import chance as blind_guess
from text_ncpl import check_level, short

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

        def worse(factor: np.ndarray) -> np.ndarray:
            return self.expected(params * np.exp(factor), tokens * np.exp(factor)) > loss

        low, high = (np.full(np.shape(loss), math.log(end)) for end in (0.01, 100.0))
        return np.exp(bisect(worse, low, high))


def bisect(below: Callable[[np.ndarray], np.ndarray], low: np.ndarray, high: np.ndarray, steps: int = 40) -> np.ndarray:
    """Where a condition that holds from `low` on ceases to hold, element by element; `high` where it never does."""
    for _ in range(steps):
        middle = (low + high) / 2
        holds = below(middle)
        low, high = np.where(holds, middle, low), np.where(holds, high, middle)
    return high


def _link(loss: np.ndarray, chance: float, top: float, steepness: float, middle: float) -> np.ndarray:
    return np.asarray(chance + (top - chance) * (1 + np.tanh(steepness * (middle - loss) / 2)) / 2)


def fit_loss_link(table: pd.DataFrame, source: str) -> LossLink:
    """Fits a `LossLink` to a leaderboard with losses; a task is kept when it beats its mean on families left out.

    Args:
        table: of `load_leaderboard`.
        source: its name.
    """
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
            by_size.setdefault(run_size(config), []).append(loss)
        found = [min(losses) - float(link.expected(*size)) for size, losses in by_size.items() if len(losses) >= 5]
        if len(found) > 1:
            link.offsets[source] = (float(np.median(found)), float(np.std(found, ddof=1)))


def run_size(config: Mapping[str, Any]) -> tuple[float, float]:
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
        raise ValueError(f"source: unknown {short(source)}, accepted are {', '.join(links)}")
    link = links[source]
    losses = np.atleast_1d(np.asarray(loss, dtype=float))
    if not (losses > 0).all():
        raise ValueError(f"loss: {losses[~(losses > 0)][0]!r}, accepted is a loss above 0 in nats per token")
    multiple = normal_multiple(check_level(level))
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


def normal_multiple(level: float) -> float:
    """Standard deviations on either side of a normal mean that hold a share `level`.

    >>> round(normal_multiple(0.9), 3)
    1.645
    """
    return NormalDist().inv_cdf((1 + level) / 2)


def load_links() -> dict[str, LossLink]:
    """The fitted links that come along with the package, by source."""
    path = Path(__file__).parent.parent / "checkpoints" / "nsp-base" / LINK_FILE
    if not path.exists():
        raise ValueError(f"{path} is missing; run_train.py recipes/nsp-base.yaml makes it")
    return {name: LossLink(**link) for name, link in json.loads(path.read_text()).items()}
