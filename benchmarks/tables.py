"""Writes `RESULTS.md` from the results of the speed benchmarks, and the generated tables of README and docs.

python benchmarks/tables.py
"""

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

FOLDER = Path(__file__).parent
# As a script, this file's folder stands first on the path, not the repository.
sys.path.insert(0, str(FOLDER.parent))

from benchmarks.definitions import coefficients_table, curve_coefficients_table, scales_table  # noqa: E402
from calibration_ncpl import DRIFT  # noqa: E402

CHECKPOINT = FOLDER.parent / "ncpl" / "checkpoints" / "ncpl-mini"
BENCHMARKS = ("training_throughput", "sweep", "startup", "serving", "callback")


def number(value: Any) -> str:
    """A figure for a table, a spread as its median with its range.

    >>> number({"median": 12.345, "min": 11, "max": 13.1}), number(3.2e-7), number(0.00412), number(None)
    ('12.3 (11.0 to 13.1)', '3.2e-07', '0.0041', '')
    """
    if isinstance(value, dict):
        return f"{number(value['median'])} ({number(value['min'])} to {number(value['max'])})"
    if not isinstance(value, int | float):
        return value or ""
    if value == 0:
        return "0"
    if abs(value) < 0.1:
        return f"{value:.2g}"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{float(f'{value:.3g}'):.{1 if abs(value) >= 10 else 2}f}"


def table(name: str) -> str:
    """One benchmark's rows as Markdown, with what they were measured on."""
    result = read(name)
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


def read(name: str) -> Any:
    """A result file of `results/`."""
    return json.loads((FOLDER / "results" / f"{name}.json").read_text(encoding="utf-8"))


def provenance_note(result: Mapping[str, Any]) -> str:
    """What is said below a table of figures that no commit gives: measured with changes, or not recorded.

    >>> provenance_note({"commit": "9f33cb69672bfbca", "dirty": True})
    'Measured with changes that were not committed (9f33cb69672b).'
    >>> provenance_note({"kills": {"commit": None, "dirty": None}, "parity": {"commit": "9f33cb", "dirty": False}})
    'Not recorded whether all changes were committed (kills).'
    """
    parts = {"": result} if "commit" in result else {name: part for name, part in result.items() if "commit" in part}
    said = []
    for what, state in (
        ("Measured with changes that were not committed", True),
        ("Not recorded whether all changes were committed", None),
    ):
        if of := [name or str(part["commit"])[:12] for name, part in parts.items() if part.get("dirty") is state]:
            said.append(f"{what} ({', '.join(of)}).".replace("_", " "))
    return " ".join(said)


def adapters_table() -> str:
    """Ways to adapt a network side by side."""
    result = read("adapters")
    lines = ["| adapted by | trained parameters | weights, MB | in_val MAE | ood_val MAE |", "|---" * 5 + "|"]
    for way, m in result["ways"].items():
        errors = f"{m['in_val_mae']:.4f} | {m['ood_val_mae']:.4f}"
        lines.append(f"| {way} | {m['trained_parameters']:,} | {m['weights_mb']:.2f} | {errors} |")
    prior = result["prior"]
    lines.append(f"| not adapted (prior alone) | 0 | 0 | {prior['in_val']:.4f} | {prior['ood_val']:.4f} |")
    return "\n".join(lines)


CELLS = tuple(f"{source} {split}" for source in ("steplaw", "marin", "steplaw_moe") for split in ("in_val", "ood_val"))
SHOWN = {
    "NCPL-1.7B, published": "NCPL-1.7B, as published",
    "Chinchilla, published with NCPL": "Chinchilla, as published with it",
    "Kaplan, refitted": "Kaplan, refitted",
    "Chinchilla, refitted": "Chinchilla, refitted",
    "gradient-boosted trees": "gradient-boosted trees",
    "gaussian process": "Gaussian process",
}
"""Method of `results/accuracy.json` -> its name in the README."""


