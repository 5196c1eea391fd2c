"""What pretraining frameworks call the quantities of a run: the table in `frameworks.toml`, and who is recognised.

A framework is recognised by its marks, names that only it uses. One word, such as `batch_size`, is several quantities
in several frameworks; what names alone cannot say is in `ncpl.logs.rules`.
"""

import functools
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ncpl.files import read_document
from ncpl.logs.rules import RULES, Facts

QUANTITIES = {
    "layers": "layers",
    "width": "residual width",
    "heads": "attention heads",
    "kv_heads": "key and value heads",
    "head_dim": "width of a head",
    "ffn": "feed-forward width, of one of gate and up",
    "ffn_fused": "feed-forward width, gate and up together",
    "ffn_ratio": "feed-forward width over residual width",
    "activation": "activation of the feed-forward layer",
    "gated": "whether the feed-forward layer has a gate",
    "vocab": "vocabulary",
    "vocab_rows": "rows of the embedding, padded",
    "tied": "whether input and output embeddings are one",
    "seq_len": "tokens a sequence",
    "params": "parameters, embeddings included",
    "params_head": "parameters, the output embedding included, the input embedding not",
    "params_body": "non-embedding parameters",
    "params_active": "active non-embedding parameters",
    "batch": "sequences a step, of all devices",
    "batch_tokens": "tokens a step, of all devices",
    "batch_unknown": "sequences or tokens a step, of one device or of all",
    "device_batch": "sequences a device and micro-step",
    "device_batch_tokens": "tokens a device and micro-step",
    "accumulation": "micro-steps a step, on each device",
    "devices": "devices that see different data",
    "gpus": "all devices, those that hold parts of one model included",
    "devices_a_node": "devices of one node",
    "nodes": "nodes",
    "tensor_parallel": "devices that share each layer",
    "pipeline_parallel": "devices that share the layers",
    "context_parallel": "devices that share each sequence",
    "steps": "training steps",
    "tokens": "training tokens",
    "samples": "training sequences",
    "duration": "length of the run, with its unit",
    "flops": "training FLOPs",
    "lr": "peak learning rate",
    "adam_lr": "peak learning rate of the Adam part",
    "min_lr": "final learning rate",
    "min_lr_ratio": "final over peak learning rate",
    "warmup": "warmup, with its unit, or a share up to 1 and steps above",
    "warmup_steps": "warmup steps",
    "warmup_tokens": "warmup tokens",
    "warmup_samples": "warmup sequences",
    "warmup_share": "warmup as a share of the run",
    "decay": "length of the learning rate's decay, with its unit, or a share up to 1 and steps above",
    "decay_steps": "steps in which the learning rate decays at the end",
    "decay_share": "share of the run in which the learning rate decays at the end",
    "schedule": "shape of the learning rate's decay",
    "optimizer": "name of the optimizer",
    "beta1": "beta1",
    "beta2": "beta2",
    "betas": "beta1 and beta2",
    "epsilon": "added to the denominator",
    "weight_decay": "weight decay, times the learning rate",
    "clip": "gradient norm clip",
    "momentum": "momentum",
    "experts": "routed experts",
    "top_k": "experts a token visits",
    "expert_dim": "width of one expert",
    "shared_dim": "width of all shared experts",
    "shared_experts": "shared experts, each of the width of one expert",
    "dense_layers": "first layers without experts",
    "name": "name of the run",
    "state": "state of the run",
    "step": "step of a logged point",
    "tokens_seen": "tokens seen at a logged point",
    "samples_seen": "sequences seen at a logged point",
    "lr_now": "learning rate at a logged point",
    "final_loss": "final loss",
}
"""Quantity -> what it counts."""

# Parts of a name that mean another run or another model than the one that is trained.
_ELSEWHERE = re.compile(
    r"^(eval|evals|evaluat\w*|valid|validation|val|test|checkpoint\w*|ckpt\w*|logging|logger|wandb|callbacks?|teacher|"
    r"draft|vision\w*|audio\w*|lora\w*|peft\w*|tokenizer\w*|profil\w*|generation\w*|_wandb|system|slurm|env|git|"
    r"activation_checkpoint\w*|fault_tolerance|comm|compile|experimental|early_exit|mup\w*|ema)$"
)


