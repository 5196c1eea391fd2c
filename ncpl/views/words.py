"""Words of the app's answers: the number, what has to be known of it, the command that gives the same."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from ncpl.drawing import share
from ncpl.views.inputs import Inputs, written
from text_ncpl import parse_level

if TYPE_CHECKING:
    from ncpl.forecaster import Forecaster


def read_level(inputs: Inputs) -> float:
    """The coverage of intervals that the form asks for."""
    return parse_level(inputs.get("level", "0.9"))


def level_words(level: float) -> list[str]:
    return [] if level == 0.9 else ["--level", f"{level:g}"]


def lines_of(config: Mapping[str, Any]) -> str:
    return "".join(f"{name}: {written(value)}\n" for name, value in config.items())


def words_of(config: Mapping[str, Any]) -> list[str]:
    return [f"{name}={written(value)}" for name, value in config.items()]


def headline_of(row: Any, level: float) -> str:
    headline = f"<strong>{row['loss']:.4f}</strong> nats per token"
    if pd.notna(row["lower"]):
        headline += (
            f", {level * 100:g} % interval {row['lower']:.4f} to {row['upper']:.4f}; "
            f"diverges with probability {share(row['divergence'])}"
        )
    return headline


def notes_of(forecaster: "Forecaster", configs: Sequence[Mapping[str, Any]], table: pd.DataFrame) -> list[str]:
    """What the forecaster says of the forecasts, and what may diverge."""
    notes = list(dict.fromkeys([*table.attrs.get("notes", []), *forecaster.notes(configs)]))
    if forecaster.calibration is None:
        return notes
    worst = float(table["divergence"].max())
    if 0.2 <= worst < 0.5:
        which = "This run" if len(configs) == 1 else "At least one of these runs"
        notes.append(f"{which} may diverge: the probability is {share(worst)}.")
    return notes[:12]
