"""Forecasts from configurations: the model, its processor and its calibration behind one object."""

import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pandas as pd
import torch
from safetensors import SafetensorError
from tqdm import tqdm
from transformers import PreTrainedConfig

from configuration_ncpl import NCPLConfig
from fields_ncpl import FIELDS, max_step, training_order
from modeling_ncpl import NCPLForecaster
from ncpl.configs import as_configs, check_configs
from ncpl.errors import CheckpointError
from ncpl.sweep import WINDOW, Grid, Prompts, forecast_grid, named_fields, residuals
from processing_ncpl import NCPLProcessor

if TYPE_CHECKING:
    from modeling_nsp import NSPModel

DEFAULT = Path(__file__).parent / "checkpoints" / "ncpl-mini"
COLUMNS = ("loss", "lower", "upper", "divergence", "extrapolation")


class Forecaster:
    """Forecasts the final loss of pretraining runs from their configurations.

    Args:
        model: the forecaster network.
        processor: its processor, which carries the prior and the calibration.
        device: where to compute; a GPU if there is one. float32 on CPU, bfloat16 elsewhere.

    >>> forecaster = Forecaster.from_pretrained()
    >>> config = {"source": "marin", "model size": 300, "data size": 6, "optimizer": "adamw", "learning rate": 4e-3,
    ...           "batch size": 128}
    >>> list(forecaster.predict(config))
    ['loss', 'lower', 'upper', 'divergence', 'extrapolation']
    """

    def __init__(
        self, model: NCPLForecaster, processor: NCPLProcessor, device: str | torch.device | None = None
    ) -> None:
        self.device = _device(device)
        self.model = model.to(self.device).eval()
        self.processor = processor
        self.calibration = processor.calibrator
        self._told_uncalibrated = False

    @classmethod
    def from_pretrained(
        cls, path_or_repo: str | Path | None = None, *, device: str | torch.device | None = None, **hub: Any
    ) -> Self:
        """Loads a checkpoint.

        Args:
            path_or_repo: a folder or a Hub id; the embedded default, `ncpl-mini`, when absent.
            device: where to compute; a GPU if there is one.
            hub: what transformers' `from_pretrained` takes: `revision`, `token`, `cache_dir`, `local_files_only`, ...

        Raises:
            CheckpointError: there is no such checkpoint, it is incomplete, or of another kind of model.
        """
        path = str(DEFAULT if path_or_repo is None else path_or_repo)
        target = _device(device)
        if not Path(path).is_dir() and not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", path):
            raise CheckpointError(f"{path}: no such folder; accepted: a checkpoint's folder or a Hub id (owner/name)")
        dtype = torch.float32 if target.type == "cpu" else torch.bfloat16
        with _checkpoint_errors(path):
            _check_kind(path, hub)
        with _checkpoint_errors(f"{path}: its weights"):
            model, info = NCPLForecaster.from_pretrained(path, dtype=dtype, output_loading_info=True, **hub)
            if info["missing_keys"]:
                names = sorted(info["missing_keys"])
                raise ValueError(f"{len(names)} tensors are missing, the first {names[0]!r}")
        with _checkpoint_errors(f"{path}: its processor"):
            processor = NCPLProcessor.from_pretrained(path, **hub)
        return cls(model, processor, target)

    def predict(self, configs: Any, level: float = 0.9) -> pd.DataFrame:
        """Forecasts final losses.

        Args:
            configs: a configuration (field -> value, in any order), a list of them, or a DataFrame with a column for
                each field, in which a missing cell means that the field is absent.
            level: coverage of the interval, between 0 and 1.

        Returns:
            A row for each configuration, under the DataFrame's own index: `loss` and the interval's `lower` and `upper`
            in nats per token; `divergence`, the probability that the run diverges; `extrapolation`, the distance from
            the training runs, 0 within them. All but `loss` are NaN where the checkpoint has no calibration.

        Raises:
            ValueError: no configurations, or one that is not accepted; says which, the field and what is accepted.
        """
        _check_level(level)
        rows, index = as_configs(configs)
        origins = [f"row {name!r}" for name in index] if isinstance(configs, pd.DataFrame) else None
        return self.predict_checked(check_configs(rows, self.processor.strict, origins), level).set_index(index)

    def predict_checked(self, configs: Sequence[Mapping[str, Any]], level: float = 0.9) -> pd.DataFrame:
        """`predict` for configurations that `fields_ncpl.check_config` has passed, such as logged runs."""
        configs = [training_order(config) for config in configs]
        return self.columns(configs, self._residuals(configs), level)

    def columns(self, configs: Sequence[Mapping[str, Any]], residuals: np.ndarray, level: float) -> pd.DataFrame:
        """`predict`'s columns for checked configurations in training order, from what the model adds to the prior."""
        losses = self.processor.law(configs) + residuals
        columns = {"loss": losses} | {name: np.full(len(configs), np.nan) for name in COLUMNS[1:]}
        if self.calibration is not None:
            columns["lower"], columns["upper"] = self.calibration.interval(configs, losses, level)
            columns["divergence"] = self.calibration.divergence(configs)
            columns["extrapolation"] = self.calibration.extrapolation(configs)
        elif not self._told_uncalibrated:
            self._told_uncalibrated = True
            warnings.warn(
                "this checkpoint has no calibration: lower, upper, divergence and extrapolation are NaN", stacklevel=3
            )
        return pd.DataFrame(columns)

    def sweep(self, config: Mapping[str, Any], grid: Mapping[str, Sequence[Any]], level: float = 0.9) -> pd.DataFrame:
        """Forecasts every combination of some fields' values.

        Args:
            config: the configuration that is varied; its `max step` follows data size, batch size and sequence length.
            grid: field -> values.
            level: coverage of the interval.

        Returns:
            A row for each combination, the last field varying fastest: the swept fields, then `predict`'s columns.

        Raises:
            ValueError: a field that is unknown or has no values, and what `predict` refuses.
        """
        _check_level(level)
        return pd.concat(forecast_grid(self, _one(config), grid, level))

    def optimize(
        self, config: Mapping[str, Any], bounds: Mapping[str, tuple[float, float]], level: float = 0.9
    ) -> pd.Series:
        """Finds the values of some fields to bet on: those with the lowest loss to expect.

        That is the forecast and, where the checkpoint is calibrated, what not knowing the best learning rate's place
        exactly adds to it (`ConfigurationLaw.risk`).
        A grid over the bounds, logarithmic where they allow, is refined around its best point until it stands still;
        nothing is random. Where the checkpoint is calibrated, configurations that will rather diverge than not are out,
        because a run that diverges has no loss to be low.

        Args:
            config: the configuration that is varied; its `max step` follows data size, batch size and sequence length.
            bounds: numeric field -> (low, high), both included.
            level: coverage of the interval.

        Returns:
            The optimised fields, then `predict`'s columns at them.

        Raises:
            ValueError: a field without numbers, bounds that are not a range, more than six fields, and what `predict`
                refuses.
        """
        fields = named_fields(bounds)
        if len(fields) > _FREE_FIELDS:
            raise ValueError(f"fields: got {len(fields)} to optimise, expected at most {_FREE_FIELDS} at a time")
        windows = {name: _range(name, limits) for name, limits in fields.items()}
        # About 400 forecasts a round, at least three values a field.
        points = min(64, max(3, round(400 ** (1 / len(fields)))))
        best: pd.Series | None = None
        lowest = math.inf
        for _ in range(_ROUNDS):
            grid = {name: _spaced(name, low, high, points) for name, (low, high) in windows.items()}
            if best is not None:
                grid = {name: np.union1d(values, best[name]).tolist() for name, values in grid.items()}
            swept = self.sweep(config, grid, level)
            expected = swept["loss"].to_numpy() + self._risk(config, grid)
            found = _best(swept, expected)
            if expected[found] >= lowest - 1e-6:
                break
            # As objects, whole numbers stay whole beside the losses.
            best, lowest = swept.astype(object).iloc[found].rename(None), expected[found]
            windows = {name: _neighbours(values, best[name]) for name, values in grid.items()}
        assert best is not None
        for name, limits in fields.items():
            if best[name] in map(float, limits):
                warnings.warn(
                    f"{name}: the best value, {best[name]:g}, is a bound; better ones may lie beyond", stacklevel=2
                )
        return best

    def _risk(self, config: Mapping[str, Any], grid: Mapping[str, Sequence[Any]]) -> np.ndarray:
        """`ConfigurationLaw.risk` of every combination, 0 where the checkpoint is not calibrated."""
        combinations = Grid(self.processor, _one(config), grid)
        if self.calibration is None:
            return np.zeros(len(combinations))
        return self.calibration.law.risk(combinations.configs(0, len(combinations)))

    def benchmarks(
        self, models: Any, like: str | None = None, level: float = 0.9, model: "NSPModel | str" = "nsp-base"
    ) -> pd.DataFrame:
        """Forecasts benchmark scores of models (`ncpl.nsp.benchmarks`).

        Args:
            models: a description such as `{"params": 7e9, "tokens": 2e12}`, or a configuration as `predict` takes it; a
                list of either, or a DataFrame.
            like: a known family whose data quality is assumed.
            level: coverage of the intervals.
            model: NSP: a model, a folder, a Hub id, or the name of an embedded one.

        Returns:
            A row for each model: for each task TASK, TASK_lower, TASK_upper and TASK_emergence, and `extrapolation`.
            Configurations also have their forecast `loss` with its interval, which widens the bands, scores in the
            setting of AI2's model ladder (`olmo_...`), and `assumption`: how the loss was put on that ladder's scale.

        Raises:
            ValueError: a field, task or family that is not known, or a value out of range.
        """
        # Only now, because it brings another model.
        from ncpl.nsp.benchmarks import are_configurations, benchmarks, benchmarks_of_runs

        if not are_configurations(models):
            return benchmarks(models, like, level, model)
        configs = check_configs(as_configs(models)[0], self.processor.strict)
        return benchmarks_of_runs(configs, self.predict_checked(configs, level), like, level, model)

    def curve(self, config: Mapping[str, Any], points: int = 50) -> pd.DataFrame:
        """Forecasts the loss curve of a run.

        Args:
            config: a configuration (field -> value, in any order).
            points: how many, evenly spaced over the run; the last is its end.

        Returns:
            A row for each point: `step` (training steps), `tokens` (billions) and `loss` (nats per token).

        Raises:
            ValueError: the checkpoint was trained on final losses alone, or what `predict` refuses.
        """
        if not self.model.config.curves:
            raise ValueError("curve: this checkpoint was trained on final losses alone, expected one trained on curves")
        if isinstance(points, bool) or not isinstance(points, int) or points < 1:
            raise ValueError(f"points: got {points!r}, expected a whole number, at least 1")
        checked = training_order(check_configs([_one(config)], self.processor.strict)[0])
        total = max_step(checked)
        steps = np.unique(np.ceil(np.linspace(0, total, points + 1)[1:]).astype(int))
        batch = self.processor(checked, steps=steps.tolist())
        with torch.inference_mode():
            logits = self.model(**batch.to(self.device), use_cache=False).logits
        losses = self.processor.losses(logits, batch["loss_mask"], [checked] * len(steps))
        return pd.DataFrame({"step": steps, "tokens": checked["data size"] * steps / total, "loss": losses})

    def _residuals(self, configs: Sequence[Mapping[str, Any]]) -> np.ndarray:
        """What the model adds to the prior, in nats."""
        windows = [configs[start : start + WINDOW] for start in range(0, len(configs), WINDOW)]
        with tqdm(total=len(configs), desc="forecast", unit="config", delay=2, disable=None) as progress:
            found = []
            for window in windows:
                found.append(residuals(self.model, Prompts.of(self.processor, window)))
                progress.update(len(window))
        return np.concatenate(found)