def accuracy_table() -> str:
    """Error of the final loss by method and cell, then what the shipped model's intervals hold."""
    result = read("accuracy")
    lines = [f"| MAE, nats per token | {' | '.join(CELLS)} |", "|---" * (len(CELLS) + 1) + "|"]
    for name, shown in SHOWN.items():
        if name in result["methods"]:
            figures = [result["methods"][name].get(cell) for cell in CELLS]
            cells = ["" if figure is None else _with_spread(figure) for figure in figures]
            lines.append(f"| {shown} | {' | '.join(cells)} |")
    evaluation = json.loads((CHECKPOINT / "evaluation.json").read_text(encoding="utf-8"))["cells"]
    shipped = {f"{cell['source']} {cell['split']}": cell for cell in evaluation}
    forms = {
        "**`ncpl-mini`, shipped**": ("mae", ".4f"),
        "its bias": ("bias", "+.4f"),
        "its Spearman": ("spearman", ".4f"),
    }
    for label, (metric, form) in forms.items():
        cells = [format(shipped[cell]["errors"]["model"][metric], form) for cell in CELLS]
        lines.append(f"| {label} | {' | '.join(cells)} |")
    lines.append(f"| in its 90 % interval | {' | '.join(format(shipped[c]['coverage'], '.1%') for c in CELLS)} |")
    return "\n".join(lines)


def _with_spread(figure: dict[str, float]) -> str:
    return f"{figure['mae']:.4f}" + (f" ± {figure['mae_sd']:.4f}" if "mae_sd" in figure else "")


def choice_table() -> str:
    """Mean regret of the run that is chosen among the logged ones, by who chooses."""
    result = read("choice")
    found = {
        f"{source} {split}": own for source in ("steplaw", "marin") for split, own in result[source]["regret"].items()
    }
    shown = {
        "ours": "**lowest forecast**",
        "ours, loss to expect": "lowest loss to expect",
        "NCPL-1.7B, published": "NCPL-1.7B's lowest forecast",
        "Step Law": "Step Law",
    }
    shown |= {name: name for name in ("nearest cell's best", "middle of the logged range")}
    lines = [f"| loss over the best run's, chosen by | {' | '.join(found)} |", "|---" * (len(found) + 1) + "|"]
    for rule, name in shown.items():
        values = [f"{own[rule]:.4f}" if rule in own else "" for own in found.values()]
        lines.append(f"| {name} | {' | '.join(values)} |")
    return "\n".join([*lines, f"| cells | {' | '.join(str(figures['cells']) for figures in found.values())} |"])


def scores_table() -> str:
    """Error of benchmark scores of held-out families, by what is known of the model."""
    result = read("nsp")
    protocols = {
        "size": "size and tokens",
        "sibling": "and a smaller sibling's scores",
        "others": "and three of its own",
    }
    lines = [f"| MAE of accuracy, known: | {' | '.join(protocols.values())} |", "|---" * 4 + "|"]
    for name, figures in result["baselines"].items():
        lines.append(f"| {name} | {' | '.join(f'{figures[p]:.4f}' if p in figures else '' for p in protocols)} |")
    own = [f"{result['nsp'][p]['mae']:.4f}" for p in protocols]
    chosen = f"{result['nsp']['others']['chosen_in_training']['mae']:.4f}"
    lines.append(f"| **`nsp-base`** | {' | '.join(own)} |")
    lines.append(f"| - the three that inform most, chosen in training | | | {chosen} |")
    coverage = [f"{result['nsp']['coverage_90'][p]:.1%}" for p in protocols]
    return "\n".join([*lines, f"| in its 90 % interval | {' | '.join(coverage)} |"])


def coverage_table() -> str:
    """What the shipped forecaster's 90 % intervals hold of held-out runs, and how wide they are."""
    report = json.loads((CHECKPOINT / "evaluation.json").read_text(encoding="utf-8"))
    lines = ["| runs | count | mean absolute error | bias | in the 90 % interval | mean width |", "|---" * 6 + "|"]
    for cell in report["cells"]:
        errors = cell["errors"]["model"]
        figures = f"{errors['mae']:.4f} | {errors['bias']:+.4f} | {cell['coverage']:.1%} | {cell['width']:.4f}"
        lines.append(f"| {cell['source']} {cell['split']} | {cell['runs']} | {figures} |")
    return "\n".join(lines)


def curves_table() -> str:
    """Errors of forecast loss curves, before a run and from its first part."""
    result = read("curves")
    lines = ["| figure | plain | ours | target |", "|---" * 4 + "|"]
    for row in result["rows"]:
        target = row.get("target", "")
        lines.append(f"| {row['figure']} | {number(row.get('plain'))} | {number(row['ours'])} | {target} |")
    return "\n".join(lines)


