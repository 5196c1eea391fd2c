"""Ridge regressions of NSP: scores of a model from its other scores, or from those of a smaller sibling.

Both are kept as second moments, without training rows, so that any score may be missing.

Shapes: batch = models, tasks = the regressed benchmarks, scores = known scores.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor, nn


class KnownScores(NamedTuple):
    """Scores known of a model and its siblings.

    Args:
        values: (batch, scores) between 0 and 1.
        tasks: (batch, scores), their tasks.
        models: (batch, scores), 0 for the model itself, 1.. for its siblings.
        present: (batch, scores), False where padded.
        features: (batch, scores, 3) of the models scored.
        mask: (batch, scores, 3), 0 where a feature is missing.
    """

    values: Tensor
    tasks: Tensor
    models: Tensor
    present: Tensor
    features: Tensor
    mask: Tensor

    @classmethod
    def from_inputs(
        cls,
        values: Tensor | None,
        tasks: Tensor | None,
        models: Tensor | None,
        mask: Tensor | None,
        features: Tensor | None,
        feature_mask: Tensor | None,
    ) -> "KnownScores | None":
        """From the `score_...` arguments of `NSPModel.forward`; None where no scores are known.

        Raises:
            ValueError: values without their tasks, mask or features.
        """
        if values is None:
            return None
        if tasks is None or mask is None or features is None:
            raise ValueError("score_values: score_tasks, score_mask and score_features are needed with them")
        models = torch.zeros_like(tasks) if models is None else models
        described = torch.ones_like(features) if feature_mask is None else feature_mask.float()
        return cls(values.float(), tasks, models, mask > 0.5, features.float(), described)

    @property
    def own(self) -> Tensor:
        """(batch, scores), those of the model itself."""
        return self.present & (self.models == 0)

    @property
    def siblings(self) -> Tensor:
        """(batch, scores), those of its siblings."""
        return self.present & (self.models != 0)

    def by_task(self, which: Tensor) -> tuple[Tensor, Tensor]:
        """Mean scores and which are known, (batch, tasks), of `which` (batch, scores, tasks)."""
        return (self.values[..., None] * which).sum(1) / which.sum(1).clamp(min=1), which.any(1)


class Regression(nn.Module):
    """Ridge regression on scores of which any may be missing, and so kept as second moments, without training rows.

    Args:
        tasks: indices of the regressed tasks among the model's.
        chance: accuracy of a blind guess for each of them.
    """

    SIZES = 3  # of a model: ln params, ln tokens, code

    def __init__(self, tasks: Sequence[int], chance: Sequence[float]) -> None:
        super().__init__()
        self.tasks, self.chance = list(tasks), [float(value) for value in chance]
        features = self.SIZES + len(self.tasks)
        self.register_buffer("centre", torch.zeros(features, dtype=torch.float32))
        self.register_buffer("deviation", torch.ones(features, dtype=torch.float32))

    def log_odds(self, scores: Tensor) -> Tensor:
        """(..., tasks) scores -> log odds between chance and 1, with room for scores below chance."""
        return torch.log((scores - scores.new_tensor(self.chance) + 0.03).clamp(min=0.02) / (1.02 - scores))

    def scores(self, log_odds: Tensor) -> Tensor:
        """The inverse of `log_odds`."""
        odds = log_odds.exp()
        return (1.02 * odds + odds.new_tensor(self.chance) - 0.03) / (1 + odds)

    @property
    def fitted(self) -> bool:
        """Whether there are moments; the constant's own comes first."""
        return len(self.tasks) > 0 and bool(self.moments[0, 0] > 0)

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        # The moments are nearly singular: in half precision there would be nothing left to regress on.
        return super()._apply(
            lambda tensor: fn(tensor).to(tensor.dtype) if tensor.is_meta else tensor.to(fn(tensor).device)
        )

    @staticmethod
    def _solve(moments: Tensor, targets: Tensor, known: Tensor, ridge: Tensor) -> Tensor:
        """Weights (batch, features, tasks) of the known features, (batch, features)."""
        subsets, member = torch.unique(known, dim=0, return_inverse=True)
        masked = subsets[:, :, None] * moments * subsets[:, None, :] + torch.diag(ridge)
        return torch.linalg.solve(masked, subsets[:, :, None] * targets)[member]


