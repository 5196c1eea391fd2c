"""The parts of NSP: the closed form of size, the scores' sigmoid, the Gaussian effect of a family, and the encoder.

Shapes: batch = models, tasks = benchmarks, scores = known scores, seq = tokens of the encoder, hidden = its width.
"""

import torch
from torch import Tensor, nn

try:
    from .configuration_nsp import FEATURES, NSPConfig
except ImportError:
    from configuration_nsp import FEATURES, NSPConfig

# Encoder tokens: the family's side never sees the model's size.
FAMILY, ARCHITECTURE, PARAMS, TOKENS, COMPUTE = range(5)
FIXED_TOKENS = 5


class ScalingAttention(nn.Module):
    """Capabilities as soft minima over params, tokens and compute: `-logsumexp(-(slope x + offset))`.

    The exponents are those of a power law `A N^-a + B D^-b` (Hoffmann et al. 2022) read as a logarithm; the softmax of
    the same numbers is the attention that each resource gets: the scarcest gets most.
    """

    def __init__(self, config: NSPConfig) -> None:
        super().__init__()
        shape = (len(FEATURES) - 1, config.num_capabilities)  # params, tokens, compute
        self.slopes = nn.Parameter(torch.empty(shape))
        self.offsets = nn.Parameter(torch.empty(shape))

    def forward(self, size: Tensor) -> tuple[Tensor, Tensor]:
        """(..., 3) logs of params, tokens, compute -> capabilities (..., K), their derivatives (..., 3, K)."""
        slopes = nn.functional.softplus(self.slopes.float())
        values = -(size[..., None] * slopes + self.offsets.float())
        return -torch.logsumexp(values, -2), torch.softmax(values, -2) * slopes


