"""Training recipes: YAML with the blocks `model`, `data` and `stages`, checked key by key.

A key that does not exist, a value of the wrong type or range, or a block that contradicts itself stops the run before
anything is loaded; `--key value` on the command line sets any key by its dotted name.
"""

import math
import types
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

Block = TypeVar("Block")


@dataclass
class Scratch:
    """A small Qwen3-shaped backbone from scratch; its tokenizer is trained on the training split's prompts.

    Args:
        hidden_size: residual width; a multiple of `num_heads`.
        num_layers: transformer layers.
        num_heads: attention heads; half as many for keys and values.
        vocab_size: upper bound on the tokenizer's tokens.
    """

    hidden_size: int
    num_layers: int
    num_heads: int
    vocab_size: int = 1024

    def __post_init__(self) -> None:
        _at_least(self, 1, "hidden_size", "num_layers", "num_heads")
        _at_least(self, 300, "vocab_size")
        if self.hidden_size % (2 * self.num_heads):
            raise ValueError(f"hidden_size: got {self.hidden_size}, expected a multiple of twice num_heads")


@dataclass
class ModelBlock:
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
            set to zero, and the law speaks alone.
        attn_implementation: `sdpa`, `eager`, `flash_attention_2` or `flex_attention`.
    """

    backbone: str | None = None
    scratch: Scratch | None = None
    checkpoint: str | None = None
    revision: str | None = None
    prompt_version: Literal[1, 2] | None = None
    number_embedding: Literal["mlp", "log"] | None = None
    loss: Literal["mse", "mae", "huber"] | None = None
    huber_delta: float | None = None
    prior: str | None = None
    one_standard_error: bool = False
    attn_implementation: str = "sdpa"

    def __post_init__(self) -> None:
        given = [name for name in ("backbone", "scratch", "checkpoint") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"got {' and '.join(given) or 'none'} of backbone, scratch and checkpoint, expected one")
        kept = [name for name in ("prompt_version", "number_embedding", "prior") if getattr(self, name) is not None]
        if self.checkpoint is not None and kept:
            raise ValueError(f"{kept[0]}: a checkpoint keeps its own, accepted only with backbone or scratch")

    @property
    def config(self) -> dict[str, Any]:
        """The fields of `NCPLConfig` that the recipe sets."""
        names = {"prompt_version": "prompt_version", "number_embedding": "number_embedding", "loss": "loss_type"}
        names["huber_delta"] = "huber_delta"
        return {field: getattr(self, name) for name, field in names.items() if getattr(self, name) is not None}


@dataclass
class Splits:
    """Which split does what; a run stops when one of them does not exist.

    Args:
        train: what gradients, tokenizer and fitted prior see.
        select: whose mean error over the sources chooses the checkpoint.
        report: measured all along, and used for nothing else.
    """

    train: str = "train"
    select: str = "in_val"
    report: list[str] = field(default_factory=lambda: ["ood_val"])

    def __post_init__(self) -> None:
        if len({self.train, self.select, *self.report}) != 2 + len(self.report):
            raise ValueError(
                f"a split has one role, got train {self.train}, select {self.select}, report {self.report}"
            )


@dataclass
class DataBlock:
    """Which runs.

    Args:
        sources: run logs, of `marin`, `steplaw` and `steplaw_moe`; the published prior knows the first two alone.
        data_dir: folder of their files; `sample`: the made-up runs that come along; null: download the public logs.
        config: `final`, final losses alone, or `intermediate`, curve points too.
        splits: the role of each split.
        packed: put a run's curve points behind one shared prefix, and several runs into one sequence; false: a padded
            row for each point, as published.
    """

    sources: list[str] = field(default_factory=lambda: ["marin", "steplaw"])
    data_dir: str | None = None
    config: Literal["final", "intermediate"] = "final"
    splits: Splits = field(default_factory=Splits)
    packed: bool = False

    def __post_init__(self) -> None:
        if not self.sources:
            raise ValueError("sources: got an empty list, expected at least one run log")


@dataclass
class Lora:
    """Low-rank adapters on the backbone (arXiv 2106.09685); the number embedding and the head train in full.

    Args:
        r: rank.
        alpha: the update's weight is `alpha / r`.
        dropout: of the adapters' inputs.
        target_modules: `all-linear`, or names of the backbone's linear layers.
    """

    r: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    target_modules: str | list[str] = "all-linear"

    def __post_init__(self) -> None:
        _at_least(self, 1, "r")


@dataclass
class Stage:
    """One stage of training. The rate at step s of T with w warmup steps is `learning_rate x min(1, s/w) x decay(s/T)`.

    Args:
        epochs: passes over the training split.
        learning_rate: peak.
        batch_size: targets (final losses and curve points) an optimizer step, over all processes.
        warmup: steps, or their share of the stage when below 1.
        schedule: decay: `linear`, 1 - s/T, as published; `cosine`, (1 + cos(pi s/T)) / 2; `constant`, 1.
        betas: AdamW's decay rates.
        epsilon: AdamW's denominator term.
        weight_decay: AdamW's, on every trained parameter.
        max_grad_norm: gradient norm clip, 0 is off.
        gradient_accumulation_steps: micro-batches an optimizer step; each batch is sorted by length before it is split,
            so that they pad little.
        evaluations: evaluations, each with a checkpoint, evenly over the stage.
        bf16: autocast over fp32 master weights.
        tf32: TF32 matrix products on NVIDIA GPUs, in place of fp32.
        activation_checkpointing: recompute activations in the backward pass, for memory.
        lora: train adapters in place of the backbone's own weights.
    """

    epochs: float
    learning_rate: float
    batch_size: int = 480
    warmup: float = 0.1
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    betas: tuple[float, float] = (0.9, 0.99)
    epsilon: float = 1e-8
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    gradient_accumulation_steps: int = 1
    evaluations: int = 20
    bf16: bool = False
    tf32: bool = False
    activation_checkpointing: bool = False
    lora: Lora | None = None

    def __post_init__(self) -> None:
        _at_least(self, 0, "weight_decay", "max_grad_norm", "warmup")
        _at_least(self, 1, "batch_size", "gradient_accumulation_steps", "evaluations")
        for name in ("epochs", "learning_rate", "epsilon"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected more than 0")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas: got {list(self.betas)}, expected two numbers from 0 to below 1")
        if self.batch_size % self.gradient_accumulation_steps:
            raise ValueError(
                f"batch_size: got {self.batch_size}, expected a multiple of the {self.gradient_accumulation_steps} "
                "gradient_accumulation_steps"
            )

    def rate(self, step: int, total: int) -> float:
        """Learning rate at a step of `total`, as a share of the peak.

        >>> stage = Stage(epochs=1, learning_rate=1e-3, warmup=10)
        >>> stage.rate(5, 100), stage.rate(50, 100)
        (0.475, 0.5)
        """
        warmup = self.warmup if self.warmup >= 1 else self.warmup * total
        decay = {"linear": 1 - step / total, "cosine": (1 + math.cos(math.pi * step / total)) / 2, "constant": 1.0}
        return min(1.0, step / warmup if warmup else 1.0) * decay[self.schedule]


@dataclass
class Stages:
    """The published two stages, each optional.

    Args:
        frozen: stage 1, in which only the number embedding and the head train.
        full: stage 2, everything.
    """

    frozen: Stage | None = None
    full: Stage | None = None

    def __post_init__(self) -> None:
        if self.frozen is None and self.full is None:
            raise ValueError("got no stage, expected frozen, full, or both")
        if self.frozen is not None and self.frozen.lora is not None:
            raise ValueError("frozen.lora: the backbone is frozen in stage 1, accepted in stages.full only")

    def items(self) -> list[tuple[str, Stage]]:
        """Name and stage, in order."""
        return [(name, stage) for name in ("frozen", "full") if (stage := getattr(self, name)) is not None]


@dataclass
class Recipe:
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
    seed: int = 42
    push_to_hub: str | None = None

    def __post_init__(self) -> None:
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

    def to_dict(self) -> dict[str, Any]:
        """Plain data that trains the same model elsewhere: without what is absent, and without where this machine keeps
        its files and pushes to."""

        def plain(value: Any) -> Any:
            if isinstance(value, dict):
                return {key: plain(item) for key, item in value.items() if item is not None}
            return list(value) if isinstance(value, tuple) else value

        told = plain(asdict(self))
        for name in ("output_dir", "push_to_hub"):
            told.pop(name, None)
        if self.data.data_dir != "sample":
            told["data"].pop("data_dir", None)
        return told


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
    return check_recipe(read_yaml(path, overrides))


def read_yaml(path: str | Path, overrides: Mapping[str, str] | None = None) -> dict[str, Any]:
    """A recipe's file with keys overridden and its default `output_dir`, unchecked; arguments as in `load_recipe`.

    Raises:
        ValueError: the file is missing or holds no blocks.
    """
    path = Path(path)
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"recipe: cannot read {path} ({error.strerror}), expected a YAML file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"recipe: {path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise ValueError(f"recipe: {path} holds {values!r}, expected the blocks model, data and stages")
    values = {"data": {}, "output_dir": f"outputs/{path.stem}", **values}
    for key, text in (overrides or {}).items():
        _set(values, key, text)
    return values


def check_recipe(values: Mapping[str, Any]) -> Recipe:
    """The recipe in a mapping, as `load_recipe` checks it."""
    return _build(Recipe, values, "")


def parse_overrides(arguments: Sequence[str]) -> dict[str, str]:
    """`--key value` and `--key=value` as a mapping.

    >>> parse_overrides(["--seed", "7", "--data.config=final"])
    {'seed': '7', 'data.config': 'final'}
    """
    overrides: dict[str, str] = {}
    words = iter(arguments)
    for word in words:
        key, equals, value = word.removeprefix("--").partition("=")
        if not word.startswith("--") or not key:
            raise ValueError(f"{word}: not an option, expected --key value after the recipe")
        if not equals:
            following = next(words, None)
            if following is None or following.startswith("--"):
                raise ValueError(f"--{key}: no value came, expected --{key} VALUE")
            value = following
        overrides[key] = value
    return overrides


def describe(cls: type = Recipe, prefix: str = "") -> list[str]:
    """All keys, dotted, with what they accept and their defaults.

    >>> describe(Lora, "stages.full.lora.")[0]
    'stages.full.lora.r (int, 16)'
    """
    lines = []
    for item in fields(cls):
        kind = get_type_hints(cls)[item.name]
        inner = next((arg for arg in (kind, *get_args(kind)) if is_dataclass(arg)), None)
        if inner is not None:
            lines += describe(inner, f"{prefix}{item.name}.")  # type: ignore[arg-type]
            continue
        default = item.default_factory() if item.default_factory is not MISSING else item.default
        note = "required" if default is MISSING else "null" if default is None else default
        lines.append(f"{prefix}{item.name} ({_named(kind)}, {note})")
    return lines


def _set(values: dict[str, Any], key: str, text: str) -> None:
    *blocks, last = key.split(".")
    for i, block in enumerate(blocks):
        if values.get(block) is None:
            values[block] = {}
        if not isinstance(values[block], dict):
            raise ValueError(f"{'.'.join(blocks[: i + 1])}: holds {values[block]!r}, there is no {key}")
        values = values[block]
    try:
        values[last] = yaml.safe_load(text)
    except yaml.YAMLError:
        values[last] = text


def _build(cls: type[Block], values: Any, path: str) -> Block:
    known = get_type_hints(cls)
    if not isinstance(values, Mapping):
        raise ValueError(f"{path or 'recipe'}: got {values!r}, expected a block of {', '.join(known)}")
    dot = f"{path}." if path else ""
    for key in values:
        if key not in known:
            near = get_close_matches(str(key), known, 1, 0.4)
            hint = f"did you mean {dot}{near[0]}? " if near else ""
            raise ValueError(f"{dot}{key}: not a key of a recipe, {hint}known here: {', '.join(known)}")
    for item in fields(cls):  # type: ignore[arg-type]
        if item.default is MISSING and item.default_factory is MISSING and values.get(item.name) is None:
            raise ValueError(f"{dot}{item.name}: missing, expected {_named(known[item.name])}")
    arguments = {
        key: _coerce(known[key], value, dot + key)
        for key, value in values.items()
        # An empty block such as `data:` reads as null and means its defaults.
        if value is not None or type(None) in get_args(known[key])
    }
    try:
        return cls(**arguments)
    except ValueError as error:
        names_field = str(error).split(":")[0].split(".")[0] in known
        raise ValueError(f"{dot}{error}" if names_field or not path else f"{path}: {error}") from None


def _coerce(kind: Any, value: Any, path: str) -> Any:
    """`value` as `kind`; text that reads as a number is one, because YAML 1.1 takes `1e-4` for text."""
    if is_dataclass(kind):
        return _build(kind, value, path)  # type: ignore[arg-type]
    origin, args = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        if value is None:
            return None
        choices = [arg for arg in args if arg is not type(None)]
        for choice in choices[:-1]:
            try:
                return _coerce(choice, value, path)
            except ValueError:
                continue
        return _coerce(choices[-1], value, path)
    if origin is Literal and value in args and not isinstance(value, bool):
        return value
    if origin in (list, tuple) and isinstance(value, list) and (origin is list or len(value) == len(args)):
        return origin(_coerce(args[0], item, f"{path}[{i}]") for i, item in enumerate(value))
    if kind in (int, float) and not isinstance(value, bool):
        try:
            number = float(value)
            if math.isfinite(number) and (kind is float or number == int(number)):
                return kind(number)
        except (TypeError, ValueError):
            pass
    elif kind in (bool, str) and isinstance(value, kind):
        return value
    near = get_close_matches(str(value), [str(arg) for arg in args], 1) if origin is Literal else []
    hint = f"; did you mean {near[0]}?" if near else ""
    raise ValueError(f"{path}: got {value!r}, expected {_named(kind)}{hint}")


def _named(kind: Any) -> str:
    origin, args = get_origin(kind), [arg for arg in get_args(kind) if arg is not type(None)]
    if origin is Literal:
        return " or ".join(map(str, args))
    if origin in (Union, types.UnionType):
        return " or ".join(map(_named, args))
    if origin is list:
        return f"list of {_named(args[0])}"
    if origin is tuple:
        return f"list of {len(args)} {_named(args[0])}"
    return "block" if is_dataclass(kind) else kind.__name__


def _at_least(block: Any, low: float, *names: str) -> None:
    for name in names:
        if getattr(block, name) < low:
            raise ValueError(f"{name}: got {getattr(block, name)}, expected at least {low}")
