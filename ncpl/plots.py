"""Figures of sweeps and plans in one style: colour-blind safe, light or dark (`pip install ncpl[plots]`).

An `.html` file holds both and shows the one that the reader's system asks for; it needs nothing else.
"""

import html
import io
import json
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fields_ncpl import FIELDS
from ncpl.plan import VALLEY, Plan

# Okabe and Ito's colours, which every eye tells apart and both papers carry.
BLUE, ORANGE, GREEN, SKY, RED = "#0072B2", "#E69F00", "#009E73", "#56B4E9", "#D55E00"
# Paper, ink, lines of the grid, and the main colour on that paper.
THEMES = {
    "light": {"paper": "#ffffff", "ink": "#1a1a1a", "grid": "#d9d9d9", "main": BLUE},
    "dark": {"paper": "#16181d", "ink": "#e6e6e6", "grid": "#3a3d44", "main": SKY},
}
SUFFIXES = (".png", ".pdf", ".svg", ".html")
_LOSS = "loss (nats per token)"
# Losses a heat map tells apart: what is further above the lowest has one colour.
_SPAN = 0.3


def save(draw: Callable[[Any, dict[str, str]], None], path: str | Path, size: tuple[float, float], words: str) -> None:
    """Draws a figure into a file.

    Args:
        draw: gets an empty matplotlib figure and the theme's colours.
        path: its suffix says which kind; `.html` is one self-contained page in both themes.
        size: width and height in inches.
        words: what the picture shows, for those who cannot see it.

    Raises:
        ValueError: matplotlib is not installed, the suffix is not known, or the file cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"{path}: got suffix {path.suffix!r}, accepted: {', '.join(SUFFIXES)}")
    try:
        if path.suffix.lower() == ".html":
            path.write_text(_page(draw, size, words), encoding="utf-8")
        else:
            path.write_bytes(_drawn(draw, size, "light", path.suffix[1:].lower()))
    except OSError as error:
        raise ValueError(f"{path}: cannot be written ({error.strerror})") from None


def _drawn(draw: Callable[[Any, dict[str, str]], None], size: tuple[float, float], theme: str, kind: str) -> bytes:
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError:
        raise ValueError("save: a figure needs matplotlib, install it with: pip install ncpl[plots]") from None
    colours = THEMES[theme]
    ink = {f"{part}.color": colours["ink"] for part in ("text", "xtick", "ytick")}
    settings = {
        **ink,
        **{"axes.edgecolor": colours["ink"], "axes.labelcolor": colours["ink"], "axes.facecolor": colours["paper"]},
        **{"figure.facecolor": colours["paper"], "savefig.facecolor": colours["paper"], "grid.color": colours["grid"]},
        **{"font.size": 9, "axes.titlesize": 10, "axes.titleweight": "bold", "axes.titlelocation": "left"},
        **{"axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False, "grid.linewidth": 0.6},
        **{"svg.hashsalt": "ncpl", "svg.fonttype": "path"},
    }
    with rc_context(settings):
        figure = Figure(figsize=size, layout="constrained", dpi=150)
        draw(figure, colours)
        target = io.BytesIO()
        figure.savefig(target, format=kind, metadata={"Date": None} if kind == "svg" else None)
    return target.getvalue()


def _page(draw: Callable[[Any, dict[str, str]], None], size: tuple[float, float], words: str) -> str:
    """One HTML page with the figure in both themes."""
    return (
        '<!doctype html>\n<html lang="en"><meta charset="utf-8">'
        f"<title>{html.escape(words)}</title>\n{PAGE_STYLE}\n{svg_in_both(draw, size, words)}\n</html>\n"
    )


PAGE_STYLE = (
    '<meta name="viewport" content="width=device-width, initial-scale=1"><style>'
    f"body{{font:16px/1.5 system-ui,sans-serif;margin:1rem auto;max-width:60rem;padding:0 1rem;"
    f"color:{THEMES['light']['ink']};background:{THEMES['light']['paper']}}}"
    "figure{margin:1rem 0}svg{max-width:100%;height:auto}.dark{display:none}"
    f"@media(prefers-color-scheme:dark){{body{{color:{THEMES['dark']['ink']};background:{THEMES['dark']['paper']}}}"
    ".dark{display:block}.light{display:none}}</style>"
)


def svg_in_both(draw: Callable[[Any, dict[str, str]], None], size: tuple[float, float], words: str) -> str:
    """A figure for an HTML page, light and dark."""
    drawn = {theme: _drawn(draw, size, theme, "svg").decode("utf-8") for theme in THEMES}
    parts = []
    for theme, text in drawn.items():
        body = text[text.index("<svg") :]
        # Both pictures stand in one page: names of their parts must not meet.
        for mark in ('id="', 'href="#', "url(#"):
            body = body.replace(mark, f"{mark}{theme}-")
        parts.append(f'<div class="{theme}">{body}</div>')
    label = html.escape(words, quote=True)
    return f'<figure role="img" aria-label="{label}">{"".join(parts)}<figcaption>{label}</figcaption></figure>'


def sweep_figure(table: pd.DataFrame, path: str | Path) -> None:
    """A sweep: a heat map over two numeric fields with its valley, or the loss over one with its interval.

    Args:
        table: what `Forecaster.sweep` gave.
        path: `.png`, `.pdf`, `.svg` or `.html`.

    Raises:
        ValueError: the sweep has not one or two numeric fields, and what `save` refuses.
    """
    fields = [name for name in table.columns[: list(table.columns).index("loss")] if len(set(table[name])) > 1]
    numeric = [name for name in fields if pd.api.types.is_numeric_dtype(table[name])]
    if not 1 <= len(fields) <= 2 or numeric != fields:
        came = ", ".join(fields) or "no field with several values"
        raise ValueError(f"save: got a sweep over {came}, a picture needs one or two numeric fields")
    words = f"forecast loss over {' and '.join(fields)}"
    if len(fields) == 2:
        save(lambda figure, theme: _heat_map(figure, theme, table, *fields), path, (6.4, 4.8), words)
    else:
        save(lambda figure, theme: _line(figure, theme, table, fields[0]), path, (6.4, 4.2), words)


def _heat_map(figure: Any, theme: dict[str, str], table: pd.DataFrame, first: str, second: str) -> None:
    grid = table.pivot_table(index=second, columns=first, values="loss", observed=True)
    axes = figure.subplots()
    x, y, losses = grid.columns.to_numpy(float), grid.index.to_numpy(float), grid.to_numpy()
    lowest = float(np.nanmin(losses))
    top = min(float(np.nanmax(losses)), lowest + _SPAN)
    mesh = axes.pcolormesh(x, y, losses, cmap="viridis", vmin=lowest, vmax=max(top, lowest + 1e-3), shading="nearest")
    figure.colorbar(mesh, ax=axes, label=_LOSS, extend="max" if np.nanmax(losses) > top else "neither")
    handles = []
    if min(losses.shape) > 1:
        lines = axes.contour(x, y, losses, [lowest + VALLEY, lowest + 4 * VALLEY], colors=["white", "white"])
        lines.set_linestyle(["-", "--"])
        lines.set_linewidth(1.4)
        handles += [_handle("white", "-", f"within {VALLEY:g} nats"), _handle("white", "--", f"within {4 * VALLEY:g}")]
    diverging = table.pivot_table(index=second, columns=first, values="divergence", observed=True)
    if diverging.shape == losses.shape and min(losses.shape) > 1 and float(np.nanmax(diverging)) > 0.5:
        axes.contourf(x, y, diverging.to_numpy(), [0.5, 1.01], colors="none", hatches=["////"])
        handles.append(_handle(theme["ink"], ":", "hatched: will rather diverge"))
    best = table.iloc[int(table["loss"].to_numpy().argmin())]
    axes.plot(best[first], best[second], "*", color=RED, mec="white", ms=15, zorder=3)
    _scale(axes, first, second, x, y)
    axes.set_title(f"lowest {best['loss']:.4f} at {first} {best[first]:.3g}, {second} {best[second]:.3g}")
    if handles:
        legend = axes.legend(handles=handles, fontsize=8, loc="upper left", bbox_to_anchor=(0, -0.12), ncols=3)
        for text, handle in zip(legend.get_texts(), legend.get_lines(), strict=True):
            text.set_color(theme["ink"])
            handle.set_color(theme["ink"])


def _handle(colour: str, dash: str, label: str) -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], color=colour, linestyle=dash, label=label)


def _line(figure: Any, theme: dict[str, str], table: pd.DataFrame, name: str) -> None:
    axes = figure.subplots()
    table = table.sort_values(name)
    x = table[name].to_numpy(float)
    if table["lower"].notna().any():
        axes.fill_between(x, table["lower"], table["upper"], color=theme["main"], alpha=0.2, lw=0, label="interval")
    axes.plot(x, table["loss"], "o-", color=theme["main"], ms=3.5, lw=1.6, label="forecast")
    best = table.iloc[int(table["loss"].to_numpy().argmin())]
    axes.plot(best[name], best["loss"], "*", color=RED, ms=14, zorder=3)
    _scale(axes, name, None, x, None)
    axes.set(ylabel=_LOSS)
    axes.set_title(f"lowest {best['loss']:.4f} at {name} {best[name]:.3g}")
    axes.grid(True)
    axes.legend(fontsize=8)


def _scale(axes: Any, first: str, second: str | None, x: np.ndarray, y: np.ndarray | None) -> None:
    """Logarithmic axes where all values allow and span a factor of three, with the fields' units."""
    for name, values, side in ((first, x, "x"), (second, y, "y")):
        if name is None or values is None:
            continue
        unit = f" ({FIELDS[name].unit})" if name in FIELDS and FIELDS[name].unit != name else ""
        getattr(axes, f"set_{side}label")(name + unit)
        if values.min() > 0 and values.max() / values.min() >= 3:
            getattr(axes, f"set_{side}scale")("log")