# Each round narrows the grid to two of its cells: after four the step is far below what losses resolve.
_ROUNDS = 5
# More free fields than this leave too few values for each.
_FREE_FIELDS = 6


def _device(device: str | torch.device | None) -> torch.device:
    return torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))


@contextmanager
def _checkpoint_errors(what: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"{what}: {' '.join(str(error).split())}") from error


def _check_kind(path: str, hub: Mapping[str, Any]) -> None:
    """What transformers would replace by defaults, and load a model of random weights or of another prompt."""
    config, _ = PreTrainedConfig.get_config_dict(path, **hub)
    if config.get("model_type") != NCPLConfig.model_type:
        kind = repr(config["model_type"]) if "model_type" in config else "no config.json"
        raise ValueError(f"expected a config.json of model_type {NCPLConfig.model_type!r}, found {kind}")
    processor, _ = NCPLProcessor.get_processor_dict(path, **hub)
    if "prompt_version" not in processor:
        raise ValueError("expected the processor_config.json of an NCPLProcessor, found none")


def _check_level(level: float) -> None:
    if isinstance(level, bool) or not isinstance(level, int | float) or not 0 < level < 1:
        raise ValueError(f"level: got {level!r}, expected a coverage between 0 and 1")


def _one(config: Any) -> Mapping[str, Any]:
    rows, _ = as_configs(config)
    if len(rows) > 1:
        raise ValueError(f"config: got {len(rows)} configurations, expected one to vary")
    if not isinstance(rows[0], Mapping):
        raise ValueError(f"config: got {rows[0]!r}, expected a mapping of fields to values")
    return rows[0]


