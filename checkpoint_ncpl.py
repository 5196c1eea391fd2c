"""The law that a checkpoint carries, and whether its network adds anything to it, read without torch."""

import json
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.numpy import load_file

try:
    from .calibration_ncpl import Calibration
    from .laws_ncpl import law_from_dict
    from .published_ncpl import ChinchillaLaw
    from .upgrade_ncpl import join_arrays
except ImportError:
    from calibration_ncpl import Calibration
    from laws_ncpl import law_from_dict
    from published_ncpl import ChinchillaLaw
    from upgrade_ncpl import join_arrays

MODEL_TYPE = "ncpl"
SETTINGS = "processor_config.json"
ARRAYS = "law.safetensors"
"""File beside the weights with the large numeric parts of the law and its calibration."""


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object, empty where there is no such file.

    Raises:
        ValueError: it holds something else.
    """
    if not file.is_file():
        return {}
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file.name} is not a valid JSON file ({error})") from None
    if not isinstance(found, dict):
        raise ValueError(f"{file.name} holds {type(found).__name__}, expected an object")
    return found


def read_settings(folder: Path) -> dict[str, Any]:
    """The processor's settings of a forecaster's folder.

    Raises:
        ValueError: the folder lacks the settings of the forecaster or of its processor, or is another model's.
    """
    config = read_json(folder / "config.json")
    if config.get("model_type") != MODEL_TYPE:
        kind = repr(config["model_type"]) if "model_type" in config else "no config.json"
        raise ValueError(f"expected a config.json of model_type {MODEL_TYPE!r}, found {kind}")
    # Without it the configuration would be that of a model of 1.7 billion parameters.
    if not isinstance(config.get("text_config"), dict):
        raise ValueError("config.json: text_config, the backbone's configuration, is missing or no object")
    settings = read_json(folder / SETTINGS)
    if "prompt_version" not in settings:
        raise ValueError(f"expected the {SETTINGS} of an NCPLProcessor, found none")
    return settings


def read_law(folder: Path) -> tuple[Any, Calibration | None]:
    """The law of a checkpoint's folder and its calibration, None where it has none."""
    state = read_json(folder / SETTINGS)
    arrays = load_file(folder / ARRAYS) if (folder / ARRAYS).is_file() else {}
    prior, calibration = state.get("prior"), state.get("calibration")
    law = law_from_dict(ChinchillaLaw().to_dict() if prior is None else join_arrays(prior, arrays))
    return law, None if calibration is None else Calibration.from_dict(join_arrays(calibration, arrays), law)


def head_is_zero(folder: Path) -> bool:
    """Whether the head of a checkpoint's network is zero, so that it adds nothing to the law.

    Raises:
        ValueError: there are no weights, or none of the head.
    """
    weights = folder / "model.safetensors"
    if (index := folder / "model.safetensors.index.json").is_file():
        weights = folder / read_json(index)["weight_map"]["head.weight"]
    if not weights.is_file():
        raise ValueError(f"no {weights.name} there")
    with safe_open(weights, "numpy") as tensors:
        names = [name for name in ("head.weight", "head.bias") if name in tensors.keys()]  # noqa: SIM118 (no mapping)
        # Loading would fill what is missing with random numbers, and not stop.
        if "head.weight" not in names:
            raise ValueError(f"{weights.name}: head.weight is missing")
        # numpy has no 16-bit brain floats.
        if len(names) < 2 or any(tensors.get_slice(name).get_dtype() not in ("F32", "F64") for name in names):
            return False
        return not any(tensors.get_tensor(name).any() for name in names)
