"""The search behind a plan: the lowest loss along a budget, learning rate and batch size tuned at every size."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any, NamedTuple

import numpy as np

from fields_ncpl import FIELDS, SOURCES, TOKENS_PER_PARAMETER, USUAL_TOKENS_PER_PARAMETER, known_seq_len
from ncpl.allocations import effective_params, effective_tokens
from ncpl.hardware import nearest_shape
from published_ncpl import StepLaw

Config = Mapping[str, Any]
Losses = Callable[[Sequence[Config]], np.ndarray]
# Non-embedding parameters and tokens that the registry's fields can hold.
SIZES = (FIELDS["model size"].low * 1e6, FIELDS["model size"].high * 1e6)
TOKENS = (FIELDS["data size"].low * 1e9, FIELDS["data size"].high * 1e9)
SHAPE_FIELDS = ("num layers", "num heads", "hidden dim", "ffn dim", "expert dim", "shared expert dim", "max step")


class Run(NamedTuple):
    """A run that a budget buys: its loss in nats per token, non-embedding parameters, tokens and configuration."""

    loss: float
    params: float
    tokens: float
    config: dict[str, Any]


@dataclass(frozen=True)
class Search:
    """The space that a plan is looked for in.

    Args:
        losses: checked configurations -> expected losses in nats per token.
        base: source, optimizer and whatever else is kept; sizes, rates and shape are found.
        per_token: non-embedding parameters -> what a token costs, in FLOPs or any other unit.
        params: non-embedding parameters, where they are fixed.
        tokens_per_param: tokens for each non-embedding parameter, where that is fixed.
        unique_tokens: how many tokens there are; more are repetitions.
        inference_tokens: to be served over the model's life, at a third of a training token's cost each.
        warmups: the shortest and the longest warmup of the source's runs, in steps; what is chosen lies between.
    """

    losses: Losses
    base: Config
    per_token: Callable[[float], float]
    params: float | None = None
    tokens_per_param: float | None = None
    unique_tokens: float | None = None
    inference_tokens: float = 0.0
    warmups: Sequence[float] | None = None

    @property
    def is_fixed(self) -> bool:
        """Whether a budget leaves one size."""
        return self.params is not None or self.tokens_per_param is not None

    def tokens(self, params: float, budget: float) -> float:
        """Tokens that a budget leaves a model of this size, inference paid first; or the fixed tokens for each
        parameter."""
        if self.tokens_per_param is not None:
            return self.tokens_per_param * params
        return budget / self.per_token(params) - self.inference_tokens / 3

    def budget(self, params: float, tokens: float) -> float:
        """What training on so many tokens costs, with inference."""
        return (tokens + self.inference_tokens / 3) * self.per_token(params)

    def config(self, params: float, tokens: float, rate: float, batch: float) -> dict[str, Any]:
        """The configuration of a run: real proportions, a warmup of at most a twentieth of the run, or as in its
        source's runs."""
        base = self._kept
        sizes: dict[str, Any] = {"model size": params / 1e6, "data size": tokens / 1e9}
        if "num experts" in base:
            sizes["active size"] = params / 1e6 * active_share(self.base)
        else:
            shape = nearest_shape(params)
            sizes |= {"num layers": shape.layers, "num heads": shape.heads}
            sizes |= {"hidden dim": shape.width, "ffn dim": shape.ffn}
        if "adam_lr" in base and "learning rate" in base:
            sizes["adam_lr"] = rate * base["adam_lr"] / base["learning rate"]
        steps = max(1, int(tokens / (batch * self.seq_len)))
        sizes |= {"learning rate": rate, "batch size": batch, "max step": steps, "warmup": self._warmup(steps)}
        return base | sizes

    def _warmup(self, steps: int) -> int:
        """Steps of warmup of a run of so many steps."""
        source = SOURCES.get(str(self.base["source"]))
        usual = self.base.get("warmup", source.warmup if source and source.warmup is not None else 2000)
        chosen = min(usual, steps // 20)
        if self.warmups is not None and "warmup" not in self.base:
            shortest, longest = self.warmups
            chosen = min(max(chosen, round(shortest)), round(longest), steps)
        return int(chosen)

    @cached_property
    def _kept(self) -> dict[str, Any]:
        return {name: value for name, value in self.base.items() if name not in SHAPE_FIELDS}

    def worth(self, config: Config) -> dict[str, Any]:
        """The configuration that a run is worth whose data repeat; the same where they do not."""
        size, data = float(config["model size"]) * 1e6, float(config["data size"]) * 1e9
        fewer = effective_params(size, self.unique_tokens), effective_tokens(data, self.unique_tokens)
        if fewer == (size, data):
            return dict(config)
        return self.config(*fewer, config["learning rate"], config["batch size"])

    @property
    def seq_len(self) -> int:
        """Tokens a sequence."""
        return int(known_seq_len(self.base) or 2048)

    def tuned(
        self, pairs: Sequence[tuple[float, float]], near: Config | None = None
    ) -> list[tuple[float, dict[str, Any]]]:
        """The lowest loss at each (parameters, tokens), and the configuration that gives it.

        Args:
            pairs: parameters and tokens.
            near: a configuration whose learning rate and batch size are nearly the best of all pairs; where absent, a
                wide search at every fourth pair says how far Step Law's are off around it.
        """
        if near is None:
            points = self._start(pairs)
            usual, anchors = np.array(points), list(range(0, len(pairs), 4))
            off = np.array(self._refined([pairs[i] for i in anchors], usual[anchors], _COARSE)[1]) / usual[anchors]
            places = np.log(np.array(pairs))
            nearest = ((places[:, None] - places[anchors]) ** 2).sum(-1).argmin(1)
            points = [(rate, batch) for rate, batch in (usual * off[nearest]).tolist()]
            _, points = self._refined(pairs, points, _FINE)
        else:
            points = [(near["learning rate"], float(near["batch size"]))] * len(pairs)
        losses, points = self._refined(pairs, points, _FINER)
        return [(loss, self.config(*pair, *point)) for loss, pair, point in zip(losses, pairs, points, strict=True)]

    def _refined(
        self, pairs: Sequence[tuple[float, float]], points: Any, steps: tuple[tuple[float, ...], tuple[float, ...]]
    ) -> tuple[list[float], list[tuple[float, float]]]:
        """The lowest loss of each pair on a grid of steps around its learning rate and batch size, and where it is."""
        grid = [
            [
                (rate * rate_step, float(_whole_batch(batch * batch_step, pair[1], self.seq_len)))
                for rate_step in steps[0]
                for batch_step in steps[1]
            ]
            for pair, (rate, batch) in zip(pairs, points, strict=True)
        ]
        every = [(*pair, *point) for pair, own in zip(pairs, grid, strict=True) for point in own]
        losses = self._losses(every).reshape(len(pairs), -1)
        # Where a law does not read a field, what is nearest to the start stays.
        off = [
            abs(math.log(rate_step)) + abs(math.log(batch_step)) for rate_step in steps[0] for batch_step in steps[1]
        ]
        best = (losses + 1e-9 * np.array(off)).argmin(1)
        return losses.min(1).tolist(), [own[i] for own, i in zip(grid, best, strict=True)]

    def _start(self, pairs: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
        """Step Law's learning rates and batch sizes."""
        share = active_share(self.base)
        rows = [{"model size": n * share / 1e6, "data size": d / 1e9, "seq len": self.seq_len} for n, d in pairs]
        step_law = StepLaw()
        return list(zip(step_law.learning_rate(rows).tolist(), step_law.batch_size(rows).tolist(), strict=True))

    def _losses(self, points: Sequence[tuple[float, float, float, float]]) -> np.ndarray:
        """Losses at (parameters, tokens, learning rate, batch size), repetition of data discounted."""
        low, high = FIELDS["learning rate"].low, FIELDS["learning rate"].high
        configs = [
            self.config(
                effective_params(n, self.unique_tokens),
                effective_tokens(d, self.unique_tokens),
                min(max(rate, low), high),
                batch,
            )
            for n, d, rate, batch in points
        ]
        return np.asarray(self.losses(configs), dtype=float)

    def sizes(self, budget: float, points: int) -> np.ndarray:
        """Sizes that the budget and the registry's ranges allow, evenly over their logarithms."""
        every = np.geomspace(*SIZES, 241)
        least, most = USUAL_TOKENS_PER_PARAMETER
        allowed = [n for n in every if max(TOKENS[0], least * n) <= self.tokens(n, budget) <= min(TOKENS[1], most * n)]
        if not allowed:
            raise ValueError(
                f"budget: got {budget:.3g}, expected one that trains a model of {SIZES[0]:.0e} to {SIZES[1]:.0e} "
                f"parameters on {TOKENS[0]:.0e} to {TOKENS[1]:.0e} tokens"
            )
        return np.geomspace(allowed[0], allowed[-1], points)

    def best(self, budget: float, points: int = 21, rounds: int = 4) -> list[Run]:
        """Runs that a budget buys, by size; the sizes are refined around the lowest loss, the last time by a parabola.

        Args:
            budget: in the unit of `per_token`.
            points: sizes of the first round.
            rounds: how often to refine.
        """
        sizes = np.array([self.fixed(budget)]) if self.is_fixed else self.sizes(budget, points)
        runs: dict[float, Run] = {}
        near = None
        for turn in range(rounds):
            pairs = [(n, self.tokens(n, budget)) for n in sizes.tolist()]
            for pair, (loss, config) in zip(pairs, self.tuned(pairs, near), strict=True):
                if pair[0] not in runs or loss < runs[pair[0]].loss:
                    runs[pair[0]] = Run(loss, *pair, config)
            ordered = sorted(runs)
            at = int(np.argmin([runs[size].loss for size in ordered]))
            near = runs[ordered[at]].config
            if turn < rounds - 2:
                sizes = np.geomspace(ordered[max(0, at - 1)], ordered[min(len(ordered) - 1, at + 1)], 7)[1:-1]
            else:
                sizes = np.array([lowest_between(ordered, [runs[size].loss for size in ordered])[1]])
        return [runs[size] for size in sorted(runs)]

    def lowest(self, budget: float, points: int = 21, rounds: int = 4) -> Run:
        """The run of the lowest loss that a budget buys."""
        return min(self.best(budget, points, rounds), key=lambda run: run.loss)

    def fixed(self, budget: float) -> float:
        """The one size that a fixed size or a fixed number of tokens per parameter leaves."""
        if self.tokens_per_param is not None:
            sizes, costs = self._of_ratio
            if not costs[0] <= budget <= costs[-1]:
                raise ValueError(
                    f"budget: got {budget:.3g}, expected {costs[0]:.3g} to {costs[-1]:.3g}, what models of "
                    f"{sizes[0]:.0e} to {sizes[-1]:.0e} parameters cost on {self.tokens_per_param:g} tokens for each"
                )
            return float(np.exp(np.interp(math.log(budget), np.log(costs), np.log(sizes))))
        size = float(self.params or 0.0)
        tokens = self.tokens(size, budget)
        least, most = TOKENS_PER_PARAMETER
        least, most = max(TOKENS[0], least * size), min(TOKENS[1], most * size)
        if not least <= tokens <= most:
            raise ValueError(
                f"budget: got {budget:.3g}, which leaves {size:.3g} parameters {max(0, tokens):.3g} tokens, expected "
                f"{least:.3g} to {most:.3g}"
            )
        return size

    @cached_property
    def _of_ratio(self) -> tuple[np.ndarray, np.ndarray]:
        """Sizes, and what training each on the fixed number of tokens for each parameter costs."""
        ratio = self.tokens_per_param or 0.0
        least, most = TOKENS_PER_PARAMETER
        if not least <= ratio <= most or TOKENS[0] / ratio >= SIZES[1] or TOKENS[1] / ratio <= SIZES[0]:
            raise ValueError(f"tokens_per_param: got {ratio:g}, expected {least:g} to {most:g}")
        sizes = np.geomspace(max(SIZES[0], TOKENS[0] / ratio), min(SIZES[1], TOKENS[1] / ratio), 4001)
        # Sizes of real proportions go in steps, and so does their cost.
        return sizes, np.maximum.accumulate([self.budget(n, ratio * n) for n in sizes.tolist()])

    def cheapest(self, target: float, budgets: tuple[float, float]) -> float:
        """The budget whose best run has a loss, to half a per cent, by Brent's method on its logarithm.

        Args:
            target: the loss, in nats per token.
            budgets: the least and the largest.

        Raises:
            ValueError: no budget reaches it.
        """
        # Only now: forecasts need no scipy.
        from scipy.optimize import brentq

        @cache
        def loss(place: float) -> float:
            return self.lowest(math.exp(place), 11, 2).loss

        low, high = (math.log(end) for end in self._ends(*budgets))
        if loss(high) > target:
            raise ValueError(
                f"target_loss: got {target:g}, expected at least {loss(high):.4g}, the lowest loss that this law gives "
                "any run within the ranges of model size and data size"
            )
        if loss(low) <= target:
            return math.exp(low)
        return math.exp(brentq(lambda place: loss(place) - target, low, high, xtol=5e-3))

    def _ends(self, least: float, most: float) -> tuple[float, float]:
        """The least and the largest budget between two that train any allowed model."""
        if self.tokens_per_param is not None:
            costs = self._of_ratio[1]
        else:
            sizes = np.geomspace(*SIZES, 241) if self.params is None else np.array([self.params])
            low, high = USUAL_TOKENS_PER_PARAMETER if self.params is None else TOKENS_PER_PARAMETER
            ends = [(n, max(TOKENS[0], low * n), min(TOKENS[1], high * n)) for n in sizes.tolist()]
            costs = np.array([self.budget(n, d) for n, few, many in ends if few <= many for d in (few, many)])
        # A little inside, for rounding.
        return max(least, 1.001 * costs.min()), min(most, 0.999 * costs.max())


_COARSE = tuple(2.0**i for i in range(-4, 6)), tuple(2.0**i for i in (-4, -2, 0, 2))
_FINE = tuple(2.0**i for i in (-0.6, -0.3, 0, 0.3, 0.6)), tuple(2.0**i for i in (-1, 0, 1))
_FINER = tuple(2.0**i for i in (-0.2, -0.1, 0, 0.1, 0.2)), tuple(2.0**i for i in (-0.5, 0, 0.5))


def active_share(base: Config) -> float:
    return (
        float(base["active size"]) / float(base["model size"]) if {"active size", "model size"} <= base.keys() else 1.0
    )


def _whole_batch(batch: float, tokens: float, seq_len: int) -> int:
    """Whole sequences: multiples of 8 from 16 on; at least 100 steps."""
    most = min(FIELDS["batch size"].high, max(1.0, tokens / seq_len / 100))
    batch = min(max(1.0, batch), most)
    return int(batch) if batch < 16 else 8 * int(batch / 8)


def lowest_between(sizes: Sequence[float], losses: Sequence[float]) -> tuple[float, float]:
    """The lowest point of the parabola through the lowest loss and its neighbours: (loss, size)."""
    at = int(np.argmin(losses))
    if not 0 < at < len(sizes) - 1:
        return losses[at], sizes[at]
    left, right = (math.log(sizes[i] / sizes[at]) for i in (at - 1, at + 1))
    falls, rises = ((losses[i] - losses[at]) / x for i, x in ((at - 1, left), (at + 1, right)))
    # Newton's form around the lowest: loss = losses[at] + b x + a x^2.
    a = (rises - falls) / (right - left)
    b = rises - a * right
    if a <= 0:
        return losses[at], sizes[at]
    return losses[at] - b * b / (4 * a), sizes[at] * math.exp(-b / (2 * a))
