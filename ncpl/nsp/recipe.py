"""The training recipe of NSP: `recipes/nsp-base.yaml` and what its keys mean."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from typing import Any

from configuration_nsp import NSPConfig


@dataclass
class DataBlock:
    """Which leaderboard.

    Args:
        leaderboard: configuration of `datasets_scripts.leaderboard`.
        data_dir: folder of its files; null: download.
        min_scores: a task is learnt when at least so many models have a score.
    """

    leaderboard: str = "obs_scaling"
    data_dir: str | None = None
    min_scores: int = 40


@dataclass
class TrainingBlock:
    """How one model is fitted.

    Args:
        steps: optimizer steps.
        learning_rate: peak, of the closed-form part.
        encoder_learning_rate: peak, of the encoder.
        batch_size: models in a batch with known scores.
        penalty: of the squared closed-form parameters.
        encoder_decay: weight decay of the encoder.
        auxiliary_weight: of tasks beside the core ones, in the loss.
        unknown_architecture: share of examples whose architecture is hidden.
        family_inflation: factor on the fitted variance of a family's effect: the closed form follows the families it
            was fitted to more closely than it will a new one.
    """

    steps: int = 900
    learning_rate: float = 0.02
    encoder_learning_rate: float = 0.002
    batch_size: int = 48
    penalty: float = 1e-3
    encoder_decay: float = 0.1
    auxiliary_weight: float = 0.3
    unknown_architecture: float = 0.2
    family_inflation: float = 1.0


@dataclass
class EvaluationBlock:
    """How it is judged and calibrated.

    Args:
        folds: of families.
        seeds: fits of each fold; their spread is reported, intervals are calibrated on all.
    """

    folds: int = 5
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])


@dataclass
class NSPRecipe:
    """A training recipe of NSP: blocks `model` (fields of `NSPConfig`), `data`, `training`, `evaluation`.

    Args:
        model: fields of `NSPConfig`.
        data: which leaderboard.
        training: how one model is fitted.
        evaluation: how it is judged and calibrated.
        seed: of the model that is saved.
    """

    model: dict[str, Any] = field(default_factory=dict)
    data: DataBlock = field(default_factory=DataBlock)
    training: TrainingBlock = field(default_factory=TrainingBlock)
    evaluation: EvaluationBlock = field(default_factory=EvaluationBlock)
    seed: int = 0

    @classmethod
    def from_dict(cls, recipe: Mapping[str, Any]) -> "NSPRecipe":
        """Checks a recipe key by key; `kind: nsp` may stand beside the blocks.

        Raises:
            ValueError: a key that does not exist, or a value of the wrong type.

        >>> NSPRecipe.from_dict({"training": {"steps": 10}}).training.steps
        10
        """
        given = {key: value for key, value in recipe.items() if key != "kind"}
        blocks = {"data": DataBlock, "training": TrainingBlock, "evaluation": EvaluationBlock}
        _check_keys(given, cls, "")
        read: dict[str, Any] = {}
        for key, value in given.items():
            if key == "seed":
                read[key] = value
                continue
            if not isinstance(value, Mapping):
                raise ValueError(f"{key}: {value!r}, expected a block of keys")
            if key == "model":
                _check_keys(value, NSPConfig, "model.")
                read[key] = dict(value)
            else:
                _check_keys(value, blocks[key], f"{key}.")
                read[key] = blocks[key](**{name: _coerce(blocks[key], name, v, key) for name, v in value.items()})
        return cls(**read)


def _check_keys(given: Mapping[str, Any], block: Any, where: str) -> None:
    known = [f.name for f in fields(block)]
    for key in given:
        if key not in known:
            near = get_close_matches(str(key), known, 1)
            raise ValueError(
                f"{where}{key}: no such key{f', did you mean {near[0]!r}?' if near else ''}; known: {', '.join(known)}"
            )


def _coerce(block: Any, name: str, value: Any, where: str) -> Any:
    """YAML 1.1 reads 1e-3 as text; numbers of the wrong kind stop the run."""
    kind = next(f.type for f in fields(block) if f.name == name)
    if kind in (float, int) and not isinstance(value, bool):
        try:
            number = float(value)
        except (TypeError, ValueError):
            raise ValueError(f"{where}.{name}: {value!r}, expected a number") from None
        if number < 0 or (kind is int and number != int(number)):
            raise ValueError(
                f"{where}.{name}: {value!r}, expected {'an integer' if kind is int else 'a number'} from 0"
            )
        return kind(number)
    return value
