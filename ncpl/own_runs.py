"""A lab's own runs as `Forecaster.adapt` takes them, and the processor and card that come of them."""

import math
import os
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from adapted_ncpl import DEFAULT_OPTIMIZER, AdaptedLaw, AdaptedSource
from calibration_ncpl import DRIFT, LAB_ODDS, Calibration, divergence_odds, envelope, widened
from datasets_scripts.divergence import diverged as which_diverged
from datasets_scripts.divergence import suspects
from fields_ncpl import FIELDS, check_config, field_name, training_order
from laws_ncpl import ConfigurationLaw
from ncpl.adapt import Beliefs, adapt_law, all_of
from ncpl.configs import as_configs
from ncpl.errors import one_line, short
from ncpl.logs.importer import import_runs, sizes_left_out
from ncpl.trust import NO_METHOD, in_words, report
from text_ncpl import warn_user

Run = dict[str, Any]
LOSS_NAMES = ("final_loss", "final loss", "loss")
# Columns that are kept beside the registry's fields.
KEPT = ("name", "schedule")
FINISHED = ("finished", "completed", "success", "ok", "")
# Fields whose values above the range are in another unit.
UNITS_SLIP = ("model size", "data size", "learning rate", "batch size")


def read_runs(runs: Any, source: str, losses: Sequence[str] = ()) -> tuple[list[Run], list[Run]]:
    """Finished runs, checked: the registry's fields and `final_loss` in nats per token. Second, the runs that diverged.

    Other runs without a finite loss, or whose `status` says that they did not finish, are put aside with a warning, and
    so are diverged runs whose configuration is not accepted, and columns that are no field.

    Args:
        runs: a DataFrame, an iterable of mappings, or a file or folder as `import_runs` takes it.
        source: what the runs are called.
        losses: further columns of losses to keep; of a file, names of its evaluation losses.

    Raises:
        ValueError: no finished run, or a finished one that is not accepted; says which.

    >>> read_runs([{"model size": 50, "data size": 1, "final_loss": 3.5}], "mine")
    ([{'source': 'mine', 'model size': 50, 'data size': 1, 'final_loss': 3.5}], [])
    """
    rows = as_configs(_table(runs, losses), "runs")[0]
    found, lost, unusable, unknown = [], [], list[str](), dict[str, None]()
    aside, twice = list[str](), list[str]()
    for i, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise ValueError(f"runs[{i}]: got {short(row)}, expected a mapping of fields to values")
        given = next((row[name] for name in LOSS_NAMES if row.get(name) is not None), None)
        loss, status = _number(given, i, "final_loss"), _status(row.get("status"), i)
        if status != "diverged" and (loss is None or status not in FINISHED):
            (twice if status == "duplicate" else aside).append(_called(row, i))
            continue
        texts = {name: value for name, value in row.items() if isinstance(name, str)}
        fields = {name: value for name, value in texts.items() if field_name(name) and value is not None}
        known = {*filter(field_name, texts), *LOSS_NAMES, *KEPT, *losses, "status", "source"}
        unknown |= dict.fromkeys(short(name) for name in row if name not in texts)
        unknown |= dict.fromkeys(one_line(name, 60) for name in texts if name not in known)
        kept = {name: row[name] for name in KEPT if row.get(name) is not None}
        try:
            run = {"source": source, **kept, **_checked(fields, i, source)}
        except ValueError as error:
            if status != "diverged":
                raise
            unusable.append(str(error))
            continue
        if status == "diverged":
            lost.append(run)
            continue
        more = {name: _number(row.get(name), i, name) for name in losses}
        found.append({**run, "final_loss": loss, **{name: value for name, value in more.items() if value}})
    _say("have no final loss or did not finish and are left out", aside, len(rows))
    _say("repeat the configuration and loss of another and count once", twice, len(rows))
    if lost:
        warn_user(f"{len(lost)} of {len(rows)} runs diverged: only the probability to diverge learns from them")
    if unusable:
        warn_user(f"{len(unusable)} of {len(rows)} runs diverged and are left out, the first for {unusable[0]}"[:300])
    if unknown:
        warn_user(f"columns that are no field are left out: {', '.join(unknown)}"[:300])
    if not found:
        raise ValueError("runs: none has a final_loss (nats per token), expected at least one finished run")
    return found, lost


