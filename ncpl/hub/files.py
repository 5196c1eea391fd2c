"""What a push sends: a checkpoint's or an adapter's accepted files with the installed package's code, or the Space."""

import json
import os
import re
from collections.abc import Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from ncpl.errors import CheckpointError
from ncpl.hub.bundle import CODE, ROOT, Model, bundle_files, model_of, requirements
from text_ncpl import one_line, short, warn_user

ACCEPTED = ("*.safetensors", "*.json", "*.yaml", "*.py", "*.md", "*.txt", "*.jinja", "*.png", "*.svg", "LICENSE")
"""What of a folder is pushed: weights, configuration, code, card, record and figures."""
LEFT_OUT = ("trainer_state.json", "*checkpoint-*/*", "*stages/*")
"""What is not, although accepted by name: a training's own state."""
STALE = ("*.safetensors", "*.safetensors.index.json", "adapter_config.json", *CODE)
"""What is removed from a repository when a push does not send it: a loader would pick it up."""

Files = Mapping[str, Path | bytes]
"""Path in the repository -> local file or content."""


def space_files() -> dict[str, Path | bytes]:
    """The Space: its own files at the top, and beside them the modules that it imports.

    >>> {"app.py", "README.md", "requirements.txt", "ncpl/forecaster.py", "modeling_ncpl.py"} <= space_files().keys()
    True
    """
    space = ROOT / "space"
    if not (space / "app.py").exists():
        raise ValueError(f"space: no folder {space}; it is not installed with the package, push it from a clone")
    files: dict[str, Path | bytes] = {path.name: path for path in sorted(space.iterdir()) if path.is_file()}
    modules = [path for pattern in CODE for path in sorted(ROOT.glob(pattern))]
    for folder in ("ncpl", "datasets_scripts"):
        modules += [path for path in sorted((ROOT / folder).rglob("*")) if path.is_file()]
    ours = (path for path in modules if "__pycache__" not in path.parts and path.suffix != ".pyc")
    return files | {path.relative_to(ROOT).as_posix(): path for path in ours}


def checkpoint_files(folder: Path, base_model: str | None = None) -> dict[str, Path | bytes]:
    """What `push` sends of a checkpoint or an adapter, besides a card that it lacks.

    The code is that of the installed package, not the folder's own, which may be older; a warning names what differs.

    Raises:
        CheckpointError: the folder does not hold a whole checkpoint, or the installed code cannot read it.
    """
    # `Path.is_dir` raises where a name is longer than a file's may be.
    if not os.path.isdir(folder):  # noqa: PTH112
        raise CheckpointError(f"{one_line(folder, 150)}: no such folder")
    files = folder_files(folder)
    adapter = "adapter_config.json" in files
    model = model_in(folder, read_json(folder, "config.json")) if "config.json" in files and not adapter else None
    if adapter and "processor_config.json" in files:
        model = "ncpl"
    if model:
        files = _with_code(folder, files, model)
    _check_whole(folder, files)
    if adapter:
        files.pop("handler.py", None)
        files["adapter_config.json"] = _adapter_config(folder, base_model)
    elif model == "ncpl":
        files["requirements.txt"] = requirements().encode()
    return files


def model_in(folder: Path, config: Mapping[str, Any]) -> Model:
    """Which model of ours a checkpoint's `config.json` is of.

    Raises:
        CheckpointError: it is of none.
    """
    model = model_of(config.get("model_type"))
    if model is None:
        raise CheckpointError(
            f"{folder}/config.json: model_type: got {short(config.get('model_type'))}, expected ncpl or nsp"
        )
    return model


def folder_files(folder: Path) -> dict[str, Path | bytes]:
    """The accepted files of a folder, a warning counts the others; what lies outside is never among them.

    Raises:
        CheckpointError: an accepted name is a link to a file outside the folder.
    """
    files: dict[str, Path | bytes] = {}
    others = []
    for name, path in _listed(folder).items():
        accepted = any(fnmatch(path.name, pattern) for pattern in ACCEPTED)
        if not accepted or any(fnmatch(name, pattern) for pattern in LEFT_OUT):
            others.append(name)
        elif not path.resolve().is_relative_to(folder.resolve()):
            # The package's code takes the place of the folder's.
            if not _is_code(name):
                raise CheckpointError(f"{path}: a link to a file outside the folder; put a copy there to push it")
        elif path.is_file():
            files[name] = path
        else:
            others.append(name)
    if others:
        named = ", ".join(others[:5]) + (", ..." if len(others) > 5 else "")
        warn_user(f"{folder}: {len(others)} files are not part of a checkpoint and not pushed: {named}")
    return files


def figures(folder: Path) -> list[str]:
    """Paths of a folder's images, as `folder_files` takes them."""
    inside = {name: path.resolve() for name, path in _listed(folder).items() if name.endswith(".png")}
    left_out = [name for name in inside for pattern in LEFT_OUT if fnmatch(name, pattern)]
    return [name for name, path in inside.items() if path.is_relative_to(folder.resolve()) and name not in left_out]


