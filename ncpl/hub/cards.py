"""Model and dataset cards for the Hub: templates of `model_cards/` filled from result files, and from nothing else.

A checkpoint's result files lie beside it: `training_record.json` (written by training), `evaluation.json` (written by
`ncpl evaluate --output`) and `widget.json` (forecasts for the examples, `widget_examples`); a score predictor's is
`nsp_record.json`. A figure that no file holds is left out of the card, never filled in.
"""

import math
import os
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

from huggingface_hub import EvalResult, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.repocard_data import DatasetCardData
from huggingface_hub.utils import validate_repo_id
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from fields_ncpl import SOURCES
from ncpl.errors import CheckpointError, as_path, one_line, short
from ncpl.evaluation import PREDICTORS
from ncpl.hub.bundle import compatibility
from ncpl.hub.files import figures, model_in, read_json
from ncpl.resources import root_file

TEMPLATES = root_file("model_cards")
RECORD, EVALUATION, WIDGET = "training_record.json", "evaluation.json", "widget.json"
NSP_RECORD = "nsp_record.json"
RESULT_FILES = (RECORD, EVALUATION, WIDGET, NSP_RECORD)
TAGS = ["scaling-laws", "pretraining", "hyperparameters", "forecasting", "ncpl"]
METRICS = {"mae": "MAE", "rmse": "RMSE", "spearman": "Spearman", "bias": "bias"}
"""Metric of a result file -> its name in a card."""
METRIC_TYPES = {"mae": "mae", "rmse": "rmse", "spearman": "spearmanr", "bias": "bias"}
"""Metric of a result file -> its id on the Hub."""
NAMED_TEMPLATES = ("ncpl-mini", "ncpl-qwen3-1.7b")
"""Repository names of forecasters that have a template of their own."""
NSP_PROTOCOLS = {
    "size": "parameters and tokens",
    "sibling": "and the next smaller model's scores",
    "others": "and three scores of its own",
}
"""Protocol of a score predictor's record -> what it is told of a model."""
EXAMPLES: dict[str, dict[str, Any]] = {
    "AdamW at 134M parameters": {
        "source": "marin",
        "model size": 134.2,
        "data size": 2.7,
        "optimizer": "adamw",
        "learning rate": 2e-3,
        "batch size": 128,
    },
    "Muon at 302M parameters": {
        "source": "marin",
        "model size": 302,
        "data size": 12,
        "optimizer": "muon",
        "learning rate": 8e-3,
        "batch size": 128,
    },
    "Step Law at 215M parameters": {
        "source": "steplaw",
        "model size": 214.7,
        "data size": 11.4,
        "optimizer": "adamw",
        "learning rate": 1e-3,
        "batch size": 352,
    },
}
"""Title -> configuration of the card's widget."""


def checkpoint_card(
    folder: str | Path, repo_id: str, base_model: str | None = None, widget: Mapping[str, Any] | None = None
) -> str:
    """The card of a checkpoint or an adapter, as Markdown with the Hub's metadata in front.

    Args:
        folder: with `config.json` or `adapter_config.json`, and the result files that there are.
        repo_id: where it goes, `owner/name` or `name`; one of `NAMED_TEMPLATES` has a template of its own.
        base_model: repo id of an adapter's base; the one its settings name when absent.
        widget: forecasts of `widget_examples`; those of `widget.json` when absent.

    Raises:
        CheckpointError: a file is missing or not readable.
        ValueError: not a repo id.
    """
    folder = as_path(folder, "folder", "the path of a checkpoint's folder")
    check_repo_id(repo_id)
    if base_model is not None:
        check_repo_id(base_model, "base_model")
    files = {name: _read(folder, name) for name in ("adapter_config.json", "config.json", *RESULT_FILES)}
    adapter, config, record = files["adapter_config.json"], files["config.json"], files[RECORD]
    if not adapter and not config:
        raise CheckpointError(
            f"{one_line(folder, 150)}: no config.json and no adapter_config.json, expected a checkpoint or an adapter"
        )
    if not adapter and model_in(folder, config) == "nsp":
        return _nsp_card(files[NSP_RECORD], repo_id)
    widget = widget if widget is not None else files[WIDGET]
    base_model = base_model or adapter.get("base_model_name_or_path") or _backbone_repo(record)
    owner, _, name = repo_id.rpartition("/")
    cells = _cells(record, files[EVALUATION])
    sources = list(record.get("data", {}))
    data = ModelCardData(
        license="apache-2.0",
        library_name="peft" if adapter else "transformers",
        pipeline_tag="tabular-regression",
        base_model=base_model,
        tags=TAGS,
        datasets=[f"{owner}/{dataset_name(source)}" for source in sources] if owner and sources else None,
        model_name=name,
        eval_results=_eval_results(cells, owner) or None,
        ignore_metadata_errors=False,
        **({"widget": [_widget_item(title, item) for title, item in widget.items()]} if widget else {}),
    )
    template = "adapter" if adapter else name if name in NAMED_TEMPLATES else "forecaster"
    values = {"name": name, "repo_id": repo_id, "base_model": base_model, "cells": cells, "figures": figures(folder)}
    values["widget"] = [{"title": title, "text": _forecast_text(item["forecast"])} for title, item in widget.items()]
    processor = _read(folder, "processor_config.json")
    body = _environment().get_template(f"{template}.md").render(**_facts(config, processor, record, files), **values)
    return _card(data, body)


