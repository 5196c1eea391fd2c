"""The law whose residuals the network learns."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from datasets_scripts.runs import load_runs
from laws_ncpl import law_from_dict
from ncpl.recipe import DataBlock, Recipe
from ncpl.training.checkpoints import read_hashed, write_hashed
from ncpl.training.data import LoggedRun, data_folder
from ncpl.training.model import load_processor
from ncpl.training.processes import on_main_process
from published_ncpl import ChinchillaLaw


@dataclass(frozen=True)
class FittedPrior:
    """The law whose residuals are learnt.

    Args:
        law: its `to_dict()`.
        forecasts: of the training runs, nats per token.
        calibration: a `Calibration`'s `to_dict()`, or None.
    """

    law: Mapping[str, Any]
    forecasts: np.ndarray
    calibration: Mapping[str, Any] | None = None


def make_prior(recipe: Recipe, train: Sequence[LoggedRun]) -> FittedPrior:
    """The law whose residuals are learnt, and what it forecasts for the training split.

    A law that is fitted here forecasts each training run as if it had not seen it (out of fold): its residuals on what
    it has seen are smaller than those the network will meet. It brings the calibration of intervals and divergence. The
    fit is kept in the output folder until training is done.

    Args:
        recipe: `model.prior` names the law.
        train: the training split.

    Raises:
        ValueError: the prior is not known.
    """
    name, configs = recipe.model.prior, [run.config for run in train]
    if recipe.model.checkpoint is not None:
        processor = load_processor(recipe.model)
        calibration = processor.calibrator.to_dict() if processor.calibrator else None
        return FittedPrior(processor.law.to_dict(), processor.law(configs), calibration)
    if name is None or name == "chinchilla":
        law = ChinchillaLaw()
    elif name != "configuration":
        try:
            law = law_from_dict(json.loads(Path(name).read_text(encoding="utf-8")))
        except (OSError, json.JSONDecodeError) as error:
            raise ValueError(
                f"model.prior: got {name!r}, expected chinchilla, configuration, or the path of a law's JSON ({error})"
            ) from None
    else:
        fitted = on_main_process(lambda: _fit_configuration_law(recipe, train))
        return FittedPrior(fitted["law"], np.array(fitted["forecasts"]), fitted["calibration"])
    return FittedPrior(law.to_dict(), law(configs))


def _fit_configuration_law(recipe: Recipe, train: Sequence[LoggedRun]) -> dict[str, Any]:
    file = Path(recipe.output_dir) / "stages" / "prior.json"
    if (stored := read_hashed(file)) is not None:
        return stored
    if file.exists():
        print(f"{file} is damaged: the law is fitted again")
    # Only here, because it brings scipy and scikit-learn.
    from ncpl.fitting import calibrate, fit, random_folds

    rows = [{"source": run.config["source"], "conf": run.config, "final_loss": run.final_loss} for run in train]
    fitted = fit(rows)
    calibration = calibrate(fitted, _unstable(recipe.data, train), seed=recipe.seed)
    state = {
        "law": calibration.law.to_dict(),
        "forecasts": fitted.held_out(random_folds(rows, seed=recipe.seed)),
        "calibration": calibration.to_dict(with_law=False),
    }
    state = json.loads(json.dumps(state, default=np.ndarray.tolist))
    file.parent.mkdir(exist_ok=True)
    write_hashed(file, state)
    return state


def _unstable(data: DataBlock, train: Sequence[LoggedRun]) -> list[dict[str, Any]]:
    """Runs of no split that are no larger than those of their source trained on: what is known of divergence."""

    def size(config: Mapping[str, Any]) -> float:
        # The splits hold out mixtures of experts by what is active: their total sizes are nearly the same.
        return config.get("active size", config["model size"])

    kept = []
    for source in data.sources:
        largest = max(size(run.config) for run in train if run.config["source"] == source)
        rows = load_runs(source, data_folder(data), data.config)["unstable"]
        kept += [row for row in rows if size(row["conf"]) <= largest]
    return kept