class TaskHeads(nn.Module):
    """Logits of each task from capabilities, and scores from logits."""

    def __init__(self, config: NSPConfig) -> None:
        super().__init__()
        tasks = len(config.tasks)
        self.bias = nn.Parameter(torch.empty(tasks))
        self.loadings = nn.Parameter(torch.empty(tasks, config.num_capabilities))
        self.architecture = nn.Parameter(torch.empty(tasks, len(FEATURES) - 2))
        self.ceiling = nn.Parameter(torch.empty(tasks))  # logit of the share of 1 - chance that can be reached
        self.dip = nn.Parameter(torch.empty(tasks))  # slope lost far below `dip_at`, before its softplus
        self.dip_at = nn.Parameter(torch.empty(tasks))
        self.register_buffer("chance", torch.tensor(config.chance))
        self.dips = [float(task in config.dipping_tasks) for task in config.tasks]

    def forward(self, capabilities: Tensor) -> Tensor:
        return self.bias.float() + capabilities @ self.positive_loadings().T

    def bend(self, logits: Tensor, rising: Tensor) -> tuple[Tensor, Tensor]:
        """Inverse scaling: `z + dip softplus(dip_at - z)`, which falls before it rises where the dip is above 1.

        Tasks beside `config.dipping_tasks` stay as they are.

        Args:
            logits: (..., tasks).
            rising: (..., 1), where the largest function below it that never falls is wanted instead.

        Returns:
            bent logits and their derivatives.
        """
        dip, at = nn.functional.softplus(self.dip.float()) * logits.new_tensor(self.dips), self.dip_at.float()
        lowest = at + torch.log((dip - 1).clamp(min=1e-9))
        flat = rising & (logits < lowest)
        z = torch.where(flat, lowest, logits)
        return z + dip * nn.functional.softplus(at - z), (1 - dip * torch.sigmoid(at - z)) * ~flat

    def positive_loadings(self) -> Tensor:
        """(tasks, K), above 0, so that no capability lowers a score."""
        return nn.functional.softplus(self.loadings.float())

    def scores(self, logits: Tensor, tasks: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Scores and their derivatives by the logit; `tasks` (same shape) where the last axis is not all tasks."""
        chance, span = self.chance.float(), self.span()
        if tasks is not None:
            chance, span = chance[tasks], span[tasks]
        share = torch.sigmoid(logits)
        return chance + span * share, span * share * (1 - share)

    def span(self) -> Tensor:
        """(tasks,) scores between chance and the ceiling."""
        return (1 - self.chance.float()) * torch.sigmoid(self.ceiling.float())


class FamilyEffect(nn.Module):
    """Gaussian effects in logits, correlated over tasks: one shared by a family, one of each model alone.

    Conditioning on known scores is exact but for the curvature of the sigmoid, which Gauss-Newton steps follow.
    """

    def __init__(self, config: NSPConfig) -> None:
        super().__init__()
        tasks, families = len(config.tasks), len(config.families)
        self.family_factors = nn.Parameter(torch.empty(tasks, config.family_rank))
        self.family_scales = nn.Parameter(torch.empty(tasks))
        self.model_factors = nn.Parameter(torch.empty(tasks, config.family_rank))
        self.model_scales = nn.Parameter(torch.empty(tasks))
        self.noise = nn.Parameter(torch.empty(tasks))  # log standard deviation of a measured score
        self.register_buffer("known_means", torch.zeros(families, tasks))
        self.register_buffer("known_covariances", torch.zeros(families, tasks, tasks))

    @staticmethod
    def _covariance(factors: Tensor, scales: Tensor) -> Tensor:
        return factors.float() @ factors.float().T + torch.diag(torch.exp(2 * scales.float()))

    def family_covariance(self) -> Tensor:
        """(tasks, tasks) of a family's effects, in squared logits."""
        return self._covariance(self.family_factors, self.family_scales)

    def model_covariance(self) -> Tensor:
        """(tasks, tasks) of a single model's own effects, in squared logits."""
        return self._covariance(self.model_factors, self.model_scales)

    def noise_variance(self) -> Tensor:
        """(tasks,) of a measured score."""
        return torch.exp(2 * self.noise.float())


class EncoderLayer(nn.Module):
    """A pre-norm transformer layer."""

    def __init__(self, config: NSPConfig) -> None:
        super().__init__()
        self.heads = config.num_attention_heads
        self.attention_norm = nn.LayerNorm(config.hidden_size)
        self.query_key_value = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.attention_out = nn.Linear(config.hidden_size, config.hidden_size)
        self.feed_forward_norm = nn.LayerNorm(config.hidden_size)
        self.feed_forward_in = nn.Linear(config.hidden_size, config.intermediate_size)
        self.feed_forward_out = nn.Linear(config.intermediate_size, config.hidden_size)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, hidden: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, seq, hidden), an additive mask (batch or 1, 1, seq, seq) -> the same shape, attention weights."""
        batch, seq, width = hidden.shape
        projected = self.query_key_value(self.attention_norm(hidden)).view(batch, seq, 3, self.heads, -1)
        query, key, value = projected.permute(2, 0, 3, 1, 4)  # each (batch, heads, seq, width / heads)
        weights = torch.softmax(query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5 + mask.to(hidden.dtype), -1)
        mixed = (self.dropout(weights) @ value).transpose(1, 2).reshape(batch, seq, width)
        hidden = hidden + self.dropout(self.attention_out(mixed))
        inner = nn.functional.gelu(self.feed_forward_in(self.feed_forward_norm(hidden)))
        return hidden + self.dropout(self.feed_forward_out(inner)), weights


class Encoder(nn.Module):
    """Feature and score tokens -> a correction of each task's logit, and the log scale of its uncertainty."""

    def __init__(self, config: NSPConfig) -> None:
        super().__init__()
        width, tasks = config.hidden_size, len(config.tasks)
        self.family = nn.Parameter(torch.empty(width))
        self.missing = nn.Parameter(torch.empty(2, width))  # params is never missing; tokens, compute
        self.architecture = nn.Linear(2 * (len(FEATURES) - 2), width)
        self.size = nn.ModuleList([nn.Linear(1, width) for _ in range(3)])
        self.score = nn.Linear(3, width)
        self.task = nn.Embedding(tasks, width)
        self.layers = nn.ModuleList([EncoderLayer(config) for _ in range(config.num_hidden_layers)])
        self.norm = nn.LayerNorm(width)
        self.shift = nn.Linear(width, tasks)
        self.scale = nn.Linear(width, tasks)
        self.max_shift = config.max_shift
        self.max_scale = config.max_scale

    def forward(
        self, size: Tensor, tokens_known: Tensor, architecture: Tensor, scores: tuple[Tensor, Tensor, Tensor] | None
    ) -> tuple[Tensor, Tensor, tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Encodes a batch.

        Args:
            size: (batch, 3) logs of params, tokens, compute.
            tokens_known: (batch, 1), 1 or 0.
            architecture: (batch, 4) values and whether they are known.
            scores: (batch, scores, 3) descriptions of known scores, (batch, scores) tasks, (batch, scores) which are
                real.

        Returns:
            (batch, tasks) shifts of the logits and log scales of their variance; the states and attentions of the
            layers.
        """
        dtype = self.norm.weight.dtype
        batch, device = len(size), size.device
        known, size = tokens_known.to(dtype), (size / 3).to(dtype)
        embedded = [
            self.family.expand(batch, -1),
            self.architecture(architecture.to(dtype)),
            self.size[0](size[:, :1]),
            known * self.size[1](size[:, 1:2]) + (1 - known) * self.missing[0],
            known * self.size[2](size[:, 2:]) + (1 - known) * self.missing[1],
        ]
        hidden = torch.stack(embedded, 1)
        valid = torch.ones(batch if scores else 1, FIXED_TOKENS, dtype=torch.bool, device=device)
        if scores is not None:
            values, tasks, present = scores
            hidden = torch.cat([hidden, self.score(values.to(dtype)) + self.task(tasks)], 1)
            valid = torch.cat([valid, present], 1)
        seq = hidden.shape[1]
        of_size = torch.zeros(seq, dtype=torch.bool, device=device)
        of_size[PARAMS : COMPUTE + 1] = True
        seen = valid[:, None, :] & (of_size[:, None] | ~of_size[None, :])
        mask = torch.zeros(seen.shape, dtype=dtype, device=device).masked_fill(~seen, torch.finfo(dtype).min)[:, None]
        states, attentions = [hidden], []
        for layer in self.layers:
            hidden, weights = layer(hidden, mask)
            states.append(hidden)
            attentions.append(weights)
        normed = self.norm(hidden)
        shift = self.max_shift * torch.tanh(self.shift(normed[:, FAMILY]))
        scale = self.max_scale * torch.tanh(self.scale(normed[:, PARAMS : COMPUTE + 1].mean(1)))
        return shift.float(), scale.float(), tuple(states), tuple(attentions)
