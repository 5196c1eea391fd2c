"""Scaling laws as others published them: Hoffmann et al. 2022, Kaplan et al. 2020, and Step Law.

`N` is the model size in million non-embedding parameters and `D` the data size in billion tokens, as in the
configurations themselves.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

try:
    from .fields_ncpl import sequence_length
    from .text_ncpl import did_you_mean, short
except ImportError:
    from fields_ncpl import sequence_length
    from text_ncpl import did_you_mean, short

# a N^-alpha + b D^-beta + c, as published with NCPL (arXiv 2602.10300): N in million parameters, D in billion tokens.
PUBLISHED_CHINCHILLA: dict[str, tuple[float, float, float, float, float]] = {
    "marin": (3.997941824442712, 0.44174138432888976, 0.8251456329446542, 0.1676451054204669, 2.2814165287450208),
    "steplaw": (1.85240120191131, 0.12576480455477607, 0.7308261081070557, 0.3337389553968635, 1.2122888212135527),
}


@dataclass(frozen=True)
class ChinchillaLaw:
    """`a N^-alpha + b D^-beta + c` for each source (Hoffmann et al. 2022, eq. 2; coefficients of arXiv 2602.10300).

    Args:
        coefficients: source -> (a, alpha, b, beta, c), for N in million parameters and D in billion tokens; the value
            is a loss in nats per token.

    >>> law = ChinchillaLaw()
    >>> law([{"source": "steplaw", "model size": 214.66368, "data size": 11.4}]).round(4).tolist()
    [2.4796]
    """

    coefficients: Mapping[str, Sequence[float]] = field(default_factory=lambda: dict(PUBLISHED_CHINCHILLA))

    def __call__(self, configs: Sequence[Mapping[str, Any]]) -> np.ndarray:
        """Losses in nats per token, one for each configuration.

        Raises:
            ValueError: a configuration's source has no coefficients.
        """
        losses = np.empty(len(configs))
        for i, config in enumerate(configs):
            a, alpha, b, beta, c = self._of_source(config["source"])
            losses[i] = a * config["model size"] ** -alpha + b * config["data size"] ** -beta + c
        return losses

    def _of_source(self, source: str) -> Sequence[float]:
        if source not in self.coefficients:
            known = sorted(self.coefficients)
            hint = did_you_mean(str(source), known)
            raise ValueError(f"source: {short(source)} has no Chinchilla coefficients, known: {known}{hint}")
        return self.coefficients[source]

    def to_dict(self) -> dict[str, Any]:
        return {"law": "chinchilla", **asdict(self)}


# Kaplan et al. 2020 (arXiv 2001.08361, eq. 1.5): N_c in million non-embedding parameters, alpha_N, D_c in billion
# tokens, alpha_D.
PUBLISHED_KAPLAN: tuple[float, float, float, float] = (8.8e7, 0.076, 5.4e4, 0.095)


@dataclass(frozen=True)
class KaplanLaw:
    """`((N_c / N)^(alpha_N / alpha_D) + D_c / D)^alpha_D` (Kaplan et al. 2020, arXiv 2001.08361, eq. 1.5).

    Args:
        coefficients: source -> (N_c in million parameters, alpha_N, D_c in billion tokens, alpha_D); any other source
            gets the paper's own, whose data and tokenizer are WebText2's.

    >>> KaplanLaw()([{"source": "mine", "model size": 1000, "data size": 20}]).round(2).tolist()
    [2.44]
    """

    coefficients: Mapping[str, Sequence[float]] = field(default_factory=dict)

    def __call__(self, configs: Sequence[Mapping[str, Any]]) -> np.ndarray:
        """Losses in nats per token, one for each configuration."""
        losses = np.empty(len(configs))
        for i, config in enumerate(configs):
            n_c, alpha_n, d_c, alpha_d = self.coefficients.get(str(config.get("source")), PUBLISHED_KAPLAN)
            size, data = (n_c / config["model size"]) ** (alpha_n / alpha_d), d_c / config["data size"]
            losses[i] = (size + data) ** alpha_d
        return losses

    def to_dict(self) -> dict[str, Any]:
        return {"law": "kaplan", **asdict(self)}


@dataclass(frozen=True)
class StepLaw:
    """The best learning rate and batch size of AdamW (Li et al. 2025, arXiv 2503.04715): power laws in size and data.

    Args:
        rate: (factor, exponent of parameters, exponent of tokens) of the peak learning rate.
        batch: (factor, exponent of tokens) of the batch in tokens.

    >>> config = {"source": "steplaw", "model size": 429.26, "data size": 50}
    >>> StepLaw().learning_rate([config]).round(5).tolist(), StepLaw().batch_size([config]).round().tolist()
    ([0.00241], [364.0])
    """

    rate: Sequence[float] = (1.79, -0.713, 0.307)
    batch: Sequence[float] = (0.58, 0.571)

    def learning_rate(self, configs: Sequence[Mapping[str, Any]]) -> np.ndarray:
        """Best peak learning rates."""
        factor, size, data = self.rate
        return np.array([factor * (c["model size"] * 1e6) ** size * (c["data size"] * 1e9) ** data for c in configs])

    def batch_size(self, configs: Sequence[Mapping[str, Any]]) -> np.ndarray:
        """Best batch sizes in sequences."""
        factor, data = self.batch
        return np.array([factor * (c["data size"] * 1e9) ** data / sequence_length(c) for c in configs])