def adaptation_table() -> str:
    """The adapted law's error over that of what people would use instead, over the same cells."""
    result = json.loads((FOLDER / "results" / "adaptation.json").read_text(encoding="utf-8"))
    own = {
        "chinchilla": "Chinchilla's form, Huber loss, bounded, many starts",
        "gaussian process": "Gaussian process",
        "offset": "the shipped law with an offset",
    }
    lines = ["| instead of adapting | cells | adapted over it, geometric mean | adapted better in | its median error |"]
    lines.append("|---" * 5 + "|")
    for name, shown in own.items():
        pairs = [(cell["mae"]["adapted"], cell["mae"][name]) for cell in result["cells"]]
        share = sum(mine < theirs for mine, theirs in pairs) / len(pairs)
        over, middle = result["summary"]["geometric_mean_over"][name], median(theirs for _, theirs in pairs)
        lines.append(f"| {shown} | {len(pairs)} | {over:.3f} | {share:.1%} | {middle:.4f} |")
    packages = result.get("packages", {}).get("packages", {})
    for name, shown in {"chinchilla": "`chinchilla`", "simple_scaling_laws": "`simple-scaling-laws`"}.items():
        found = packages.get(name, {})
        if "cells" not in found:
            lines.append(f"| package {shown} | | {found.get('measured', 'not measured')} | | |")
            continue
        figures = f"{found['adapted_over']:.3f} | {found['adapted_better']:.1%} | {found['median_error']:.4f}"
        lines.append(f"| package {shown}, one draw | {found['cells']} | {figures} |")
    return "\n".join(lines)


def tools_table() -> str:
    """What planners answer to the three questions of docs/other-tools.md."""
    found = read("tools")

    def cell(answer: dict[str, float] | None) -> str:
        if answer is None:
            return "no answer"
        if "params" not in answer:
            return f"learning rate {answer['learning rate']:.2g}, batch {answer['batch size']:.0f} for that size"
        text = f"{answer['params'] / 1e9:.3g}B parameters, {answer['tokens'] / 1e9:.3g}B tokens"
        if "loss" in answer:
            text += f" ({answer['params_low'] / 1e9:.3g}B to {answer['params_high'] / 1e9:.3g}B are as good), "
            text += f"loss {answer['loss']:.3f} ({answer['lower']:.3f} to {answer['upper']:.3f}), "
            text += f"lr {answer['learning rate']:.2g}, batch {answer['batch size']:.0f}, {answer['cost_usd']:,.0f} USD"
        elif "flops" in answer:
            text += f", {answer['flops']:.2g} FLOPs"
        return text

    rows = {
        "NCPL": found["ncpl"],
        "`chinchilla` 0.2.0, run": found.get("chinchilla", {}),
        "calculators with Besiroglu's constants, computed": found["formula"]["besiroglu"],
        "calculators with Hoffmann's constants, computed": found["formula"]["hoffmann"],
        "Kaplan's formula, computed": found["formula"]["kaplan"],
        "Step Law's formula, computed": found["steplaw"],
    }
    lines = ["| | 1 | 2 | 3 |", "|---|---|---|---|"]
    lines += [
        "| " + " | ".join([name, *(cell(answers.get(q)) for q in ("q1", "q2", "q3"))]) + " |"
        for name, answers in rows.items()
    ]
    return "\n".join(lines)


def drift_table() -> str:
    """Coverage of the 90 % intervals of adapted laboratories by how far beyond their runs, at several drifts."""
    result = read("coverage")
    by_drift, fitted = result["adapted labs, by drift"], result["drift of all labs"]
    of_others = result["drift of the other laboratories"].values()
    rows = {
        "none": by_drift["0"],
        f"{fitted:.3f}, fitted to all laboratories": by_drift[f"{fitted:g}"],
        f"**{DRIFT:.3f}**, kept": by_drift[f"{DRIFT:g}"],
        "0.040": by_drift["0.04"],
        f"**each laboratory by the others' drift** ({min(of_others):.3f} to {max(of_others):.3f})": result[
            "adapted labs, each by the others' drift"
        ],
    }
    distances = list(by_drift["0"])
    lines = [
        f"| drift, nats a log unit; cells, mean over five laboratories | {' | '.join(distances)} | half width at 10x |"
    ]
    lines.append("|---" * (len(distances) + 2) + "|")
    for name, found in rows.items():
        cells = [f"{found[x]['cells']:.3f}, {found[x]['laboratories']:.3f}" for x in distances]
        lines.append(f"| {name} | {' | '.join(cells)} | {found['10x']['half_width']:.3f} |")
    return "\n".join(lines)


