"""Sloth, the latent-skill law (Polo et al. 2024), under NSP's protocols.

A score is `chance + (1 - chance) sigmoid(loadings · skills + bias)`. Each skill of a model is the level of its family
plus slopes, shared by all families, of ln N, ln D and ln N ln D.

Shapes: rows = models, tasks = benchmarks, skills = latent skills, features = ln N, ln D, ln N ln D.
"""

import itertools
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from configuration_nsp import CHANCE
from ncpl.nsp.scores import KNOWN_OTHERS, Scores

DEGREES_OF_FREEDOM = 5.0
PENALTY = 1e-2  # of the squared loadings and slopes


class Sloth:
    """The law fitted to some rows, by a Student-t likelihood with family levels N(0, 1) in each skill.

    Args:
        scores: the leaderboard; its tasks are all fitted.
        train: rows with known tokens.
        skills: how many.
    """

    def __init__(self, scores: Scores, train: np.ndarray, skills: int = 3) -> None:
        torch.manual_seed(0)
        size = scores.features[:, :2].double()
        self.features = torch.cat([size, size.prod(1, keepdim=True) / 3], 1)
        self.values = scores.values.double()
        self.chance = torch.tensor([CHANCE[task] for task in scores.tasks], dtype=torch.float64)
        tasks = len(scores.tasks)
        _, family = np.unique(scores.families[train], return_inverse=True)
        self.loadings = 0.5 + 0.3 * torch.randn(tasks, skills, dtype=torch.float64)
        self.slopes = 0.3 + 0.1 * torch.randn(skills, self.features.shape[1], dtype=torch.float64)
        self.bias = torch.zeros(tasks, dtype=torch.float64)
        self.log_noise = torch.full((tasks,), -3.0, dtype=torch.float64)
        self._fit(torch.from_numpy(train), torch.from_numpy(family))

    def _fit(self, train: Tensor, family: Tensor) -> None:
        levels = torch.zeros(int(family.max()) + 1, self.loadings.shape[1], dtype=torch.float64)
        fitted = [self.loadings, self.slopes, self.bias, self.log_noise, levels]
        for parameter in fitted:
            parameter.requires_grad_()
        measured, values = ~self.values[train].isnan(), self.values[train].nan_to_num()
        optimizer = torch.optim.LBFGS(
            fitted, max_iter=400, history_size=20, line_search_fn="strong_wolfe", tolerance_change=1e-7
        )

        def loss() -> Tensor:
            optimizer.zero_grad()
            error = (values - self.scores(train, levels[family])[0]) / self.log_noise.exp()
            weight = (DEGREES_OF_FREEDOM + 1) / 2
            point = weight * torch.log1p(error.square() / DEGREES_OF_FREEDOM) + self.log_noise
            penalty = self.loadings.square().sum() + self.slopes.square().sum() + 0.1 * self.bias.square().sum()
            total = (point * measured).sum() + 0.5 * levels.square().sum() + PENALTY * penalty
            total.backward()
            return total

        optimizer.step(loss)
        for parameter in fitted:
            parameter.requires_grad_(False)

    def scores(self, rows: Tensor, levels: Tensor) -> tuple[Tensor, Tensor]:
        """Scores (rows, tasks) at family levels (rows, skills), and their derivatives by the logit."""
        share = torch.sigmoid((levels + self.features[rows] @ self.slopes.T) @ self.loadings.T + self.bias)
        span = 1 - self.chance
        return self.chance + span * share, span * share * (1 - share)

    def levels(self, rows: Tensor, known: Tensor) -> Tensor:
        """Family levels (rows, skills) most probable given the known scores (rows, tasks) of models; Gauss-Newton."""
        skills = self.loadings.shape[1]
        levels = torch.zeros(len(rows), skills, dtype=torch.float64)
        values, precision = self.values[rows], (known & ~self.values[rows].isnan()) / self.log_noise.exp().square()
        for _ in range(15):
            predicted, slope = self.scores(rows, levels)
            jacobian = slope[:, :, None] * self.loadings
            weighted = jacobian.transpose(1, 2) * precision[:, None]
            residual = (values - predicted).nan_to_num()[..., None]
            hessian = weighted @ jacobian + torch.eye(skills, dtype=torch.float64)
            step = torch.linalg.solve(hessian, (weighted @ residual)[..., 0] - levels)
            levels = levels + step.clamp(-0.5, 0.5)
        return levels


def predictions(
    scores: Scores, train: np.ndarray, test: np.ndarray
) -> Iterator[tuple[str, int, np.ndarray, np.ndarray]]:
    """(protocol, task, predicted scores, rows) of held-out models, for every task and every choice of three others."""
    law, tasks = Sloth(scores, train), len(scores.tasks)
    rows = torch.from_numpy(test)
    predicted, _ = law.scores(rows, torch.zeros(len(test), law.loadings.shape[1], dtype=torch.float64))
    yield from (("size", task, predicted[:, task].numpy(), test) for task in range(tasks))
    pairs = np.array([(row, other) for row in test if (other := scores.sibling(row)) is not None])
    siblings = torch.from_numpy(pairs[:, 1])
    everything = torch.ones(len(pairs), tasks, dtype=torch.bool)
    predicted, _ = law.scores(torch.from_numpy(pairs[:, 0]), law.levels(siblings, everything))
    yield from (("sibling", task, predicted[:, task].numpy(), pairs[:, 0]) for task in range(tasks))
    for others in itertools.combinations(range(tasks), KNOWN_OTHERS):
        known = torch.zeros(len(test), tasks, dtype=torch.bool)
        known[:, list(others)] = True
        predicted, _ = law.scores(rows, law.levels(rows, known))
        for task in set(range(tasks)) - set(others):
            yield "others", task, predicted[:, task].numpy(), test