def _called(row: Mapping[Any, Any], i: int) -> str:
    """A run's name, or its place where it has none."""
    return short(row["name"]) if row.get("name") is not None else f"runs[{i}]"


def _say(what: str, names: Sequence[str], total: int) -> None:
    """Warns of the runs of these names, if there are any."""
    if names:
        warn_user(f"{len(names)} of {total} runs {what}, the first {names[0]}")


def _table(runs: Any, losses: Sequence[str]) -> Any:
    """Runs of a file or folder as a table with its further losses; others as they are."""
    if isinstance(runs, str | os.PathLike):
        path = Path(runs)
        table = import_runs(path)
        others = {name: import_runs(path, eval=name).set_index("name")["final_loss"] for name in losses}
        named = table.assign(**{name: table["name"].map(values) for name, values in others.items()})
        named.attrs = table.attrs
        runs = named
    report = runs.attrs.get("report") if isinstance(runs, pd.DataFrame) and "model size" not in runs else None
    if report and (unsized := sizes_left_out(report)):
        raise ValueError(f"runs: {unsized}, and adapt to what it writes")
    return runs


def _status(value: Any, i: int) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if not isinstance(value, str):
        raise ValueError(f"runs[{i}]: status: got {short(value)}, expected text such as finished")
    return value.lower()


def checked_eval(given: Any) -> dict[str, str]:
    """Names of evaluation sets and the columns of their losses, checked.

    Raises:
        ValueError: no mapping of text to text.

    >>> checked_eval({"c4": "loss on c4"}), checked_eval(None)
    ({'c4': 'loss on c4'}, {})
    """
    if given is None:
        return {}
    if not isinstance(given, Mapping) or not all(isinstance(part, str) and part for part in chain(*given.items())):
        raise ValueError(f"eval: got {short(given)}, expected a mapping of evaluation sets' names to columns")
    return dict(given)


def _checked(fields: Mapping[str, Any], i: int, source: str) -> Run:
    """The fields of run `i`; plain parameters or tokens in the place of millions or billions of them are refused, and
    what no run can have: a number below zero, or zero where the field has none."""
    try:
        checked = check_config({**fields, "source": source}, strict=False)
        for name, field in FIELDS.items():
            if name not in checked or field.kind not in ("number", "count"):
                continue
            if checked[name] < 0 or (checked[name] == 0 < field.low and not field.zero):
                raise ValueError(f"{name}: got {checked[name]:g}, expected {field.accepted}")
            if name in UNITS_SLIP and checked[name] > field.high:
                raise ValueError(f"{name}: got {checked[name]:g}, expected {field.accepted}; check the unit")
    except ValueError as error:
        hint = " (of a log: ncpl import --map names its column)" if "model size: missing" in str(error) else ""
        raise ValueError(f"runs[{i}]: {error}{hint}") from None
    return checked


def _number(value: Any, i: int, name: str) -> float | None:
    """A finite loss, None where there is none."""
    if value is None:
        return None
    try:
        number = float(value)
    except (ArithmeticError, RuntimeError, TypeError, ValueError):
        raise ValueError(f"runs[{i}]: {name}: got {short(value)}, expected a loss in nats per token") from None
    if number <= 0:
        raise ValueError(f"runs[{i}]: {name}: got {number:g}, expected a loss in nats per token, above 0")
    return number if math.isfinite(number) else None


