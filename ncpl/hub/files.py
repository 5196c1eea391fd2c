"""What a push sends: the accepted files of a checkpoint, of an adapter, and those of the Space."""

import json
import re
import warnings
from collections.abc import Mapping
from fnmatch import fnmatch
from pathlib import Path

from ncpl.errors import CheckpointError
from ncpl.share import root_file

ROOT = Path(__file__).parents[2]
ACCEPTED = ("*.safetensors", "*.json", "*.yaml", "*.py", "*.md", "*.txt", "*.jinja", "*.png", "*.svg", "LICENSE")
"""What of a folder is pushed: weights, configuration, code, card, record and figures."""
LEFT_OUT = ("trainer_state.json", "*checkpoint-*/*", "*stages/*")
"""What is not, although accepted by name: a training's own state."""
STALE = ("*.safetensors", "*.safetensors.index.json", "adapter_config.json")
"""What is removed from a repository when the folder has it no more: a loader would pick it up."""
REQUIREMENTS = "torch>=2.6\ntransformers>=5.23,<6\n"
"""What `handler.py` needs on an Inference Endpoint."""

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
    modules = [path for path in sorted(ROOT.glob("*_n[cs]p*.py")) if path.name != "ncpl_cli.py"]
    for folder in ("ncpl", "datasets_scripts"):
        modules += [path for path in sorted((ROOT / folder).rglob("*")) if path.is_file()]
    ours = (path for path in modules if "__pycache__" not in path.parts and path.suffix != ".pyc")
    return files | {path.relative_to(ROOT).as_posix(): path for path in ours}


def checkpoint_files(folder: Path, repo_id: str, base_model: str | None = None) -> dict[str, Path | bytes]:
    """What `push` sends: path in the repository -> local file or content.

    Raises:
        CheckpointError: the folder does not hold a whole checkpoint.
    """
    from ncpl.hub.cards import checkpoint_card, widget_examples

    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder")
    files = folder_files(folder)
    _check_whole(folder, files)
    if "adapter_config.json" in files:
        files["adapter_config.json"] = _adapter_config(folder, base_model)
    elif _json(folder, "config.json").get("model_type") == "ncpl":
        files.setdefault("handler.py", root_file("handler.py"))
        files.setdefault("requirements.txt", REQUIREMENTS.encode())
    if "README.md" not in files or b"[More Information Needed]" in (folder / "README.md").read_bytes():
        widget = None
        if "handler.py" in files and "widget.json" not in files:
            widget = widget_examples(folder)
            files["widget.json"] = (json.dumps(widget, indent=2) + "\n").encode()
        files["README.md"] = checkpoint_card(folder, repo_id, base_model, widget).encode()
    return files


def folder_files(folder: Path) -> dict[str, Path | bytes]:
    """The accepted files of a folder; the others are counted in a warning."""
    files: dict[str, Path | bytes] = {}
    others = []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_dir() or any(part.startswith(".") or part == "__pycache__" for part in Path(name).parts):
            continue
        accepted = any(fnmatch(path.name, pattern) for pattern in ACCEPTED)
        if accepted and not any(fnmatch(name, pattern) for pattern in LEFT_OUT):
            files[name] = path
        else:
            others.append(name)
    if others:
        named = ", ".join(others[:5]) + (", ..." if len(others) > 5 else "")
        warnings.warn(
            f"{folder}: {len(others)} files are not part of a checkpoint and not pushed: {named}", stacklevel=3
        )
    return files


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
        missing += sorted(set(_json(folder, index)["weight_map"].values()) - files.keys())
    elif not adapter and "model.safetensors" not in files:
        missing.append("model.safetensors")
    if not adapter and _json(folder, "config.json").get("model_type") == "ncpl":
        missing += [name for name in ("processor_config.json", "tokenizer.json") if name not in files]
    for name in ("config.json", "processor_config.json", "preprocessor_config.json"):
        settings = _json(folder, name) if name in files else {}
        classes = [*settings.get("auto_map", {}).values()]
        classes += [entry["impl"] for entry in settings.get("custom_pipelines", {}).values()]
        modules = {f"{value.partition('.')[0]}.py" for value in classes if value and "--" not in value}
        missing += sorted(modules - files.keys())
    if missing:
        raise CheckpointError(
            f"{folder}: lacks {', '.join(dict.fromkeys(missing))}; save model and processor with save_pretrained"
        )


def _adapter_config(folder: Path, base_model: str | None) -> Path | bytes:
    """The adapter's settings, whose base has to be a repository that others can load too."""
    settings = _json(folder, "adapter_config.json")
    base = str(settings.get("base_model_name_or_path"))
    if base_model is None:
        if Path(base).exists() or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", base):
            raise CheckpointError(
                f"{folder}: the adapter's base is the local folder {base!r}, which others do not have; push it too and "
                "give its repo id as base_model"
            )
        return folder / "adapter_config.json"
    settings["base_model_name_or_path"] = base_model
    return (json.dumps(settings, indent=2, sort_keys=True) + "\n").encode()


def _json(folder: Path, name: str) -> dict:
    try:
        content = json.loads((folder / name).read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{folder / name}: cannot be read as JSON ({error})") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{folder / name}: got {type(content).__name__}, expected a JSON object")
    return content
