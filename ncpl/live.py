"""The final loss of a run that goes on, for any training loop: from its losses, or from its growing log."""

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ncpl.curves import has_ended
from ncpl.errors import short
from ncpl.run_log import read_log
from text_ncpl import as_number

if TYPE_CHECKING:
    import pandas as pd

    from ncpl.forecaster import Forecaster

DAY = 86_400
"""Seconds."""


def forecast_final(
    config: Mapping[str, Any],
    steps: Sequence[float],
    losses: Sequence[float],
    *,
    forecaster: "Forecaster | None" = None,
    level: float = 0.9,
    window: float = 1.0,
) -> dict[str, Any]:
    """The final loss of a run that goes on, for any training loop.

    Args:
        config: of the run (field -> value).
        steps, losses: of what is seen of it.
        forecaster: the embedded default when absent.
        level: coverage of the interval.
        window: steps that each loss is the mean of.

    Returns:
        `loss`, `lower`, `upper` (nats per token), and `status`, `reason`, `recovers`, `advice` (`ncpl.curves.report`).

    >>> config = {"source": "marin", "model size": 300, "data size": 6, "optimizer": "adamw", "learning rate": 4e-3,
    ...           "batch size": 128}
    >>> forecast_final(config, [1000, 2000], [4.2, 3.8])["status"]
    'on course'
    """
    return _final(checked(forecaster).curve(config, 1, {"step": steps, "loss": losses}, level, window))


def follow(
    log: str | Path,
    config: Mapping[str, Any],
    forecaster: "Forecaster",
    level: float = 0.9,
    window: float = 1.0,
    every: float | None = 10.0,
) -> Iterator[dict[str, Any]]:
    """Forecasts of a run's final loss whenever its log has grown, until the run's end.

    Args:
        log: as `ncpl.run_log.read_log` reads it.
        config: of the run.
        forecaster: forecasts.
        level: coverage of the interval.
        window: steps that each loss is the mean of.
        every: seconds between two looks at the log, at most a day; None looks once.

    Raises:
        ValueError: `every` is no such time, what `read_log` and `Forecaster.curve` refuse, or a log without a loss that
            is looked at once.

    Yields:
        `step`, then what `forecast_final` gives, then `notes` on the configuration and on what was left out of the log.
    """
    forecaster, pause = checked(forecaster), None if every is None else as_number(every)
    if every is not None and (pause is None or not 0 < pause <= DAY):
        raise ValueError(f"every: got {short(every)}, expected seconds above 0 and at most {DAY}, or none to look once")
    told, ended = 0, False
    while True:
        seen = read_log(log)
        if len(seen["loss"]) > told:
            told = len(seen["loss"])
            table = forecaster.curve(config, 1, seen, level, window)
            step, ended = table.attrs["seen"], has_ended(table.attrs["seen"], float(table["step"].iloc[-1]))
            yield {"step": step, **_final(table), "notes": table.attrs["notes"]}
        if pause is None and not told:
            raise ValueError(f"{log}: no points yet, expected at least one step with its loss")
        if pause is None or ended:
            return
        time.sleep(pause)


def _final(table: "pd.DataFrame") -> dict[str, Any]:
    end = table.iloc[-1]
    return {name: float(end[name]) for name in ("loss", "lower", "upper")} | table.attrs["report"]


def checked(given: Any) -> "Forecaster":
    from ncpl.forecaster import Forecaster

    if given is None:
        return Forecaster.from_pretrained()
    if not isinstance(given, Forecaster):
        raise ValueError(f"forecaster: got {short(given)}, expected a Forecaster")
    return given