def adapted(
    law: Any,
    calibration: Calibration | None,
    runs: Sequence[Mapping[str, Any]],
    source: str,
    parent: str | None,
    network: Callable[[Sequence[Mapping[str, Any]]], np.ndarray] | None,
    diverged: Sequence[Mapping[str, Any]] = (),
) -> tuple[AdaptedLaw, Calibration | None]:
    """A law and its calibration that know the source from these runs and those of earlier adaptations.

    Args:
        law: a `ConfigurationLaw`, adapted or not.
        calibration: of the checkpoint, or None.
        runs: `read_runs`, the finished ones.
        source: the name by which forecasts ask for it.
        parent: an adapted source, or None.
        network: what it adds to the law's forecasts, in nats: the law is fitted to the rest. None for nothing.
        diverged: `read_runs`, the others.

    Raises:
        ValueError: another law, no runs, or a parent that was not adapted to.
    """
    if not isinstance(law, ConfigurationLaw | AdaptedLaw):
        raise ValueError(f"adapt: the checkpoint's prior is a {type(law).__name__}, expected a configuration-aware law")
    known = law.adapted if isinstance(law, AdaptedLaw) else {}
    if source in law.sources:
        raise ValueError(f"source: {short(source)} is known to this checkpoint already; give your lab another name")
    if not isinstance(parent, str | None) or (parent is not None and parent not in known):
        raise ValueError(f"parent: {short(parent)} was not adapted to, known: {', '.join(known) or 'none'}")
    if not runs:
        raise ValueError(f"runs: none of {short(source)} has a final_loss (nats per token), expected at least one")
    diverged = all_of(known[source].diverged if source in known else (), diverged, source)
    runs = all_of(_still_valid(known[source].runs, runs, source) if source in known else (), runs, source)
    parent = parent or (known[source].parent if source in known else None)
    offsets = 0.0 if network is None else network([training_order({**DEFAULTS, **_conf(run)}) for run in runs])
    new = adapt_law(law, runs, source, parent=parent, offsets=offsets)
    new = new.with_source(source, replace(new.adapted[source], diverged=diverged))
    return new, None if calibration is None else _calibrated(calibration, new, source)


def _still_valid(
    earlier: Sequence[Mapping[str, Any]], runs: Sequence[Mapping[str, Any]], source: str
) -> list[Mapping[str, Any]]:
    """Runs from before without those that have another loss in the new ones; says how many are of before and new.

    A run is told by its fields and name. One of before goes where a new one of these has a loss that none had before.
    """
    before, now = (defaultdict[Any, set[float]](set) for _ in range(2))
    for some, told in ((before, earlier), (now, runs)):
        for run in told:
            some[_identity(run)].add(float(run["final_loss"]))
    new = [run for run in runs if float(run["final_loss"]) not in before[_identity(run)]]
    changed = {_identity(run) for run in new}
    gone = [run for run in earlier if _identity(run) in changed and float(run["final_loss"]) not in now[_identity(run)]]
    again = f" ({len(runs) - len(new)} of before came again)" if len(new) < len(runs) else ""
    warn_user(f"source {short(source)}: {len(earlier)} runs from before, {len(new)} new{again}")
    if gone:
        first = gone[0]
        then, since = float(first["final_loss"]), min(now[_identity(first)])
        name = short(first["name"]) if "name" in first else f"{first['model size']:g}M on {first['data size']:g}B"
        warn_user(
            f"runs: {len(gone)} from before equal new ones but for the loss; the new losses count: the first, {name}, "
            f"had {then:g} and has {since:g}"
        )
    return [run for run in earlier if run not in gone]


