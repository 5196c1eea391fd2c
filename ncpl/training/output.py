"""The output folder: whose it is, the record and the log beside the trained model."""

import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from accelerate import PartialState

from datasets_scripts.runs import data_hash
from ncpl.recipe import Recipe
from ncpl.record import git_state, hardware, versions
from ncpl.training.data import Runs, data_folder

RECORD = "training_record.json"
LOG = "training_log.json"


def open_output(recipe: Recipe) -> Path:
    """The output folder, in which `recipe.yaml` says whose it is.

    Raises:
        ValueError: the folder holds a training by another recipe, or something else.
    """
    folder = Path(recipe.output_dir)
    file = folder / "recipe.yaml"
    ours = recipe.to_dict()
    if file.exists():
        theirs = yaml.safe_load(file.read_text())
        for key, (old, new) in _differences(theirs, ours).items():
            raise ValueError(
                f"output_dir: {folder} holds a training whose {key} is {old!r}, this recipe says {new!r}; give another "
                "output_dir, or remove the folder"
            )
    elif folder.exists() and any(folder.iterdir()):
        raise ValueError(f"output_dir: {folder} holds something that is no training; give a new or empty folder")
    if PartialState().is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
        file.write_text(yaml.safe_dump(ours, sort_keys=False))
    return folder


def _differences(old: Any, new: Any, key: str = "") -> dict[str, tuple[Any, Any]]:
    if isinstance(old, dict) and isinstance(new, dict):
        found: dict[str, tuple[Any, Any]] = {}
        for name in {**old, **new}:
            found |= _differences(old.get(name), new.get(name), f"{key}.{name}" if key else name)
        return found
    return {} if old == new else {key: (old, new)}


def finish(
    recipe: Recipe, runs: Runs, stages: Mapping[str, Mapping[str, Any]], prior_metrics: Mapping[str, Any]
) -> None:
    """Writes the record and the log beside the trained model, and removes what was needed for resuming alone.

    The record says where the model comes from and how good it is: recipe, seed, hash of the data, versions, hardware,
    git state, parameters, metrics, those of the prior alone, and wall time in seconds.

    Args:
        recipe: of the training.
        runs: what it read.
        stages: stage name -> `report` and `log` of each stage (`StageRun.result`), in order.
        prior_metrics: forecast errors of the prior alone (`Evaluation.cells`).
    """
    output, process = Path(recipe.output_dir), PartialState()
    reports = {name: result["report"] for name, result in stages.items()}
    last = list(reports.values())[-1]
    record = {
        "recipe": recipe.to_dict(),
        "seed": recipe.seed,
        "data": {
            source: {
                "sha256": data_hash(source, data_folder(recipe.data)),
                "runs": {split: len(sources[source]) for split, sources in runs.items()},
            }
            for source in recipe.data.sources
        },
        "versions": versions(),
        "hardware": {**hardware(), "device": process.device.type, "processes": process.num_processes},
        "git": git_state(),
        "parameters": last["parameters"],
        "metrics": last["metrics"],
        "prior_metrics": prior_metrics,
        "stages": reports,
        "wall_s": round(sum(report["wall_s"] for report in reports.values()), 1),
    }
    write_json(output / LOG, {name: result["log"] for name, result in stages.items()})
    write_json(output / RECORD, record)
    for weights in output.glob("*.safetensors"):
        # safetensors keeps what it writes to the owner; a model is there to be shared.
        weights.chmod((output / RECORD).stat().st_mode)
    shutil.rmtree(output / "stages")


def write_json(file: Path, data: Any) -> None:
    """Writes JSON in one piece: a reader sees the old file or the new one."""
    part = file.with_name(file.name + ".part")
    part.write_text(json.dumps(_strict(data), indent=2, allow_nan=False) + "\n", encoding="utf-8")
    part.replace(file)


def _strict(data: Any) -> Any:
    """JSON has no NaN: null stands for a figure that is not defined."""
    if isinstance(data, Mapping):
        return {key: _strict(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_strict(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data
