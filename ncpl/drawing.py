"""Pictures in one style: colour-blind safe, light or dark, for files, notebooks and pages; and the panels they share.

A picture is one panel or several; drawing needs matplotlib (`pip install ncpl[plots]`). `ncpl.plots` has the pictures
of what a `Forecaster` gives, `ncpl.figures` those of evaluations and of benchmark scores.
"""

import hashlib
import html
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fields_ncpl import FIELDS
from ncpl.allocations import VALLEY
from ncpl.errors import as_path, one_line, short

# Okabe and Ito's colours, which every eye tells apart and both papers carry.
BLUE, ORANGE, GREEN, SKY, RED = "#0072B2", "#E69F00", "#009E73", "#56B4E9", "#D55E00"
COLOURS = (BLUE, ORANGE, GREEN, "#CC79A7", SKY, RED)
# Paper, ink, and the main colour on that paper. A page's own colours stand in for the last theme's two.
_PAGE_INK, _PAGE_MAIN = "#010203", "#040506"
THEMES = {
    "light": {"paper": "#ffffff", "ink": "#1a1a1a", "main": BLUE},
    "dark": {"paper": "#16181d", "ink": "#e6e6e6", "main": SKY},
    "page": {"paper": "none", "ink": _PAGE_INK, "main": _PAGE_MAIN},
}
SUFFIXES = (".png", ".pdf", ".svg", ".html")
LOSS = "loss (nats per token)"
# Losses a heat map tells apart: what is further above the lowest has one colour.
_SPAN = 0.3
# Of one panel: as wide as a phone held upright shows readably.
WIDTH, HEIGHT = 4.6, 3.2
PAGE_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;margin:1rem auto;max-width:60rem;padding:0 1rem;color:#1a1a1a;"
    "background:#fff;--ncpl-main:#0072B2}figure{margin:1rem 0}svg{max-width:100%;height:auto}"
    "@media(prefers-color-scheme:dark){body{color:#e6e6e6;background:#16181d;--ncpl-main:#56B4E9}}"
)
"""CSS of a page with pictures: light, or dark where the reader's system asks for it."""

Theme = Mapping[str, str]
Panel = Callable[[Any, Theme], None]
"""Draws into matplotlib axes in a theme's colours."""


@dataclass(frozen=True)
class Picture:
    """A picture, which is drawn when it is shown or saved; in a notebook it shows itself.

    Args:
        words: what it shows, for those who cannot see it.
        panels: what is drawn.
        columns: panels beside one another in a file; on a page each has a row of its own.
        height: of a panel, in inches.
        width: of a panel, in inches.
        heights: of the rows, relative to one another; equal if absent.

    >>> Picture("a line", (lambda axes, theme: axes.plot([1, 2], [2, 1]) and None,)).svg()[:9]
    '<svg role'
    """

    words: str
    panels: tuple[Panel, ...] = field(repr=False)
    columns: int = field(default=3, repr=False)
    height: float = field(default=HEIGHT, repr=False)
    width: float = field(default=WIDTH, repr=False)
    heights: tuple[float, ...] | None = field(default=None, repr=False)

    def figure(self, theme: str = "light") -> Any:
        """A matplotlib `Figure` to go on with.

        Args:
            theme: "light" or "dark".
        """
        with _style(theme):
            return self._drawn(theme, min(self.columns, len(self.panels)))

    def save(self, path: str | Path) -> None:
        """Writes a file.

        Args:
            path: its suffix says which kind: `.png`, `.pdf`, `.svg`, or `.html`, one self-contained page that is light
                or dark as the reader's system is.

        Raises:
            ValueError: matplotlib is not installed, the suffix is not known, or the file cannot be written.
        """
        path = as_path(path, "path", "a file to write")
        check_suffix(path)
        kind = path.suffix[1:].lower()
        content = self.page().encode() if kind == "html" else self._bytes("light", kind)
        try:
            path.write_bytes(content)
        except OSError as error:
            raise ValueError(f"{one_line(path, 150)}: cannot be written ({error.strerror})") from None

    def svg(self) -> str:
        """SVG for a page, in the page's text colour and its `--ncpl-main`, one panel below the other."""
        drawn = self._bytes("page", "svg", 1).decode("utf-8")
        drawn = drawn[drawn.index("<svg") :]
        drawn = drawn.replace(_PAGE_INK, "currentColor").replace(_PAGE_MAIN, f"var(--ncpl-main,{BLUE})")
        # Several pictures stand in one page: names of their parts must not meet.
        own = "p" + hashlib.sha256(drawn.encode()).hexdigest()[:8]
        for mark in ('id="', 'href="#', "url(#"):
            drawn = drawn.replace(mark, f"{mark}{own}-")
        return drawn.replace("<svg", f'<svg role="img" aria-label="{html.escape(self.words, quote=True)}"', 1)

    def page(self) -> str:
        """One HTML page with the picture."""
        words = html.escape(self.words)
        return (
            f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{words}</title>'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<style>{PAGE_STYLE}</style></head>\n<body><main><h1>{words}</h1><figure>{self.svg()}</figure></main>"
            "</body></html>\n"
        )

    def _repr_png_(self) -> bytes:
        return self._bytes("light", "png")

    def _bytes(self, theme: str, kind: str, columns: int | None = None) -> bytes:
        with _style(theme):
            figure = self._drawn(theme, columns or min(self.columns, len(self.panels)))
            # Laid out here: for an engine of its own, savefig draws everything a second time.
            figure.get_layout_engine().execute(figure)
            figure.set_layout_engine(None)
            target = io.BytesIO()
            metadata = {"Date": None, "Creator": None} if kind == "svg" else None
            figure.savefig(target, format=kind, metadata=metadata, transparent=theme == "page")
        return target.getvalue()

    def _drawn(self, theme: str, columns: int) -> Any:
        """The figure; the style has to be set."""
        from matplotlib.figure import Figure

        rows = math.ceil(len(self.panels) / columns)
        figure = Figure(figsize=(self.width * columns, self.height * rows), layout="constrained", dpi=180)
        axes = figure.subplots(rows, columns, squeeze=False, height_ratios=self.heights).ravel()
        for own, panel in zip(axes, self.panels, strict=False):
            panel(own, THEMES[theme])
        for own in axes[len(self.panels) :]:
            own.set_visible(False)
        return figure


