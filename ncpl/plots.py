"""Pictures of what a `Forecaster` gives: forecasts, sweeps, curves, comparisons, plans, costs, an adapted lab."""

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ncpl.allocations import VALLEY
from ncpl.curves import read_observed
from ncpl.drawing import (
    GREEN,
    LOSS,
    ORANGE,
    RED,
    Panel,
    Picture,
    Theme,
    band,
    count,
    heat_map,
    label,
    logarithmic,
    ranges,
    share,
    shortened,
)
from ncpl.errors import short

if TYPE_CHECKING:
    from ncpl.plan import Plan


def forecasts(table: pd.DataFrame, names: Sequence[str] | None = None) -> Picture:
    """Forecast losses with their intervals, a line each; at most forty.

    Args:
        table: what `Forecaster.predict` gave.
        names: what each row is; its index if absent.
    """
    few = table.head(40)
    named = [str(name) for name in (few.index if names is None else names)][:40]
    what = "one configuration" if len(few) == 1 else f"{len(few)} configurations"
    words = f"Forecast losses of {what} with their intervals; the lowest is {few['loss'].min():.3f}."
    return _rows(words, named, few)


def _rows(words: str, names: Sequence[str], table: pd.DataFrame) -> Picture:
    """Losses with their intervals, a line each."""
    height = 1.1 + 0.36 * len(table)
    return Picture(words, (lambda axes, theme: ranges(axes, theme, names, table, "loss", LOSS),), height=height)


def sweep(table: pd.DataFrame, mark: Mapping[str, float] | None = None) -> Picture:
    """A sweep: a heat map over two numeric fields with its valley, losses over one, or a line for each value of words.

    Args:
        table: what `Forecaster.sweep` gave.
        mark: the asked field's value and its `loss`, in a sweep over one field.

    Raises:
        ValueError: the sweep has not one or two fields with several values, or two of which one is no number.
    """
    fields = [str(name) for name in table.columns[: list(table.columns).index("loss")] if len(set(table[name])) > 1]
    numeric = [name for name in fields if pd.api.types.is_numeric_dtype(table[name])]
    if not 1 <= len(fields) <= 2 or (len(fields) == 2 and numeric != fields):
        came = ", ".join(fields) or "no field with several values"
        raise ValueError(f"plot: got a sweep over {came}, a picture needs one field, or two numeric ones")
    best = table.iloc[int(table["loss"].to_numpy().argmin())]
    at = ", ".join(f"{name} {best[name]:.3g}" if name in numeric else f"{name} {best[name]}" for name in fields)
    words = f"Forecast loss over {' and '.join(fields)}: lowest {best['loss']:.4f} at {at}."
    if len(fields) == 2:
        return Picture(words, (lambda axes, theme: heat_map(axes, theme, table, *fields),), height=3.8)
    (name,) = fields
    if not numeric:
        return _rows(words, [str(value) for value in table[name]], table)
    rows = table.sort_values(name)
    lowest = (float(best[name]), float(best["loss"]))
    asked = None if mark is None else (float(mark[name]), float(mark["loss"]))
    if asked is not None:
        words = f"{words[:-1]}; {asked[1]:.4f} at {asked[0]:.3g}."
    return Picture(
        words, (lambda axes, theme: band(axes, theme, rows[name], rows, label(name), best=lowest, mark=asked),)
    )


def curve(table: pd.DataFrame, observed: Any = None) -> Picture:
    """The loss along a run, from its first twentieth on.

    Args:
        table: what `Forecaster.curve` gave.
        observed: what is seen of the run, as `Forecaster.curve` takes it.
    """
    end = table.iloc[-1]
    late = table[table["step"] >= 0.05 * end["step"]]
    points = None
    if observed is not None:
        seen = read_observed(observed, float(end["step"]), float(end["tokens"]))
        points = (seen.steps * float(end["tokens"] / end["step"]), seen.losses.tolist())
    words = (
        f"Forecast loss along the run: {late['loss'].iloc[0]:.3f} at {late['tokens'].iloc[0]:.3g} billion tokens, "
        f"{end['loss']:.3f} at its end, {end['tokens']:.3g} billion."
    )
    return Picture(
        words,
        (
            lambda axes, theme: band(
                axes, theme, late["tokens"], late, "tokens (billions)", seen=points, upper=False, log=False
            ),
        ),
    )


# Letters of a title's line.
_TITLE = 44