def plan_figure(plan: Plan, path: str | Path) -> None:
    """A plan: loss over size along the budget with its valley, the frontier, and lines of equal loss.

    Args:
        plan: what `Forecaster.plan` gave.
        path: `.png`, `.pdf`, `.svg` or `.html`.

    Raises:
        ValueError: what `save` refuses.
    """
    best = plan.best
    words = (
        f"plan: {best['params']:.3g} parameters on {best['tokens']:.3g} tokens, loss {best['loss']:.3f}; "
        f"sizes from {best['params_low']:.3g} to {best['params_high']:.3g} cost under {VALLEY:g} nats"
    )
    save(lambda figure, theme: draw_plan(figure, theme, plan), path, (11.5, 4.0), words)


def draw_plan(figure: Any, theme: dict[str, str], plan: Plan) -> None:
    """The three panels of `plan_figure`."""
    valley, frontier, lines = figure.subplots(1, 3)
    best = plan.best
    table = plan.valley[plan.valley["excess"] < 20 * VALLEY]
    valley.axvspan(
        best["params_low"], best["params_high"], color=GREEN, alpha=0.2, lw=0, label=f"under {VALLEY:g} nats"
    )
    valley.plot(table["params"], table["loss"], color=theme["main"], lw=1.8)
    if best.get("upper") is not None:
        error = [[best["loss"] - best["lower"]], [best["upper"] - best["loss"]]]
        valley.errorbar(best["params"], best["loss"], error, color=RED, capsize=3, lw=1.2, label="interval of the loss")
    valley.plot(best["params"], best["loss"], "*", color=RED, ms=13)
    valley.set(xscale="log", xlabel="parameters (non-embedding)", ylabel=_LOSS, title="Sizes for this budget")
    along = plan.frontier
    frontier.plot(along["flops"], along["loss"], "o-", color=theme["main"], ms=3.5, lw=1.6)
    for row in along.iloc[::3].itertuples():
        frontier.annotate(
            f"{_count(row.params)}", (row.flops, row.loss), (4, 5), textcoords="offset points", fontsize=8
        )
    frontier.plot(best["flops"], best["loss"], "*", color=RED, ms=13)
    frontier.set(xscale="log", xlabel="training FLOPs", ylabel=_LOSS, title="Best loss of every budget")
    equal = plan.iso_loss
    for level, line in equal.groupby("loss"):
        lines.plot(line["params"], line["tokens"], color=theme["ink"], lw=1.0)
        end = line[["params", "tokens"]].to_numpy()[-1].tolist()
        lines.annotate(f"{level:.2f}", end, (3, -3), textcoords="offset points", fontsize=8)
    lines.plot(along["params"], along["tokens"], color=theme["main"], lw=1.8, label="best sizes of budgets")
    lines.plot(best["params"], best["tokens"], "*", color=RED, ms=13)
    lines.set(xscale="log", yscale="log", xlabel="parameters (non-embedding)", ylabel="tokens", title="Equal loss")
    valley.legend(fontsize=8)
    lines.legend(fontsize=8)
    for axes in (valley, frontier, lines):
        axes.grid(True)


