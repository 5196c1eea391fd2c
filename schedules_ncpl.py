"""Learning-rate schedules: the rate relative to its peak along a run, its integral, and what its decay gains.

Positions along a run are shares: 0 is the start, 1 the last step. So runs of the same shape but another length or peak
rate share one `Schedule`, which is hashable and cached. Nothing here grows with the number of steps.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

try:
    from .names_ncpl import schedule_name, shape_name
    from .text_ncpl import short
except ImportError:
    from names_ncpl import schedule_name, shape_name
    from text_ncpl import short

# Name of a schedule (`names_ncpl.SCHEDULE_NAMES`) -> share of the run in which its rate decays (None: all after
# warmup), the decay's shape, and the final rate over the peak where a configuration does not say.
SCHEDULES: dict[str, tuple[float | None, str, float]] = {
    "cosine": (None, "cosine", 0.1),
    "linear": (None, "linear", 0.0),
    "sqrt": (None, "sqrt", 0.0),
    "exponential": (None, "exponential", 0.1),
    "wsd": (0.1, "linear", 0.0),
    "constant": (0.0, "linear", 0.0),
    "inverse square root": (0.0, "linear", 0.0),
    "two-stage": (0.2, "step", 0.1),
}
# Lowest relative rate that enters a logarithm or a power.
_TINY = 1e-4


@dataclass(frozen=True)
class Schedule:
    """A learning rate along a run: linear warmup, a constant or falling body, and a decay to the final rate.

    Args:
        warmup: share of the run in which the rate rises linearly from 0 to its peak.
        decay: share of the run, at its end, in which the rate falls to `end`; it starts after warmup at the earliest.
        shape: of the decay, one of `names_ncpl.SHAPE_NAMES`; `step` falls at once.
        end: final rate over the peak.
        root: whether the body falls as one over the square root of the step.
        points: (share of the run, rate over the peak) in order, between which the rate is linear; two points of one
            share are a jump. They stand in for everything else.

    >>> schedule = Schedule.of({"lr_schedule": "wsd", "warmup": 100, "decay": 0.2}, 1000)
    >>> schedule.rate([0.05, 0.5, 0.9, 1]).round(3).tolist()
    [0.5, 1.0, 0.5, 0.0]
    """

    warmup: float = 0.0
    decay: float = 1.0
    shape: str = "cosine"
    end: float = 0.1
    root: bool = False
    points: tuple[tuple[float, float], ...] = ()

    @classmethod
    def of(cls, config: Mapping[str, Any], steps: float) -> "Schedule":
        """The schedule that a configuration describes; a cosine to a tenth of the peak where it says nothing.

        Args:
            config: `lr_schedule`, `warmup` (steps), `decay` (share of the run), `cooldown shape`, `min_lr_ratio`, or
                `min_lr` with `learning rate`; or `lr points`, pairs of a step and a learning rate.
            steps: of the whole run.

        Raises:
            ValueError: an unknown schedule or shape, or points that are not pairs of rising steps and rates.
        """
        read = {name: value for name, value in config.items() if value is not None}
        if "lr points" in read:
            return cls(points=relative_points(read["lr points"], steps))
        name = schedule_name(read.get("lr_schedule", "cosine"))
        decay, shape, end = SCHEDULES[name]
        warmup = min(float(read.get("warmup", 0)) / steps, 1.0)
        if "min_lr_ratio" in read:
            end = float(read["min_lr_ratio"])
        elif "min_lr" in read and read.get("learning rate"):
            end = float(read["min_lr"]) / float(read["learning rate"])
        share = float(read.get("decay", 1.0 if decay is None else decay))
        return cls(
            warmup=warmup,
            decay=min(max(share, 0.0), 1.0 - warmup) if name != "constant" else 0.0,
            shape=shape_name(read.get("cooldown shape", shape)),
            end=min(max(end, 0.0), 1.0),
            root=name == "inverse square root",
        )

    def rate(self, share: Any) -> np.ndarray:
        """The learning rate over its peak at shares of the run."""
        x = np.asarray(share, dtype=float)
        if self.points:
            return np.interp(x, *np.array(self.points).T)
        fall = 1.0 - self.decay
        rates = np.sqrt(self._knee / np.maximum(x, self._knee)) if self.root else np.ones_like(x)
        if self.decay > 0:
            start = math.sqrt(self._knee / max(fall, self._knee)) if self.root else 1.0
            done = np.clip((x - fall) / self.decay, 0.0, 1.0)
            end = min(self.end, start)
            rates = np.where(x > fall, end + (start - end) * _remaining(self.shape, done, end / start), rates)
        return rates * np.minimum(x / self.warmup, 1.0) if self.warmup > 0 else rates

    @property
    def _knee(self) -> float:
        """Where the inverse square root starts: the end of warmup, or a hundredth of a run that has none."""
        return self.warmup or 0.01

    @property
    def peak(self) -> float:
        """Share of the run at which the rate first reaches its peak."""
        if not self.points:
            return self.warmup
        shares, rates = np.array(self.points).T
        return float(shares[rates.argmax()])

    @cached_property
    def breaks(self) -> np.ndarray:
        """Shares of the run at which the rate bends or jumps."""
        inner = [x for x, _ in self.points] if self.points else [self.warmup, 1.0 - self.decay]
        return np.unique(np.clip([0.0, *inner, 1.0], 0.0, 1.0))

    @cached_property
    def jumps(self) -> np.ndarray:
        """Shares of the run at which the rate falls or rises at once."""
        if self.points:
            shares = np.array([x for x, _ in self.points])
            return np.unique(shares[1:][np.diff(shares) <= 0])
        return np.array([1.0 - self.decay] if self.shape == "step" and self.decay > 0 else [])

    def falls(self, shares: Sequence[float]) -> np.ndarray:
        """Whether the rate never rises between neighbouring shares of the run, after it first reached its peak.

        >>> Schedule(points=((0.0, 1.0), (0.5, 0.1), (0.6, 0.8), (1.0, 0.0))).falls((0.1, 0.3, 0.55, 1.0)).tolist()
        [True, False, False]
        """
        edges = np.asarray(shares, dtype=float)
        if not self.points:
            return np.ones(len(edges) - 1, dtype=bool)
        at, rates = np.array(self.points).T
        rising = (np.diff(rates) > 0) & (at[:-1] >= self.peak)
        low, high = at[:-1][rising], at[1:][rising]
        return ~((edges[:-1, None] < high) & (edges[1:, None] > low)).any(1)

    def clock(self, share: Any, power: float = 1.0) -> np.ndarray:
        """Integral of a power of the relative rate from the start of the run to shares of it.

        With power 1, the share of the run at the peak rate that has the same sum of learning rates.
        """
        grid, integral = _integral(self, power)
        return np.interp(np.asarray(share, dtype=float), grid, integral)

    def drops(self, share: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The falls of the rate up to shares of the run, as `annealing` reads them.

        Args:
            share: positions, (points,).

        Returns:
            Three arrays (points, nodes): by how much the relative rate falls over a piece of the run, the rate it
            falls to, and the integral of the relative rate since then. Nodes lie closer just before each position,
            where the gain still grows, and on both sides of every jump.
        """
        x = np.atleast_1d(np.asarray(share, dtype=float))[:, None]
        past = np.maximum(x - self.peak, 0.0) * _LAGS
        jumps = np.concatenate(_both_sides(self.jumps))
        edges = np.sort(np.hstack([x - past, np.clip(jumps, np.minimum(self.peak, x), x)]), axis=1)
        rates, clock = self.rate(edges), self.clock(edges)
        middle = (edges[:, 1:] + edges[:, :-1]) / 2
        jump = np.diff(edges, axis=1) <= 4 * _SIDE
        after = np.where(jump, rates[:, 1:], self.rate(middle))
        since = clock[:, -1:] - np.where(jump, clock[:, 1:], self.clock(middle))
        return rates[:, :-1] - rates[:, 1:], np.maximum(after, _TINY), since