def comparison(difference: Any, names: tuple[str, str] = ("A", "B")) -> Picture:
    """The difference of two losses, and the probability that it is below 0.

    Args:
        difference: what `Forecaster.compare` gave.
        names: of the two configurations.

    Raises:
        ValueError: not two names.
    """
    if not isinstance(names, list | tuple) or len(names) != 2 or not all(isinstance(name, str) for name in names):
        raise ValueError(f"names: got {short(names)}, expected two texts, one for each configuration")
    found = pd.DataFrame([dict(difference)])
    words = (
        f"Loss of {names[0]} less that of {names[1]}: {difference['difference']:.4f} nats per token, interval "
        f"{difference['lower']:.4f} to {difference['upper']:.4f}; {names[0]} is better with probability "
        f"{share(difference['p_better'])}."
    )

    def draw(axes: Any, theme: Theme) -> None:
        first = names[0] if len(names[0]) < 8 else "first"
        said = f"difference (nats per token), below 0: {first} is better"
        ranges(axes, theme, [""], found, "difference", said, zero=True)
        axes.set_yticks([])
        whole = f"{names[0]} less {names[1]}"
        lines = [whole] if len(whole) <= _TITLE else [f"{names[0]} less", names[1]]
        axes.set_title("\n".join(shortened(text, _TITLE) for text in lines))

    return Picture(words, (draw,), height=2.2)


def optimum(found: Any) -> Picture:
    """How far each field may go with the loss as good: its best value within its flat region.

    Args:
        found: what `Forecaster.optimize` gave.

    Raises:
        ValueError: only choices were optimised, which have no region.
    """
    fields = [str(name).removesuffix(" low") for name in found.index if str(name).endswith(" low")]
    if not fields:
        raise ValueError("plot: got choices alone, a picture needs a field that is optimised between two bounds")
    words = f"Lowest loss {found['loss']:.4f} at " + ", ".join(f"{name} {found[name]:.3g}" for name in fields) + "."

    def panel(name: str) -> Panel:
        def draw(axes: Any, theme: Theme) -> None:
            low, best, high = (float(found[key]) for key in (f"{name} low", name, f"{name} high"))
            axes.hlines(0, low, high, color=theme["main"], lw=6, alpha=0.45)
            axes.plot(best, 0, "D", color=GREEN, ms=9)
            for value, side, place in ((low, "right", -8), (high, "left", 8)):
                axes.annotate(f"{value:.3g}", (value, 0), (place, 0), textcoords="offset points", ha=side, va="center")
            axes.annotate(f"{best:.3g}", (best, 0), (0, 9), textcoords="offset points", ha="center")
            axes.set(xlabel=label(name), yticks=[], ylim=(-1, 1))
            room = max(high / low, 1.2) ** 0.5 if low > 0 else 1.0
            if low > 0:
                axes.set(xlim=(low / room, high * room))
            axes.locator_params(axis="x", nbins=4)
            axes.spines["left"].set_visible(False)

        return draw

    return Picture(words, tuple(map(panel, fields)), height=1.5)


def suggested(table: pd.DataFrame) -> Picture:
    """How the target's interval narrows with each suggested run.

    Args:
        table: what `Forecaster.suggest` gave.
    """
    spent = [0.0, *table["flops"].cumsum()]
    widths = [table.attrs["interval_before"], *table["interval"]]
    words = f"Half-width of the target's interval: {widths[-1]:.4f} nats after {spent[-1]:.3g} FLOPs."
    sizes = zip(table.index, 1e6 * table["model size"], 1e9 * table["data size"], strict=True)
    names = ["now", *(f"{shortened(str(name), 20)}: {count(size)} on {count(data)}" for name, size, data in sizes)]

    def draw(axes: Any, theme: Theme) -> None:
        rows = np.arange(len(names))[::-1]
        axes.plot(widths, rows, "o-", color=theme["main"], lw=1.8)
        for flops, width, row in zip(spent, widths, rows, strict=True):
            axes.annotate(f"{flops:.2g}", (width, row), (8, 0), textcoords="offset points", va="center", fontsize=9)
        axes.set(xlabel="half-width (nats), at FLOPs so far (6ND)", xlim=(0, 1.3 * max(widths)))
        axes.set(ylim=(-0.6, len(names) - 0.4))
        axes.set_yticks(rows, names)
        axes.locator_params(axis="x", nbins=4)

    return Picture(words, (draw,), height=1.1 + 0.36 * len(names), width=5.2)