def _count(number: Any) -> str:
    """A count with a suffix: 2.4e9 -> 2.4B."""
    for suffix, size in (("T", 1e12), ("B", 1e9), ("M", 1e6)):
        if number >= size:
            return f"{number / size:.3g}{suffix}"
    return f"{number:.3g}"


def lab_figure(report: Mapping[str, Any], path: str | Path) -> None:
    """What a lab's own runs taught: forecasts before and after, residuals, exponents, and what more runs would give.

    Args:
        report: what `Forecaster.report` gave.
        path: `.png`, `.pdf`, `.svg` or `.html`.

    Raises:
        ValueError: what `save` refuses.
    """
    rows = pd.DataFrame(report["fitted"])
    errors = {name: (rows[name] - rows["observed"]).abs().mean() for name in ("before", "after")}
    words = (
        f"{report['source']}: {len(rows)} runs, mean absolute error {errors['before']:.3f} before and "
        f"{errors['after']:.3f} nats per token after adaptation; residuals, exponents, and intervals with more runs"
    )
    save(lambda figure, theme: draw_lab(figure, theme, report, rows), path, (9.6, 7.6), words)


def draw_lab(figure: Any, theme: dict[str, str], report: Mapping[str, Any], rows: pd.DataFrame) -> None:
    """The four panels of `lab_figure`."""
    (scatter, residuals), (exponents, budget) = figure.subplots(2, 2)
    for name, colour, label in (
        ("before", ORANGE, "shipped law, moved by an offset"),
        ("after", theme["main"], "adapted"),
    ):
        scatter.plot(rows["observed"], rows[name], "o", color=colour, ms=4, alpha=0.8, label=label)
        residuals.plot(rows["model size"], rows[name] - rows["observed"], "o", color=colour, ms=4, alpha=0.8)
    held = np.array((report["largest_size_out"] or {}).get("pairs", [])).reshape(-1, 2)
    if len(held):
        scatter.plot(*held.T, "s", color=GREEN, ms=5, mfc="none", label="largest size, from the smaller ones")
    scatter.axline((float(rows["observed"].mean()),) * 2, slope=1, color=theme["ink"], lw=0.8, zorder=0)
    scatter.set(xlabel=f"observed {_LOSS}", ylabel=f"forecast {_LOSS}", title="Your runs, before and after")
    residuals.axhline(0, color=theme["ink"], lw=0.8)
    _scale(residuals, "model size", None, rows["model size"].to_numpy(), None)
    residuals.xaxis.set_minor_formatter("")
    ticks = sorted({round(size, 2) for size in rows["model size"]})
    residuals.set_xticks(ticks[:: max(1, len(ticks) // 6)], [f"{size:g}" for size in ticks[:: max(1, len(ticks) // 6)]])
    residuals.set(ylabel="forecast less observed (nats per token)", title="Residuals by model size")
    _exponents(exponents, theme, report["learned"])
    _more_runs(budget, theme, pd.DataFrame(report["more_runs"]))
    scatter.legend(fontsize=8)
    for axes in (scatter, residuals, exponents, budget):
        axes.grid(True)


def _exponents(axes: Any, theme: dict[str, str], learned: Mapping[str, Mapping[str, Any]]) -> None:
    """The exponents of size and data with their 90 % intervals, beside other labs' own fits."""
    names = ("alpha", "beta", "growth")
    others = json.loads((Path(__file__).parent / "adaptation.json").read_text(encoding="utf-8")).get("labs", {})
    for place, name in enumerate(names):
        values = [own[name] for own in others.values()]
        axes.plot(values, [place - 0.15] * len(values), "|", color=theme["ink"], ms=9, alpha=0.6)
        found = learned[name]
        reach = statistics.NormalDist().inv_cdf(0.95) * found["deviation"]
        axes.errorbar(found["value"], place + 0.1, xerr=reach, fmt="o", color=theme["main"], capsize=3, ms=5)
    axes.set_yticks(range(len(names)), ["alpha (size)", "beta (data)", "growth (data term\nwith size)"])
    axes.set(xlabel="value", ylim=(-0.6, len(names) - 0.4), title="Exponents: yours (90 %), other labs' fits (|)")


def _more_runs(axes: Any, theme: dict[str, str], rows: pd.DataFrame) -> None:
    """Half the interval of a run of ten times the dearest one's FLOPs, over the FLOPs of further runs."""
    reach = statistics.NormalDist().inv_cdf(0.95)
    now = reach * float(rows["deviation_now"].iloc[0])
    axes.axhline(now, color=theme["ink"], lw=0.8, ls=":", label="now")
    for (size, own), colour in zip(rows.groupby("model size"), (theme["main"], GREEN, ORANGE), strict=False):
        axes.plot(own["flops"], now * own["interval_over_now"], "o-", color=colour, ms=4, label=f"runs of {size:g}M")
        for row in own.to_dict("records"):
            axes.annotate(
                f"{row['runs']}", (row["flops"], now * row["interval_over_now"]), (4, 4), textcoords="offset points"
            )
    axes.set(xscale="log", ylim=(0, 1.25 * now), xlabel="FLOPs of 4, 8, 16 further runs", ylabel="± nats per token")
    axes.set_title("Interval at 10 times the dearest run's FLOPs")
    axes.legend(fontsize=8, loc="lower left")
