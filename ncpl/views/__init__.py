"""What the app shows: parts of a page, made from what stands in its inputs. Nothing here knows of Gradio.

Every input of the page is a text with a name of `INPUTS`. A view takes all of them and gives an `Answer`; what is wrong
with them is an answer too, so that a page never loses what was typed.
"""

import math
import threading
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from fields_ncpl import FIELDS, SOURCES, field_name
from ncpl import plots
from ncpl.checkpoint import PREDICTOR
from ncpl.configs import read_configs, read_grid, vary
from ncpl.drawing import count, share
from ncpl.errors import one_line
from ncpl.results import Comparison, Sweep
from ncpl.views.inputs import (
    PRESETS,
    Inputs,
    config_of,
    fields_in,
    from_query,
    given,
    inputs_of,
    query_of,
)
from ncpl.views.lab import runs
from ncpl.views.page import Page, error_html, shown, table_html
from ncpl.views.planning import plan, quantity
from ncpl.views.words import headline_of, level_words, lines_of, notes_of, read_level, words_of

if TYPE_CHECKING:
    from modeling_nsp import NSPModel
    from ncpl.forecaster import Forecaster


@dataclass(frozen=True)
class Answer:
    """A part of the page, and what belongs to it.

    Args:
        html: the part.
        inputs: what is to stand in the page's inputs; an uploaded configuration changes it.
        view: whose answer it is.
        state: the adapted `Forecaster` that the session's further answers are to come from; None where there is none.
    """

    html: str
    inputs: Inputs
    view: str
    state: Any = None

    @property
    def query(self) -> str:
        """The URL's query that brings the inputs and this answer back."""
        return query_of("forecast" if self.view == "forecasts" else self.view, self.inputs)


# ------------------------------------------------------------------------------------------------ views

MOST_COMBINATIONS = 10_000
"""Forecasts of one sweep in the page."""
_LOCK, _READING = threading.Lock(), threading.Lock()


def answer(view: str, forecaster: "Forecaster", inputs: Inputs, *more: Any) -> Answer:
    """A view's answer to the page's inputs, or what is wrong with them in its place.

    Args:
        view: a name of `VIEWS`.
        forecaster: makes the forecasts.
        inputs: name of `INPUTS` -> text.
        more: uploaded files, where the view takes them.
    """
    # Warnings are the process's, and so are matplotlib's settings: one answer at a time.
    with _LOCK, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        try:
            page = VIEWS[view](forecaster, inputs, *more)
        except ValueError as error:
            return Answer(error_html(error), inputs, view)
        page.notes += [str(warning.message) for warning in caught if warning.category is UserWarning]
        return Answer(page.html(), {**inputs, **page.inputs}, view, page.state)


def forgotten(source: str) -> str:
    """What a page says first where a source that its session learnt is no longer kept.

    >>> "upload them again" in forgotten("mine")
    True
    """
    return error_html(
        ValueError(
            f"what was learnt from the runs of {source} is no longer kept here, because the page rested for hours or "
            "many others came: upload them again in Your runs; until then it counts as an unknown source"
        )
    )


def preset(title: str | None) -> list[str]:
    """What to write into the form for a preset, in the order of its inputs."""
    return list(inputs_of(PRESETS[title or next(iter(PRESETS))]).values())


def warm_up(forecaster: "Forecaster") -> None:
    """Imports and reads what the answers need, so that the first one is as fast as the others."""
    _, inputs = from_query("")
    # Answers wait for each other, but only those with scores for this.
    _predictor()
    for view in ("forecast", "curve", "sweep", "benchmarks"):
        answer(view, forecaster, inputs)


def forecast(forecaster: "Forecaster", inputs: Inputs) -> Page:
    """The loss of one configuration, in its valley over the learning rate."""
    config, level = forecaster.check([config_of(inputs)])[0], read_level(inputs)
    table = forecaster.predict(config, level)
    row = table.iloc[0]
    along = valley(forecaster, config, level)
    lowest = along.iloc[int(along["loss"].argmin())]
    gain = float(row["loss"] - lowest["loss"])
    notes = notes_of(forecaster, [config], table)
    if gain > 0.002:
        beyond = {along.index[0]: " or less", along.index[-1]: " or more"}.get(lowest.name, "")
        notes.append(f"A learning rate of {lowest['learning rate']:.3g}{beyond} would give {gain:.3f} nats less.")
    chart = plots.sweep(along, mark={"learning rate": float(config["learning rate"]), "loss": float(row["loss"])})
    return Page(
        headline_of(row, level), chart, table, ["ncpl", "predict", *words_of(config), *level_words(level)], notes
    )


