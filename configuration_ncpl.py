"""Configuration of the NCPL forecaster (Configuration-to-Performance law, arXiv 2602.10300)."""

import sys
from typing import Any, ClassVar, Literal

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig

# Imported here, the pipeline travels with every saved model or configuration: transformers copies what a file imports.
try:
    from .embedded_ncpl import ByName
    from .pipeline_ncpl import TASK, ScalingForecastPipeline
except ImportError:
    from embedded_ncpl import ByName
    from pipeline_ncpl import TASK, ScalingForecastPipeline

# Qwen3-1.7B, the published backbone; pad_token_id is its `<|endoftext|>`.
QWEN3_1_7B: dict[str, Any] = {
    "vocab_size": 151936,
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 40960,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
    "pad_token_id": 151643,
}


@strict
class NCPLConfig(ByName, PreTrainedConfig):
    """What a forecaster is made of: a text backbone, how numbers enter it, and the loss it is trained with.

    Args:
        text_config: the backbone's configuration, a dict or a `PreTrainedConfig`; Qwen3-1.7B's dimensions when absent.
        number_embedding: `"mlp"` is the published Linear(1, 2h) -> ReLU -> Linear(2h, h) on the scaled value; `"log"`
            gives the same network the value's sign, logarithm and a Fourier series of the logarithm, which resolves
            learning rates and token counts over many orders of magnitude.
        loss_type: `"mse"`, `"mae"` or `"huber"`, over the target positions.
        huber_delta: residual in nats at which the Huber loss turns from square to linear.
        number_token_id: id that stands for a number in `input_ids`.
        prompt_version: 1 is the published prompt, which published weights need; 2 is ours.
        curves: whether it was trained on points of loss curves, and so can forecast them.

    Raises:
        ValueError: a value of the wrong type, or a name that is not among those listed.

    >>> NCPLConfig().text_config.num_hidden_layers
    28
    """

    model_type = "ncpl"
    # Tells transformers that `dtype=` and `attn_implementation=` reach the backbone too.
    sub_configs: ClassVar = {"text_config": AutoConfig}

    text_config: dict | PreTrainedConfig | None = None
    number_embedding: Literal["mlp", "log"] = "mlp"
    loss_type: Literal["mse", "mae", "huber"] = "mse"
    huber_delta: float | int = 0.05
    number_token_id: int = 0
    prompt_version: Literal[1, 2] = 1
    curves: bool = False
    # The heads are not tied to the word embeddings; the backbone's own flag says what a causal-LM checkpoint does.
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        if not isinstance(self.text_config, PreTrainedConfig):
            fields = {"model_type": "qwen3"} | (QWEN3_1_7B if self.text_config is None else self.text_config)
            self.text_config = AutoConfig.for_model(**fields)
        super().__post_init__(**kwargs)

    @classmethod
    def get_config_dict(cls, *args: Any, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """A text model's own configuration, as in a backbone's folder, becomes the `text_config`."""
        config, kwargs = super().get_config_dict(*args, **kwargs)
        if config.get("model_type", cls.model_type) != cls.model_type:
            config = {"text_config": config}
        return config, kwargs

    def to_dict(self) -> dict[str, Any]:
        """As usual, with the entry by which `pipeline("scaling-forecast")` finds its class."""
        backbone: Any = self.text_config
        _use_lora_targets_of(backbone.model_type)
        entry = {"impl": f"pipeline_ncpl.{ScalingForecastPipeline.__name__}", "pt": ["AutoModel"]}
        return super().to_dict() | {"custom_pipelines": {TASK: entry}}

    def to_diff_dict(self) -> dict[str, Any]:
        """As usual, for `config.json`, with the backbone's own differences from its defaults."""
        backbone: Any = self.text_config
        text_config = {name: value for name, value in backbone.to_diff_dict().items() if name != "transformers_version"}
        return super().to_diff_dict() | {"text_config": text_config}


def _use_lora_targets_of(backbone_type: str) -> None:
    """Gives peft the backbone's default `target_modules` for an `NCPLForecaster`.

    peft looks its default up by model type, right after it has read the type from `to_dict`. Where peft is not in use,
    nothing is imported.
    """
    targets = getattr(sys.modules.get("peft.utils"), "TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING", {})
    if backbone_type in targets:
        targets[NCPLConfig.model_type] = targets[backbone_type]


NCPLConfig.register_for_auto_class()
# Imported by itself, not as a checkpoint's own code: transformers' Auto classes then know it.
if not __package__:
    AutoConfig.register(NCPLConfig.model_type, NCPLConfig, exist_ok=True)
