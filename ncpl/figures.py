"""Pictures of evaluations, benchmark scores and several curves, in the style of `ncpl.drawing`."""

import itertools
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from curves_ncpl import RunShape
from fields_ncpl import check_config
from modeling_nsp import NSPModel
from ncpl.curves import read_observed
from ncpl.drawing import COLOURS, LOSS, RED, Panel, Picture, Theme, count, mark_off_axis, ranges, shortened
from ncpl.evaluation import PREDICTORS, comparable
from ncpl.nsp.benchmarks import benchmarks_along, by_task, compute_path, emergence_marks, emergence_scales

# What is judged lies on top.
_STYLES: dict[str, dict[str, Any]] = {
    "chinchilla": {"color": "#999999", "marker": "x", "s": 12, "linewidths": 0.7, "alpha": 0.6},
    "prior": {"color": "#56B4E9", "marker": "+", "s": 16, "linewidths": 0.7, "alpha": 0.6},
    "ncpl_1p7b": {
        "edgecolors": "#E69F00",
        "facecolors": "none",
        "marker": "o",
        "s": 18,
        "linewidths": 0.8,
        "alpha": 0.9,
    },
    "model": {"color": "#0072B2", "marker": "o", "s": 9, "linewidths": 0, "alpha": 0.8},
}
TASK_NAMES = {
    "mmlu": "MMLU",
    "arc_c": "ARC Challenge",
    "arc_challenge": "ARC Challenge",
    "arc_easy": "ARC Easy",
    "csqa": "CommonsenseQA",
    "openbookqa": "OpenBookQA",
    "piqa": "PIQA",
    "socialiqa": "Social IQa",
    "hellaswag": "HellaSwag",
    "winogrande": "WinoGrande",
    "truthfulqa": "TruthfulQA",
    "gsm8k": "GSM8K",
    "xwinograd": "XWinograd",
    "humaneval": "HumanEval",
    "bbh": "BIG-Bench Hard",
    "gpqa": "GPQA",
    "ifeval": "IFEval",
    "math_hard": "MATH level 5",
    "mmlu_pro": "MMLU-Pro",
    "musr": "MuSR",
}
"""Tasks whose names are not their words with capitals."""


def task_name(task: str) -> str:
    """A task's name in words.

    >>> task_name("lbv2_mmlu_pro"), task_name("bb_parsinlu_qa_2_acc")
    ('MMLU-Pro', 'Parsinlu qa')
    """
    if task.startswith("olmo_"):
        return f"{task_name(task.removeprefix('olmo_'))} (OLMo)"
    bare = task.removeprefix("lbv2_").removesuffix("_exact_match").removesuffix("_acc").removesuffix("_2")
    if bare in TASK_NAMES:
        return TASK_NAMES[bare]
    words = bare.removeprefix("bb_").replace("_", " ")
    return words[0].upper() + words[1:]


def scatter(runs: pd.DataFrame) -> Picture:
    """Predicted against observed final losses, a panel for each split and source.

    Args:
        runs: what `ncpl.evaluation.forecast_runs` gave.
    """
    splits, sources = runs["split"].unique(), runs["source"].unique()

    def panel(split: str, source: str) -> Panel:
        own = runs[(runs["split"] == split) & (runs["source"] == source)]
        return lambda axes, theme: _panel(axes, theme, own, f"{source} {split}")

    panels = tuple(panel(split, source) for split in splits for source in sources)
    words = f"Predicted against observed final losses of {len(runs):,} runs, by source and split."
    return Picture(words, panels, columns=len(sources), height=4.4)


def reliability(runs: pd.DataFrame) -> Picture:
    """Measured against asked coverage of the intervals, a line for each split and source.

    Args:
        runs: what `ncpl.evaluation.forecast_runs` gave, from a calibrated checkpoint.

    Raises:
        ValueError: the checkpoint is not calibrated.
    """
    if runs["narrowest_level"].isna().all():
        raise ValueError("calibration: this checkpoint has no calibration, expected one with intervals")
    levels = np.linspace(0, 1, 101)
    # A source has a colour, a split a dash.
    colours = dict(zip(runs["source"].unique(), itertools.cycle(COLOURS), strict=False))
    dashes = dict(zip(runs["split"].unique(), itertools.cycle(("-", "--", ":")), strict=False))

    def draw(axes: Any, theme: Theme) -> None:
        for (source, split), own in runs.groupby(["source", "split"], sort=False):
            share = [(own["narrowest_level"] <= level).mean() for level in levels]
            axes.plot(levels, share, label=f"{source} {split}", color=colours[source], linestyle=dashes[split], lw=1.4)
        axes.axline((0, 0), slope=1, color=theme["ink"], linewidth=0.8, zorder=0)
        axes.set(xlabel="asked coverage", ylabel="share of runs inside", xlim=(0, 1), ylim=(0, 1), aspect="equal")
        axes.legend(loc="lower right")

    return Picture("Share of runs inside their intervals against the asked coverage.", (draw,), height=4.4)