@dataclass(frozen=True)
class Framework:
    """How one framework writes a run down.

    Args:
        name: as people call it.
        marks: names that tell it from the others.
        names: quantity -> names, separated by spaces; a dotted name has its section in front.
        defaults: quantity -> value where no name of it is present.
        loss: names of logged losses, the most reliable source of the final loss first.
        weak: marks that other frameworks' files have too, and that tell nothing on their own.
        rules: what names alone cannot say; changes the facts, given all values under their plain names, and returns
            what it did, quantity -> sentence.
        never: names that mean something else here than in general use.
    """

    name: str
    marks: str
    names: Mapping[str, str]
    defaults: Mapping[str, Any] = field(default_factory=dict)
    loss: str = ""
    rules: Callable[[Facts, Mapping[str, Any]], dict[str, str]] | None = None
    never: str = ""
    weak: str = ""

    def quantities(self) -> dict[str, str]:
        """Their name -> quantity."""
        return {name: quantity for quantity, names in self.names.items() for name in names.split()}


@functools.lru_cache(100_000)
def plain_name(name: str) -> str:
    """A name in one spelling: lower case, dots between sections, underscores between words.

    >>> plain_name("train/CE loss"), plain_name("Train-Micro-Batch"), plain_name("optim/LR (group 0)")
    ('train.ce_loss', 'train_micro_batch', 'optim.lr_group_0')
    """
    text = re.sub(r"[\s\-]+", "_", name.strip().lower().replace("/", "."))
    text = re.sub(r"[^\w.]+", "_", text)
    return re.sub(r"\._*|_*\.", ".", re.sub(r"\.+", ".", re.sub(r"_+", "_", text))).rstrip("_.").lstrip(".")


def matches(key: str, name: str) -> bool:
    """Whether a value's plain name is a framework's name, in whatever section it stands.

    >>> matches("config.model.d_model", "d_model"), matches("eval.steps", "steps"), matches("a.optim.lr", "optim.lr")
    (True, False, True)
    """
    if key == name:
        return True
    if not key.endswith(f".{name}"):
        return False
    return "." in name or not any(_ELSEWHERE.match(part) for part in key.split(".")[:-1])


def _read_table() -> dict[str, Framework]:
    table = read_document(Path(__file__).with_name("frameworks.toml"))
    return {
        name: Framework(
            "names in general use" if name == "general" else name,
            content.get("marks", ""),
            content["names"],
            content.get("defaults", {}),
            content.get("loss", ""),
            RULES.get(name),
            content.get("never", ""),
            content.get("weak", ""),
        )
        for name, content in table.items()
    }


_TABLE = _read_table()
GENERIC = _TABLE["general"]
"""Names that mean one quantity wherever they are used; nothing is defaulted."""
FRAMEWORKS = tuple(framework for framework in _TABLE.values() if framework is not GENERIC)


def recognise(names: Iterable[str]) -> Framework:
    """The framework whose names these are; `GENERIC` if none's marks are among them.

    >>> recognise(["model.d_model", "global_train_batch_size", "model.mlp_ratio"]).name
    'OLMo'
    >>> recognise(["d_model", "tokens"]).name
    'names in general use'
    """
    keys = list(names)
    best, most = GENERIC, 0
    for framework in FRAMEWORKS:
        found = [mark for mark in framework.marks.split() if _present(keys, mark)]
        weak = sum(_present(keys, mark) for mark in framework.weak.split())
        # Step Law's columns are short words that other tables may have too; four weak marks are a strong one.
        if len(found) + weak // 4 < (3 if framework.name == "Step Law" else 1):
            continue
        score = 3 * (len(found) + weak)
        score += sum(any(matches(key, name) for key in keys) for name in framework.quantities())
        if score > most:
            best, most = framework, score
    return best


def _present(keys: list[str], mark: str) -> bool:
    return any(matches(key, mark) or key.startswith(f"{mark}.") for key in keys)