def costs(found: Sequence[Mapping[Any, Any]], names: Sequence[str]) -> Picture:
    """What runs cost: money, and days of wall clock.

    Args:
        found: what `Forecaster.cost` gave for each.
        names: of the runs.
    """
    told = [
        f"{name}: {row['cost_usd']:,.0f} US dollars, {row['days']:.3g} days"
        for name, row in zip(names, found, strict=True)
    ]

    def panel(key: str, name: str) -> Panel:
        def draw(axes: Any, theme: Theme) -> None:
            rows, values = np.arange(len(found))[::-1], [float(row[key]) for row in found]
            axes.barh(rows, values, height=0.55, color=theme["main"], alpha=0.8)
            for row, value in zip(rows, values, strict=True):
                axes.annotate(f"{value:,.3g}" if value < 1000 else f"{value:,.0f}", (value, row), (4, 0),
                              textcoords="offset points", va="center", fontsize=9)  # fmt: skip
            axes.set(xlabel=name, ylim=(-0.6, len(found) - 0.4), xlim=(0, 1.2 * max(values)))
            axes.set_yticks(rows, [Path(text).name for text in names])
            axes.grid(axis="y", visible=False)

        return draw

    panels = (panel("cost_usd", "US dollars"), panel("days", "days"))
    return Picture("; ".join(told) + ".", panels, height=1.1 + 0.36 * len(found))


def plan(found: "Plan") -> Picture:
    """A plan: loss over size along the budget with its valley, the frontier, and lines of equal loss.

    Args:
        found: what `Forecaster.plan` gave.
    """
    best = found.best
    words = (
        f"Plan: {count(best['params'])} parameters on {count(best['tokens'])} tokens, loss {best['loss']:.3f}. "
        f"{found.valley_in_words}"
    )
    panels: tuple[Panel, ...] = (
        lambda axes, theme: _budget(axes, theme, found),
        lambda axes, theme: _frontier(axes, theme, found),
        lambda axes, theme: _equal_loss(axes, theme, found),
    )
    return Picture(words, panels)


def plan_budget(found: "Plan") -> Picture:
    """The first panel of `plan`: loss against size along the budget."""
    best = found.best
    words = (
        f"Loss against model size at the same cost: lowest {best['loss']:.3f} at {count(best['params'])} parameters. "
        f"{found.valley_in_words}"
    )
    return Picture(words, (lambda axes, theme: _budget(axes, theme, found),))


def _budget(axes: Any, theme: Theme, found: "Plan") -> None:
    best = found.best
    table = found.valley[found.valley["excess"] < 20 * VALLEY]
    axes.axvspan(best["params_low"], best["params_high"], color=GREEN, alpha=0.2, lw=0, label=f"under {VALLEY:g} nats")
    axes.plot(table["params"], table["loss"], color=theme["main"], lw=1.8)
    axes.plot(best["params"], best["loss"], "D", color=RED, ms=8, label="plan")
    axes.set(xlabel="non-embedding parameters", ylabel=LOSS, title="Sizes for this budget")
    logarithmic(axes, "x", table["params"].to_numpy())
    axes.legend(loc="upper center")


def _frontier(axes: Any, theme: Theme, found: "Plan") -> None:
    along, best = found.frontier, found.best
    if {"lower", "upper"} <= set(along):
        axes.fill_between(along["flops"], along["lower"], along["upper"], color=theme["main"], alpha=0.2, lw=0)
    axes.plot(along["flops"], along["loss"], "o-", color=theme["main"], ms=4, lw=1.8)
    for row in along.iloc[::3].itertuples():
        axes.annotate(count(row.params), (row.flops, row.loss), (4, 5), textcoords="offset points", fontsize=9)
    axes.plot(best["flops"], best["loss"], "D", color=RED, ms=8)
    axes.set(xlabel="training FLOPs", ylabel=LOSS, title="Best loss of every budget")
    axes.margins(x=0.1, y=0.12)
    logarithmic(axes, "x", along["flops"].to_numpy())


def _equal_loss(axes: Any, theme: Theme, found: "Plan") -> None:
    along, best, equal = found.frontier, found.best, found.iso_loss
    for level, line in equal.groupby("loss"):
        axes.plot(line["params"], line["tokens"], color=theme["ink"], lw=1.0)
        end = line[["params", "tokens"]].to_numpy()[0].tolist()
        axes.annotate(f"{level:.2f}", end, (-3, 2), textcoords="offset points", fontsize=9, ha="right")
    axes.plot(along["params"], along["tokens"], color=theme["main"], lw=1.8, label="best sizes of budgets")
    axes.plot(best["params"], best["tokens"], "D", color=RED, ms=8)
    axes.set(xlabel="non-embedding parameters", ylabel="tokens", title="Equal loss")
    axes.margins(x=0.12)
    for side, values in (("x", "params"), ("y", "tokens")):
        logarithmic(axes, side, np.array([*along[values], *equal[values]], float))
    axes.legend()


