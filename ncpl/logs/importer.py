"""Anyone's run logs as one table of the registry's fields: `import_runs`."""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from datasets_scripts.divergence import DIVERGED_NATS, diverged, suspects
from fields_ncpl import FIELDS
from ncpl.errors import as_path, one_line, short
from ncpl.files import write_text
from ncpl.logs.derive import contradiction, number_of
from ncpl.logs.frameworks import plain_name
from ncpl.logs.points import Logged, is_loss
from ncpl.logs.readers import join_configs, read_runs
from ncpl.logs.translate import Reading, Translation, describe, read_names, to_forecast, translate, translate_together

STATUSES = {
    "finished": "a final loss to learn from",
    "unfinished": "ended before its horizon, or still running",
    "crashed": "crashed, failed or was killed",
    "diverged": f"ended in NaN, or more than {DIVERGED_NATS} nats above the best run of its size and data",
    "duplicate": "the same configuration and loss as a run before it",
    "no loss": "no final loss was logged",
}
"""Status -> what it means; only finished runs are to learn from, the others are kept apart."""

WORST_NATS = 12.0
"""Guessing one of 160,000 tokens: above it no loss is in nats per token."""

FINISHED_SHARE = 0.98
"""Share of its horizon that a finished run has reached; the last step is often logged one interval early."""

_STATES = {
    "finished": "finished", "completed": "finished", "complete": "finished", "success": "finished", "done": "finished",
    "crashed": "crashed", "failed": "crashed", "killed": "crashed", "preempted": "crashed", "preempting": "crashed",
    "error": "crashed", "aborted": "crashed", "timeout": "crashed", "cancelled": "crashed", "oom": "crashed",
    "running": "unfinished", "pending": "unfinished", "scheduled": "unfinished", "unfinished": "unfinished",
    "diverged": "diverged", "nan": "diverged", "duplicate": "duplicate", "no loss": "no loss",
}  # fmt: skip


def import_runs(path: str | Path, map: Mapping[str, str] | None = None, eval: str | None = None) -> pd.DataFrame:
    """Runs of any lab as a table: configurations, run tables, histories and folders of many frameworks.

    Args:
        path: a file (CSV, TSV, JSON, JSON lines, YAML, TOML, Parquet, a trackio database), a folder, or `-`.
        map: their name -> field, `name` or `final_loss`, where names are not recognised.
        eval: which of several evaluation losses is the final loss: a part of its name.

    Returns:
        A row a run: `name`, the registry's fields in their units, `final_loss` in nats per token and `status`
        (`STATUSES`).
        `.attrs["report"]` holds the mapping, what was derived and how, what was left out and why, what is missing and
        how many runs have which status; `.attrs["curves"]` the thinned loss curves, name -> [(step, loss), ...].

    Raises:
        ValueError: the path cannot be read, holds no runs, or `map` or `eval` names what is not there.

    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp(), "runs.csv")
    >>> _ = file.write_text("name,n_layers,d_model,params_no_embed,tokens,lr,val_loss\\na,12,768,85e6,2e9,6e-4,3.1\\n")
    >>> import_runs(file)[["name", "model size", "data size", "final_loss", "status"]].to_dict("records")
    [{'name': 'a', 'model size': 85, 'data size': 2, 'final_loss': 3.1, 'status': 'finished'}]
    """
    if not isinstance(map, Mapping | None) or not all(isinstance(name, str) for name in chain(*(map or {}).items())):
        raise ValueError(f"map: got {short(map)}, expected a mapping of their names to ours")
    if not isinstance(eval, str | None):
        raise ValueError(f"eval: got {short(eval)}, expected a part of an evaluation loss's name")
    path = as_path(path, "runs", "the path of a file or a folder; adapt takes tables and lists of dicts too")
    given = dict(map or {})
    by_origin: dict[str, list[Logged]] = defaultdict(list)
    for logged in read_runs(path):
        by_origin[logged.origin].append(logged)
    if not by_origin:
        raise ValueError(f"{one_line(path, 120)}: holds no runs, expected configurations or logs of training runs")
    tables = [_Table(origin, runs, given, eval) for origin, runs in by_origin.items()]
    if not any(table.reading.names or table.reading.fields or table.losses for table in tables):
        names = ", ".join(name for table in tables for name in table.reading.ignored)
        raise ValueError(
            f"{one_line(path, 100)}: knows none of the names {one_line(names or 'it holds', 100)}; "
            "map THEIRS=OURS says what they are, `ncpl fields` lists ours"
        )
    rows = [row for table in tables for row in table.rows]
    _name(rows)
    for row in rows:
        row["status"] = row.pop("_state") or _status(row)
    _mark_diverged(rows)
    _mark_duplicates(rows)
    curves = {row["name"]: row.pop("_curve") for row in rows}
    for row in rows:
        row.pop("_horizon"), row.pop("_last")
    order = ["name", *(name for name in FIELDS if any(name in row for row in rows)), "final_loss", "status"]
    frame = pd.DataFrame([{name: row.get(name) for name in order} for row in rows], columns=order)
    frame["final_loss"] = frame["final_loss"].astype(float)
    frame.attrs["report"] = _report(tables, frame)
    frame.attrs["curves"] = {name: curve for name, curve in curves.items() if curve}
    return frame


