"""Configuration of NSP, the Neural Scaling Predictor: benchmark scores of a model that does not exist yet."""

from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig

try:
    from .embedded_ncpl import ByName
    from .text_ncpl import short
except ImportError:
    from embedded_ncpl import ByName
    from text_ncpl import short

# Accuracy of a blind guess, by task: 1 / options for multiple choice, 0 for free answers. BIG-bench's arithmetic and
# transliteration are answered freely here; truthfulqa is MC2, whose floor is taken as one option of four.
CHANCE: dict[str, float] = {
    "mmlu": 0.25,
    "arc_c": 0.25,
    "hellaswag": 0.25,
    "winogrande": 0.5,
    "truthfulqa": 0.25,
    "gsm8k": 0.0,
    "xwinograd": 0.5,
    "humaneval": 0.0,
    "lbv2_bbh": 0.3,
    "lbv2_gpqa": 0.25,
    "lbv2_ifeval": 0.0,
    "lbv2_math_hard": 0.0,
    "lbv2_mmlu_pro": 0.1,
    "lbv2_musr": 1 / 3,
    "bb_parsinlu_qa_2_acc": 0.25,
    "bb_word_unscrambling_2_exact_match": 0.0,
    "bb_ipa_transliterate_2_exact_match": 0.0,
    "bb_ipa_transliterate_2_bleu": 0.0,
    "bb_arithmetic_3ds_2_acc": 0.0,
    "bb_arithmetic_3da_2_acc": 0.0,
    "bb_arithmetic_2dm_2_acc": 0.0,
    "bb_arithmetic_2da_2_acc": 0.0,
}
CORE_TASKS: tuple[str, ...] = tuple(CHANCE)[:8]
# The 12 tasks with most public scores.
DEFAULT_TASKS: tuple[str, ...] = (
    *CORE_TASKS,
    "bb_word_unscrambling_2_exact_match",
    "bb_arithmetic_3ds_2_acc",
    "bb_arithmetic_2dm_2_acc",
    "lbv2_bbh",
)
# Tasks that are known to get worse before they get better with scale (Lin, Hilton, Evans 2022 for TruthfulQA).
INVERSE_SCALING: tuple[str, ...] = ("truthfulqa",)
# What is known of a model before it is trained, in the columns of `features`: two logarithms, two shares in 0..1.
FEATURES: tuple[str, ...] = ("params", "tokens", "code", "moe")