def _style(theme: str) -> Any:
    """matplotlib's settings of a theme, as a context."""
    try:
        from matplotlib import rc_context
    except ImportError:
        raise ValueError("figure: needs matplotlib, install it with: pip install ncpl[plots]") from None
    ink, paper = THEMES[theme]["ink"], THEMES[theme]["paper"]
    inked = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color", "grid.color")
    return rc_context(
        {
            **dict.fromkeys(inked, ink),
            **dict.fromkeys(("axes.facecolor", "figure.facecolor", "savefig.facecolor"), paper),
            **{"font.size": 11, "font.family": "sans-serif", "legend.fontsize": 9, "legend.frameon": False},
            **{"axes.titlesize": 11, "axes.titleweight": "bold", "axes.titlelocation": "left"},
            **{"axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "axes.axisbelow": True},
            **{"grid.alpha": 0.15, "grid.linewidth": 0.8, "svg.hashsalt": "ncpl"},
            # On a page letters are the page's own, which makes them small and found by search.
            "svg.fonttype": "none" if theme == "page" else "path",
        }
    )


def check_suffix(path: Path) -> None:
    """Refuses a file of a kind that no picture has.

    Raises:
        ValueError: says which kinds there are.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"{one_line(path, 150)}: got suffix {short(path.suffix, 40)}, accepted: {', '.join(SUFFIXES)}")


def label(name: str) -> str:
    """A field's name with its unit, for axes and forms.

    >>> label("batch size"), label("learning rate")
    ('Batch size (sequences)', 'Learning rate')
    """
    if name not in FIELDS:
        return name
    unit = FIELDS[name].unit
    told = name in unit or FIELDS[name].kind == "text"
    return name[0].upper() + name[1:] + ("" if told else f" ({unit})")


def share(probability: float) -> str:
    """A probability as people say it.

    >>> share(0.031), share(0.0001), share(0.9999)
    ('3 %', 'under 1 %', 'over 99 %')
    """
    if 0.01 <= probability <= 0.99:
        return f"{probability * 100:.0f} %"
    return "under 1 %" if probability < 0.01 else "over 99 %"


def shortened(text: str, most: int) -> str:
    """A name of at most so many letters, its middle left out.

    >>> shortened("steplaw-1b.yaml", 20), shortened("a-name-that-is-too-long", 12)
    ('steplaw-1b.yaml', 'a-nam…o-long')
    """
    half = (most - 1) // 2
    return text if len(text) <= most else f"{text[:half]}…{text[half + 1 - most :]}"


def count(number: Any) -> str:
    """A count with a suffix.

    >>> count(2.4e9), count(130_000_000), count(12)
    ('2.4B', '130M', '12')
    """
    for suffix, size in (("T", 1e12), ("B", 1e9), ("M", 1e6)):
        if number >= size:
            return f"{number / size:.3g}{suffix}"
    return f"{number:.3g}"


# ------------------------------------------------------------------------------------------------ panels


def band(
    axes: Any,
    theme: Theme,
    x: Any,
    table: pd.DataFrame,
    name: str,
    *,
    mark: tuple[float, float] | None = None,
    best: tuple[float, float] | None = None,
    seen: tuple[Any, Any] | None = None,
    all_seen: bool = False,
    upper: bool = True,
    log: bool = True,
) -> None:
    """Losses along a quantity, with their interval.

    Args:
        axes, theme: of the panel.
        x: the quantity's values.
        table: columns `loss`, `lower` and `upper`; a missing interval is not drawn.
        name: the quantity and its unit.
        mark: the asked point.
        best: the lowest point.
        seen: observed points.
        all_seen: whether every observed point has to be visible, not only those after a run's first steps.
        upper: whether the interval's upper end has to be visible everywhere.
        log: whether the axis is logarithmic where the values spread.
    """
    x = np.asarray(x, dtype=float)
    axes.plot(
        x, table["loss"], color=theme["main"], lw=1.8, label="forecast", marker="o" if len(x) < 12 else None, ms=4
    )
    shown = list(table["loss"])
    if "lower" in table and table["lower"].notna().any():
        axes.fill_between(x, table["lower"], table["upper"], color=theme["main"], alpha=0.2, lw=0, label="interval")
        shown += [*table["lower"], *(table["upper"] if upper and seen is None else ())]
    if seen is not None:
        axes.scatter(*seen, s=24 if all_seen else 10, color=theme["ink"], alpha=0.6, lw=0, label="observed", zorder=3)
        # The first steps' losses would flatten everything else.
        late = np.asarray(seen[1], dtype=float)[0 if all_seen else len(seen[1]) // 10 :]
        shown += list(late[np.isfinite(late)])
    for point, marker, colour, said in ((best, "D", GREEN, "lowest"), (mark, "o", RED, "asked")):
        if point is not None:
            axes.plot(*point, marker, color=colour, ms=8, label=said, zorder=4)
    low, high = float(np.nanmin(shown)), float(np.nanmax(shown))
    room = 0.08 * (high - low) + 1e-4
    axes.set(xlabel=name, ylabel=LOSS, ylim=(low - room, high + 3 * room))
    if seen is not None:
        mark_off_axis(axes, seen, (x, table["loss"]))
    if log:
        logarithmic(axes, "x", x)
    axes.legend(loc="upper right", ncols=2)


def mark_off_axis(axes: Any, seen: tuple[Any, Any], curve: tuple[Any, Any]) -> None:
    """Marks observed losses that the loss axis leaves out where it shows the curve: a run that blows up, and NaN.

    Args:
        axes: with the limits set.
        seen: places and losses.
        curve: the same of the forecast.
    """
    x, losses = (np.asarray(values, dtype=float) for values in seen)
    top = axes.get_ylim()[1]
    # Before the curve begins every run's losses are high.
    shown = np.interp(x, *curve, left=np.inf) <= top
    kinds = (
        (shown & np.isfinite(losses) & (losses > top), "^", "above the axis"),
        (~np.isfinite(losses), "x", "not a number"),
    )
    for gone, marker, said in kinds:
        if gone.any():
            axes.plot(x[gone], np.full(gone.sum(), top), marker, color=RED, ms=6, label=said, clip_on=False, zorder=4)


def ranges(
    axes: Any, theme: Theme, names: Sequence[str], table: pd.DataFrame, column: str, name: str, zero: bool = False
) -> None:
    """Points with their intervals, a line each.

    Args:
        axes, theme: of the panel.
        names: what each is.
        table: the points, in a column, with their `lower` and `upper`.
        column: which.
        name: the quantity and its unit.
        zero: whether a line marks 0.
    """
    rows = np.arange(len(names))[::-1]
    axes.hlines(rows, table["lower"], table["upper"], color=theme["main"], lw=3, alpha=0.45)
    axes.plot(table[column], rows, "o", color=theme["main"], ms=6)
    if zero:
        axes.axvline(0, color=theme["ink"], lw=1, ls="--")
    axes.set(xlabel=name, ylim=(-0.6, len(names) - 0.4))
    axes.set_yticks(rows, [shortened(text, 30) for text in names])
    axes.grid(axis="y", visible=False)


def heat_map(axes: Any, theme: Theme, table: pd.DataFrame, first: str, second: str) -> None:
    """Losses over two numeric fields, their valley, and where runs will rather diverge."""
    from matplotlib.colors import ListedColormap

    grid = table.pivot_table(index=second, columns=first, values="loss", observed=True)
    x, y, losses = grid.columns.to_numpy(float), grid.index.to_numpy(float), grid.to_numpy()
    lowest = float(np.nanmin(losses))
    top = min(float(np.nanmax(losses)), lowest + _SPAN)
    # Edges halfway between the values on the axis' own scale: cells of one width also where it is logarithmic.
    edges = [_edges(values) for values in (x, y)]
    mesh = axes.pcolormesh(*edges, losses, cmap="cividis_r", vmin=lowest, vmax=max(top, lowest + 1e-3))
    axes.figure.colorbar(mesh, ax=axes, label=LOSS, extend="max" if np.nanmax(losses) > top else "neither")
    axes.grid(visible=False)
    said = []
    if min(losses.shape) > 1:
        axes.contour(x, y, losses, [lowest + VALLEY, lowest + 4 * VALLEY], colors="black", linestyles=["-", "--"])
        said.append(f"lines: within {VALLEY:g} and {4 * VALLEY:g} nats")
    diverging = table.pivot_table(index=second, columns=first, values="divergence", observed=True)
    if diverging.shape == losses.shape and float(np.nanmax(diverging)) > 0.5:
        likely = np.ma.masked_less_equal(diverging.to_numpy(), 0.5)
        axes.pcolor(*edges, likely, hatch="////", cmap=ListedColormap(["none"]), edgecolors="black", linewidth=0)
        said.append("hatched: will rather diverge")
    best = table.iloc[int(table["loss"].to_numpy().argmin())]
    axes.plot(best[first], best[second], "D", color=RED, mec="white", ms=9, zorder=3)
    for name, values, side in ((first, x, "x"), (second, y, "y")):
        getattr(axes, f"set_{side}label")(label(name))
        logarithmic(axes, side, values)
    axes.set_title("\n".join(said), fontsize=9, fontweight="normal")


def _edges(values: np.ndarray) -> np.ndarray:
    if len(values) == 1:
        return values[0] * np.array([0.9, 1.1]) if values[0] > 0 else values[0] + np.array([-0.5, 0.5])
    on = np.log(values) if _spread(values) else values
    middle = (on[1:] + on[:-1]) / 2
    edges = np.concatenate([[2 * on[0] - middle[0]], middle, [2 * on[-1] - middle[-1]]])
    return np.exp(edges) if _spread(values) else edges


def _spread(values: np.ndarray) -> bool:
    """Whether values belong on a logarithmic axis: all above 0 and over a factor of three."""
    return bool(values.min() > 0 and values.max() / values.min() >= 3)


def logarithmic(axes: Any, side: str, values: np.ndarray) -> None:
    """A logarithmic axis with at least three readable ticks, where the values spread."""
    if not _spread(values):
        return
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    getattr(axes, f"set_{side}scale")("log")
    own = getattr(axes, f"{side}axis")
    decades = math.log10(values.max() / values.min())
    own.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if decades < 1.7 else (1.0, 3.0) if decades < 3 else (1.0,)))
    # Ticks without a label would be a third of the time that a picture takes.
    own.set_minor_locator(NullLocator())
    own.set_major_formatter(FuncFormatter(lambda value, _: _tick(value)))


def _tick(value: float) -> str:
    """A tick of an axis.

    >>> [_tick(value) for value in (0.002, 5e-05, 300.0, 2e9, 1e21)]
    ['0.002', '5e-5', '300', '2B', '1e21']
    """
    if 1e6 <= value < 1e15:
        return count(value)
    return f"{value:.3g}".replace("e-0", "e-").replace("e+", "e")