def read_foreign(
    paths: Sequence[str | Path], assigned: Mapping[str, Any]
) -> tuple[list[dict[str, Any]], list[str], list[str]]:
    """Configurations to forecast from any framework's files, whether or not they have losses.

    Args:
        paths: each as `import_runs` takes; several files that together hold one run's configuration, such as a model's
            and its trainer's, are one configuration.
        assigned: fields and quantities, such as `devices`, that the user adds to every run.

    Returns:
        The configurations, where each comes from, and the mapping in lines.

    Raises:
        ValueError: everything that is missing, with units, in one message.
    """
    logs = [logged for path in paths for logged in read_runs(path)]
    if len(paths) > 1 and len(logs) == len(paths):
        whole = join_configs(logs, Path(paths[0]).stem, " + ".join(Path(path).name for path in paths))
        logs = [whole] if whole is not None else logs
    by_origin: dict[str, list[Logged]] = defaultdict(list)
    for logged in logs:
        by_origin[logged.origin].append(logged)
    tables = [_Table(origin, runs, {}, None, assigned) for origin, runs in by_origin.items()]
    found = [translation for table in tables for translation in table.translations]
    rows = [row for table in tables for row in table.rows]
    _name(rows)
    names = [row["name"] for row in rows]
    configs = []
    origins = [table.origin for table in tables for _ in table.rows]
    for translation, name, origin in zip(found, names, origins, strict=True):
        at = f"{one_line(origin, 60)}: " if len(found) == 1 else f"{one_line(origin, 40)}: {one_line(name, 30)}: "
        configs.append(to_forecast(translation, at))
    lines = dict.fromkeys(line for table in tables for line in describe(table.translations[0]))
    alone = {table.origin for table in tables if len(table.rows) == 1}
    names = [origin if origin in alone else f"{origin}: {name}" for origin, name in zip(origins, names, strict=True)]
    return configs, names, [*lines, *(note for table in tables for note in table.notes[:3])]


def write_runs(runs: pd.DataFrame, path: str | Path) -> None:
    """Writes imported runs as CSV, JSON lines or Parquet, by the file's ending; `import_runs` reads each of them.

    Text that a spreadsheet would run as a formula gets an apostrophe in CSV.

    Raises:
        ValueError: another ending, or the file cannot be written.
    """
    path = as_path(path, "path", "a file to write")
    kind = path.suffix.lower()
    if kind == ".csv":
        table = runs.apply(lambda column: column.map(no_formula) if column.dtype == object else column)
        write_text(path, table.to_csv(index=False))
    elif kind == ".jsonl":
        write_text(path, runs.to_json(orient="records", lines=True))
    elif kind == ".parquet":
        try:
            runs.to_parquet(path)
        except OSError as error:
            raise ValueError(f"{one_line(path, 150)}: cannot be written ({error.strerror or error})") from None
    else:
        raise ValueError(f"{one_line(path, 150)}: a file of kind {kind!r}, accepted: .csv, .jsonl, .parquet")


def no_formula(value: Any) -> Any:
    return (
        f"'{value}"
        if isinstance(value, str) and re.match(r"[=+@\-\t\r]", value) and number_of(value) is None
        else value
    )