def valley(forecaster: "Forecaster", config: Mapping[str, Any], level: float = 0.9) -> Sweep:
    """Forecasts of a checked configuration over learning rates from an eighth to eight times its own."""
    rate, limits = float(config["learning rate"]), FIELDS["learning rate"]
    rates = np.geomspace(max(rate / 8, limits.low), min(rate * 8, limits.high), 49)
    return forecaster.sweep(config, {"learning rate": [float(f"{value:.4g}") for value in rates]}, level)


def forecasts(forecaster: "Forecaster", inputs: Inputs, file: str | None, text: str = "") -> Page:
    """The losses of the configurations of an uploaded file or a pasted text, whose first goes into the form."""
    with given(file, text) as path:
        rows, origins = read_configs([str(path)])
    level = read_level(inputs)
    names = [one_line(origin.replace(str(path), path.name), 60) for origin in origins]
    checked = forecaster.check(rows, names if len(rows) > 1 else None)
    table = forecaster.predict(checked, level)
    table.insert(0, "configuration", names)
    best = table.iloc[int(table["loss"].argmin())]
    chart = plots.forecasts(table, names)
    headline = (
        headline_of(table.iloc[0], level)
        if len(table) == 1
        else (
            f"<strong>{len(table)} configurations</strong>, the lowest loss is <strong>{best['loss']:.4f}</strong> "
            f"({escape(str(best['configuration']))})"
        )
    )
    command = ["ncpl", "predict", path.name, *level_words(level)]
    notes = notes_of(forecaster, checked, table)
    return Page(headline, chart, table, command, notes, "forecasts", inputs=inputs_of(rows[0]))


def compare(forecaster: "Forecaster", inputs: Inputs) -> Page:
    """The difference that changed fields make, in which what both configurations share cancels."""
    level, first = read_level(inputs), config_of(inputs)
    changes = fields_in(inputs.get("compare.with", ""), "compare with")
    if not changes:
        raise ValueError("compare with: missing, expected lines of the form field: value")
    second = vary(first, changes)
    configs = forecaster.check([first, second], ["A", "B"])
    found, table = forecaster.compare(configs[0], configs[1], level), forecaster.predict(configs, level)
    table.insert(0, "configuration", ["A", "B"])
    difference = pd.DataFrame([found.to_dict()])
    chart = found.plot()
    headline = _who_is_better(found, level)
    files = {f"{name}.yaml": lines_of(config).encode() for name, config in zip(("a", "b"), configs, strict=True)}
    links = {f"Configuration {name[0].upper()}": (name, data) for name, data in files.items()}
    command = ["ncpl", "compare", *files, *level_words(level)]
    notes = ["A is the form's configuration; B is the same with what is written here."]
    notes += notes_of(forecaster, configs, table)
    return Page(headline, chart, table, command, notes, "compare", links=links, more={"Difference": difference})


def _who_is_better(found: Comparison, level: float) -> str:
    """The headline of a comparison."""
    interval = f"{level * 100:g} % interval {found['lower']:.4f} to {found['upper']:.4f}"
    if found["difference"] == 0:
        return f"A and B have <strong>the same forecast</strong>; {interval} of their difference"
    first = found["difference"] < 0
    better, p_better = ("A", found["p_better"]) if first else ("B", 1 - found["p_better"])
    return (
        f"<strong>{better}</strong> is better with probability <strong>{share(p_better)}</strong>: A ends "
        f"{abs(found['difference']):.4f} nats {'below' if first else 'above'} B, {interval}"
    )


def curve(forecaster: "Forecaster", inputs: Inputs, file: str | None = None) -> Page:
    """The loss along the run, from the start or from what is seen of it."""
    from ncpl.curves import spoken
    from ncpl.run_log import read_log

    config, level = forecaster.check([config_of(inputs)])[0], read_level(inputs)
    seen = None
    text = inputs.get("curve.observed", "")
    if file is not None or text.strip():
        with given(file, text, "observed.csv") as path:
            seen = read_log(path)
    table = forecaster.curve(config, 60, seen, level)
    end = table.iloc[-1]
    chart = table.plot(seen)
    notes = [*notes_of(forecaster, [config], forecaster.predict(config, level)), *table.attrs["notes"]]
    if said := spoken(table.attrs.get("report")):
        notes.insert(0, said)
    command = ["ncpl", "curve", *words_of(config), "--points", "60", *level_words(level)]
    if seen is not None:
        command += ["--observed", path.name]
    headline = (
        f"Ends at <strong>{end['loss']:.4f}</strong> nats per token after {int(end['step']):,} steps, "
        f"{level * 100:g} % interval {end['lower']:.4f} to {end['upper']:.4f}"
    )
    return Page(headline, chart, table, command, notes, "curve")