def _facts(
    config: Mapping[str, Any], processor: Mapping[str, Any], record: Mapping[str, Any], files: Mapping[str, Any]
) -> dict[str, Any]:
    """What a forecaster's template tells of the model, its data and its training."""
    evaluation = files[EVALUATION]
    stages = list(record.get("stages", {}).values())
    return {
        "config": {"number_embedding": "of its base", "prompt_version": processor.get("prompt_version", 1), **config},
        "parameters": record.get("parameters"),
        "gain": stages[-1].get("gain") if stages else None,
        "calibrated": bool(processor.get("calibration")),
        "data": record.get("data"),
        "splits": record.get("recipe", {}).get("data", {}).get("splits"),
        "licences": {name: source.licence for name, source in SOURCES.items()},
        "evaluation": evaluation,
        "sizes": evaluation.get("sizes"),
        "coverage": [
            {**cell, "level": evaluation["level"]} for cell in evaluation.get("cells", []) if "coverage" in cell
        ],
        "hardware": record.get("hardware"),
        "wall_s": record.get("wall_s"),
        "seed": record.get("seed"),
        "carbon": record.get("co2_g"),
        "versions": record.get("versions"),
        "compatibility": compatibility(),
    }


def _nsp_card(record: Mapping[str, Any], repo_id: str) -> str:
    """The card of a predictor of benchmark scores; its record tells errors by what was known of a model."""
    name = repo_id.rpartition("/")[2]
    figures = record.get("metrics", {})
    protocols = {protocol: figures[protocol] for protocol in NSP_PROTOCOLS if protocol in figures}
    by_task = list(dict.fromkeys(task for m in protocols.values() for task in m["mae_by_task"]))
    results = [
        EvalResult(
            task_type="tabular-regression",
            task_name="Benchmark scores of language models",
            dataset_type="obs-scaling",
            dataset_name=f"left-out families, {NSP_PROTOCOLS[protocol]}",
            dataset_config=protocol,
            metric_type="mae",
            metric_name=f"MAE, {task}" if task else "MAE",
            metric_value=float(_loss(value)),
        )
        for protocol, m in protocols.items()
        for task, value in {"": m["mae"], **m["mae_by_task"]}.items()
    ]
    data = ModelCardData(
        license="apache-2.0",
        library_name="transformers",
        pipeline_tag="tabular-regression",
        tags=[*TAGS, "benchmarks"],
        model_name=name,
        eval_results=results or None,
        ignore_metadata_errors=False,
    )
    body = (
        _environment()
        .get_template("nsp-base.md")
        .render(
            name=name,
            repo_id=repo_id,
            record=record,
            protocols=protocols,
            by_task=by_task,
            known=NSP_PROTOCOLS,
            compatibility=compatibility(),
        )
    )
    return _card(data, body)


def is_forecaster(folder: str | Path) -> bool:
    """Whether a folder holds a forecaster, not an adapter or a predictor of scores: only those have a widget."""
    return _read(Path(folder), "config.json").get("model_type") == "ncpl"


def widget_examples(folder: str | Path) -> dict[str, Any]:
    """A checkpoint's forecasts for the examples of its card: title -> `config` and `forecast`, for `widget.json`."""
    from modeling_ncpl import NCPLForecaster
    from pipeline_ncpl import ScalingForecastPipeline
    from processing_ncpl import NCPLProcessor

    model = NCPLForecaster.from_pretrained(folder).eval()
    pipe = ScalingForecastPipeline(model=model, processor=NCPLProcessor.from_pretrained(folder), device="cpu")
    return {title: {"config": config, "forecast": pipe(config)} for title, config in EXAMPLES.items()}


def dataset_name(source: str) -> str:
    """The name of a source's runs on the Hub, in whoever's account.

    >>> dataset_name("marin")
    'ncpl-marin'
    """
    return f"ncpl-{source}"


def dataset_card(source: str, repo_id: str, configs: list[dict[str, Any]], runs: Mapping[str, int], sha256: str) -> str:
    """The card of a source's runs.

    Args:
        source: `marin`, `steplaw` or `steplaw_moe`.
        repo_id: where it goes.
        configs: the Hub's `configs` metadata, which splits lie in which files.
        runs: split -> number of runs.
        sha256: hash of the files the runs were read from.
    """
    from datasets_scripts.reading import COLUMNS
    from datasets_scripts.runs import builder_class
    from fields_ncpl import FIELDS

    builder = builder_class(source)
    licence = SOURCES[source].licence if source in SOURCES else "none stated"
    data = DatasetCardData(
        license="apache-2.0" if licence == "Apache-2.0" else "unknown",
        task_categories=["tabular-regression"],
        pretty_name=f"{builder.__name__} pretraining runs",
        tags=TAGS,
        configs=configs,
        ignore_metadata_errors=False,
    )
    body = (
        _environment()
        .get_template("dataset.md")
        .render(
            pretty_name=f"{builder.__name__} pretraining runs",
            description=builder.DESCRIPTION,
            repo_id=repo_id,
            columns=COLUMNS,
            fields=FIELDS.values(),
            runs=runs,
            sha256=sha256,
            homepage=builder.HOMEPAGE,
            licence=licence,
        )
    )
    return _card(data, body)