def _range(name: str, limits: Any) -> tuple[float, float]:
    field = FIELDS.get(name)
    if field is not None and field.kind not in ("number", "count"):
        raise ValueError(f"{name}: not a number, expected a numeric field to optimise; sweep compares values of others")
    try:
        low, high = map(float, limits)
    except (TypeError, ValueError):
        raise ValueError(f"{name}: got {limits!r}, expected two numbers (low, high)") from None
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"{name}: got {limits!r}, expected two finite numbers, the lower first")
    if field is not None and field.kind == "count" and math.ceil(low) > math.floor(high):
        raise ValueError(f"{name}: got {limits!r}, expected bounds with a whole number between them")
    return low, high


def _spaced(name: str, low: float, high: float, points: int) -> list[float]:
    values = np.geomspace(low, high, points) if low > 0 else np.linspace(low, high, points)
    # Rounding must not leave the bounds.
    values = np.clip(values, low, high)
    if name in FIELDS and FIELDS[name].kind == "count":
        values = np.unique(np.clip(np.rint(values), math.ceil(low), math.floor(high)).astype(int))
    return values.tolist()


def _neighbours(values: Sequence[float], best: float) -> tuple[float, float]:
    """The value below the best and the one above."""
    at = list(values).index(best)
    return values[max(0, at - 1)], values[min(len(values) - 1, at + 1)]


def _best(forecasts: pd.DataFrame, expected: np.ndarray) -> int:
    """The row with the lowest expected loss of those that will rather not diverge, of all where there are none."""
    stable = ~(forecasts["divergence"].to_numpy(dtype=float) > 0.5)
    return int(np.where(stable, expected, np.inf if stable.any() else expected).argmin())
