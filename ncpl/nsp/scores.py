"""A leaderboard as tensors: features and scores of models, folds of families, and inputs with known scores."""

import itertools
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from feature_extraction_nsp import NSPFeatureExtractor
from modeling_nsp import NSPModel, NSPOutput

Rows = Sequence[int] | np.ndarray
# What is known of a model from a family that was left out: its size; the core scores of its next smaller sibling too;
# `KNOWN_OTHERS` scores of its own too.
PROTOCOLS = ("size", "sibling", "others")
KNOWN_OTHERS = 3


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