def sweep(forecaster: "Forecaster", inputs: Inputs) -> Page:
    """The losses over the values of one field or two."""
    config, level = config_of(inputs), read_level(inputs)
    asked = _swept(inputs)
    words = [f"{name}={values}" if set(values) & set(",:") else f"{name}={values},{values}" for name, values in asked]
    fixed = {name: value for name, value in config.items() if name not in dict(asked)}
    grid = {
        name: list(dict.fromkeys(values))
        for name, values in read_grid([f"source={config.get('source', '')}", *words])[1].items()
    }
    count = math.prod(len(values) for values in grid.values())
    if count > MOST_COMBINATIONS:
        raise ValueError(
            f"sweep values: make {count:,} combinations, expected at most {MOST_COMBINATIONS:,}; the command "
            "line takes more"
        )
    base = {**fixed, **{name: values[0] for name, values in grid.items()}}
    checked = forecaster.check([base])[0]
    table = forecaster.sweep(checked, grid, level)
    best = table.iloc[int(table["loss"].argmin())]
    at = ", ".join(f"{name} {shown(best[name])}" for name in grid)
    headline = (
        f"Lowest at <strong>{escape(at)}</strong>: <strong>{best['loss']:.4f}</strong> nats per token, "
        f"{level * 100:g} % interval {best['lower']:.4f} to {best['upper']:.4f}"
    )
    lowest = pd.DataFrame([best])
    lowest.attrs = table.attrs
    notes = notes_of(forecaster, [{**checked, **{name: best[name] for name in grid}}], lowest)
    for name, values in grid.items():
        if len(values) > 2 and best[name] in (values[0], values[-1]):
            notes.append(
                f"{name}: the best value, {shown(best[name])}, is the sweep's end; better ones may lie beyond."
            )
    command = ["ncpl", "sweep", *words_of(fixed), *words, *level_words(level)]
    return Page(headline, table.plot(), table, command, notes, "sweep")


def _swept(inputs: Inputs) -> list[tuple[str, str]]:
    """The swept fields, and the texts of their values."""
    asked: list[tuple[str, str]] = []
    for number in ("", " 2"):
        given_name, values = inputs.get(f"sweep.field{number}", ""), inputs.get(f"sweep.values{number}", "").strip()
        if values:
            name = field_name(given_name)
            if name is None:
                raise ValueError(
                    f"sweep field: got {one_line(given_name, 60)!r}, expected a field, such as learning rate"
                )
            asked.append((name, values))
    if not asked:
        raise ValueError("sweep values: missing, expected low:high:count or a list such as 1e-3, 2e-3, 4e-3")
    return asked


def _predictor() -> "NSPModel":
    """The score predictor, read once; others wait meanwhile, for two threads may not import transformers at a time."""
    with _READING:
        return _read_predictor()


@lru_cache(1)
def _read_predictor() -> "NSPModel":
    import ncpl.figures  # noqa: F401
    from ncpl.nsp.benchmarks import load_predictor

    return load_predictor(PREDICTOR)


def benchmarks(forecaster: "Forecaster", inputs: Inputs) -> Page:
    """The benchmark scores of a model by its size and tokens."""
    predictor = _predictor()
    # Only now, because they bring torch.
    from ncpl.figures import scores
    from ncpl.nsp.benchmarks import by_task

    level = read_level(inputs)
    model = {name: quantity(name, inputs.get(f"benchmarks.{name}", "")) for name in ("params", "tokens")}
    like = inputs.get("benchmarks.like", "").strip() or None
    found = forecaster.benchmarks([model], like, level, predictor)
    table = by_task(found.iloc[0])
    outside = bool(found["extrapolation"].iloc[0])
    notes = ["These sizes lie outside those of the models it was trained on."] if outside else []
    size = f"{count(model['params'])} parameters and {count(model['tokens'])} tokens"
    headline = f"<strong>{len(table)} benchmarks</strong> for {size}"
    command = ["ncpl", "benchmarks", "--params", f"{model['params']:g}", "--tokens", f"{model['tokens']:g}"]
    command += (["--like", like] if like else []) + level_words(level)
    return Page(headline, scores(found, level), table, command, notes, "benchmarks")


VIEWS: dict[str, Callable[..., Page]] = {
    "forecast": forecast,
    "forecasts": forecasts,
    "compare": compare,
    "curve": curve,
    "sweep": sweep,
    "plan": plan,
    "runs": runs,
    "benchmarks": benchmarks,
}


def optimizers(forecaster: "Forecaster") -> list[str]:
    """The optimizers whose runs the forecaster knows."""
    return sorted(getattr(forecaster.law, "optimizers", ()))


def fields_html() -> str:
    """All fields with what is accepted, as the form's help."""
    rows = pd.DataFrame([{"field": name, "accepted": known.accepted} for name, known in FIELDS.items()])
    return table_html(rows)


def sources() -> list[str]:
    """The sources that the form offers."""
    return list(SOURCES)