class OfOneKind(ByName):
    """First base of a configuration that no other model's `config.json` is read as: its weights would be random."""

    model_type: ClassVar[str]

    @classmethod
    def get_config_dict(cls, *args: Any, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """As usual.

        Raises:
            ValueError: the `config.json` is of another kind of model.
        """
        config, rest = super().get_config_dict(*args, **kwargs)
        kind = config.get("model_type", cls.model_type)
        if kind != cls.model_type:
            raise ValueError(f"config.json: a model of type {short(kind)}, expected {cls.model_type!r}")
        return config, rest


@strict
class NSPConfig(OfOneKind, PreTrainedConfig):
    """What a predictor is made of.

    Args:
        tasks: benchmark names, one output each; the 12 tasks with most public scores when absent.
        chance: accuracy of a blind guess for each task, 0..1; from `CHANCE` (0 for an unknown task) when absent.
        families: names of the model families whose fitted effects are stored with the weights.
        regression_tasks: those whose scores are regressed on known ones, of the model itself or of a sibling.
        dipping_tasks: those that may fall before they rise with scale; other names than those of `tasks` do nothing.
        num_capabilities: latent capabilities that params, tokens and compute raise (K).
        family_rank: rank of the covariance between tasks of a family's effect, and of a single model's.
        hidden_size: width of the encoder.
        num_hidden_layers: layers of the encoder.
        num_attention_heads: heads of each layer.
        intermediate_size: width of the encoder's feed-forward part.
        dropout: probability, in the encoder.
        max_shift: bound of the encoder's correction of a task, in logits.
        max_scale: bound of the encoder's correction of a task's log variance.
        degrees_of_freedom: of the Student-t likelihood.
        absolute_error_weight: weight of the mean absolute error beside the likelihood, per unit of accuracy.
        tokens_prior: (a, b, s): where tokens are missing, ln(tokens / 1e12) ~ N(a + b ln(params / 1e9), s^2).
        feature_priors: probability of `code` and of `moe` where they are not said.
        support: (lowest, highest) ln(params / 1e9) and ln(tokens / 1e12) seen in training; beyond, bands widen.
        emergence_threshold: share of the way from chance to 1 above which a task counts as having left chance.
        emergence_calibration: (slope, intercept) of the logistic calibration of `emergence_scores`.
        interval_levels: levels at which `interval_quantiles` are given.
        interval_quantiles: conformal half-widths in units of the model's own standard deviation, for each task and
            level; normal quantiles when absent.
        initializer_range: standard deviation of fresh encoder weights.

    Raises:
        ValueError: a value of the wrong type, or lists of unequal lengths.

    >>> len(NSPConfig().tasks), NSPConfig(tasks=["mmlu"]).chance
    (12, [0.25])
    """

    model_type = "nsp"

    tasks: list[str] | tuple[str, ...] | None = None
    chance: list[float] | tuple[float, ...] | None = None
    families: list[str] | tuple[str, ...] = ()
    regression_tasks: list[str] | tuple[str, ...] = ()
    dipping_tasks: list[str] | tuple[str, ...] = INVERSE_SCALING
    num_capabilities: int = 2
    family_rank: int = 3
    hidden_size: int = 16
    num_hidden_layers: int = 1
    num_attention_heads: int = 2
    intermediate_size: int = 32
    dropout: float = 0.1
    max_shift: float = 0.5
    max_scale: float = 0.5
    degrees_of_freedom: float = 5.0
    absolute_error_weight: float = 10.0
    tokens_prior: list[float] | tuple[float, ...] = (-0.2, 0.4, 1.5)
    feature_priors: list[float] | tuple[float, ...] = (0.1, 0.1)
    support: list | tuple = ((-2.7, 5.2), (-6.2, 2.8))
    emergence_threshold: float = 0.1
    emergence_calibration: list[float] | tuple[float, ...] = (1.7, 0.0)
    interval_levels: list[float] | tuple[float, ...] = ()
    interval_quantiles: list | tuple = ()
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs: Any) -> None:
        if self.tasks is None:
            self.tasks = list(DEFAULT_TASKS)
        if self.chance is None:
            self.chance = [CHANCE.get(task, 0.0) for task in self.tasks]
        if len(self.chance) != len(self.tasks):
            raise ValueError(f"chance: {len(self.chance)} values for {len(self.tasks)} tasks, one each is needed")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size: {self.hidden_size} is not a multiple of num_attention_heads {self.num_attention_heads}"
            )
        super().__post_init__(**kwargs)


@strict
class NSPEnsembleConfig(OfOneKind, PreTrainedConfig):
    """Configuration of `NSPEnsemble`.

    Args:
        member: the members' common `NSPConfig`, as a dict.
        weights: each member's share of the prediction; they are scaled to sum to 1.

    >>> NSPEnsembleConfig(weights=[1.0, 1.0]).weights
    [1.0, 1.0]
    """

    model_type = "nsp_ensemble"

    member: dict | None = None
    weights: list[float] | tuple[float, ...] = (1.0,)


NSPConfig.register_for_auto_class()
NSPEnsembleConfig.register_for_auto_class()
# Imported by itself, not as a checkpoint's own code: transformers' Auto classes then know it.
if not __package__:
    for _config in (NSPConfig, NSPEnsembleConfig):
        AutoConfig.register(_config.model_type, _config, exist_ok=True)
