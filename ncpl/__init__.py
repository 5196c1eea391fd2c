"""Forecast what an LLM pretraining run will give, before it is run.

Importing the package teaches transformers' Auto classes our models: `AutoModel.from_pretrained(folder)` then needs no
`trust_remote_code`, and the installed code wins over the code in a checkpoint. That happens as soon as transformers is
imported too. The package itself imports neither torch nor transformers, which a law's forecasts do not need.

>>> from ncpl import Forecaster
>>> Forecaster.__module__
'ncpl.forecaster'
"""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embedded_ncpl import EMBEDDED
from ncpl.auto import register_with_transformers
from ncpl.errors import CheckpointError

if TYPE_CHECKING:
    from configuration_ncpl import NCPLConfig
    from configuration_nsp import NSPConfig, NSPEnsembleConfig
    from feature_extraction_nsp import NSPFeatureExtractor
    from modeling_ncpl import NCPLForecaster
    from modeling_nsp import NSPEnsemble, NSPModel
    from ncpl.callback import ForecastCallback
    from ncpl.forecaster import Forecaster
    from ncpl.logs.importer import import_runs
    from processing_ncpl import NCPLProcessor

__version__ = "0.1.0"
# Name -> the module that defines it, imported when it is asked for.
_HOMES = {
    "ForecastCallback": "ncpl.callback",
    "Forecaster": "ncpl.forecaster",
    "NCPLConfig": "configuration_ncpl",
    "NCPLForecaster": "modeling_ncpl",
    "NCPLProcessor": "processing_ncpl",
    "NSPConfig": "configuration_nsp",
    "NSPEnsemble": "modeling_nsp",
    "NSPEnsembleConfig": "configuration_nsp",
    "NSPFeatureExtractor": "feature_extraction_nsp",
    "NSPModel": "modeling_nsp",
    "import_runs": "ncpl.logs.importer",
}
__all__ = [
    "CheckpointError",
    "ForecastCallback",
    "Forecaster",
    "NCPLConfig",
    "NCPLForecaster",
    "NCPLProcessor",
    "NSPConfig",
    "NSPEnsemble",
    "NSPEnsembleConfig",
    "NSPFeatureExtractor",
    "NSPModel",
    "import_runs",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


EMBEDDED.update(
    {folder.name: folder for folder in (Path(__file__).parent / "checkpoints").iterdir() if folder.is_dir()}
)
register_with_transformers()
