"""Training recipes of both models, NCPL's and NSP's: every key, what it accepts and its default.

A recipe is checked whole before anything is loaded (`ncpl.blocks`).
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, StrictBool, model_validator

from ncpl.blocks import Block, Count, NotNegative, Number, Positive, Seed, Share, check, read_yaml

# ------------------------------------------------------------------------------------------------ the forecaster's


class Scratch(Block):
    """A small Qwen3-shaped backbone from scratch; its tokenizer is trained on the training split's prompts.

    Args:
        hidden_size: residual width; a multiple of `num_heads`.
        num_layers: transformer layers.
        num_heads: attention heads; half as many for keys and values.
        vocab_size: upper bound on the tokenizer's tokens.
    """

    hidden_size: Count
    num_layers: Count
    num_heads: Count
    vocab_size: Annotated[Count, Field(ge=300)] = 1024

    @model_validator(mode="after")
    def _heads_divide_the_width(self) -> Self:
        if self.hidden_size % (2 * self.num_heads):
            raise ValueError(f"hidden_size: got {self.hidden_size}, expected a multiple of twice num_heads")
        return self


class ModelBlock(Block):
    """What is trained. One of `backbone`, `scratch` and `checkpoint` is given.

    Args:
        backbone: repo id or folder of a causal language model, which gets a new number embedding and head.
        scratch: dimensions of a backbone from scratch.
        checkpoint: repo id or folder of a trained forecaster to go on from; its prompt, numbers and prior stay.
        revision: commit, branch or tag of `backbone` or `checkpoint` on the Hub.
        prompt_version: 1, the published prompt (default), or 2, ours.
        number_embedding: `mlp`, as published (default), or `log`.
        loss: `mse`, as published (default), `mae` or `huber`.
        huber_delta: residual in nats at which the Huber loss turns from square to linear.
        prior: the law whose residuals are learnt: `chinchilla`, as published (default), `configuration`, fitted on the
            training split, or the path of a law's JSON.
        one_standard_error: keep the network only if it beats the prior alone on every source of the split `select` by
            more than a standard error (Hastie et al., The Elements of Statistical Learning, 7.10); else its head is
            set to zero, so that it has no effect and forecasts are the law's alone.
        attn_implementation: `sdpa`, `eager`, `flash_attention_2` or `flex_attention`.
    """

    backbone: str | None = None
    scratch: Scratch | None = None
    checkpoint: str | None = None
    revision: str | None = None
    prompt_version: Literal[1, 2] | None = None
    number_embedding: Literal["mlp", "log"] | None = None
    loss: Literal["mse", "mae", "huber"] | None = None
    huber_delta: Positive | None = None
    prior: str | None = None
    one_standard_error: StrictBool = False
    attn_implementation: Literal["sdpa", "eager", "flash_attention_2", "flex_attention"] = "sdpa"

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        given = [name for name in ("backbone", "scratch", "checkpoint") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"got {' and '.join(given) or 'none'} of backbone, scratch and checkpoint, expected one")
        kept = [name for name in ("prompt_version", "number_embedding", "prior") if getattr(self, name) is not None]
        if self.checkpoint is not None and kept:
            raise ValueError(f"{kept[0]}: a checkpoint keeps its own, accepted only with backbone or scratch")
        return self

    @property
    def config(self) -> dict[str, Any]:
        """The fields of `NCPLConfig` that the recipe sets."""
        names = {"prompt_version": "prompt_version", "number_embedding": "number_embedding", "loss": "loss_type"}
        names["huber_delta"] = "huber_delta"
        return {field: getattr(self, name) for name, field in names.items() if getattr(self, name) is not None}


class Splits(Block):
    """Which split does what; a run stops when one of them does not exist.

    Args:
        train: what gradients, tokenizer and fitted prior see.
        select: whose mean error over the sources chooses the checkpoint.
        report: measured all along, and used for nothing else.
    """

    train: str = "train"
    select: str = "in_val"
    report: list[str] = Field(default=["ood_val"])

    @model_validator(mode="after")
    def _one_role_each(self) -> Self:
        if len({self.train, self.select, *self.report}) != 2 + len(self.report):
            raise ValueError(
                f"a split has one role, got train {self.train}, select {self.select}, report {self.report}"
            )
        return self


class DataBlock(Block):
    """Which runs.

    Args:
        sources: run logs, of `marin`, `steplaw` and `steplaw_moe`; the published prior knows the first two alone.
        data_dir: folder of their files; `sample`: the made-up runs that come along; null: download the public logs.
        runs: file or folder of a lab's own finished runs as `ncpl adapt` reads it, in place of run logs; `sources` has
            its one name, and every fourth run by FLOPs is in the split `select`.
        config: `final`, final losses alone, or `intermediate`, curve points too.
        splits: the role of each split.
        packed: put a run's curve points behind one shared prefix, and several runs into one sequence; false: a padded
            row for each point, as published.
    """

    sources: list[str] = Field(default=["marin", "steplaw"])
    data_dir: str | None = None
    runs: str | None = None
    config: Literal["final", "intermediate"] = "final"
    splits: Splits = Splits()
    packed: StrictBool = False

    @model_validator(mode="after")
    def _distinct_sources(self) -> Self:
        if not self.sources:
            raise ValueError("sources: got an empty list, expected at least one run log")
        if len(set(self.sources)) < len(self.sources):
            raise ValueError(f"sources: got {self.sources}, expected each run log once")
        if self.runs is not None and (len(self.sources) > 1 or self.splits.report or self.config != "final"):
            raise ValueError("runs: accepted with one source, an empty splits.report and config final")
        return self


class Lora(Block):
    """Low-rank adapters on the backbone (arXiv 2106.09685); the number embedding and the head train in full.

    Args:
        r: rank.
        alpha: the update's weight is `alpha / r`.
        dropout: of the adapters' inputs.
        target_modules: `all-linear`, or names of the backbone's linear layers.
    """

    r: Count = 16
    alpha: Positive = 32.0
    dropout: Share = 0.0
    target_modules: str | list[str] = "all-linear"


class Stage(Block):
    """One stage of training. The rate at step s of T with w warmup steps is `learning_rate x min(1, s/w) x decay(s/T)`.

    Args:
        epochs: passes over the training split.
        learning_rate: peak.
        batch_size: runs an optimizer step, over all micro-batches and processes; a run counts once, however many curve
            points it has.
        warmup: steps, or their share of the stage when below 1.
        schedule: decay: `linear`, 1 - s/T, as published; `cosine`, (1 + cos(pi s/T)) / 2; `constant`, 1.
        betas: AdamW's decay rates.
        epsilon: AdamW's denominator term.
        weight_decay: AdamW's, on every trained parameter.
        max_grad_norm: gradient norm clip, 0 is off.
        gradient_accumulation_steps: micro-batches an optimizer step on each process, for memory: any number gives the
            same batches and, but for the order of sums, the same gradients.
        evaluations: evaluations, each with a checkpoint, evenly over the stage.
        bf16: autocast over fp32 master weights.
        tf32: TF32 matrix products on NVIDIA GPUs, in place of fp32.
        activation_checkpointing: recompute activations in the backward pass, for memory.
        lora: train adapters in place of the backbone's own weights.
    """

    epochs: Annotated[Positive, Field(le=1e6)]
    learning_rate: Annotated[Positive, Field(le=10)]
    batch_size: Count = 480
    warmup: NotNegative = 0.1
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    betas: tuple[Share, Share] = (0.9, 0.99)
    epsilon: Positive = 1e-8
    weight_decay: NotNegative = 0.01
    max_grad_norm: NotNegative = 1.0
    gradient_accumulation_steps: Count = 1
    evaluations: Count = 20
    bf16: StrictBool = False
    tf32: StrictBool = False
    activation_checkpointing: StrictBool = False
    lora: Lora | None = None

    @model_validator(mode="after")
    def _micro_batches_hold_runs(self) -> Self:
        if self.batch_size < self.gradient_accumulation_steps:
            raise ValueError(
                f"batch_size: got {self.batch_size}, expected at least the {self.gradient_accumulation_steps} "
                "gradient_accumulation_steps"
            )
        return self

    def rate(self, step: int, total: int) -> float:
        """Learning rate at a step of `total`, as a share of the peak.

        >>> stage = Stage(epochs=1, learning_rate=1e-3, warmup=10)
        >>> stage.rate(5, 100), stage.rate(50, 100)
        (0.475, 0.5)
        """
        warmup = self.warmup if self.warmup >= 1 else self.warmup * total
        decay = {"linear": 1 - step / total, "cosine": (1 + math.cos(math.pi * step / total)) / 2, "constant": 1.0}
        return min(1.0, step / warmup if warmup else 1.0) * decay[self.schedule]


class Stages(Block):
    """The published two stages, each optional.

    Args:
        frozen: stage 1, in which only the number embedding and the head train.
        full: stage 2, everything.
    """

    frozen: Stage | None = None
    full: Stage | None = None

    @model_validator(mode="after")
    def _at_least_one(self) -> Self:
        if self.frozen is None and self.full is None:
            raise ValueError("got no stage, expected frozen, full, or both")
        if self.frozen is not None and self.frozen.lora is not None:
            raise ValueError("frozen.lora: the backbone is frozen in stage 1, accepted in stages.full only")
        return self

    def items(self) -> list[tuple[str, Stage]]:
        """Name and stage, in order."""
        return [(name, stage) for name in ("frozen", "full") if (stage := getattr(self, name)) is not None]


class Recipe(Block):
    """A whole training.

    Args:
        model, data, stages: the three blocks.
        output_dir: folder for the trained model; the same command goes on where an interrupted one stopped.
        seed: of weights and order of data.
        push_to_hub: repo id to push the result to.
    """

    model: ModelBlock
    data: DataBlock
    stages: Stages
    output_dir: str
    seed: Seed = 42
    push_to_hub: str | None = None

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Self:
        if self.model.one_standard_error and self.data.config == "intermediate":
            raise ValueError(
                "model.one_standard_error: judges final losses alone, accepted only with data.config final"
            )
        lora = self.stages.full is not None and self.stages.full.lora is not None
        if self.push_to_hub and lora and (self.model.checkpoint is None or Path(self.model.checkpoint).is_dir()):
            raise ValueError(
                "push_to_hub: an adapter needs its base on the Hub: push a trained forecaster first, then give its "
                "repo id as model.checkpoint"
            )
        return self

    def to_dict(self) -> dict[str, Any]:
        """Plain data that trains the same model elsewhere: without what is absent, and without where this machine keeps
        its files and pushes to."""

        settings = self.model_dump(mode="json", exclude_none=True)
        for name in ("output_dir", "push_to_hub"):
            settings.pop(name, None)
        if self.data.data_dir != "sample":
            settings["data"].pop("data_dir", None)
        return settings


# ------------------------------------------------------------------------------------------------ NSP's


class NSPModelBlock(Block):
    """Fields of `NSPConfig` that a recipe sets; those it leaves out have the configuration's defaults."""

    tasks: list[str] | None = None
    regression_tasks: list[str] | None = None
    dipping_tasks: list[str] | None = None
    num_capabilities: Count | None = None
    family_rank: Count | None = None
    hidden_size: Count | None = None
    num_hidden_layers: Annotated[Count, Field(le=1000)] | None = None
    num_attention_heads: Count | None = None
    intermediate_size: Count | None = None
    dropout: Share | None = None
    max_shift: NotNegative | None = None
    max_scale: NotNegative | None = None
    degrees_of_freedom: Positive | None = None
    absolute_error_weight: NotNegative | None = None
    emergence_threshold: Share | None = None
    initializer_range: Positive | None = None

    @property
    def config(self) -> dict[str, Any]:
        """The fields of `NSPConfig` that the recipe sets."""
        return self.model_dump(exclude_none=True)


