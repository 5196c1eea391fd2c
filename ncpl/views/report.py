"""One self-contained page of a run for a meeting: forecast, curve, valley, plan, scores, risks, sources."""

import math
import shlex
from collections.abc import Mapping, Sequence
from datetime import date
from html import escape
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from fields_ncpl import FIELDS
from ncpl import checkpoint
from ncpl.configs import one_config
from ncpl.drawing import PAGE_STYLE, Picture, count, share
from ncpl.hardware import Accelerator, read_hardware
from ncpl.views.page import table_html
from ncpl.views.words import headline_of, level_words, words_of

if TYPE_CHECKING:
    from ncpl.forecaster import Forecaster

STYLE = (
    PAGE_STYLE
    + "h1{line-height:1.2}h2{margin-top:2.5rem;border-bottom:1px solid #88888866}svg{display:block;width:100%;"
    "max-width:42rem}.ncpl-headline{font-size:1.2rem}.ncpl-table{overflow-x:auto}table{border-collapse:collapse;"
    "font-variant-numeric:tabular-nums}th,td{padding:.25rem .6rem;text-align:left;border-bottom:1px solid #88888855}"
    "pre{white-space:pre-wrap;overflow-wrap:anywhere}dt{font-weight:600}dd{margin:0 0 .4rem 1rem}"
    "li{margin:.3rem 0}summary{cursor:pointer;padding:.4rem 0}nav a{margin-right:1rem;color:inherit}"
    "@media print{details{display:none}}"
)


def report(
    forecaster: "Forecaster", config: Mapping[str, Any], gpu: str = "h100", gpus: int = 64, level: float = 0.9
) -> str:
    """The page, as HTML: inline SVG, light or dark as the reader's system is, nothing from elsewhere.

    Args:
        forecaster: makes the forecasts.
        config: of the run (field -> value).
        gpu: name of the accelerator, for cost and plan.
        gpus: how many.
        level: coverage of the intervals.

    Raises:
        ValueError: an accelerator that is not known, or what the forecaster refuses.
    """
    (config,) = forecaster.check([one_config(config)])
    table = forecaster.predict(config, level)
    row = table.iloc[0]
    title = f"{count(float(config['model size']) * 1e6)} parameters on {count(float(config['data size']) * 1e9)} tokens"
    accelerator = read_hardware().find(gpu)
    sections = {
        "Forecast": _forecast(forecaster, config, table, level),
        "Loss curve": _curve(forecaster, config, level),
        "Learning rate and batch size": _valley(forecaster, config, row, level),
        "Cost and plan": _plan(forecaster, config, row, accelerator, gpus, level),
        "Benchmark scores": _scores(forecaster, config, level),
        "Risks": _risks(row, table.attrs["notes"]),
        "Sources": _sources(forecaster, config, accelerator),
    }
    anchors = {name: name.lower().replace(" ", "-") for name in sections}
    links = "".join(f'<a href="#{anchors[name]}">{name}</a>' for name in sections)
    body = "".join(
        f'<section><h2 id="{anchors[name]}">{name}</h2>{content}</section>' for name, content in sections.items()
    )
    heading = f"{escape(str(config['source']))}: {title}"
    today = date.today().isoformat()
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{heading}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style></head>\n'
        f"<body><main><h1>{heading}</h1><p>NCPL {version('ncpl')}, {today}; losses in nats per token "
        f"on the source's own evaluation set.</p><nav>{links}</nav>{body}</main></body></html>\n"
    )


def _figure(picture: Picture) -> str:
    return f"<figure>{picture.svg()}<figcaption>{escape(picture.words)}</figcaption></figure>"


def _behind(title: str, table: pd.DataFrame) -> str:
    return f"<details><summary>{escape(title)}</summary>{table_html(table)}</details>"


def _forecast(forecaster: "Forecaster", config: Mapping[str, Any], table: pd.DataFrame, level: float) -> str:
    units = {name: FIELDS[name].unit for name in config}
    rows = [{"field": name, "value": str(value), "meaning": units[name]} for name, value in config.items()]
    model = [] if forecaster.folder == checkpoint.DEFAULT else ["--model", str(forecaster.folder)]
    command = shlex.join(["ncpl", "predict", *words_of(config), *model, *level_words(level)])
    return (
        f'<p class="ncpl-headline">Final loss {headline_of(table.iloc[0], level)}.</p>'
        + _behind("The configuration", pd.DataFrame(rows))
        + f"<details><summary>The same from the command line</summary><pre>{escape(command)}</pre></details>"
    )


def _curve(forecaster: "Forecaster", config: Mapping[str, Any], level: float) -> str:
    curve = forecaster.curve(config, 60, level=level)
    return _figure(curve.plot()) + _behind("Table", curve.iloc[4::5])


