"""Writes `RESULTS.md` from the results of the speed benchmarks.

python benchmarks/tables.py
"""

import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
BENCHMARKS = ("training_throughput", "sweep", "startup")


def number(value: Any) -> str:
    """A figure for a table, a spread as its median with its range.

    >>> number({"median": 12.345, "min": 11, "max": 13.1}), number(3.2e-7), number(1234.5), number(None)
    ('12.3 (11.0 to 13.1)', '3.2e-07', '1,234', '')
    """
    if isinstance(value, dict):
        return f"{number(value['median'])} ({number(value['min'])} to {number(value['max'])})"
    if not isinstance(value, int | float):
        return value or ""
    if value == 0:
        return "0"
    if abs(value) < 1e-3:
        return f"{value:.2g}"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{float(f'{value:.3g}'):.{1 if abs(value) >= 10 else 2}f}"


def table(name: str) -> str:
    """One benchmark's rows as Markdown, with what they were measured on."""
    result = json.loads((FOLDER / "results" / f"{name}.json").read_text(encoding="utf-8"))
    hardware, versions = result["hardware"], result["versions"]
    lines = [
        f"## {name.replace('_', ' ').capitalize()}",
        "",
        "| figure | plain | ours | ours over plain | target |",
        "|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        cells = [row["figure"], *(number(row.get(key)) for key in ("plain", "ours", "ratio")), row.get("target", "")]
        lines.append("| " + " | ".join(cells) + " |")
    about = [result.get("model"), result.get("data")]
    machine = f"{hardware['cpu']}, {hardware['threads']} thread{'s' if hardware['threads'] > 1 else ''}"
    about += [
        ", ".join([machine, *hardware["gpus"]]),
        f"torch {versions['torch']}",
        f"transformers {versions['transformers']}",
    ]
    about += [result["date"], f"commit {str(result['commit'])[:12]}{' with changes' if result['dirty'] else ''}"]
    return "\n".join([*lines, "", "; ".join(text for text in about if text) + ".", ""])


def main() -> None:
    head = "# Speed\n\nWritten by `python benchmarks/tables.py` from `results/`; medians, with the range in brackets.\n"
    found = [name for name in BENCHMARKS if (FOLDER / "results" / f"{name}.json").exists()]
    (FOLDER / "RESULTS.md").write_text("\n".join([head, *map(table, found)]), encoding="utf-8")


if __name__ == "__main__":
    main()
