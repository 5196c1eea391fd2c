"""Model and dataset cards for the Hub: templates of `model_cards/` filled from result files, and from nothing else.

A checkpoint's result files lie beside it: `training_record.json` (written by training), `evaluation.json` (written by
`ncpl evaluate --output`) and `widget.json` (forecasts for the examples, `widget_examples`); a score predictor's is
`nsp_record.json`. A figure that no file holds
is left out of the card, never filled in.
"""

import json
import math
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData
from huggingface_hub.repocard_data import DatasetCardData
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from fields_ncpl import SOURCES
from ncpl.errors import CheckpointError
from ncpl.share import root_file

TEMPLATES = root_file("model_cards")
RECORD, EVALUATION, WIDGET = "training_record.json", "evaluation.json", "widget.json"
NSP_RECORD = "nsp_record.json"
RESULT_FILES = (RECORD, EVALUATION, WIDGET, NSP_RECORD)
TAGS = ["scaling-laws", "pretraining", "hyperparameters", "forecasting", "ncpl"]
"""Source -> licence of its run logs."""
METRICS = {"mae": "MAE", "rmse": "RMSE", "spearman": "Spearman", "bias": "bias"}
"""Metric of a result file -> its name in a card."""
METRIC_TYPES = {"mae": "mae", "rmse": "rmse", "spearman": "spearmanr", "bias": "bias"}
"""Metric of a result file -> its id on the Hub."""
PREDICTORS = {
    "loss": "this model",
    "prior": "its prior alone",
    "ncpl_1p7b": "NCPL-1.7B of the paper",
    "chinchilla": "Chinchilla of the paper",
}
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
        repo_id: where it goes, `owner/name` or `name`; a template of that name is taken if there is one.
        base_model: repo id of an adapter's base; the one its settings name when absent.
        widget: forecasts of `widget_examples`; those of `widget.json` when absent.

    Raises:
        CheckpointError: a file is missing or not readable.
    """
    folder = Path(folder)
    name = repo_id.rpartition("/")[2]
    adapter = _read(folder, "adapter_config.json")
    config = _read(folder, "config.json")
    if not adapter and not config:
        raise CheckpointError(
            f"{folder}: no config.json and no adapter_config.json, expected a checkpoint or an adapter"
        )
    if str(config.get("model_type")).startswith("nsp"):
        return _nsp_card(_read(folder, NSP_RECORD), repo_id)
    record, evaluation = _read(folder, RECORD), _read(folder, EVALUATION)
    widget = widget if widget is not None else _read(folder, WIDGET)
    base_model = base_model or adapter.get("base_model_name_or_path") or _backbone_repo(record)
    cells = _cells(record, evaluation)
    owner = repo_id.partition("/")[0] if "/" in repo_id else None
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
    kind = "adapter" if adapter else "forecaster"
    template = f"{name}.md" if (TEMPLATES / f"{name}.md").exists() and not adapter else f"{kind}.md"
    processor = _read(folder, "processor_config.json")
    stages = list(record.get("stages", {}).values())
    body = (
        _environment()
        .get_template(template)
        .render(
            name=name,
            repo_id=repo_id,
            base_model=base_model,
            config={"number_embedding": "of its base", "prompt_version": processor.get("prompt_version", 1)} | config,
            backbone=base_model or "from scratch",
            parameters=record.get("parameters"),
            gain=stages[-1].get("gain") if stages else None,
            calibrated=bool(processor.get("calibration")),
            widget=[{"title": title, "text": _forecast_text(item["forecast"])} for title, item in widget.items()],
            data=record.get("data"),
            splits=record.get("recipe", {}).get("data", {}).get("splits"),
            licences={name: source.licence for name, source in SOURCES.items()},
            evaluation=evaluation,
            cells=cells,
            sizes=evaluation.get("sizes"),
            coverage=[
                {**cell, "level": evaluation["level"]} for cell in evaluation.get("cells", []) if "coverage" in cell
            ],
            figures=sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png")),
            hardware=record.get("hardware"),
            wall_s=record.get("wall_s"),
            seed=record.get("seed"),
            carbon=record.get("co2_g"),
            versions=record.get("versions"),
        )
    )
    return _card(data, body)


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
        .render(name=name, repo_id=repo_id, record=record, protocols=protocols, by_task=by_task, known=NSP_PROTOCOLS)
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
    from datasets_scripts.runs import COLUMNS, builder_class
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
    return environment


def _loss(value: float | None) -> str:
    """Four decimals: a tenth of what separates good forecasters."""
    return "-" if value is None or not math.isfinite(value) else f"{value:.4f}"


def _read(folder: Path, name: str) -> dict[str, Any]:
    path = folder / name
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path}: cannot be read as JSON ({error})") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: got {type(content).__name__}, expected a JSON object")
    return content


def _backbone_repo(record: Mapping[str, Any]) -> str | None:
    """The Hub id of the language model that training started from, if it did from one."""
    model = record.get("recipe", {}).get("model", {})
    name = model.get("checkpoint") or model.get("backbone")
    return name if name and not Path(name).is_absolute() and name.count("/") == 1 else None


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
            errors = {PREDICTORS["loss"]: kinds["final"]}
            prior = record.get("prior_metrics", {}).get(split, {}).get(source, {}).get("final")
            if prior:
                errors[PREDICTORS["prior"]] = prior
            cells.append({"source": source, "split": split, "runs": kinds["final"]["n"], "errors": errors})
    return cells


def _eval_results(cells: list[dict[str, Any]], owner: str | None) -> list[EvalResult]:
    """The Hub's `model-index`: every measured cell of this model."""
    results = []
    for cell in cells:
        metrics = cell["errors"].get(PREDICTORS["loss"], {})
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
