"""NCPL: a language-model backbone that reads a configuration as text and numbers and regresses the run's loss.

Shapes: batch = configurations (or packs of them), tokens = prompt length, hidden = the backbone's width.
Values at number tokens are scaled by the processor; predictions are residuals in nats per token over the prior.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedModel
from transformers.utils import ModelOutput

try:
    from .configuration_ncpl import NCPLConfig
    from .embedded_ncpl import ByName
except ImportError:
    from configuration_ncpl import NCPLConfig
    from embedded_ncpl import ByName

# Keys of the published checkpoints (`OptimizerStudy/NCPL-*`) -> ours, by prefix.
PUBLISHED_PREFIXES = {
    "base.": "model.",
    "num_mlp.0.": "numbers.fc_in.",
    "num_mlp.2.": "numbers.fc_out.",
    "head.": "head.",
}


def without_autocast(device: torch.device) -> AbstractContextManager:
    """Switches autocast off where it is on; a graph that `torch.compile` traces without autocast stays in one piece.

    >>> with torch.autocast("cpu", torch.bfloat16), without_autocast(torch.device("cpu")):
    ...     (torch.ones(1, 1) @ torch.ones(1, 1)).dtype
    torch.float32
    """
    if device.type == "meta" or not torch.is_autocast_enabled(device.type):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


def at_least_float32() -> torch.dtype:
    """The default data type, or float32 in the place of a 16-bit one, under which transformers may build a model."""
    return torch.promote_types(torch.get_default_dtype(), torch.float32)


def parameter_dtype(module: nn.Module) -> torch.dtype:
    """The data type of a module's parameters; a module whose weights are quantized has none and takes float32.

    >>> parameter_dtype(nn.Linear(1, 1, dtype=torch.float64))
    torch.float64
    """
    return next((p.dtype for p in module.parameters() if p.is_floating_point()), torch.float32)


@dataclass
class NCPLOutput(ModelOutput):
    """What a forward pass gives.

    Args:
        loss: scalar, nats^2 for `"mse"`, else nats; only when labels came.
        logits: (batch, tokens), the residual in nats predicted for a number at the *next* position.
        hidden_states: one (batch, tokens, hidden) for the embeddings and after each layer, on request.
        attentions: one (batch, heads, tokens, tokens) a layer, on request and only from eager attention.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


class NumberEmbedding(nn.Module):
    """Embeds scaled values (batch, tokens) as (batch, tokens, hidden); NCPL section 3: Linear, ReLU, Linear."""

    # Octaves of the Fourier series over log10 of the value: periods of 8 decades down to 1/4 decade.
    octaves = 6

    def __init__(self, kind: str, hidden: int) -> None:
        super().__init__()
        self.kind = kind
        features = 1 if kind == "mlp" else 3 + 2 * self.octaves
        dtype = at_least_float32()
        self.fc_in = nn.Linear(features, 2 * hidden, dtype=dtype)
        self.fc_out = nn.Linear(2 * hidden, hidden, dtype=dtype)

    def forward(self, values: Tensor) -> Tensor:
        # Autocast to bf16 would leave a learning rate three digits.
        with without_autocast(values.device):
            features = self._features(values.float()).to(parameter_dtype(self.fc_in))
            return self.fc_out(torch.relu(self.fc_in(features)))

    def _features(self, values: Tensor) -> Tensor:
        if self.kind == "mlp":
            return values.unsqueeze(-1)
        # Zero has no logarithm: it keeps sign 0 and the log of the smallest magnitude that configurations use.
        log = values.abs().clamp(min=1e-30).log10()
        octaves = 2.0 ** torch.arange(self.octaves, device=values.device) / 8
        angles = 2 * torch.pi * log.unsqueeze(-1) * octaves
        scalars = torch.stack([values.sign(), log / 4, values.clamp(-10, 10) / 10], -1)
        return torch.cat([scalars, angles.sin(), angles.cos()], -1)


class NCPLPreTrainedModel(ByName, PreTrainedModel):
    """What transformers has to know to initialise and load `NCPLForecaster`."""

    config_class = NCPLConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    input_modalities = ("text",)
    supports_gradient_checkpointing = True
    # `forward` averages over the targets of its own micro-batch, so Trainer has to divide by the accumulation steps.
    accepts_loss_kwargs = False
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    # Numbers span decades and residuals are thousandths of a nat: neither survives bf16.
    _keep_in_fp32_modules_strict: ClassVar = {"numbers", "head"}
    # A causal-LM checkpoint loads straight in; its output head has no place here.
    _keys_to_ignore_on_load_unexpected: ClassVar = [r"lm_head"]