def report_lines(report: Mapping[str, Any]) -> list[str]:
    """A report as lines to print."""
    lines = list(report["lines"])
    for status, count in report["status"].items():
        if status != "finished":
            names = ", ".join(report["names"][status][:5])
            lines.append(f"{count} {status} ({STATUSES[status]}), kept apart: {names}{' ...' if count > 5 else ''}")
    lines += report["notes"]
    if report["missing"]:
        lines.append(f"missing: {'; '.join(report['missing'])}; --map THEIRS=OURS says which column holds it")
    if unsized := sizes_left_out(report):
        lines.append(unsized)
    return lines


def sizes_left_out(report: Mapping[str, Any]) -> str | None:
    """Why a count of parameters gives no model size, and what to do; None where it does, or where there is none.

    >>> sizes_left_out({"missing": ["model size (...)"], "mapping": {"n_params": "params"}}).split(": ")[-1]
    'import --map "n_params=model size"'
    """
    column = next((theirs for theirs, ours in report["mapping"].items() if ours == "params"), None)
    if column is None or not any(need.startswith("model size") for need in report["missing"]):
        return None
    column = one_line(column, 60)
    return (
        f"model size is left out: {column} is read as parameters with the embeddings, whose size is not known; if it "
        f'leaves them out, say it: import --map "{column}=model size"'
    )


