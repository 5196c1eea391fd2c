"""Forecast what an LLM pretraining run will give, before it is run.

Importing the package teaches transformers' Auto classes our models: `AutoModel.from_pretrained(folder)` then needs no
`trust_remote_code`. That imports torch, so the `ncpl` command starts outside the package, in `ncpl_cli`.

>>> from ncpl import Forecaster
>>> Forecaster.__module__
'ncpl.forecaster'
"""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import AutoConfig, AutoFeatureExtractor, AutoModel, AutoProcessor

from configuration_ncpl import NCPLConfig
from configuration_nsp import NSPConfig, NSPEnsembleConfig
from embedded_ncpl import EMBEDDED
from feature_extraction_nsp import NSPFeatureExtractor
from modeling_ncpl import NCPLForecaster
from modeling_nsp import NSPEnsemble, NSPModel
from ncpl.errors import CheckpointError
from processing_ncpl import NCPLProcessor

if TYPE_CHECKING:
    from ncpl.forecaster import Forecaster

__version__ = "0.1.0"
__all__ = [
    "CheckpointError",
    "Forecaster",
    "NCPLConfig",
    "NCPLForecaster",
    "NCPLProcessor",
    "NSPConfig",
    "NSPEnsemble",
    "NSPEnsembleConfig",
    "NSPFeatureExtractor",
    "NSPModel",
]

EMBEDDED.update(
    {folder.name: folder for folder in (Path(__file__).parent / "checkpoints").iterdir() if folder.is_dir()}
)
AutoConfig.register(NCPLConfig.model_type, NCPLConfig)
AutoModel.register(NCPLConfig, NCPLForecaster)
AutoProcessor.register(NCPLConfig, NCPLProcessor)
for _config, _model in ((NSPConfig, NSPModel), (NSPEnsembleConfig, NSPEnsemble)):
    AutoConfig.register(_config.model_type, _config)
    AutoModel.register(_config, _model)
    AutoFeatureExtractor.register(_config, NSPFeatureExtractor)


def __getattr__(name: str) -> Any:
    # Only now, because it brings pandas.
    if name == "Forecaster":
        return import_module("ncpl.forecaster").Forecaster
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