class ScoreRegression(Regression):
    """Scores of a model from its other scores: ridge regression on squares and products, for any that are known.

    The second moments of the training models' features are all that is kept of them; those of the known features give
    the regression of every other score. Features are ln params, ln tokens, code and the scores' log odds.
    """

    # Of the kernel (1 + x y / WIDTH)^2 over standardised features, and its noise, in variances of a score's log odds.
    WIDTH, NOISE = 16.0, 0.3

    def __init__(self, tasks: Sequence[int], chance: Sequence[float]) -> None:
        super().__init__(tasks, chance)
        features = len(self.centre)
        products = 1 + features + features * (features + 1) // 2
        self.register_buffer("moments", torch.zeros(products, products, dtype=torch.float32))

    def products(self, values: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
        """1, standardised features, squares and products of known ones, (batch, products); which are known."""
        values = (values - self.centre) / self.deviation * known
        first, second = torch.triu_indices(values.shape[1], values.shape[1], device=values.device)
        weight = torch.where(first == second, 1.0, math.sqrt(2)) / self.WIDTH
        one = torch.ones_like(values[:, :1])
        quadratic = values[:, first] * values[:, second] * weight
        expanded = torch.cat([one, math.sqrt(2 / self.WIDTH) * values, quadratic], 1)
        return expanded, torch.cat([one, known, known[:, first] * known[:, second]], 1)

    def forward(self, values: Tensor, known: Tensor) -> Tensor:
        """(batch, features), which are known -> (batch, tasks) scores; those of a known task are no prediction."""
        expanded, which = self.products(values, known)
        linear = slice(1 + self.SIZES, 1 + self.deviation.numel())
        targets = self.moments[:, linear] / math.sqrt(2 / self.WIDTH)
        ridge = torch.full_like(expanded[0], self.NOISE)
        predicted = (expanded[:, None] @ self._solve(self.moments, targets, which, ridge))[:, 0]
        return self.scores(predicted * self.deviation[self.SIZES :] + self.centre[self.SIZES :])

    @torch.no_grad()
    def fit(self, sizes: Tensor, log_odds: Tensor) -> None:
        """Stores the second moments of the training models.

        Args:
            sizes: (models, 3), ln params, ln tokens, code.
            log_odds: (models, tasks), all of them.
        """
        described = torch.cat([sizes, log_odds], 1)
        self.centre.copy_(described.mean(0))
        self.deviation.copy_(described.std(0).clamp(min=1e-3))
        expanded, _ = self.products(described, torch.ones_like(described))
        self.moments.copy_((expanded.double().T @ expanded.double()).float())


class SiblingRegression(Regression):
    """Scores of a model from those of a smaller sibling: ridge regression of their difference in log odds.

    Linear in what the model has more of (ln params, ln tokens), never falling with it, and in the sibling's ln params,
    ln tokens, code and log odds. Fitted to pairs of models of one family.
    """

    RIDGE = 0.4  # in variances of a feature
    GROWTHS = 2  # ln params, ln tokens

    def __init__(self, tasks: Sequence[int], chance: Sequence[float]) -> None:
        super().__init__(tasks, chance)
        products = 1 + self.GROWTHS + len(self.centre) + len(self.tasks)
        self.register_buffer("growth", torch.ones(self.GROWTHS, dtype=torch.float32))  # root mean square
        self.register_buffer(
            "moments", torch.zeros(products, products, dtype=torch.float32)
        )  # of the features, then the differences

    def described(self, sizes: Tensor, sibling: Tensor, log_odds: Tensor, known: Tensor) -> Tensor:
        """Features (batch, 1 + growths + sizes + tasks) of pairs.

        Args:
            sizes: (batch, 3) of the model.
            sibling: (batch, 3) of its sibling.
            log_odds: (batch, tasks) of the sibling.
            known: (batch, tasks), 1 where they are.
        """
        grown = (sizes - sibling)[:, : self.GROWTHS] / self.growth
        own = (torch.cat([sibling, log_odds], 1) - self.centre) / self.deviation
        return torch.cat(
            [torch.ones_like(grown[:, :1]), grown, own * torch.cat([torch.ones_like(sibling), known], 1)], 1
        )

    def forward(self, sizes: Tensor, sibling: Tensor, log_odds: Tensor, known: Tensor) -> Tensor:
        """Arguments as for `described` -> (batch, tasks) log odds; no prediction where the sibling's is not known."""
        features = self.described(sizes, sibling, log_odds, known)
        number = features.shape[1]
        which = torch.cat([torch.ones_like(features[:, : number - len(self.tasks)]), known], 1)
        ridge = torch.full_like(features[0], self.RIDGE)
        ridge[0] = 0.0
        weights = self._solve(self.moments[:number, :number], self.moments[:number, number:], which, ridge)
        grows = slice(1, 1 + self.GROWTHS)
        weights = torch.cat([weights[:, :1], weights[:, grows].clamp(min=0), weights[:, grows.stop :]], 1)
        return log_odds + (features[:, None] @ weights)[:, 0]

    @torch.no_grad()
    def fit(self, sizes: Tensor, log_odds: Tensor, families: np.ndarray) -> None:
        """Stores the moments of all pairs of a model and a smaller one of its family.

        A family has the weight of the square root of its number of pairs. A pair has less weight the larger its ratio
        of params, and the larger its residual (Student-t with 3 degrees of freedom, by iterative reweighting).

        Args:
            sizes: (models, 3), ln params, ln tokens, code; double precision.
            log_odds: (models, tasks), all of them; double precision.
            families: (models,), their names.
        """
        params = sizes[:, 0].numpy()
        model, other = np.nonzero((families[:, None] == families) & (params[:, None] > params))
        if not len(model):
            return
        _, family, counts = np.unique(families[model], return_inverse=True, return_counts=True)
        size, sibling, known = sizes[model], sizes[other], torch.ones_like(log_odds[other])
        grown, described = (size - sibling)[:, : self.GROWTHS], torch.cat([sizes, log_odds], 1)[other]
        prior = (-0.5 * grown[:, 0]).exp() / torch.from_numpy(counts[family]).double().sqrt()
        weight = (prior / prior.sum())[:, None]
        centre = (weight * described).sum(0)
        self.centre.copy_(centre)
        self.deviation.copy_((weight * (described - centre).square()).sum(0).sqrt().clamp(min=1e-3))
        self.growth.copy_((weight * grown.square()).sum(0).sqrt().clamp(min=1e-3))
        features = self.described(size, sibling, log_odds[other], known)
        expanded = torch.cat([features, log_odds[model] - log_odds[other]], 1)
        for _ in range(5):
            self.moments.copy_(expanded.T @ (weight * expanded))
            predicted = self(size.float(), sibling.float(), log_odds[other].float(), known.float())
            residual = (log_odds[model] - predicted).square()
            distance = (residual / (weight * residual).sum(0)).mean(1)
            weight = prior / (3 + distance)
            weight = (weight / weight.sum())[:, None]