class _Table:
    """The runs of one file or folder: names are read once for all of them."""

    def __init__(
        self,
        origin: str,
        runs: list[Logged],
        given: Mapping[str, str],
        chosen: str | None,
        assigned: Mapping[str, Any] | None = None,
    ) -> None:
        self.origin, self.assigned, self.given = origin, assigned, given
        names = list(dict.fromkeys(name for run in runs for name in (*run.values, *run.curves)))
        loss_map = {theirs: ours for theirs, ours in given.items() if plain_name(ours) == "final_loss"}
        mapped = {plain_name(theirs) for theirs in loss_map}
        losses = [name for name in names if is_loss(name) or plain_name(name) in mapped]
        self.reading = _reading(names, runs, given)
        for name in losses:
            self.reading.ignored.pop(name, None)
        self.losses, self.other_losses = _loss_columns(losses, self.reading, loss_map, chosen)
        embedding = _embedding_rows([run.values for run in runs], self.reading)
        self.notes: list[str] = []
        self.translations: list[Translation] = []
        self.rows = [self._row(run, embedding) for run in runs]

    def _row(self, run: Logged, embedding: float | None) -> dict[str, Any]:
        extra = self._logged(run, embedding)
        if run.parts:
            mapped = {ours: run.values.get(theirs) for ours, theirs in self.reading.fields.items() if self.given}
            found = translate_together(run.parts, mapped | dict(self.assigned or {}), extra)
        else:
            found = translate(run.values, self.reading, self.assigned, extra, run.complete)
        self.translations.append(found)
        facts = found.facts
        loss, column = self._loss(run)
        against = contradiction(facts)
        name = facts.get("name") if facts.get("name") is not None else run.name
        if against:
            self.notes.append(f"{one_line(name or self.origin, 60)}: {against}; check their units")
        state = _STATES.get(str(facts.get("state", "")).strip().lower())
        trained = [
            curve for logged, curve in run.curves.items() if logged == column or _TRAIN.search(plain_name(logged))
        ]
        if any(curve.diverged for curve in trained) or (loss is not None and not math.isfinite(loss)):
            state, loss = "diverged" if state in (None, "finished") else state, None
        if loss is not None and loss > WORST_NATS:
            self.notes.append(
                f"{one_line(name or self.origin, 60)}: {column} {loss:g} nats is worse than guessing any of 160,000 "
                "tokens; is it a perplexity? Rename the column perplexity"
            )
            state = state or "diverged"
        last = self._number(run, "step")
        return {
            **{field: value for field, value in found.fields.items() if field in FIELDS},
            "name": None if name is None else str(name),
            "final_loss": loss,
            "_state": None if state == "finished" else state,
            "_horizon": facts.get("steps") if "steps" not in extra else None,
            "_last": last if run.points or "state" not in facts else None,
            "_curve": run.curves[column].points if column in run.curves else None,
            "_stem": Path(run.origin).stem,
        }

    def _number(self, run: Logged, quantity: str) -> float | None:
        name = self.reading.names.get(quantity)
        return number_of(run.values.get(name[0]), counted=True) if name else None

    def _logged(self, run: Logged, embedding: float | None) -> dict[str, tuple[Any, str]]:
        """Quantities that the log of a run's progress gives where its configuration does not."""
        extra: dict[str, tuple[Any, str]] = {}
        names, values = self.reading.names, run.values
        if embedding is not None and "width" in names:
            width = number_of(values.get(names["width"][0]))
            if width:
                extra["embedding"] = (embedding * width, "the part of the count that grows with the width alone")
        planned = any(number_of(values.get(names[q][0])) for q in ("steps", "tokens", "samples") if q in names)
        planned = planned or any(field in self.reading.fields for field in ("max step", "data size"))
        if not planned:
            for logged, quantity in (("step", "steps"), ("tokens_seen", "tokens")):
                number = self._number(run, logged)
                if number:
                    extra[quantity] = (number, "the last logged value")
        peaks = [
            run.peaks[name]
            for name in (names.get("lr_now", ("", 0))[0], names.get("lr", ("", 0))[0])
            if name in run.peaks
        ]
        if peaks and peaks[0] > 0:
            extra["lr"] = (peaks[0], "the largest logged learning rate")
            if names.get("lr", ("", 0))[0] in run.peaks:
                # The column is logged as the run goes; its last value is the end of the decay.
                run.values = {name: value for name, value in values.items() if name != names["lr"][0]}
        return extra

    def _in_bits(self, run: Logged, name: str, loss: float) -> bool:
        """Whether a loss is in bits, as fairseq logs it: the perplexity of the same set says so."""
        for other, kind in self.losses:
            perplexity = _last(run, other) if kind == "perplexity" else None
            if perplexity and perplexity > 1 and loss > 0 and abs(math.log2(perplexity) / loss - 1) < 0.02:
                note = f"{name} is in bits per token: {other} is 2 to its power"
                self.notes += [note] if note not in self.notes else []
                return True
        return False

    def _loss(self, run: Logged) -> tuple[float | None, str | None]:
        """The final loss in nats per token, and the column it comes from."""
        for name, kind in self.losses:
            if name in run.curves:
                value: Any = run.curves[name].last
                value = math.nan if value is None and run.curves[name].nans else value
            else:
                value = run.values.get(name)
                if isinstance(value, str) and value.strip().lower().lstrip("+-") in ("nan", "inf", "infinity"):
                    value = math.nan
            number = value if isinstance(value, float) and not math.isfinite(value) else number_of(value)
            if number is None:
                if value is not None:
                    self.notes.append(f"{one_line(run.name or self.origin, 60)}: {name} {short(value, 40)} is no loss")
                continue
            if kind == "nats" and self._in_bits(run, name, float(number)):
                kind = "bits per token"
            loss = _in_nats(float(number), kind)
            if math.isfinite(number) and loss <= 0:
                # A cross-entropy is above 0: this is another quantity, or stands for one that was not measured.
                self.notes.append(f"{one_line(run.name or self.origin, 60)}: {name} {number:g} is no loss: not above 0")
                continue
            return loss, name
        return None, None


def _in_nats(number: float, kind: str) -> float:
    if kind == "perplexity":
        return math.log(number) if number > 0 else -math.inf
    return number * (math.log(2) if kind == "bits per token" else 1)


def _last(run: Logged, name: str) -> float | None:
    """The last finite value of a logged loss."""
    return run.curves[name].last if name in run.curves else number_of(run.values.get(name))


def _reading(names: list[str], runs: list[Logged], given: Mapping[str, str]) -> Reading:
    """Which names mean what, where some were logged as the run went: those tell its progress, not its plan."""
    changed = {name for run in runs for name in run.changed}
    reading = read_names(names, given, changed)
    for planned, seen in (("tokens", "tokens_seen"), ("samples", "samples_seen"), ("steps", "step")):
        column = reading.names.get(planned, ("", 1.0))
        if column[0] in changed:
            del reading.names[planned]
            reading.names.setdefault(seen, column)
    return reading