def _card(data: ModelCardData | DatasetCardData, body: str) -> str:
    body = re.sub(r"\n{3,}", "\n\n", body.strip())
    return f"---\n{data.to_yaml()}\n---\n\n{body}\n"


@cache
def _environment() -> Environment:
    """A name that a template uses and nobody fills is an error."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["loss"] = _loss
    environment.filters["clean"] = clean
    environment.filters["quote"] = quote
    return environment


def _loss(value: float | None) -> str:
    """Four decimals: a tenth of what separates good forecasters."""
    return "-" if value is None or not math.isfinite(value) else f"{value:.4f}"


def _read(folder: Path, name: str) -> dict[str, Any]:
    """A JSON file that goes into a card, {} where there is none; its text holds nothing that a page would execute."""
    return clean(read_json(folder, name)) if os.path.exists(folder / name) else {}  # noqa: PTH110 - never raises


def clean(value: Any) -> Any:
    """Text of a file made harmless for a card: no markup, no line that ends the metadata, no cell that ends a table.

    >>> clean({"cpu": "<script>x|y\\n---"})
    {'cpu': '&lt;script&gt;x/y ---'}
    """
    if isinstance(value, str):
        for sign, harmless in (("<", "&lt;"), (">", "&gt;"), ("|", "/"), ("`", "'"), ("[", "("), ("]", ")")):
            value = value.replace(sign, harmless)
        return " ".join("".join(char if char.isprintable() else " " for char in value).split())
    if isinstance(value, dict):
        return {clean(key): clean(item) for key, item in value.items()}
    return [clean(item) for item in value] if isinstance(value, list) else value


def check_repo_id(repo_id: object, name: str = "repo") -> None:
    """Raises ValueError where something is no repo id; `name` is the argument's."""
    why = "text"
    if isinstance(repo_id, str):
        try:
            validate_repo_id(repo_id)
            return
        except HFValidationError as error:
            why = str(error)
    raise ValueError(one_line(f"{name}: got {short(repo_id)}, expected owner/name ({why})"))


def _backbone_repo(record: Mapping[str, Any]) -> str | None:
    """The Hub id of the language model that training started from, if it did from one."""
    model = record.get("recipe", {}).get("model", {})
    name = model.get("checkpoint") or model.get("backbone")
    return name if re.fullmatch(r"[\w.-]+/[\w.-]+", str(name)) else None


def _cells(record: Mapping[str, Any], evaluation: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Source, split, number of runs, and predictor -> metrics; an evaluation says more than a record."""
    if evaluation:
        return [
            {
                "source": cell["source"],
                "split": cell["split"],
                "runs": cell["runs"],
                "errors": {PREDICTORS.get(name, name): metrics for name, metrics in cell["errors"].items()},
            }
            for cell in evaluation["cells"]
        ]
    cells = []
    for split, sources in record.get("metrics", {}).items():
        for source, kinds in sources.items():
            if "final" not in kinds:
                continue
            errors = {PREDICTORS["model"]: kinds["final"]}
            prior = record.get("prior_metrics", {}).get(split, {}).get(source, {}).get("final")
            if prior:
                errors[PREDICTORS["prior"]] = prior
            cells.append({"source": source, "split": split, "runs": kinds["final"]["n"], "errors": errors})
    return cells


def _eval_results(cells: list[dict[str, Any]], owner: str) -> list[EvalResult]:
    """The Hub's `model-index`: every measured cell of this model."""
    results = []
    for cell in cells:
        metrics = cell["errors"].get(PREDICTORS["model"], {})
        for metric, label in METRICS.items():
            value = metrics.get(metric)
            if value is None or not math.isfinite(value):
                continue
            results.append(
                EvalResult(
                    task_type="tabular-regression",
                    task_name="Final loss of pretraining runs",
                    dataset_type="/".join(filter(None, (owner, dataset_name(cell["source"])))),
                    dataset_name=f"{cell['source']} {cell['split']}",
                    dataset_config="final",
                    dataset_split=cell["split"],
                    metric_type=METRIC_TYPES[metric],
                    metric_name=f"{label} (nats per token)" if metric != "spearman" else label,
                    metric_value=float(_loss(value)),
                )
            )
    return results


def _widget_item(title: str, example: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "example_title": title,
        "structured_data": {name: [value] for name, value in example["config"].items()},
        "output": {"text": f"{_forecast_text(example['forecast'])} nats per token"},
    }


def _forecast_text(forecast: Mapping[str, float]) -> str:
    interval = f" ({_loss(forecast['lower'])} to {_loss(forecast['upper'])})" if "lower" in forecast else ""
    return _loss(forecast["loss"]) + interval