def scores(table: pd.DataFrame, level: float = 0.9) -> Picture:
    """Benchmark scores of models with their intervals, a panel for each.

    Args:
        table: what `Forecaster.benchmarks` gave.
        level: coverage of its intervals.
    """
    scored = [by_task(row) for _, row in table.head(6).iterrows()]
    titles = [f"{count(row.params)} parameters, {count(row.tokens)} tokens" for row in table.head(6).itertuples()]
    label = f"score, {level * 100:g} % interval"
    panels = tuple(_scored(own, label, title) for own, title in zip(scored, titles, strict=True))
    words = "Forecast benchmark scores. " + "; ".join(
        f"{title}: " + ", ".join(f"{task_name(str(row.task))} {row.score:.2f}" for row in own.itertuples())
        for own, title in zip(scored, titles, strict=True)
    )
    return Picture(f"{words}.", panels, height=1.1 + 0.3 * max(map(len, scored)), width=5.2)


def _scored(table: pd.DataFrame, label: str, title: str) -> Panel:
    def draw(axes: Any, theme: Theme) -> None:
        ranges(axes, theme, list(map(task_name, table["task"])), table, "score", label)
        axes.set(xlim=(0, 1), title=title)

    return draw


def scores_over_compute(
    model: NSPModel,
    tokens_per_param: float = 100.0,
    level: float = 0.9,
    tasks: Sequence[str] = (),
    real: pd.DataFrame | None = None,
) -> Picture:
    """Benchmark scores over training compute, a panel for each task: median, interval and emergence mark.

    Args:
        model: a trained NSP.
        tokens_per_param: tokens a parameter along the compute axis.
        level: coverage of the intervals.
        tasks: which; all when empty.
        real: measured models to plot: `params`, `tokens` and scores under the tasks' names.
    """
    flops = np.logspace(20, 25.5, 120)
    path = benchmarks_along(*compute_path(flops, tokens_per_param), level=level, model=model)
    marks = emergence_scales(model, tokens_per_param, level)
    return _over_compute(model, path, marks, tasks, f"FLOPs, {tokens_per_param:g} tokens a parameter", real)


def scores_along(path: pd.DataFrame, model: NSPModel, tasks: Sequence[str] = (), level: float = 0.9) -> Picture:
    """Benchmark scores along a path of rising compute, such as a plan's frontier.

    Args:
        path: what `ncpl.nsp.benchmarks.benchmarks_along` gave.
        model: the NSP that gave it.
        tasks: which; all when empty.
        level: coverage of its intervals.
    """
    return _over_compute(model, path, emergence_marks(path, level), tasks, "training FLOPs along the plan's frontier")


def _over_compute(
    model: NSPModel,
    path: pd.DataFrame,
    marks: pd.DataFrame,
    tasks: Sequence[str],
    label: str,
    real: pd.DataFrame | None = None,
) -> Picture:
    asked, all_tasks = list(tasks) or list(model.config.tasks), list(model.config.tasks)
    marked = {row["task"]: row for row in marks.to_dict("records")}

    def panel(task: str) -> Panel:
        chance = model.config.chance[all_tasks.index(task)]
        past = chance + model.config.emergence_threshold * (1 - chance)
        own = None
        if real is not None and task in real:
            own = real[["params", "tokens", task]].dropna()
        return lambda axes, theme: _score_panel(axes, theme, path, task, chance, marked[task], past, own)

    words = (
        f"Benchmark scores against {label}: median and interval; dotted, chance; red, where a task leaves chance"
        + ("; points, measured models." if real is not None else ".")
    )
    return Picture(words, tuple(map(panel, asked)), columns=4, width=3.1, height=2.4)


def _score_panel(
    axes: Any,
    theme: Theme,
    path: pd.DataFrame,
    task: str,
    chance: float,
    mark: Mapping[Hashable, Any],
    past: float,
    real: pd.DataFrame | None,
) -> None:
    """One task: median, interval, chance, where it leaves chance (score `past`), and measured models."""
    flops = path["flops"].to_numpy()
    axes.fill_between(flops, path[f"{task}_lower"], path[f"{task}_upper"], color=theme["main"], alpha=0.2, lw=0)
    axes.plot(flops, path[task], color=theme["main"], lw=1.8)
    axes.axhline(chance, color=theme["ink"], lw=0.8, ls=":")
    if real is not None:
        axes.scatter(6 * real["params"] * real["tokens"], real[task], s=7, color=theme["ink"], alpha=0.5, lw=0)
    if flops[0] < mark["flops"] < flops[-1]:
        low = max(np.nan_to_num(mark["flops_lower"], nan=flops[0]), flops[0])
        high = min(np.nan_to_num(mark["flops_upper"], nan=flops[-1]), flops[-1])
        axes.plot([low, high], [past, past], color=RED, lw=2, solid_capstyle="butt")
        axes.plot(mark["flops"], past, "o", color=RED, ms=5)
    axes.set(xscale="log", ylim=(0, 1), xlim=(flops[0], flops[-1]), title=task_name(task))
    axes.title.set_fontsize(10)
    axes.tick_params(labelsize=9)