def reliability_table() -> str:
    """What was tried to break, how often, and how often it broke."""
    result = read("reliability")
    kills, parity, doors = result["training_kills"], result["batch_parity"], result["doors"]
    ways = kills["one_process"], kills["two_processes"]
    clients = result["serving"]["clients"]
    loads = [clients[name] for name in ("paced", "busy", "beside")]
    broken = doors["tracebacks"] + doors["hangs"] + doors["bad_messages"]
    worst = max(parity["differences"].values())
    rows = [
        (
            "trainings killed at random moments and resumed",
            sum(way["kills"] for way in ways),
            "lost or not bitwise equal",
        ),
        (
            "ways to split one batch (accumulation, processes, packing, FSDP2)",
            len(parity["differences"]),
            "beyond 1e-6",
        ),
        ("inputs at the API, command line, app, server and readers", doors["cases"], "tracebacks, hangs, bad messages"),
        ("faults of the Hub, links, tokens, downloads", result["hub"]["cases"], "failed"),
        ("bad requests, limits and misbehaving clients", result["serving"]["cases"], "failed"),
        ("requests of 100 clients", sum(load["requests"] for load in loads), "errors and resets"),
    ]
    wrong = [
        f"{sum(way['lost'] for way in ways)}",
        f"{len(parity['beyond'])} (largest difference of a weight {worst:.1e})",
        f"{broken}",
        f"{result['hub']['failed']}",
        f"{result['serving']['failed']}",
        f"{sum(load['errors_and_resets'] for load in loads)}",
    ]
    lines = ["| tried | times | went wrong |", "|---|---|---|"]
    lines += [
        f"| {tried} | {count:,} | {what}: {found} |" for (tried, count, what), found in zip(rows, wrong, strict=True)
    ]
    return "\n".join(lines)


def fill(text: str, name: str, generated: str) -> str:
    """A text with what stands between a generated part's marks replaced.

    >>> fill("<!-- generated:x -->old<!-- /generated:x -->", "x", "new")
    '<!-- generated:x -->\\nnew\\n<!-- /generated:x -->'
    """
    start, end = f"<!-- generated:{name} -->", f"<!-- /generated:{name} -->"
    head, rest = text.split(start)
    return f"{head}{start}\n{generated}\n{end}{rest.split(end)[1]}"


TABLES: dict[str, Callable[[], str]] = {
    "adaptation": adaptation_table,
    "accuracy": accuracy_table,
    "choice": choice_table,
    "scores": scores_table,
    "coverage": coverage_table,
    "curves": curves_table,
    "reliability": reliability_table,
    "coefficients": coefficients_table,
    "scales": scales_table,
    "curve coefficients": curve_coefficients_table,
    "tools": tools_table,
    "adapters": adapters_table,
    "drift": drift_table,
}
"""Name of a page's generated part -> what writes it."""
MEASURED = {"scores": "nsp", "drift": "coverage"} | {
    name: name for name in ("accuracy", "choice", "curves", "reliability", "tools", "adapters")
}
"""Name of a generated part -> the result file whose provenance is said below it where no commit gives its figures."""


def generated(name: str) -> str:
    """A generated part: its table and, where no commit gives the figures, a sentence that says so."""
    note = provenance_note(read(MEASURED[name])) if name in MEASURED else ""
    return TABLES[name]() + (f"\n\n{note}" if note else "")


def speed_page() -> str:
    """`RESULTS.md`."""
    head = "# Speed\n\nWritten by `python benchmarks/tables.py` from `results/`; medians, with the range in brackets.\n"
    found = [name for name in BENCHMARKS if (FOLDER / "results" / f"{name}.json").exists()]
    return "\n".join([head, *map(table, found)])


def pages() -> dict[Path, str]:
    """Every page with generated parts, as it should be."""
    made = {}
    for page in [FOLDER.parent / "README.md", *sorted((FOLDER.parent / "docs").rglob("*.md"))]:
        text = whole = page.read_text(encoding="utf-8")
        for name in TABLES:
            if f"<!-- generated:{name} -->" in text:
                whole = fill(whole, name, generated(name))
        if "<!-- generated:" in text:
            made[page] = whole
    return made


def main() -> None:
    for page, text in (pages() | {FOLDER / "RESULTS.md": speed_page()}).items():
        page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