def relative_points(points: Any, steps: float) -> tuple[tuple[float, float], ...]:
    """(share of the run, rate over the peak) of pairs of a step and a learning rate.

    Raises:
        ValueError: not such pairs, in the order of their steps, with a rate above 0.

    >>> relative_points([(0, 0.0), (100, 2e-3), (1000, 0.0)], 1000)
    ((0.0, 0.0), (0.1, 1.0), (1.0, 0.0))
    """
    expected = "expected pairs (step, learning rate) in the order of the steps, rates 0 or more and one above 0"
    try:
        pairs = [(float(step), float(rate)) for step, rate in points]
    except (TypeError, ValueError):
        raise ValueError(f"lr points: got {short(points)}, {expected}") from None
    at, rates = np.array(pairs).reshape(-1, 2).T
    if not len(pairs) or not np.isfinite([at, rates]).all() or (np.diff(at) < 0).any():
        raise ValueError(f"lr points: got {short(points)}, {expected}")
    if rates.min() < 0 or rates.max() <= 0:
        raise ValueError(f"lr points: got {short(points)}, {expected}")
    return tuple((float(x), float(u)) for x, u in zip(at / steps, rates / rates.max(), strict=True))


def _remaining(shape: str, done: np.ndarray, ratio: float) -> np.ndarray:
    """What of the fall is left when a share `done` of the decay is over; `ratio` is the rate at its end."""
    if shape == "step":
        return np.zeros_like(done)
    if shape == "cosine":
        return (1 + np.cos(np.pi * done)) / 2
    if shape == "sqrt":
        return 1 - np.sqrt(done)
    if shape == "exponential":
        # A geometric fall to `ratio`; none reaches 0, so the lowest is a hundredth.
        low = max(ratio, 0.01)
        return (low**done - low) / (1 - low) if low < 1 else 1 - done
    return 1 - done


