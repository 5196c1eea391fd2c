"""The output folder: whose it is, the record and the log beside the trained model."""

import hashlib
import json
import os
import platform
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml
from accelerate import PartialState
from filelock import FileLock, Timeout

from datasets_scripts.runs import data_hash
from ncpl.recipe import Recipe
from ncpl.record import provenance
from ncpl.training.checkpoints import checkpoints, hash_file, read_hashed, write_hashed, write_json, write_text
from ncpl.training.data import Runs, data_folder
from ncpl.training.processes import on_main_process

RECORD = "training_record.json"
LOG = "training_log.json"
STAGES, STAGE_NAMES = "stages", ("frozen", "full")
INPUTS = f"{STAGES}/inputs.json"
"""What the training was begun with: its recipe, and the hash of each source's run logs."""
LOCK, OWNER = ".training.lock", ".training.owner"
"""Held by a running training, and who that is."""


@contextmanager
def hold_output(folder: Path) -> Iterator[None]:
    """Keeps every other training out of an output folder. A process that dies lets go of it.

    Raises:
        ValueError: another training holds the folder, or it cannot be written to.
    """
    lock, owner = FileLock(folder / LOCK), folder / OWNER

    def acquire() -> None:
        check_foreign(folder)
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise ValueError(
                f"output_dir: {folder} is being trained by {_owner(owner)}; wait until it ends, or give another "
                "output_dir"
            ) from None
        write_hashed(owner, {"process": os.getpid(), "host": platform.node(), "since": time.strftime("%F %T")})

    try:
        on_main_process(acquire)
    except OSError as error:
        raise ValueError(f"output_dir: {folder} cannot be written to ({error.strerror})") from None
    try:
        yield
    finally:
        if lock.is_locked:
            owner.unlink(missing_ok=True)
            lock.release()
            (folder / LOCK).unlink(missing_ok=True)


def _owner(file: Path) -> str:
    owner = read_hashed(file)
    return f"process {owner['process']} on {owner['host']} since {owner['since']}" if owner else "another process"


def open_output(recipe: Recipe) -> dict[str, Any] | None:
    """Makes the output folder this recipe's: `recipe.yaml` says so, and what it was begun with stays as it was.

    Returns:
        the record of the training that is finished there; None where there is work left.

    Raises:
        ValueError: the folder holds a training by another recipe or on other data, a finished one whose files are
            missing or altered, or something else.
    """
    folder, ours = Path(recipe.output_dir), recipe.to_dict()
    if not _begun(folder):
        # A training that was refused, or ended before its first checkpoint, leaves nothing that another could spoil.
        clear_stages(folder)
        (folder / "recipe.yaml").unlink(missing_ok=True)
    theirs = _recipe_of(folder)
    for key, (old, new) in _differences(theirs, ours).items() if theirs else ():
        raise ValueError(
            f"output_dir: {folder} holds a training whose {key} is {old!r}, this recipe says {new!r}; give another "
            "output_dir, or remove the folder"
        )
    text = yaml.safe_dump(ours, sort_keys=False)
    file = folder / "recipe.yaml"
    if not file.exists() or file.read_bytes() != text.encode():
        write_text(file, text)
    record = _finished(folder)
    begun = record["data"] if record else (read_hashed(folder / INPUTS) or {}).get("data", {})
    hashes = _data_hashes(recipe, needed=record is None)
    for source, now in hashes.items():
        then = begun.get(source, {}).get("sha256", now)
        if then != now:
            raise ValueError(
                f"data: the runs of {source} have changed since the training in {folder} began (SHA-256 {then[:12]} "
                f"then, {now[:12]} now); restore them, or give another output_dir"
            )
    if record is None:
        (folder / STAGES).mkdir(exist_ok=True)
        write_hashed(folder / INPUTS, {"recipe": ours, "data": {name: {"sha256": h} for name, h in hashes.items()}})
    return record


def _begun(folder: Path) -> bool:
    """Whether a training in this folder has something to resume from: a checkpoint, a stage that is done, or all."""
    stages = [folder / STAGES / name for name in STAGE_NAMES]
    return (folder / RECORD).exists() or any((stage / "stage.json").exists() or checkpoints(stage) for stage in stages)