# Points of a drawn curve.
DENSE = 400


def curves(
    runs: Mapping[str, tuple[Mapping[str, Any], pd.DataFrame]],
    observed: Mapping[str, Sequence[float]] | None = None,
) -> Picture:
    """Forecast loss curves with their bands, what is observed, and the learning rates beneath.

    Args:
        runs: name -> configuration and what `Forecaster.curve` gave for it.
        observed: the first run's first part, as `Forecaster.curve` takes it.
    """
    named = list(zip(runs.items(), itertools.cycle(COLOURS), strict=False))
    # Both panels share the tokens.
    tokens = 0.0, 1.02 * max(table["tokens"].iloc[-1] for _, table in runs.values())
    words = "Forecast loss curves: " + ", ".join(
        f"{name} ends at {table['loss'].iloc[-1]:.3f}" for name, (_, table) in runs.items()
    )

    def above(axes: Any, theme: Theme) -> None:
        lows, highs = [], []
        for (name, (_, table)), colour in named:
            # Few points are shown as such, not as a curve with corners.
            few = {"marker": "o", "ms": 3} if len(table) < 20 else {}
            label = f"{name}: {table['loss'].iloc[-1]:.3f}"
            axes.plot(table["tokens"], table["loss"], color=colour, lw=1.6, label=label, **few)
            # One line of the legend stands for all bands.
            first = "level" in table.attrs and name == next(iter(runs))
            covers = f"{table.attrs['level'] * 100:g} % interval" if first else None
            axes.fill_between(
                table["tokens"], table["lower"], table["upper"], color=colour, alpha=0.18, lw=0, label=covers
            )
            late = table[table["step"] >= 0.1 * table["step"].iloc[-1]]
            lows.append(late["loss"].min())
            highs.append(late["loss"].max())
        if observed is not None:
            table = named[0][0][1][1]
            steps, billions = table["step"].iloc[-1], table["tokens"].iloc[-1]
            seen = read_observed(observed, steps, billions)
            points = seen.steps * billions / steps, seen.losses
            axes.scatter(*points, s=7, color=theme["ink"], alpha=0.6, lw=0, label="observed", zorder=3)
        room = 0.12 * (max(highs) - min(lows)) + 0.02
        axes.set(ylabel=LOSS, xlim=tokens, ylim=(min(lows) - room, max(highs) + 3 * room))
        if observed is not None:
            mark_off_axis(axes, points, (table["tokens"], table["loss"]))
        axes.legend(loc="upper right")

    def beneath(axes: Any, theme: Theme) -> None:
        said = []
        for (_, (config, table)), colour in named:
            # With what stands in for a schedule that was not given.
            shape = RunShape.of(check_config(config, strict=False) | table.attrs.get("schedule", {}))
            share, rest = np.linspace(0, 1, 400), table.attrs.get("stand_ins", [])
            rates = shape.schedule.rate(share) * _peak(config)
            axes.plot(share * shape.tokens, rates, color=colour, lw=1.2, ls="--" if rest else "-")
            said += [text.partition("that of ")[2] for text in rest]
        if said:
            usual = shortened(said[0], 60) if len(named) == 1 else "the source's usual"
            axes.set_title(f"dashed: not given in full, {usual} stands in", fontsize=8)
        axes.set(xlabel="tokens (billions)", ylabel="learning rate", xlim=tokens, ylim=(0, None))

    return Picture(f"{words}.", (above, beneath), columns=1, width=6.4, height=2.5, heights=(3, 1))


def _peak(config: Mapping[str, Any]) -> float:
    """A configuration's peak learning rate."""
    return float(check_config(config, strict=False).get("learning rate") or 1.0)


def _panel(axes: Any, theme: Theme, runs: pd.DataFrame, title: str) -> None:
    predictors, runs = comparable(runs)
    for name, style in _STYLES.items():
        if name in predictors:
            error = (runs[name] - runs["observed"]).abs().mean()
            axes.scatter(runs["observed"], runs[name], label=f"{PREDICTORS[name]}, MAE {error:.4f}", **style)
    axes.axline((runs["observed"].mean(),) * 2, slope=1, color=theme["ink"], linewidth=0.8, zorder=0)
    axes.set_aspect("equal", adjustable="datalim")
    axes.set(xlabel="observed final loss", ylabel="predicted final loss", title=title)
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(handles[::-1], labels[::-1], fontsize=8, loc="upper left")