# ------------------------------------------------------------------------------------------------ losses

_TRAIN = re.compile(r"(^|[._])train|^(ce_|lm_)?loss$")


def _kind(plain: str) -> str:
    if re.search(r"perplexity|ppl", plain):
        return "perplexity"
    if re.search(r"bpb|per_byte", plain):
        return "bits per byte"
    return "bits per token" if re.search(r"bits_per_token", plain) else "nats"


def _loss_columns(
    names: list[str], reading: Reading, given: Mapping[str, str], chosen: str | None
) -> tuple[list[tuple[str, str]], list[str]]:
    """The columns of the final loss, the most reliable first, with what they hold, and other sets' losses."""
    if given:
        wanted = {plain_name(name) for name in given}
        found = [name for name in {*names, *(n for n, _ in reading.names.values())} if plain_name(name) in wanted]
        return [(name, _kind(plain_name(name))) for name in found], []
    hf = reading.framework.name == "Hugging Face Trainer"
    usable = [name for name in names if not (hf and plain_name(name) == "train_loss")]
    unusable = [name for name in usable if _kind(plain_name(name)) == "bits per byte"]
    for name in unusable:
        reading.ignored[name] = "bits per byte: nats per token need the bytes of a token"
    usable = [name for name in usable if name not in unusable]
    if chosen is not None:
        matching = [name for name in usable if chosen.lower() in name.lower() or plain_name(chosen) in plain_name(name)]
        if not matching:
            raise ValueError(
                f"eval: {short(chosen)} is no logged loss, those are {one_line(', '.join(usable) or 'none', 150)}"
            )
        usable = matching
    preferred = reading.framework.loss.split()

    def rank(name: str) -> tuple[int, int, int, int]:
        plain = plain_name(name)
        if plain.endswith("final_loss"):
            return (-1, 0, 0, 0)
        train = bool(re.search(r"(^|[._])train", plain))
        held = bool(re.search(r"val|eval|test|paloma|c4|held|dev", plain)) and not train
        order = next(
            (i for i, word in enumerate(preferred) if plain == word or plain.endswith(f".{word}")), len(preferred)
        )
        return (0 if held else 2 if train else 1, order, int("ema" in plain), int(_kind(plain) == "perplexity"))

    ordered = sorted(usable, key=rank)
    if not ordered:
        return [], []
    best = rank(ordered[0])[0]
    same = [name for name in ordered if rank(name)[0] == best]
    # Only the same set's loss, or its perplexity, may stand in: losses of two sets do not compare.
    first = _set_of(ordered[0])
    taken = [name for name in same if _set_of(name) == first]
    return [(name, _kind(plain_name(name))) for name in taken], [name for name in ordered if name not in taken]


def _set_of(name: str) -> str:
    return re.sub(r"(cross_?entropy|ce)?_?loss(_mean)?|perplexity|ppl|smooth_?|nll|ce$", "", plain_name(name)).strip(
        "._"
    )


# ------------------------------------------------------------------------------------------------ sizes from all runs


