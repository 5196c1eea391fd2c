"""Charts for pages: SVG that takes the page's text colour and width, with a description for those who do not see it.

The colours are Okabe and Ito's, told apart by every eye. matplotlib is needed (`pip install ncpl[plots]`).
"""

import io
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from html import escape
from typing import Any

import numpy as np
import pandas as pd

BLUE, ORANGE, GREEN, RED = "#0072B2", "#E69F00", "#009E73", "#D55E00"
# Stands for the page's text colour, dark on light or light on dark.
_INK = "#010203"
_RC = {
    "svg.fonttype": "none",
    "svg.hashsalt": "ncpl",
    "font.family": "sans-serif",
    "font.size": 11,
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), _INK),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": _INK,
    "grid.alpha": 0.15,
    "legend.frameon": False,
}
LOSS = "loss (nats per token)"


@contextmanager
def _axes(height: float = 3.1) -> Iterator[Any]:
    """Axes of a figure as wide as a phone held upright shows readably."""
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError:
        raise ValueError("figure: needs matplotlib, install it with: pip install ncpl[plots]") from None
    with mpl.rc_context(_RC):
        yield Figure(figsize=(4.6, height), layout="constrained").subplots()


def _svg(axes: Any, description: str) -> str:
    buffer = io.StringIO()
    axes.figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    drawn = buffer.getvalue()
    drawn = drawn[drawn.index("<svg") :].replace(_INK, "currentColor")
    label = f'role="img" aria-label="{escape(description, quote=True)}"'
    return drawn.replace("<svg", f"<svg {label}", 1)


def band(
    x: "Sequence[float] | pd.Series[Any]",
    table: pd.DataFrame,
    label: str,
    description: str,
    log: bool = True,
    mark: tuple[float, float] | None = None,
    best: tuple[float, float] | None = None,
    seen: tuple[Sequence[float], Sequence[float]] | None = None,
    all_seen: bool = False,
) -> str:
    """Losses along a quantity, with their interval.

    Args:
        x: the quantity's values.
        table: columns `loss`, `lower` and `upper`; a missing interval is not drawn.
        label: the quantity and its unit.
        description: the chart in words.
        log: whether the quantity's axis is logarithmic.
        mark: the asked point.
        best: the lowest point.
        seen: observed points.
        all_seen: whether every observed point has to be visible, not only those after a run's first steps.
    """
    with _axes() as axes:
        axes.plot(x, table["loss"], color=BLUE, lw=1.8, label="forecast", marker="o" if len(x) < 12 else None, ms=4)
        axes.fill_between(x, table["lower"], table["upper"], color=BLUE, alpha=0.18, lw=0, label="interval")
        shown = list(table["loss"])
        if seen is not None:
            axes.scatter(*seen, s=24 if all_seen else 10, color=_INK, alpha=0.6, lw=0, label="observed", zorder=3)
            # The first steps' losses would flatten everything else.
            shown += list(seen[1])[0 if all_seen else len(seen[1]) // 10 :]
        for point, marker, colour, name in ((best, "D", GREEN, "lowest"), (mark, "o", RED, "asked")):
            if point is not None:
                axes.plot(*point, marker, color=colour, ms=8, label=name, zorder=4)
        low = np.nanmin([*shown, *table["lower"]])
        high = np.nanmax(shown if seen is not None or not log else [*shown, *table["upper"]])
        room = 0.08 * (high - low) + 1e-4
        axes.set(xlabel=label, ylabel=LOSS, ylim=(low - room, high + 2 * room))
        if log:
            axes.set_xscale("log")
        axes.legend(fontsize=9, loc="upper right", ncols=2)
        return _svg(axes, description)


def bars(
    names: Sequence[str],
    table: pd.DataFrame,
    column: str,
    label: str,
    description: str,
    zero: bool = False,
) -> str:
    """Points with their intervals, a line each.

    Args:
        names: what each is.
        table: the points, in a column, with their `lower` and `upper`.
        column: which.
        label: the quantity and its unit.
        description: the chart in words.
        zero: whether a line marks 0.
    """
    with _axes(min(12.0, 1.1 + 0.36 * len(names))) as axes:
        rows = np.arange(len(names))[::-1]
        axes.hlines(rows, table["lower"], table["upper"], color=BLUE, lw=3, alpha=0.45)
        axes.plot(table[column], rows, "o", color=BLUE, ms=6)
        if zero:
            axes.axvline(0, color=_INK, lw=1, ls="--")
        axes.set(xlabel=label, ylim=(-0.6, len(names) - 0.4))
        axes.set_yticks(rows, [name if len(name) < 30 else f"{name[:28]}…" for name in names])
        axes.grid(axis="y", visible=False)
        return _svg(axes, description)


def heat(x: Sequence[Any], y: Sequence[Any], losses: np.ndarray, labels: tuple[str, str], description: str) -> str:
    """Losses over two fields, with the lowest marked.

    Args:
        x, y: their values.
        losses: (values of y, values of x).
        labels: of x and of y.
        description: the chart in words.
    """
    with _axes(3.6) as axes:
        # Most of the range is far from the valley, where nobody wants to be: the colours end 0.3 nats above it.
        low = float(np.nanmin(losses))
        high = min(float(np.nanmax(losses)), low + 0.3)
        image = axes.imshow(
            losses, origin="lower", aspect="auto", cmap="cividis_r", vmin=low, vmax=max(high, low + 1e-6)
        )
        row, column = np.unravel_index(int(np.nanargmin(losses)), losses.shape)
        axes.plot(column, row, "D", color=RED, mec="white", ms=9)
        for values, ticks in ((x, axes.set_xticks), (y, axes.set_yticks)):
            at = np.unique(np.linspace(0, len(values) - 1, min(len(values), 6)).round().astype(int))
            ticks(at, [_short(values[i]) for i in at])
        axes.set(xlabel=labels[0], ylabel=labels[1])
        axes.grid(visible=False)
        axes.figure.colorbar(image, ax=axes, label=LOSS)
        return _svg(axes, description)


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float | int) and math.isfinite(value) else str(value)[:12]