def lab(report: Mapping[str, Any]) -> Picture:
    """What a lab's own runs taught: forecasts before and after, residuals, exponents, and what more runs would give.

    Args:
        report: what `Forecaster.report` gave.
    """
    rows = pd.DataFrame(report["fitted"])
    errors = {name: (rows[name] - rows["observed"]).abs().mean() for name in ("before", "after")}
    words = (
        f"{report['source']}: {len(rows)} runs, mean absolute error {errors['before']:.3f} before and "
        f"{errors['after']:.3f} nats per token after adaptation; residuals, exponents, and intervals with more runs."
    )
    panels: tuple[Panel, ...] = (
        lambda axes, theme: _before_and_after(axes, theme, rows, report["held_out"]),
        lambda axes, theme: _residuals(axes, theme, rows),
        lambda axes, theme: _exponents(axes, theme, report["learned"]),
        lambda axes, theme: _more_runs(axes, theme, pd.DataFrame(report["more_runs"])),
    )
    return Picture(words, panels, columns=2, height=3.8, width=4.8)


def _before_and_after(axes: Any, theme: Theme, rows: pd.DataFrame, held_out: Sequence[tuple[float, float]]) -> None:
    for name, colour, said in (
        ("before", ORANGE, "shipped law, moved by an offset"),
        ("after", theme["main"], "adapted"),
    ):
        axes.plot(rows["observed"], rows[name], "o", color=colour, ms=4, alpha=0.8, label=said)
    if held_out:  # nothing with one size alone
        axes.plot(
            *np.array(held_out).T, "s", color=GREEN, ms=5, mfc="none", label="largest size, from the smaller ones"
        )
    axes.axline((float(rows["observed"].mean()),) * 2, slope=1, color=theme["ink"], lw=0.8, zorder=0)
    axes.set(xlabel=f"observed {LOSS}", ylabel=f"forecast {LOSS}", title="Your runs, before and after")
    axes.legend(fontsize=8)


def _residuals(axes: Any, theme: Theme, rows: pd.DataFrame) -> None:
    for name, colour in (("before", ORANGE), ("after", theme["main"])):
        axes.plot(rows["model size"], rows[name] - rows["observed"], "o", color=colour, ms=4, alpha=0.8)
    axes.axhline(0, color=theme["ink"], lw=0.8)
    axes.set(xlabel=label("model size"), ylabel="forecast less observed (nats)", title="Residuals by model size")
    logarithmic(axes, "x", rows["model size"].to_numpy(float))


def _exponents(axes: Any, theme: Theme, learned: Mapping[str, Mapping[str, Any]]) -> None:
    """The exponents of size and data with their 90 % intervals, beside other labs' own fits."""
    names = ("alpha", "beta", "growth")
    others = json.loads((Path(__file__).parent / "adaptation.json").read_text(encoding="utf-8")).get("labs", {})
    for place, name in enumerate(names):
        values = [own[name] for own in others.values()]
        axes.plot(values, [place - 0.15] * len(values), "|", color=theme["ink"], ms=9, alpha=0.6)
        found = learned[name]
        reach = statistics.NormalDist().inv_cdf(0.95) * found["deviation"]
        axes.errorbar(found["value"], place + 0.1, xerr=reach, fmt="o", color=theme["main"], capsize=3, ms=5)
    axes.set_yticks(range(len(names)), ["alpha (size)", "beta (data)", "growth (data\nwith size)"])
    axes.set(xlabel="value, 90 % interval; |: other labs' fits", ylim=(-0.6, len(names) - 0.4), title="Exponents")


def _more_runs(axes: Any, theme: Theme, rows: pd.DataFrame) -> None:
    """Half the interval of a run of ten times the dearest one's FLOPs, over the FLOPs of further runs."""
    now = statistics.NormalDist().inv_cdf(0.95) * float(rows["deviation_now"].iloc[0])
    axes.axhline(now, color=theme["ink"], lw=0.8, ls=":", label="now")
    groups = rows.groupby(["model size", "data size"])
    for (_, own), colour in zip(groups, (theme["main"], GREEN, ORANGE), strict=False):
        size, data = own[["model size", "data size"]].iloc[0] * [1e6, 1e9]
        said = f"{count(size)}, up to {count(data)} tokens"
        axes.plot(own["flops"], now * own["interval_over_now"], "o-", color=colour, ms=4, label=said)
    several = ", ".join(str(number) for number in sorted(set(rows["runs"])))
    axes.set(ylim=(0, 1.25 * now), xlabel=f"FLOPs of {several} further runs", ylabel="± nats per token")
    logarithmic(axes, "x", rows["flops"].to_numpy(float))
    axes.set_title("At 10 times the dearest run's FLOPs")
    axes.legend(fontsize=8, loc="lower left")
