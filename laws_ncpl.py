"""Closed-form scaling laws: what a run's final loss is before any network has seen it.

Every law maps configurations (mappings of the prompt's fields) to losses in nats per token, and is plain data:
`to_dict` writes it into a processor's JSON, `law_from_dict` reads it back. `N` is the model size in million non-embedding
parameters and `D` the data size in billion tokens, as in the configurations themselves.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from difflib import get_close_matches
from typing import Any

import numpy as np

# a N^-alpha + b D^-beta + c, as published with NCPL (arXiv 2602.10300): N in million parameters, D in billion tokens.
PUBLISHED_CHINCHILLA: dict[str, tuple[float, float, float, float, float]] = {
    "marin": (3.997941824442712, 0.44174138432888976, 0.8251456329446542, 0.1676451054204669, 2.2814165287450208),
    "steplaw": (1.85240120191131, 0.12576480455477607, 0.7308261081070557, 0.3337389553968635, 1.2122888212135527),
}


@dataclass(frozen=True)
class ChinchillaLaw:
    """`a N^-alpha + b D^-beta + c` for each source (Hoffmann et al. 2022, eq. 2; coefficients of arXiv 2602.10300).

    Args:
        coefficients: source -> (a, alpha, b, beta, c), for N in million parameters and D in billion tokens; the value is
            a loss in nats per token.

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
            near = get_close_matches(str(source), self.coefficients, 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(
                f"source: {source!r} has no Chinchilla coefficients, known: {sorted(self.coefficients)}{hint}"
            )
        return self.coefficients[source]

    def to_dict(self) -> dict[str, Any]:
        return {"law": "chinchilla", **asdict(self)}


LAWS: dict[str, type] = {"chinchilla": ChinchillaLaw}


def law_from_dict(state: Mapping[str, Any]) -> Any:
    """The law that `to_dict` wrote.

    Raises:
        ValueError: `state["law"]` names no known law.

    >>> law_from_dict(ChinchillaLaw().to_dict()) == ChinchillaLaw()
    True
    """
    kind = state.get("law")
    if kind not in LAWS:
        raise ValueError(f"law: {kind!r} is not a known law, accepted: {sorted(LAWS)}")
    return LAWS[kind](**{name: value for name, value in state.items() if name != "law"})