class NCPLForecaster(NCPLPreTrainedModel):
    """The Configuration-to-Performance law: backbone, number embedding and a linear head (arXiv 2602.10300).

    >>> tiny = dict(vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
    ...             num_key_value_heads=1, head_dim=8, max_position_embeddings=64)
    >>> NCPLForecaster(NCPLConfig(text_config=tiny))(torch.ones(1, 4, dtype=torch.long)).logits.shape
    torch.Size([1, 4])
    """

    def __init__(self, config: NCPLConfig) -> None:
        super().__init__(config)
        hidden = config.text_config.hidden_size
        self.model = AutoModel.from_config(config.text_config)
        self.numbers = NumberEmbedding(config.number_embedding, hidden)
        self.head = nn.Linear(hidden, 1, dtype=at_least_float32())
        self.post_init()

    @classmethod
    def from_backbone(cls, backbone: str, *, config: Mapping[str, Any] | None = None, **kwargs: Any) -> Self:
        """New number embedding and head on a pretrained text backbone.

        Args:
            backbone: repo id or folder of a causal language model, such as `"Qwen/Qwen3-1.7B"`.
            config: `NCPLConfig` fields other than `text_config`, such as `{"loss_type": "huber"}`.
            kwargs: for `from_pretrained` (`dtype`, `attn_implementation`, `device_map`, `revision`, `token`, ...).

        Raises:
            OSError: the backbone is not found, or holds no weights.
        """
        return cls.from_pretrained(backbone, **config or {}, **kwargs)

    def get_input_embeddings(self) -> nn.Module:
        return self.model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.model.set_input_embeddings(value)

    def forward(
        self,
        input_ids: Tensor | None = None,
        is_number_mask: Tensor | None = None,
        number_values_filled: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        loss_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> NCPLOutput | tuple:
        """Predicts the residual of every number from the tokens before it.

        Args:
            input_ids: (batch, tokens) token ids; or give `inputs_embeds` (batch, tokens, hidden).
            is_number_mask: (batch, tokens), true where a token is a number.
            number_values_filled: (batch, tokens), scaled value at number tokens, anything elsewhere.
            attention_mask: (batch, tokens) padding mask, or a mask the backbone takes as it is (a pack's).
            labels: (batch, tokens), the target residual in nats at the number token of the loss.
            loss_mask: (batch, tokens), true at target positions; when absent, wherever `labels` is not NaN.
            position_ids: (batch, tokens), position in the prompt; 0, 1, 2, ... when absent.
            kwargs: of the backbone, under its own names; a cache of keys and values too, which the caller owns.

        Returns:
            `NCPLOutput`, or a tuple with `return_dict=False`; `logits[:, t - 1]` predicts target `t`.

        Raises:
            ValueError: neither token ids nor embeddings, or number tokens without values.
        """
        return_dict = self.config.return_dict if return_dict is None else return_dict
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        if output_attentions is None:
            output_attentions = self.config.output_attentions
        if inputs_embeds is None:
            if input_ids is None:
                raise ValueError("input_ids: missing, give input_ids or inputs_embeds")
            inputs_embeds = self.model.get_input_embeddings()(input_ids)
        if is_number_mask is not None:
            if number_values_filled is None:
                raise ValueError("number_values_filled: missing, is_number_mask needs the numbers' scaled values")
            inputs_embeds = self._embed_numbers(inputs_embeds, is_number_mask, number_values_filled)
        backbone = self.model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            return_dict=True,
            **{"use_cache": False} | kwargs,
        )
        with without_autocast(inputs_embeds.device):
            logits = self.head(backbone.last_hidden_state.to(parameter_dtype(self.head))).squeeze(-1)
        loss = None if labels is None else self._loss(logits, labels, loss_mask)
        output = NCPLOutput(loss, logits, backbone.hidden_states, backbone.attentions)
        return output if return_dict else output.to_tuple()

    def _embed_numbers(self, embeds: Tensor, is_number: Tensor, values: Tensor) -> Tensor:
        """Replaces the text embedding at number tokens by the number embedding, (batch, tokens, hidden)."""
        return torch.where(is_number.bool().unsqueeze(-1), self.numbers(values).to(embeds.dtype), embeds)

    def _loss(self, logits: Tensor, labels: Tensor, loss_mask: Tensor | None) -> Tensor:
        """Mean error over target positions; the prediction for position t is read at t - 1."""
        predicted, target = logits[:, :-1].float(), labels[:, 1:].float()
        mask = ~target.isnan() if loss_mask is None else loss_mask[:, 1:].bool()
        # A masked mean rather than indexing: no host synchronisation on a GPU.
        error = torch.where(mask, predicted - target, 0.0)
        if self.config.loss_type == "mse":
            point = error.square()
        elif self.config.loss_type == "mae":
            point = error.abs()
        else:
            point = nn.functional.huber_loss(error, torch.zeros_like(error), "none", self.config.huber_delta)
        return point.sum() / mask.sum().clamp(min=1)


def from_published(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Renames a published checkpoint's weights to `NCPLForecaster`'s names.

    Args:
        state_dict: keys `base.*`, `num_mlp.0.*`, `num_mlp.2.*`, `head.*`, perhaps behind `module.`.

    Raises:
        ValueError: a key of another layout.

    >>> list(from_published({"module.num_mlp.0.weight": torch.zeros(2, 1)}))
    ['numbers.fc_in.weight']
    """
    renamed = {}
    for key, value in state_dict.items():
        name = key.removeprefix("module.")
        prefix = next((old for old in PUBLISHED_PREFIXES if name.startswith(old)), None)
        if prefix is None:
            raise ValueError(f"checkpoint key {key!r}: accepted are {', '.join(p + '*' for p in PUBLISHED_PREFIXES)}")
        renamed[PUBLISHED_PREFIXES[prefix] + name.removeprefix(prefix)] = value
    return renamed


NCPLForecaster.register_for_auto_class("AutoModel")
# Imported by itself, not as a checkpoint's own code: transformers' Auto classes then know it.
if not __package__:
    AutoModel.register(NCPLConfig, NCPLForecaster, exist_ok=True)
