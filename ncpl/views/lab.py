"""The app's view of a lab's own runs: read, learnt from, and what they say."""

import io
import math
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from adapted_ncpl import flops
from fields_ncpl import FIELDS
from ncpl.drawing import Picture, band
from ncpl.views.inputs import Inputs, given
from ncpl.views.page import Page
from ncpl.views.words import read_level

if TYPE_CHECKING:
    from ncpl.forecaster import Forecaster


def runs(forecaster: "Forecaster", inputs: Inputs, files: Sequence[str] | None) -> Page:
    """What a lab's own runs say; the session's further forecasts come from the adapted forecaster."""
    from ncpl.logs.importer import import_runs, report_lines

    source = inputs.get("runs.source", "").strip().lower()
    if not source:
        raise ValueError("name of your lab: missing, expected a word such as mine")
    with given(files, name="runs") as path:
        read = import_runs(path)
        adapted = forecaster.adapt(read, source)
        command = ["ncpl", "adapt", path.name if path.is_file() else "FOLDER", "--source", source, "--out", source]
    report = adapted.report
    table, chart = _along(adapted, source, report["believed_up_to"], read_level(inputs))
    headline = (
        f"<strong>{escape(source)}</strong> is learnt from <strong>{report['runs']} runs</strong>; believe its "
        f"forecasts up to {report['believed_up_to']:.2g} FLOPs"
    )
    more = _report_tables(report)
    more["How the files were read"] = pd.DataFrame({"line": report_lines(read.attrs["report"])})
    links = {"Adapted checkpoint (ZIP)": (f"{source}.zip", _zipped(adapted, source))}
    notes = ["The other tabs know this source from now on, until the page is loaded again.", *report["warnings"]]
    return Page(headline, chart, table, command, notes, "runs", {"source": source}, links, more, adapted)


def _along(adapted: "Forecaster", source: str, up_to: float, level: float) -> tuple[pd.DataFrame, Picture]:
    """The runs with their forecasts, and a chart of them over FLOPs, to as far as forecasts may be believed."""
    logged = adapted.law.adapted[source].runs
    configs = [{name: value for name, value in run.items() if name in FIELDS} for run in logged]
    own = pd.DataFrame(logged)[["model size", "data size", "final_loss"]].astype(float)
    columns = ["loss", "lower", "upper"]
    own[columns] = adapted.predict_checked(configs, level)[columns].to_numpy()
    own.insert(0, "flops", [flops(run) for run in logged])
    dearest, most = configs[int(own["flops"].argmax())], float(own["flops"].max())
    factors = np.geomspace(own["flops"].min() / most, up_to / most, 40).tolist()
    sizes = ("model size", "data size")
    larger = [{**dearest, **{name: float(dearest[name]) * math.sqrt(factor) for name in sizes}} for factor in factors]
    # The steps follow from the data.
    line = adapted.predict_checked([{k: v for k, v in config.items() if k != "max step"} for config in larger], level)
    described = f"Final losses of {len(own)} runs against FLOPs, and the forecast up to {up_to:.2g} FLOPs."
    seen = (own["flops"].tolist(), own["final_loss"].tolist())
    spent = [most * factor for factor in factors]
    name = "FLOPs (6ND), tokens a parameter as the dearest run"
    return own, Picture(
        described, (lambda axes, theme: band(axes, theme, spent, line, name, seen=seen, all_seen=True),)
    )


def _report_tables(report: Mapping[str, Any]) -> dict[str, pd.DataFrame]:
    """How far to believe an adapted source, and what is learnt of it."""
    held_out = report["largest_size_out"] or {}
    errors = [
        {"method": name, "error": value}
        for name, value in held_out.items()
        if name not in ("runs", "model size", "inside_90")
    ]
    learned = [
        {"coefficient": name, "learned value": own["value"], "deviation": own["deviation"], "said by": own["said_by"]}
        for name, own in report["learned"].items()
    ]
    tables = {"Error on your largest size, from the smaller ones": pd.DataFrame(errors)} if errors else {}
    return {**tables, "What is learnt, and from whose runs": pd.DataFrame(learned)}


def _zipped(forecaster: "Forecaster", name: str) -> bytes:
    """A forecaster's checkpoint folder as a ZIP file."""
    buffer = io.BytesIO()
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        forecaster.save_pretrained(folder)
        for path in sorted(Path(folder).rglob("*")):
            if path.is_file():
                archive.write(path, f"{Path(name).name}/{path.relative_to(folder)}")
    return buffer.getvalue()
