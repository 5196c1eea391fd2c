"""The app's view of a plan: from a budget, or a target loss, to a run."""

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ncpl import plots
from ncpl.drawing import count
from ncpl.errors import one_line
from ncpl.views.inputs import Inputs, config_of
from ncpl.views.page import Page
from ncpl.views.words import level_words, read_level, words_of
from text_ncpl import parse_count, read_number

if TYPE_CHECKING:
    from ncpl.forecaster import Forecaster

BUDGETS = {
    "training FLOPs": ("flops", "--flops"),
    "accelerator-hours": ("gpu_hours", "--gpu-hours"),
    "US dollars": ("cost", "--cost"),
    "days": ("days", "--days"),
    "target loss": ("target_loss", "--target-loss"),
}
"""What a plan may start from -> the argument of `Forecaster.plan`, and the command's option."""
CHOSEN = ("model size", "data size", "learning rate", "batch size", "max step", "warmup")
"""Fields of the form that a plan chooses itself."""


def plan(forecaster: "Forecaster", inputs: Inputs) -> Page:
    """The best run for a budget, in the valley of sizes that cost as much."""
    kind, gpu, level = inputs.get("plan.budget", ""), inputs.get("plan.gpu", "").strip(), read_level(inputs)
    if kind not in BUDGETS:
        raise ValueError(f"budget: got {one_line(kind, 40)!r}, expected one of {', '.join(BUDGETS)}")
    amount, gpus = quantity(kind, inputs.get("plan.amount", "")), quantity("count", inputs.get("plan.count", ""))
    base = {name: value for name, value in config_of(inputs).items() if name not in CHOSEN}
    argument, option = BUDGETS[kind]
    budget: dict[str, Any] = {argument: amount}
    found = forecaster.plan(base=base, gpu=gpu, count=int(gpus), level=level, **budget)
    best = found.best
    headline = (
        f"<strong>{count(best['params'])} parameters</strong> on <strong>{count(best['tokens'])} tokens</strong>: loss "
        f"<strong>{best['loss']:.4f}</strong>"
        + (f", {level * 100:g} % interval {best['lower']:.4f} to {best['upper']:.4f}" if "lower" in best else "")
        + f"; {best['days']:.3g} days, {best['cost_usd']:,.0f} US dollars"
    )
    chart = plots.plan_budget(found)
    notes = [text for text in (found.valley_in_words, *found.notes) if text]
    command = ["ncpl", "plan", *words_of(base), option, f"{amount:g}", "--gpu", gpu, "--count", f"{gpus:g}"]
    rows = [{"quantity": str(name), "value": value} for name, value in best.items()]
    more = {"The valley": found.valley, "What published laws say": found.references}
    return Page(headline, chart, pd.DataFrame(rows), [*command, *level_words(level)], notes, "plan", more=more)


def quantity(name: str, text: str) -> float:
    """A positive number with or without a suffix.

    Raises:
        ValueError: another text.

    >>> quantity("count", "64"), quantity("tokens", "2T")
    (64.0, 2000000000000.0)
    """
    number = read_number(text)
    number = parse_count(text) if number is None else number
    if number is None or not 0 < number < np.inf:
        raise ValueError(f"{name}: got {one_line(text, 40)!r}, expected a positive number such as 64, 7B or 1e21")
    return float(number)
