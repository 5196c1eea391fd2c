"""What a `Forecaster` gives: pandas tables and series that draw themselves (`pip install ncpl[plots]`)."""

import statistics
from collections.abc import Callable
from typing import Any

import pandas as pd

from ncpl import plots
from ncpl.drawing import Picture


class Forecasts(pd.DataFrame):
    """Forecasts, a row for each configuration: `loss`, `lower`, `upper`, `divergence`, `extrapolation`.

    An ordinary DataFrame but for `plot`; pandas' own is `pd.DataFrame(table).plot`.
    """

    @property
    def _constructor(self) -> Callable[..., "Forecasts"]:
        return type(self)

    def plot(self) -> Picture:  # type: ignore[override]
        """The losses with their intervals, a line each.

        >>> table = Forecasts({"loss": [3.0], "lower": [2.9], "upper": [3.1]}, index=["mine"])
        >>> table.plot().words
        'Forecast losses of one configuration with their intervals; the lowest is 3.000.'
        """
        return plots.forecasts(self)


class Sweep(Forecasts):
    """Forecasts of every combination of some fields' values."""

    def plot(self) -> Picture:  # type: ignore[override]
        """A heat map over two numeric fields, or the losses over one.

        Raises:
            ValueError: the sweep has more than two fields, or two of which one is no number.
        """
        return plots.sweep(self)


class Curve(Forecasts):
    """The loss along a run: `step`, `tokens`, `loss`, `lower`, `upper`."""

    def plot(self, observed: Any = None) -> Picture:  # type: ignore[override]
        """The loss along the run with its band.

        Args:
            observed: `step` and `loss` of what is seen of the run.
        """
        return plots.curve(self, observed)


class Suggestions(Forecasts):
    """Runs to make next, in their order."""

    def plot(self) -> Picture:  # type: ignore[override]
        """How the target's interval narrows with each."""
        return plots.suggested(self)


class Comparison(pd.Series):
    """The difference of two losses: `difference`, `lower`, `upper`, `p_better`."""

    @classmethod
    def of(cls, difference: float, half: float, deviation: float) -> "Comparison":
        """A comparison.

        Args:
            difference: of the losses, nats per token.
            half: half the width of its interval.
            deviation: its standard deviation; 0 for a configuration compared with itself.

        >>> Comparison.of(-0.02, 0.02, 0.01).round(3).to_dict()
        {'difference': -0.02, 'lower': -0.04, 'upper': 0.0, 'p_better': 0.977}
        """
        better = statistics.NormalDist().cdf(-difference / deviation) if deviation else 0.5
        values = {"difference": difference, "lower": difference - half, "upper": difference + half, "p_better": better}
        return cls(values)

    def plot(self, names: tuple[str, str] = ("A", "B")) -> Picture:  # type: ignore[override]
        """The difference and its interval.

        Args:
            names: of the two configurations.
        """
        return plots.comparison(self, names)


class Report(dict[str, Any]):
    """What a lab's own runs say and how far to believe it (`ncpl.trust.report`)."""

    def plot(self) -> Picture:
        """Forecasts before and after, residuals, exponents, and what more runs would give."""
        return plots.lab(self)


class Optimum(pd.Series):
    """The best values of some fields, `predict`'s columns at them, and how far each may go."""

    def plot(self) -> Picture:  # type: ignore[override]
        """Each field's best value within its flat region."""
        return plots.optimum(self)