def _valley(forecaster: "Forecaster", config: Mapping[str, Any], row: Any, level: float) -> str:
    factors, grid = np.geomspace(0.25, 4, 13), {}
    for name in ("learning rate", "batch size"):
        low, high = FIELDS[name].low, FIELDS[name].high
        values = [min(max(float(config[name]) * factor, low), high) for factor in factors]
        grid[name] = list(dict.fromkeys(float(f"{v:.3g}") if name == "learning rate" else round(v) for v in values))
    sweep = forecaster.sweep(config, grid, level)
    best = sweep.iloc[int(sweep["loss"].argmin())]
    gain = float(row["loss"]) - float(best["loss"])
    told = (
        f"Within a factor of four, learning rate {best['learning rate']:.3g} and batch size {best['batch size']:g} "
        f"have the lowest loss, {best['loss']:.4f}: {gain:.4f} nats below this configuration's."
        if gain > 0.0005
        else "No learning rate and batch size within a factor of four have a lower loss by 0.0005 nats."
    )
    return f"<p>{told}</p>{_figure(sweep.plot())}"


def _plan(
    forecaster: "Forecaster", config: Mapping[str, Any], row: Any, accelerator: Accelerator, gpus: int, level: float
) -> str:
    cost = forecaster.cost(config, accelerator.name, gpus)
    base = {name: config[name] for name in ("source", "optimizer") if name in config}
    found = forecaster.plan(flops=float(cost["flops"]), base=base, gpu=accelerator.name, count=gpus, level=level)
    best = found.best
    told = (
        f"{cost['flops']:.3g} FLOPs take {cost['gpu_hours']:,.0f} {escape(accelerator.title)} hours, "
        f"{cost['days']:.3g} days on {gpus}, about {cost['cost_usd']:,.0f} US dollars and "
        f"{cost['energy_mwh']:.3g} MWh, at {cost['utilisation']:.0%} of the peak over the whole run."
    )
    better = float(row["loss"]) - float(best["loss"])
    plan = (
        f"The best run for the same FLOPs has {count(best['params'])} parameters on {count(best['tokens'])} tokens: "
        f"loss {best['loss']:.4f}, {abs(better):.4f} nats {'below' if better >= 0 else 'above'} this configuration's. "
        f"{found.valley_in_words}"
    )
    shown = pd.DataFrame([{"quantity": str(name), "value": value} for name, value in best.items()])
    tables = _behind("The plan", shown) + _behind("What published laws say", found.references)
    return f"<p>{told}</p><p>{plan}</p>{_figure(found.plot())}{tables}"


def _scores(forecaster: "Forecaster", config: Mapping[str, Any], level: float) -> str:
    # Only now, because they bring torch.
    from ncpl.figures import scores
    from ncpl.nsp.benchmarks import by_task

    found = forecaster.benchmarks([config], level=level, model=checkpoint.PREDICTOR)
    outside = "The run lies outside the models these were trained on. " if found["extrapolation"].iloc[0] else ""
    told = f"<p>{outside}{escape(str(found['assumption'].iloc[0]).capitalize())}.</p>"
    # The table behind it has its words.
    return f"{told}<figure>{scores(found, level).svg()}</figure>" + _behind("Table", by_task(found.iloc[0]))


def _risks(row: Any, notes: Sequence[str]) -> str:
    risks = []
    if not math.isnan(row["divergence"]):
        risks.append(f"The run diverges with probability {share(row['divergence'])}; its loss holds if it does not.")
    if row["extrapolation"] > 0.01:
        risks.append(
            f"It lies {row['extrapolation']:.2f} outside the training runs (1 is a factor of 2.7 in one field), where "
            "intervals are wider and less tested."
        )
    risks += list(notes)
    return "<ul>" + "".join(f"<li>{escape(text)}</li>" for text in dict.fromkeys(risks)) + "</ul>"


def _sources(forecaster: "Forecaster", config: Mapping[str, Any], accelerator: Accelerator) -> str:
    known = ", ".join(forecaster.sources) or "none"
    lines = [
        f"Forecasts: checkpoint {forecaster.folder.name}, whose law knows the sources {known}.",
        f"Accelerator: {accelerator.title}, {accelerator.bf16_tflops:g} TFLOP/s in bf16, {accelerator.memory_gb:g} GB, "
        f"{accelerator.price_usd_h:g} US dollars an hour ({accelerator.price_source}, {accelerator.price_date}).",
        "Utilisation: fitted on published full runs; energy and CO2: ncpl/hardware.toml.",
        "Allocations beside the plan: Hoffmann et al. 2022 (arXiv 2203.15556), Besiroglu et al. 2024 (arXiv "
        "2404.10102), Kaplan et al. 2020 (arXiv 2001.08361), Li et al. 2025 (arXiv 2503.04715).",
        f"Scores: NSP ({checkpoint.PREDICTOR}), trained on public leaderboards.",
    ]
    return "<ul>" + "".join(f"<li>{escape(line)}</li>" for line in lines) + "</ul>"