def _embedding_rows(rows: list[dict[str, Any]], reading: Reading) -> float | None:
    """Rows of the embeddings inside a count of parameters, from how the count grows with the shape.

    A count of `a layers width^2 + rows width` parameters is fitted to all shapes; where it fits three shapes or more to
    a thousandth, `rows` is the vocabulary, once or twice. Where the vocabulary is known it is not needed.
    """
    names = reading.names
    count = next((names[name] for name in ("params_head", "params") if name in names), None)
    if count is None or not {"layers", "width"} <= names.keys() or "params_body" in names:
        return None
    if "vocab" in names or "vocab_rows" in names or "ffn" in names:
        return None
    shapes = set()
    for row in rows:
        values = [number_of(row.get(names[name][0])) for name in ("layers", "width")]
        number = number_of(row.get(count[0]), counted=True)
        if number and all(values):
            shapes.add((*values, number * count[1]))
    if len({(layers, width) for layers, width, _ in shapes}) < 3:
        return None
    layers, width, total = np.array(sorted(shapes), float).T
    design = np.stack([layers * width**2, width], 1) / total[:, None]
    found, *_ = np.linalg.lstsq(design, np.ones(len(total)), rcond=None)
    if np.abs(design @ found - 1).max() > 1e-3 or found[1] < 1000 or not 6 <= found[0] <= 40:
        return None
    # Norms and biases grow with the width too; vocabularies are padded to a multiple of 64.
    return float(found[1] // 64 * 64)


# ------------------------------------------------------------------------------------------------ names and status


def _name(rows: list[dict[str, Any]]) -> None:
    """Gives every run a name of its own."""
    for i, row in enumerate(rows):
        stem = row.pop("_stem")
        if row["name"] is None:
            row["name"] = stem if len(rows) == 1 else f"{stem}-{i + 1}"
    counts = Counter(row["name"] for row in rows)
    seen: Counter[str] = Counter()
    taken = set(counts)
    for row in rows:
        name = row["name"]
        seen[name] += 1
        if counts[name] > 1 and seen[name] > 1:
            row["name"] = next(f"{name} #{i}" for i in range(seen[name], len(rows) + 2) if f"{name} #{i}" not in taken)
            taken.add(row["name"])


def _status(row: dict[str, Any]) -> str:
    horizon, last = row["_horizon"], row["_last"]
    if horizon and last is not None and last < FINISHED_SHARE * horizon:
        return "unfinished"
    return "no loss" if row["final_loss"] is None else "finished"


def _mark_diverged(rows: list[dict[str, Any]]) -> None:
    """The rule behind the public splits: far above the best finished run of the same source, size and data."""
    sized = [row for row in rows if row["status"] == "finished" and "model size" in row and "data size" in row]
    logged = [{"source": row.get("source"), "conf": row, "final_loss": row["final_loss"]} for row in sized]
    for row, lost in zip(sized, diverged(logged, suspects(logged)), strict=True):
        if lost:
            row["status"] = "diverged"


def _mark_duplicates(rows: list[dict[str, Any]]) -> None:
    seen = set()
    for row in rows:
        if row["status"] == "finished":
            fields = tuple(sorted((name, str(row[name])) for name in FIELDS if name in row))
            key = (fields, row["final_loss"])
            row["status"] = "duplicate" if key in seen else "finished"
            seen.add(key)


def _report(tables: list[_Table], frame: pd.DataFrame) -> dict[str, Any]:
    counts = frame["status"].value_counts().to_dict()
    report: dict[str, Any] = {
        "runs": len(frame),
        "status": counts,
        "names": {status: frame.loc[frame["status"] == status, "name"].tolist() for status in counts},
        "frameworks": list(dict.fromkeys(table.reading.framework.name for table in tables)),
        "mapping": {},
        "derived": {},
        "left_out": {},
        "loss": list(dict.fromkeys(name for table in tables for name, _ in table.losses)),
        "other_losses": list(dict.fromkeys(name for table in tables for name in table.other_losses)),
        "notes": [],
        "missing": [],
        "lines": [],
    }
    lines: dict[str, None] = {}
    for table in tables:
        reading = table.translations[0].reading
        for quantity, (theirs, _) in reading.names.items():
            report["mapping"].setdefault(theirs, quantity)
        report["mapping"].update({theirs: ours for ours, theirs in reading.fields.items()})
        report["left_out"].update(reading.ignored)
        for found in table.translations:
            report["derived"].update(
                {name: how for name, how in found.derived.items() if name not in report["derived"]}
            )
        lines.update(dict.fromkeys(describe(table.translations[0])))
        report["notes"] += table.notes[:5]
        if len(table.notes) > 5:
            report["notes"].append(
                f"{len(table.notes) - 5} more runs of {one_line(table.origin, 80)} contradict themselves"
            )
    report["lines"] = [*lines]
    if report["loss"]:
        others = (
            f"; other losses: {', '.join(report['other_losses'][:8])} (eval= chooses)" if report["other_losses"] else ""
        )
        report["lines"].append(f"final_loss is {', '.join(report['loss'])}{others}")
    missing: Counter[str] = Counter(need for table in tables for found in table.translations for need in found.needs)
    report["missing"] = [
        need if count == len(frame) else f"{need} in {count} runs" for need, count in missing.most_common(8)
    ]
    return report
