"""A part of the app's page: the number, what concerns it, the chart, and behind them the table and the command."""

import base64
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

import pandas as pd

from fields_ncpl import FIELDS
from ncpl.drawing import BLUE, Picture
from ncpl.errors import one_line

EXPLAINED = {
    "loss": "forecast of the final loss, along a curve of the loss at that step, in nats per token on the source's own "
    "evaluation set; losses of two sources do not compare",
    "lower": "lower end of the forecast's interval",
    "upper": "upper end of the forecast's interval",
    "divergence": "probability that the run diverges: ends without a loss, or more than 0.3 nats above the best run of "
    "its size and data size",
    "extrapolation": "distance from the training runs, 0 among them; 1 is a factor of 2.7 in one field",
    "step": "training step",
    "tokens": "tokens; along a curve billions, those seen so far",
    "difference": "loss of the first less that of the second, nats per token; below 0 the first is better",
    "p_better": "probability that the first ends lower than the second",
    "score": "median forecast of the benchmark's score, a share of right answers unless its name says otherwise",
    "above chance": "probability that the score has left chance",
    "final_loss": "the run's own final loss, nats per token",
    "flops": "6 x parameters x tokens",
    "method": "what is fitted to the smaller sizes",
    "error": "mean absolute error on the largest size, nats per token",
    "learned value": "the coefficient's value in the adapted law",
    "deviation": "its standard deviation",
    "said by": "whose runs say it",
    "params": "parameters, without the embeddings unless `counts` says all",
    "counts": "which parameters the law counts",
    "excess": "loss above the plan's, nats per token",
    "configuration": "which configuration of the file",
}
"""Column -> what it means, beside the registry's fields."""


@dataclass
class Page:
    """What a view has found; `html` writes it.

    Args:
        headline: the number, as HTML.
        chart: picture.
        table: what the chart shows, and more.
        command: words of the command that gives the same.
        notes: what concerns the number.
        name: of the downloaded files.
        inputs: what is to stand in the page's inputs from now on.
        links: label -> further file to download, its name and content.
        more: title -> further table.
        state: what the session keeps, an adapted `Forecaster`.
    """

    headline: str
    chart: Picture
    table: pd.DataFrame
    command: Sequence[str]
    notes: list[str] = field(default_factory=list)
    name: str = "forecast"
    inputs: Mapping[str, str] = field(default_factory=dict)
    links: Mapping[str, tuple[str, bytes]] = field(default_factory=dict)
    more: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    state: Any = None

    def html(self) -> str:
        """The number first, what concerns it, the chart, and behind them the table and the command."""
        chart = self.chart.svg()
        notes = "".join(f"<li>{escape(one_line(note, 1000))}</li>" for note in dict.fromkeys(self.notes))
        files = {
            "Table (CSV)": (f"{self.name}.csv", _csv(self.table)),
            "Figure (SVG)": (f"{self.name}.svg", _standing_alone(chart)),
            **self.links,
        }
        links = " ".join(_link(label, *file) for label, file in files.items() if file[1])
        return (
            f'<section class="ncpl-answer"><p class="ncpl-headline" role="status">{self.headline}</p>'
            + (f'<ul class="ncpl-notes" aria-label="To be known of this forecast">{notes}</ul>' if notes else "")
            + f"<figure>{chart}</figure><p>{links}</p>"
            + "".join(
                f"<details><summary>{escape(title)}</summary>{table_html(table)}</details>"
                for title, table in {"Table": self.table, **self.more}.items()
            )
            + "<details><summary>The same from the command line</summary>"
            + f'<pre tabindex="0"><code>{escape(shlex.join(self.command))}</code></pre></details></section>'
        )


def _standing_alone(svg: str) -> bytes:
    """A page's SVG as a file, which has no page to take its colours from."""
    return svg.replace("currentColor", "#222222").replace(f"var(--ncpl-main,{BLUE})", BLUE).encode()


def error_html(error: ValueError) -> str:
    """What is wrong, which screen readers say at once."""
    return f'<p class="ncpl-error" role="alert">{escape(one_line(error))}</p>'


def explanation(column: str) -> str:
    """What a column of a table means; empty where nothing is to be said.

    >>> explanation("model size")
    'million non-embedding parameters'
    """
    return EXPLAINED.get(column) or (FIELDS[column].unit if column in FIELDS else "")


def shown(value: Any) -> str:
    """A cell of a table; empty where there is no number.

    >>> shown(0.12345), shown(float("nan")), shown("adamw")
    ('0.1235', '', 'adamw')
    """
    if value is None or value != value:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def table_html(table: pd.DataFrame) -> str:
    head = "".join(
        f'<th scope="col" title="{escape(explanation(str(name)), quote=True)}">{escape(str(name))}</th>'
        for name in table.columns
    )
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(one_line(shown(value), 200))}</td>" for value in row) + "</tr>"
        for row in table.head(500).itertuples(index=False, name=None)
    )
    said = "".join(
        f"<dt>{escape(str(name))}</dt><dd>{escape(explanation(str(name)))}</dd>"
        for name in table.columns
        if explanation(str(name))
    )
    rest = f"<p>and {len(table) - 500:,} further rows, which the CSV holds</p>" if len(table) > 500 else ""
    return (
        f'<div class="ncpl-table" tabindex="0" role="region" aria-label="Table"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>{rest}" + (f"<dl>{said}</dl>" if said else "")
    )


def _csv(table: pd.DataFrame) -> bytes:
    from ncpl.logs.importer import no_formula

    safe = table.apply(lambda column: column if pd.api.types.is_numeric_dtype(column) else column.map(no_formula))
    return safe.to_csv(index=False).encode()


def _link(label: str, name: str, data: bytes) -> str:
    kind = {"csv": "text/csv", "svg": "image/svg+xml", "zip": "application/zip"}.get(
        name.rpartition(".")[2], "text/plain"
    )
    encoded = base64.b64encode(data).decode()
    return f'<a class="ncpl-link" download="{escape(name, quote=True)}" href="data:{kind};base64,{encoded}">{label}</a>'
