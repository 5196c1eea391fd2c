"""`pipeline("scaling-forecast")`: configurations in, plain JSON forecasts out."""

import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from transformers import AutoModel
from transformers.pipelines import PIPELINE_REGISTRY, Pipeline

try:
    from .calibration_ncpl import forecast_columns
    from .fields_ncpl import check_config, training_order
    from .text_ncpl import check_level, short, warn_user
except ImportError:
    from calibration_ncpl import forecast_columns
    from fields_ncpl import check_config, training_order
    from text_ncpl import check_level, short, warn_user

TASK = "scaling-forecast"


class ScalingForecastPipeline(Pipeline):
    """Forecasts the final loss of training runs from their configurations (NCPL, arXiv 2602.10300).

    Args:
        model: an `NCPLForecaster`.
        processor: its `NCPLProcessor`.
        kwargs: `level`, the default of calls, and what every pipeline takes (`device`, `batch_size`, ...).

    `pipeline("scaling-forecast", model=folder_or_repo, trust_remote_code=True)` builds one from a checkpoint.
    """

    _load_processor = True
    _load_tokenizer = False
    _load_feature_extractor = False
    _load_image_processor = False
    _load_video_processor = False

    def __call__(self, inputs: Mapping[str, Any] | Iterable[Mapping[str, Any]], **kwargs: Any) -> Any:
        """Forecasts one configuration, or many.

        Args:
            inputs: a configuration (field -> value), or a list, tuple, iterator or `Dataset` of them.
            kwargs: `level`, the coverage of a calibrated checkpoint's interval, 0.9 when absent; `batch_size`,
                configurations a forward pass.

        Returns:
            For a configuration a dict, for a list or tuple a list of dicts, otherwise an iterator of dicts, with `loss`
            in nats per token and, from a calibrated checkpoint, the interval's `lower` and `upper` in nats per token,
            the probability of `divergence`, and `extrapolation`, the distance from the training runs.

        Raises:
            ValueError: an empty list, a level where there is no calibration, and everything the processor refuses: it
                names field, value and what is accepted.
        """
        if isinstance(inputs, list | tuple):
            if not inputs:
                raise ValueError("configs: got an empty batch, expected at least one configuration")
            return super().__call__(list(self._checked(inputs)), **kwargs)
        if isinstance(inputs, Iterable | torch.utils.data.Dataset) and not isinstance(inputs, Mapping | str):
            return iter(super().__call__(self._checked(inputs), **kwargs))
        return super().__call__(check_config(inputs, self.processor.strict), **kwargs)

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> None:
        """Saves model, processor and code, so that every door opens on the folder."""
        super().save_pretrained(save_directory, **kwargs)
        self.processor.save_pretrained(save_directory)

    def _sanitize_parameters(self, level: float | None = None) -> tuple[dict, dict, dict]:
        if level is None:
            return {}, {}, {}
        return {}, {"level": check_level(level, self.processor.calibrator is not None)}, {}

    def _checked(self, configs: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
        """The one check of many configurations, one by one, so that a stream stays one; errors say which it is."""
        try:
            several = iter(configs)
        except TypeError:
            # numpy's and torch's arrays of no dimensions say that they can be iterated.
            raise ValueError(f"inputs: got {short(configs)}, expected a configuration or several") from None
        for i, config in enumerate(several):
            try:
                yield check_config(config, self.processor.strict)
            except ValueError as error:
                raise ValueError(f"configs[{i}]: {error}") from None

    def preprocess(self, config: Mapping[str, Any]) -> dict[str, Any]:
        return {"configs": training_order(config)}

    def _forward(self, model_inputs: Mapping[str, Any], level: float = 0.9) -> dict[str, torch.Tensor]:
        """Encodes here rather than in `preprocess`: only the processor knows how a batch of prompts is padded."""
        configs = model_inputs["configs"]
        configs = [configs] if isinstance(configs, Mapping) else configs
        batch = self.processor.prompts(configs)
        logits = self.model(**self.ensure_tensor_on_device(**batch)).logits
        law = self.processor.law
        for note in {note for config in configs for note in getattr(law, "fallbacks", lambda _: ())(config)}:
            warn_user(note)
        residuals = self.processor.residuals(logits, batch["loss_mask"])
        forecast = forecast_columns(law, self.processor.calibrator, configs, residuals, level)
        return {name: torch.as_tensor(values, dtype=torch.float64) for name, values in forecast.items()}

    def postprocess(self, model_outputs: Mapping[str, torch.Tensor]) -> dict[str, float]:
        return {name: value.item() for name, value in model_outputs.items()}


# A checkpoint's own copy of this file is imported beside an installed one: registering twice would warn.
if TASK not in PIPELINE_REGISTRY.supported_tasks:
    PIPELINE_REGISTRY.register_pipeline(TASK, ScalingForecastPipeline, pt_model=AutoModel)