def check_foreign(folder: Path) -> None:
    """Refuses a folder that holds something else than a training."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"output_dir: {folder} is a file, expected a folder")
    ours = (LOCK, OWNER, OWNER + ".part", "recipe.yaml", "recipe.yaml.part", RECORD, STAGES)
    if folder.exists() and any(folder.iterdir()) and not any((folder / name).exists() for name in ours):
        raise ValueError(f"output_dir: {folder} holds something that is no training; give a new or empty folder")


def _recipe_of(folder: Path) -> dict[str, Any] | None:
    """The recipe of the training in a folder: from the files whose hash says that they are whole, else from YAML."""
    inputs = read_hashed(folder / INPUTS)
    if inputs:
        return inputs["recipe"]
    if not (folder / "recipe.yaml").exists():
        return None
    try:
        recipe = yaml.safe_load((folder / "recipe.yaml").read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError):
        recipe = None
    if not isinstance(recipe, dict):
        raise ValueError(f"output_dir: {folder}/recipe.yaml is damaged; restore it, or remove the folder")
    return recipe


def _finished(folder: Path) -> dict[str, Any] | None:
    if not (folder / RECORD).exists():
        return None
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        files = record.get("files", {})
    except (ValueError, AttributeError, RecursionError):
        raise ValueError(f"output_dir: {folder}/{RECORD} is damaged; restore it, or remove the folder") from None
    wrong = [f"{name} is missing" for name in files if not (folder / name).is_file()]
    wrong += [
        f"{name} is altered"
        for name, expected in files.items()
        if name.endswith(".safetensors") and (folder / name).is_file() and hash_file(folder / name) != expected
    ]
    if wrong:
        raise ValueError(
            f"output_dir: {folder} holds a finished training, but {', '.join(wrong[:3])}; restore what it held, or "
            "remove the folder to train again"
        )
    return record


def _data_hashes(recipe: Recipe, needed: bool) -> dict[str, str]:
    """Source -> SHA-256 of its run logs; a finished training is told also where its logs are no longer at hand."""
    try:
        if recipe.data.runs is not None:
            return {recipe.data.sources[0]: _hash_of_runs(Path(recipe.data.runs))}
        return {source: data_hash(source, data_folder(recipe.data)) for source in recipe.data.sources}
    except (ValueError, OSError):
        if needed:
            raise
        return {}


def _hash_of_runs(path: Path) -> str:
    """SHA-256 of a lab's own runs, a file or all files of a folder in order."""
    if not path.exists():
        raise ValueError(f"data.runs: {path} does not exist, expected a file or folder of runs")
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    return hashlib.sha256("".join(hash_file(file) for file in files).encode()).hexdigest()


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
    commit, parameters, metrics, those of the prior alone, and wall time in seconds.

    Args:
        recipe: of the training.
        runs: what it read.
        stages: stage name -> `report` and `log` of each stage (`StageRun.result`), in order.
        prior_metrics: forecast errors of the prior alone (`Evaluation.cells`).
    """
    output, process = Path(recipe.output_dir), PartialState()
    hashes = {source: of["sha256"] for source, of in (read_hashed(output / INPUTS) or {})["data"].items()}
    reports = {name: result["report"] for name, result in stages.items()}
    last = list(reports.values())[-1]
    came_from = provenance()
    record = {
        "recipe": recipe.to_dict(),
        "seed": recipe.seed,
        "data": {
            source: {
                "sha256": hashes[source],
                "runs": {split: len(sources[source]) for split, sources in runs.items()},
            }
            for source in recipe.data.sources
        },
        **came_from,
        "hardware": {**came_from["hardware"], "device": process.device.type, "processes": process.num_processes},
        "parameters": last["parameters"],
        "metrics": last["metrics"],
        "prior_metrics": prior_metrics,
        "stages": reports,
        "wall_s": round(sum(report["wall_s"] for report in reports.values()), 1),
    }
    for weights in output.glob("*.safetensors"):
        # safetensors keeps what it writes to the owner; a model is there to be shared.
        weights.chmod((output / "recipe.yaml").stat().st_mode)
    write_json(output / LOG, {name: result["log"] for name, result in stages.items()})
    record["files"] = stages[list(stages)[-1]]["files"]
    write_json(output / RECORD, record)
    clear_stages(output)


def clear_stages(output: Path) -> None:
    """Removes what was needed for resuming alone; anything else that somebody put there stays."""
    stages = output / STAGES
    for stage in (stages / name for name in STAGE_NAMES):
        for folder in (*checkpoints(stage), stage / "model"):
            shutil.rmtree(folder, ignore_errors=True)
        (stage / "stage.json").unlink(missing_ok=True)
    for name in ("prior.json", "inputs.json"):
        (stages / name).unlink(missing_ok=True)
    for folder in (*(stages / name for name in STAGE_NAMES), stages):
        with suppress(OSError):
            folder.rmdir()