def _identity(run: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    """What tells a run from others: its fields and name."""
    kept = {name: value for name, value in run.items() if (name in FIELDS or name in KEPT) and name != "source"}
    numbers = {name: float(value) for name, value in kept.items() if isinstance(value, int | float)}
    return tuple(sorted((name, str(value)) for name, value in (kept | numbers).items()))


def _conf(run: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in run.items() if name in FIELDS}


# What a prompt needs and a run may leave unsaid, where a network reads it.
DEFAULTS = {"optimizer": DEFAULT_OPTIMIZER, "learning rate": 2e-3, "batch size": 256, "seq len": 2048}


def _calibrated(calibrator: Calibration, law: AdaptedLaw, source: str) -> Calibration:
    """The calibration with the source's envelope, and the other labs' quantiles for its intervals."""
    known = law.adapted[source]
    scale = {"known": 1.0, "excess": known.noise_slope, "noise": known.noise_floor, "drift": DRIFT}
    return replace(
        calibrator,
        law=law,
        envelope={**calibrator.envelope, source: envelope(known.read(known.runs))},
        scale={**calibrator.scale, source: scale},
        scores={**calibrator.scores, source: Beliefs.shipped().scores},
        shifts={**calibrator.shifts, source: _divergence_shifts(calibrator, known)},
    )


def _divergence_shifts(calibrator: Calibration, known: AdaptedSource) -> dict[str, list[float]]:
    """Optimizer -> mean and deviation of the lab's shift of the log odds to diverge, after its own runs.

    Each run is a Bernoulli trial; the lab's runs with one optimizer share the shift, which is normal around 0 with the
    deviation `LAB_ODDS` before the first of them.
    """
    runs = [*known.runs, *known.diverged]
    rows = [{"source": "", "conf": run, "final_loss": run.get("final_loss")} for run in runs]
    failed = np.array(which_diverged(rows, suspects(rows)))
    at = calibrator.law.evaluate([{**run, "optimizer": run.get("optimizer") or DEFAULT_OPTIMIZER} for run in runs])
    odds = widened(divergence_odds(calibrator.trees, calibrator.law, at, calibrator.optimizers))
    shift, found = np.linspace(-6 * LAB_ODDS, 6 * LAB_ODDS, 401), {}
    for name in sorted(set(at.optimizers.tolist())):
        own = at.optimizers == name
        against = np.where(failed[own], -1.0, 1.0) * (odds[own] + shift[:, None])
        logs = -np.logaddexp(0.0, against).sum(1) - 0.5 * (shift / LAB_ODDS) ** 2
        weights = np.exp(logs - logs.max()) / np.exp(logs - logs.max()).sum()
        mean = float(weights @ shift)
        found[name] = [mean, math.sqrt(weights @ (shift - mean) ** 2)]
    return found


def write_card(law: AdaptedLaw, folder: Path) -> None:
    """`README.md` of an adapted checkpoint and, where matplotlib is installed, the figure of each source in it."""
    reports = {source: report(law, source) for source in law.adapted}
    figures = {}
    if find_spec("matplotlib") is not None:
        from ncpl import plots

        for i, (source, said) in enumerate(reports.items()):
            figures[source] = f"adaptation-{i + 1}.png"
            plots.lab(said).save(folder / figures[source])
    (folder / "README.md").write_text(card(law, folder.name, reports, figures), encoding="utf-8")


def card(law: AdaptedLaw, name: str, reports: Mapping[str, Mapping[str, Any]], figures: Mapping[str, str]) -> str:
    """The card of an adapted checkpoint: what it learnt from, how far to believe it, and how to use it.

    Args:
        law: the adapted law.
        name: of the checkpoint.
        reports: source -> `ncpl.trust.report`.
        figures: source -> image file beside the card.
    """
    lines = [
        "---",
        "library_name: transformers",
        "pipeline_tag: tabular-regression",
        "tags: [ncpl, scaling-laws, adapted]",
        "---",
        f"# {name}",
        "",
        "A forecaster of pretraining losses (NCPL), adapted to a lab's own runs.",
        "",
    ]
    for source, known in law.adapted.items():
        said = reports[source]
        lines += [f"## Source `{source}`", "", " ".join(in_words(said)), ""]
        if source in figures:
            lines += [f"![Forecasts before and after, residuals, exponents, further runs]({figures[source]})", ""]
        if known.parent:
            lines += [f"Its prior is the source `{known.parent}`.", ""]
        if said["largest_size_out"]:
            out = said["largest_size_out"]
            methods = [key for key in out if key not in NO_METHOD]
            lines += [
                f"Mean absolute error on the largest size ({out['model size']:g} million parameters, {out['runs']} "
                "runs), forecast from the smaller ones:",
                "",
                "| method | nats per token |",
                "|---|---|",
                *(f"| {method} | {out[method]:.4f} |" for method in methods),
                "",
            ]
        lines += ["| coefficient | value | said by |", "|---|---|---|"]
        for coefficient, found in said["learned"].items():
            value = f"{found['value']:.3f} ± {found['deviation']:.3f}"
            lines.append(f"| {coefficient} | {value} | {found['said_by']} |")
        lines += ["", *(f"- {sentence}" for sentence in said["warnings"]), ""]
    lines += [
        "```python",
        "from ncpl import Forecaster",
        "",
        'forecaster = Forecaster.from_pretrained("FOLDER_OR_REPO")',
        "```",
        "",
    ]
    return "\n".join(lines)