def _listed(folder: Path) -> dict[str, Path]:
    """Path from the folder -> file, without hidden ones; linked folders are not entered."""
    found = {}
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        if not path.is_dir() and not any(part.startswith(".") or part == "__pycache__" for part in parts):
            found["/".join(parts)] = path
    return found


def _is_code(name: str) -> bool:
    return name == "handler.py" or any(fnmatch(name, pattern) for pattern in CODE)


def _with_code(folder: Path, files: Mapping[str, Path | bytes], model: Model) -> dict[str, Path | bytes]:
    """The files with the installed package's code in the place of the folder's."""
    code = bundle_files(model)
    held = {path.name: path.read_bytes() for path in folder.glob("*.py") if _is_code(path.name)}
    stale = [name for name, content in held.items() if name not in code or code[name].read_bytes() != content]
    if stale:
        _check_readable(folder, model)
        named = ", ".join(sorted(stale)[:4]) + (", ..." if len(stale) > 4 else "")
        warn_user(
            f"{folder}: {named}: not the code of the installed package, whose own {len(code)} files are pushed instead"
        )
    return {name: content for name, content in files.items() if not _is_code(name)} | code


def _check_readable(folder: Path, model: Model) -> None:
    """The installed code reads the settings of a checkpoint that came with other code."""
    from configuration_ncpl import NCPLConfig
    from feature_extraction_nsp import NSPFeatureExtractor
    from processing_ncpl import NCPLProcessor

    readers: dict[str, Any] = {"config.json": NCPLConfig, "processor_config.json": NCPLProcessor}
    if model == "nsp":
        readers = {"preprocessor_config.json": NSPFeatureExtractor}
    for name, reader in readers.items():
        if (folder / name).exists():
            try:
                reader.from_pretrained(folder)
            except Exception as error:
                # Of whatever kind: a file of another version fails wherever the difference shows.
                reason = " ".join(str(error).split())[:150]
                raise CheckpointError(f"{folder / name}: the installed package cannot read it ({reason})") from error


def _check_whole(folder: Path, files: Files) -> None:
    """Everything that loading needs is there: configuration, weights, and the code that they name."""
    adapter = "adapter_config.json" in files
    if not adapter and "config.json" not in files:
        raise CheckpointError(
            f"{folder}: no config.json and no adapter_config.json, expected a checkpoint or an adapter"
        )
    missing = [name for name in ("adapter_model.safetensors",) if adapter and name not in files]
    index = "model.safetensors.index.json"
    if index in files:
        missing += sorted(set(_section(folder, index, "weight_map").values()) - files.keys())
    elif not adapter and "model.safetensors" not in files:
        missing.append("model.safetensors")
    if not adapter and read_json(folder, "config.json").get("model_type") == "ncpl":
        missing += [name for name in ("processor_config.json", "tokenizer.json") if name not in files]
    for name in ("config.json", "processor_config.json", "preprocessor_config.json"):
        if name in files:
            classes = [*_section(folder, name, "auto_map").values()]
            pipelines = _section(folder, name, "custom_pipelines").values()
            classes += [entry.get("impl") for entry in pipelines if isinstance(entry, dict)]
            modules = {
                f"{value.partition('.')[0]}.py" for value in classes if isinstance(value, str) and "--" not in value
            }
            missing += sorted(modules - files.keys())
    if missing:
        raise CheckpointError(
            f"{folder}: lacks {', '.join(dict.fromkeys(missing))}; save model and processor with save_pretrained"
        )


def check_tensors(files: Files) -> None:
    """Raises CheckpointError for a safetensors file that is not as long as its header says."""
    for name, path in files.items():
        if name.endswith(".safetensors") and isinstance(path, Path):
            try:
                with safe_open(path, framework="numpy"):
                    pass
            except SafetensorError as error:
                raise CheckpointError(f"{path}: no whole safetensors file ({one_line(error)})") from None


def _adapter_config(folder: Path, base_model: str | None) -> Path | bytes:
    """The adapter's settings, whose base has to be a repository that others can load too."""
    settings = read_json(folder, "adapter_config.json")
    base = str(settings.get("base_model_name_or_path"))
    if base_model is None:
        if Path(base).exists() or not re.fullmatch(r"[\w.-]+/[\w.-]+", base):
            raise CheckpointError(
                f"{folder}: the adapter's base is the local folder {base!r}, which others do not have; push it too and "
                "give its repo id as base_model"
            )
        return folder / "adapter_config.json"
    settings["base_model_name_or_path"] = base_model
    return (json.dumps(settings, indent=2, sort_keys=True) + "\n").encode()


def _section(folder: Path, name: str, key: str) -> dict[str, Any]:
    found = read_json(folder, name).get(key, {})
    if not isinstance(found, dict):
        raise CheckpointError(f"{folder / name}: {key} is {type(found).__name__}, expected a JSON object")
    return found


def read_json(folder: Path, name: str) -> dict[str, Any]:
    """A JSON object of a checkpoint's folder.

    Raises:
        CheckpointError: it is absent, no JSON, or another kind of value.
    """
    try:
        content = json.loads((folder / name).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{folder / name}: cannot be read as JSON ({error})") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{folder / name}: got {type(content).__name__}, expected a JSON object")
    return content