class NSPData(Block):
    """Which leaderboard.

    Args:
        leaderboard: configuration of `datasets_scripts.leaderboard`.
        data_dir: folder of its files; null: download.
        min_scores: a task is learnt when at least so many models have a score.
    """

    leaderboard: str = "obs_scaling"
    data_dir: str | None = None
    min_scores: Count = 40


class NSPTraining(Block):
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

    steps: Count = 900
    learning_rate: Annotated[Positive, Field(le=10)] = 0.02
    encoder_learning_rate: Annotated[NotNegative, Field(le=10)] = 0.002
    batch_size: Count = 48
    penalty: NotNegative = 1e-3
    encoder_decay: NotNegative = 0.1
    auxiliary_weight: NotNegative = 0.3
    unknown_architecture: Annotated[Number, Field(ge=0, le=1)] = 0.2
    family_inflation: Positive = 1.0


class NSPEvaluation(Block):
    """How a predictor is evaluated and calibrated.

    Args:
        folds: of families.
        seeds: fits of each fold; their spread is reported, intervals are calibrated on all.
    """

    folds: Annotated[Count, Field(ge=2)] = 5
    seeds: list[Seed] = Field(default=[0, 1, 2], min_length=1)


class NSPRecipe(Block):
    """A whole training of NSP.

    Args:
        kind: `nsp`, which tells this recipe from a forecaster's.
        model, data, training, evaluation: the four blocks.
        output_dir: folder for the trained model.
        seed: of the model that is saved.
        push_to_hub: repo id to push the result to.

    >>> check(NSPRecipe, {"training": {"steps": 10}, "output_dir": "out"}).training.steps
    10
    """

    kind: Literal["nsp"] = "nsp"
    model: NSPModelBlock = NSPModelBlock()
    data: NSPData = NSPData()
    training: NSPTraining = NSPTraining()
    evaluation: NSPEvaluation = NSPEvaluation()
    output_dir: str
    seed: Seed = 0
    push_to_hub: str | None = None


def load_recipe(path: str | Path, overrides: Mapping[str, str] | None = None) -> Recipe:
    """Reads and checks a recipe.

    Args:
        path: a YAML file.
        overrides: dotted key -> value as text, such as `{"stages.full.epochs": "3"}`; `null` removes a key.

    Raises:
        ValueError: the file is missing or no YAML, or a key or value is not accepted; the message names the key.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp(), "recipe.yaml")
    >>> _ = path.write_text('''
    ... model: {scratch: {hidden_size: 32, num_layers: 1, num_heads: 2}}
    ... stages: {full: {epochs: 3, learning_rate: 1e-3}}
    ... ''')
    >>> load_recipe(path, {"stages.full.epochs": "5"}).stages.full.epochs
    5.0
    """
    return check(Recipe, read_yaml(path, overrides))