# Shares of the run, denser at the start.
_SPREAD = np.concatenate([np.linspace(0, 1, 1001), np.geomspace(1e-5, 1, 500)])


# Runs of one sweep share schedules; the tables of 256 take 6 MiB.
@lru_cache(maxsize=256)
def _integral(schedule: Schedule, power: float) -> tuple[np.ndarray, np.ndarray]:
    """Shares of the run with both sides of every break, and the integral of the power of the rate at them."""
    grid = np.unique(np.clip(np.concatenate([_SPREAD, *_both_sides(schedule.breaks)]), 0.0, 1.0))
    rates = schedule.rate(grid) ** power
    pieces = np.diff(grid) * (rates[1:] + rates[:-1]) / 2
    return grid, np.concatenate([[0.0], np.cumsum(pieces)])


# How far before a position the nodes of `Schedule.drops` lie, as shares of the way back to the peak.
_LAGS = np.concatenate([[0.0], np.geomspace(1e-5, 0.03, 24), np.geomspace(0.03, 1, 49)[1:]])
# Half the distance between the two sides of a break.
_SIDE = 1e-9


def _both_sides(breaks: np.ndarray) -> list[np.ndarray]:
    return [breaks - _SIDE, breaks + _SIDE]


@lru_cache(maxsize=4096)
def final_drops(schedule: Schedule) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`Schedule.drops` at the end of a run, (nodes,) each."""
    fall, after, since = schedule.drops(1.0)
    return fall[0], after[0], since[0]


def annealing(fall: Any, after: Any, since: Any, speed: Any, gamma: Any, power: Any) -> Any:
    """What the falls of the learning rate have gained, as a share of the gain of a fall from the peak to nothing.

        sum over falls of fall [1 - (1 + speed after^-gamma S)^-power]

    The loss reduction of the multi-power law (Luo et al. 2025, arXiv 2503.12811, eq. 5) with relative rates and a lag
    S in absolute ones. numpy and torch alike; everything broadcasts, the last axis holds the falls.

    Args:
        fall, after: by how much the relative rate fell, and to what (`Schedule.drops`).
        since: sum of the learning rates (absolute, over steps) since the fall: `Schedule.drops`' times steps times the
            peak rate.
        speed, gamma, power: coefficients.
    """
    return (fall * (1 - (1 + speed * after**-gamma * since) ** -power)).sum(-1)


def final_annealing(
    schedules: Sequence[Schedule], steps: Any, peak_rates: Any, speed: float, gamma: float, power: float
) -> np.ndarray:
    """`annealing` at the end of runs.

    Args:
        schedules: one for each run.
        steps, peak_rates: of each run.
        speed, gamma, power: `annealing`'s coefficients.

    >>> cosine = Schedule.of({"warmup": 2000}, 24000)
    >>> final_annealing([cosine], 24000, 3e-4, 18.0, 0.55, 0.7).round(3).tolist()
    [0.781]
    """
    scale = np.broadcast_to(np.asarray(steps, dtype=float) * np.asarray(peak_rates, dtype=float), len(schedules))
    gains = []
    for schedule, sum_of_rates in zip(schedules, scale, strict=True):
        fall, after, since = final_drops(schedule)
        gains.append(annealing(fall, after, since * sum_of_rates, speed, gamma, power))
    return np.array(gains)
