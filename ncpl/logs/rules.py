"""What a framework's names alone do not say: widths that count gate and up together, batches of one device, and so on.

Each rule changes the quantities in place, given all values of the file under their plain names, and returns what it
did: quantity -> sentence.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

from names_ncpl import OPTIMIZERS, OTHER_OPTIMIZERS, optimizer_name

Facts = dict[str, Any]
"""Quantity (`frameworks.QUANTITIES`) -> value; `complete`: whether the file is a whole configuration."""


def _number(values: Mapping[str, Any], name: str, default: float) -> float:
    """A positive number that the file gives under a name, else the default: files hold text and lists anywhere.

    >>> _number({"multiple_of": 256, "epochs": [1, 2]}, "multiple_of", 1), _number({"epochs": [1, 2]}, "epochs", 1)
    (256, 1)
    """
    value = values.get(name)
    number = isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1e15
    return value if number else default  # type: ignore[return-value]


_UNITS = {"steps": "_steps", "step": "_steps", "tokens": "_tokens", "samples": "_samples"}


def _olmo(facts: Facts, values: Mapping[str, Any]) -> dict[str, str]:
    told = {}
    gated = str(values.get("activation_type", "swiglu")).lower() in ("swiglu", "geglu")
    facts["gated"] = gated
    ratio = facts.pop("ffn_ratio", 4 if facts.get("complete") else 0)
    wide = facts.pop("ffn", None) or float(ratio) * facts.get("width", 0)
    if wide:
        facts["ffn"] = int(wide) // 2 if gated else int(wide)
        if gated:
            told["ffn"] = f"{int(wide)} counts gate and up together"
    if facts.pop("multi_query", None) is True:
        facts.setdefault("kv_heads", 1)
    _in_units(facts, values.get("units", "steps"))
    return told


def _in_units(facts: Facts, units: Any) -> None:
    """Lengths of the schedule in the unit that another key gives."""
    unit = _UNITS.get(str(units).lower().rpartition(".")[2], "_steps")
    for length in ("warmup", "decay"):
        value = facts.get(f"{length}_in_units")
        if value is not None:
            facts.setdefault(f"{length}{unit}", value)
            del facts[f"{length}_in_units"]


def _ratio(facts: Facts) -> float | None:
    """Feed-forward width from its ratio to the width, 4 where a whole configuration names none."""
    ratio = facts.pop("ffn_ratio", 4 if facts.get("complete") else None)
    return float(ratio) * facts["width"] if ratio and facts.get("width") else None


def _olmo_core(facts: Facts, values: Mapping[str, Any]) -> dict[str, str]:
    _in_units(facts, values.get("units", "steps"))
    facts["gated"] = True
    if not facts.get("complete"):
        return {}
    if "wsd" in str(facts.get("schedule", "")).lower():
        if "decay_steps" not in facts and "decay_tokens" not in facts:
            facts.setdefault("decay_share", 0.1)
        facts.setdefault("min_lr", 0)
    elif re.search("cos|linear", str(facts.get("schedule", "")), re.I):
        facts.setdefault("min_lr_ratio", 0.1)
    return {}


def _megatron(facts: Facts, values: Mapping[str, Any]) -> dict[str, str]:
    told = {}
    if not values.get("group_query_attention"):
        facts.pop("kv_heads", None)
    width, wide = facts.get("width"), facts.get("ffn")
    swiglu = values.get("swiglu")
    if swiglu is None and width and wide and wide != 4 * width:
        # A launcher's list of arguments often lacks the flag; plain layers are 4 times as wide as the model.
        swiglu = True
        told["gated"] = f"a feed-forward width of {wide:g}, not 4 x {width:g}, is taken for a gated one"
    facts["gated"] = bool(swiglu)
    if width and not wide and facts.get("complete"):
        facts["ffn"] = int(8 * width / 3 / 64) * 64 if swiglu else 4 * width
    if "warmup_decay_share" in facts:
        whole = _number(values, "lr_decay_iters", 0) or _number(values, "train_iters", 0)
        share = facts.pop("warmup_decay_share")
        if whole:
            facts.setdefault("warmup_steps", int(share * whole))
        else:
            facts.setdefault("warmup_share", share)
    if str(facts.get("optimizer", "adam")).lower() == "adam" and values.get("decoupled_weight_decay", True):
        facts["optimizer"] = "adamw"
        told["optimizer"] = "adam with decoupled weight decay is adamw"
    facts["tied"] = not values.get("untie_embeddings_and_output_weights", False)
    return told


def _neox(facts: Facts, values: Mapping[str, Any]) -> dict[str, str]:
    told = {}
    activation = str(values.get("activation", values.get("mlp_type", ""))).lower()
    gated = any(word in activation for word in ("swiglu", "geglu", "glu", "llama"))
    facts["gated"] = gated
    wide = facts.pop("ffn", None) or _ratio(facts)
    if wide and gated:
        multiple = max(1, int(_number(values, "mlp_multiple_of", 1)))
        # A third, rounded up to the multiple.
        facts["ffn"] = -(-int(wide) // (3 * multiple)) * multiple
        told["ffn"] = f"{int(wide)} is 3 x the width of one of gate and up"
    elif wide:
        facts["ffn"] = int(wide)
    facts["tied"] = not values.get("no_weight_tying", False)
    if str(facts.get("optimizer", "adam")).lower() == "adam":
        facts["optimizer"] = "adamw"
        told["optimizer"] = "Adam with weight decay is adamw"
    if facts.get("experts") in (0, 1):
        facts.pop("experts")
    share = facts.pop("warmup_decay_share", None)
    whole = _number(values, "lr_decay_iters", 0) or _number(values, "train_iters", 0)
    if share is not None and whole:
        facts["warmup_steps"] = int(share * whole + 1e-6)
    elif share is not None:
        facts["warmup_share"] = share
    return told


def _torchtitan(facts: Facts, values: Mapping[str, Any]) -> dict[str, str]:
    if facts.get("batch", 1) == -1:
        del facts["batch"]
    replicas, shards = values.get("data_parallel_replicate_degree", 1), values.get("data_parallel_shard_degree", -1)
    if isinstance(replicas, int) and isinstance(shards, int) and replicas > 0 and shards > 0:
        facts.setdefault("devices", replicas * shards)
    share = _number(values, "decay_ratio", 0)
    if share:
        facts["decay_share"] = share
    facts["gated"] = True
    width, factor, multiple = (
        facts.get("width"),
        _number(values, "ffn_dim_multiplier", 1),
        int(_number(values, "multiple_of", 0)),
    )
    if width and "ffn" not in facts and multiple:
        wide = int(int(8 * width / 3) * factor)
        facts["ffn"] = -(-wide // multiple) * multiple
        return {"ffn": "8/3 of the width x ffn_dim_multiplier, up to multiple_of"}
    return {}


def _litgpt(facts: Facts, values: Mapping[str, Any]) -> dict[str, str]:
    facts["gated"] = "gptneox" not in str(values.get("mlp_class_name", "LLaMAMLP")).lower()
    if not facts["gated"] and "width" in facts:
        facts.setdefault("ffn", 4 * facts["width"])
    if facts.get("experts") == 0:
        del facts["experts"]
    if values.get("lr_warmup_fraction") is not None and values.get("lr_warmup_steps") is None:
        # A share of an epoch, whose length no file gives.
        facts.pop("warmup_steps", None)
        facts.pop("warmup_share", None)
    told = {}
    if facts.get("complete") and str(values.get("optimizer", "")).lower() == "adamw":
        # Named without arguments, it has PyTorch's.
        for name, value in {"lr": 1e-3, "weight_decay": 0.01, "beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8}.items():
            if name not in facts and not (name.startswith("beta") and "betas" in facts):
                facts[name], told[name] = value, "default of torch.optim.AdamW"
    return told


def _levanter(facts: Facts, values: Mapping[str, Any]) -> dict[str, str]:
    kind = str(values.get("model.type", "llama")).lower()
    if str(facts.get("optimizer", "")).lower() == "adam":
        facts["optimizer"] = "adamw"
    facts["gated"] = "gpt2" not in kind
    wide = _ratio(facts)
    if not facts["gated"] and wide:
        facts.setdefault("ffn", int(wide))
    heads = facts.get("heads")
    if facts["gated"] and heads and "kv_heads" not in facts and heads > 32:
        facts["kv_heads"] = 32
    return {}


def _nanogpt(facts: Facts, values: Mapping[str, Any]) -> dict[str, str]:
    told = {} if "optimizer" in facts else {"optimizer": "nanoGPT trains with AdamW"}
    facts.setdefault("optimizer", "adamw")
    micro, summed = facts.pop("device_batch", None), facts.pop("accumulation", None)
    if micro is not None and summed is not None:
        facts.setdefault("batch", micro * summed)
        told["batch"] = f"batch_size {micro:g} x gradient_accumulation_steps {summed:g}, which counts all GPUs"
    elif micro is not None:
        facts["device_batch"] = micro
    if values.get("decay_lr") is False:
        facts["schedule"], facts["warmup_steps"] = "constant", 0
        facts.pop("min_lr", None)
    facts["gated"] = False
    if "width" in facts:
        facts.setdefault("ffn", 4 * facts["width"])
    return told


def _nanochat(facts: Facts, values: Mapping[str, Any]) -> dict[str, str]:
    told: dict[str, str] = {}
    for name in ("batch_tokens", "steps"):
        if facts.get(name, 1) == -1:
            del facts[name]
    if "layers" in facts and "width" not in facts:
        head, aspect = max(1, int(_number(values, "head_dim", 128))), _number(values, "aspect_ratio", 64)
        width = -(-int(facts["layers"] * aspect) // head) * head
        facts.update(width=width, head_dim=head)
        facts.setdefault("heads", width // head)
        told["width"] = f"depth x {aspect:g}, up to a multiple of {head}"
    facts["gated"], facts["tied"] = False, False
    if "width" in facts:
        facts["ffn"] = 4 * facts["width"]
    if "lr" in facts and "batch_tokens" in facts:
        facts["lr"] *= (facts["batch_tokens"] / 2**19) ** 0.5
        told["lr"] = "matrix_lr x sqrt(batch / 2^19), as nanochat rescales it"
    elif "lr" in facts:
        del facts["lr"]
    return told


def _open_lm(facts: Facts, values: Mapping[str, Any]) -> dict[str, str]:
    told = {}
    gated = not any(word in str(values.get("ffn_type", "swiglu")).lower() for word in ("gelu", "moe"))
    facts["gated"] = gated
    _shape_in_name(facts, values)
    if "width" in facts:
        facts["ffn"] = 256 * -(-int(8 * facts["width"] / 3) // 256) if gated else 4 * facts["width"]
        told["ffn"] = "open_lm's own, 8/3 of the width up to a multiple of 256" if gated else "open_lm's own, 4 x width"
    if "samples" in facts:
        facts["samples"] *= _number(values, "epochs", 1)
    return told | _shape_in_name(facts, values)


def _shape_in_name(facts: Facts, values: Mapping[str, Any]) -> dict[str, str]:
    """open_lm's small models are named after their shape, `d=96_l=8_h=4`."""
    shape = re.search(r"\bd=(\d+)_l=(\d+)_h=(\d+)", str(values.get("model") or facts.get("name") or ""))
    if shape is None:
        return {}
    for quantity, number in zip(("width", "layers", "heads"), shape.groups(), strict=True):
        facts.setdefault(quantity, int(number))
    return {"width": "the model's name", "layers": "the model's name", "heads": "the model's name"}


def _general(facts: Facts, values: Mapping[str, Any]) -> dict[str, str]:
    told = _shape_in_name(facts, values)
    named_in_section(facts, values)
    batch, seq, tokens, steps = (facts.get(name) for name in ("batch_unknown", "seq_len", "tokens", "steps"))
    if batch and tokens and steps and not {"batch", "batch_tokens", "device_batch"} & facts.keys():
        # Steps and tokens say whose batch it is.
        for quantity, a_step in (("batch", batch * (seq or 0)), ("batch_tokens", batch)):
            if abs(a_step * steps / tokens - 1) < 0.02:
                facts[quantity] = batch
                told[quantity] = f"{batch:g} x {steps:g} steps makes the {tokens:.4g} tokens"
    return told


def _foundry(facts: Facts, values: Mapping[str, Any]) -> dict[str, str]:
    told = {}
    facts["gated"] = "glu" in str(values.get("ffn_type", "mptmlp")).lower()
    wide = _ratio(facts)
    if wide:
        facts.setdefault("ffn", int(wide))
    if (
        "decoupled" in str(facts.get("optimizer", "")).lower()
        and facts.get("lr")
        and facts.get("weight_decay") is not None
    ):
        facts["weight_decay"] = facts["weight_decay"] / facts["lr"]
        told["weight_decay"] = "Composer's decoupled weight decay over the peak learning rate"
    return told


def _composer(facts: Facts, values: Mapping[str, Any]) -> dict[str, str]:
    section = next((name for name in values if re.search(r"(^|\.)schedulers\.\w+\.", name)), "")
    if section:
        facts.setdefault("schedule", section.split("schedulers.")[1].split(".")[0])
    facts["gated"] = "glu" in str(facts.get("activation", "gelu")).lower()
    named_in_section(facts, values)
    return _foundry(facts, {**values, "ffn_type": "mptglu" if facts["gated"] else "mptmlp"})


def named_in_section(facts: Facts, values: Mapping[str, Any]) -> None:
    """The optimizer that a section is called after, `optimizers.decoupled_adamw.lr`, where no key names it."""
    if "optimizer" in facts:
        return
    for name in values:
        found = re.search(
            r"(?:^|\.)(?:optimizers?|optim)\.(\w+?)(?:_optimizer)?\.(?:lr|learning_rate|weight_decay)$", name
        )
        if found is not None and optimizer_name(found[1]) in (*OPTIMIZERS, *OTHER_OPTIMIZERS):
            facts["optimizer"] = found[1]
            return


def _nemo(facts: Facts, values: Mapping[str, Any]) -> dict[str, str]:
    facts["gated"] = "glu" in str(values.get("activation", "gelu")).lower()
    if not facts["gated"] and facts.get("width"):
        facts.setdefault("ffn", 4 * facts["width"])
    if "fused" in str(facts.get("optimizer", "")).lower() and "adam" in str(facts["optimizer"]).lower():
        facts["optimizer"] = "adamw"
        return {"optimizer": "NeMo's fused Adam has decoupled weight decay"}
    return {}


def _fairseq(facts: Facts, values: Mapping[str, Any]) -> dict[str, str]:
    facts["gated"] = "glu" in str(facts.get("activation", "relu")).lower()
    if facts.get("clip") == 0:
        del facts["clip"]
    if str(facts.get("optimizer", "")).lower() == "adam":
        facts["optimizer"] = "adamw"
        return {"optimizer": "fairseq's Adam has decoupled weight decay"}
    return {}


def _lingua(facts: Facts, values: Mapping[str, Any]) -> dict[str, str]:
    facts["gated"] = True
    width = facts.get("width")
    if not width or "ffn" in facts:
        return {}
    factor, multiple = _number(values, "ffn_dim_multiplier", 0), max(1, int(_number(values, "multiple_of", 256)))
    wide = int(8 * width / 3 * (factor or 1)) if factor else int(8 * width / 3)
    facts["ffn"] = -(-wide // multiple) * multiple
    return {
        "ffn": f"lingua's own, 8/3 of the width{f' x {factor:g}' if factor else ''}, up to a multiple of {multiple}"
    }


def _torchtune(facts: Facts, values: Mapping[str, Any]) -> dict[str, str]:
    if values.get("packed") is not True:
        # A capacity: texts that are not packed are shorter.
        facts.pop("seq_len", None)
    if facts.get("clip") is None:
        facts.pop("clip", None)
    steps, epochs = _number(values, "max_steps_per_epoch", 0), _number(values, "epochs", 1)
    if steps:
        facts.setdefault("steps", steps * epochs)
        return {"steps": f"{steps:g} steps an epoch x {epochs:g}"}
    return {}


_PLAIN_MODELS = (
    "gpt2",
    "gpt_neox",
    "gptneox",
    "opt",
    "bloom",
    "gptj",
    "gpt_neo",
    "phi",
    "falcon",
    "bert",
    "mpt",
    "codegen",
)


def _transformers(facts: Facts, values: Mapping[str, Any]) -> dict[str, str]:
    kind = str(values.get("model_type", "")).lower()
    facts["gated"] = kind not in _PLAIN_MODELS and not (not kind and "n_embd" in values)
    if not facts["gated"] and "width" in facts:
        facts.setdefault("ffn", 4 * facts["width"])
    if "tied" not in facts and kind:
        facts["tied"] = kind in ("gpt2", "opt", "bloom", "gemma", "gemma2", "gemma3_text", "falcon", "gpt_neo")
    for name, default in {"qwen3": ("head_dim", 128), "mixtral": ("experts", 8), "olmoe": ("experts", 64)}.items():
        if kind == name:
            facts.setdefault(*default)
    told = {}
    if facts.get("complete") and {"per_device_train_batch_size", "lr_scheduler_type"} & values.keys():
        training = {"optimizer": "adamw", "schedule": "linear", "weight_decay": 0, "beta1": 0.9, "beta2": 0.999}
        for name, value in (training | {"epsilon": 1e-8, "clip": 1.0}).items():
            if name not in facts:
                facts[name], told[name] = value, "default of TrainingArguments"
        if not {"warmup_steps", "warmup_share"} & facts.keys():
            facts["warmup_steps"], told["warmup_steps"] = 0, "default of TrainingArguments"
    if kind in ("mixtral", "olmoe"):
        facts.setdefault("top_k", 2 if kind == "mixtral" else 8)
        facts.setdefault("expert_dim", facts.get("ffn"))
    if values.get("kv_lora_rank") is not None:
        # Multi-head latent attention has other matrices.
        facts["unknown_attention"] = True
    shared = _number(values, "shared_expert_intermediate_size", 0)
    if shared:
        facts["shared_dim"] = shared
    if any(
        isinstance(values.get(name), int | float) and values[name] not in (0, 1) for name in ("decoder_sparse_step",)
    ):
        facts["unknown_attention"] = True
    for name in ("steps",):
        if isinstance(facts.get(name), int | float) and facts[name] <= 0:
            del facts[name]
    if facts.get("warmup_steps") in (0, None) and facts.get("warmup_share"):
        facts.pop("warmup_steps", None)
    elif isinstance(facts.get("warmup_steps"), float) and 0 < facts["warmup_steps"] < 1:
        facts["warmup_share"] = facts.pop("warmup_steps")
    to_zero = re.fullmatch(r"(schedulertype\.)?(linear|cosine)(_with_warmup)?", str(facts.get("schedule")).lower())
    if to_zero and "min_lr" not in facts and "min_lr_ratio" not in facts:
        facts["min_lr_ratio"] = 0
    return told


def _nanotron(facts: Facts, values: Mapping[str, Any]) -> dict[str, str]:
    facts["gated"] = True
    start, steps = _number(values, "lr_decay_starting_step", 0), facts.get("steps")
    if "min_lr" not in facts and facts.get("lr"):
        facts["schedule"] = "constant"
    elif start and steps and "decay_steps" not in facts:
        facts["decay_steps"] = steps - start
    elif not start:
        facts.pop("decay_steps", None)
    return {}


def _deepspeed(facts: Facts, values: Mapping[str, Any]) -> dict[str, str]:
    if str(facts.get("optimizer", "")).lower() == "adam" and values.get("adam_w_mode", True):
        facts["optimizer"] = "adamw"
        return {"optimizer": "DeepSpeed's Adam has decoupled weight decay"}
    return {}


def _maxtext(facts: Facts, values: Mapping[str, Any]) -> dict[str, str]:
    activations = values.get("mlp_activations")
    facts["gated"] = not isinstance(activations, list | tuple) or len(activations) == 2
    if facts.get("experts") in (0, 1):
        del facts["experts"]
    if values.get("global_parameter_scale", 1) not in (1, None, ""):
        facts["unknown_attention"] = True
    if facts.get("steps", 1) == -1:
        del facts["steps"]
    return {}


def _steplaw(facts: Facts, values: Mapping[str, Any]) -> dict[str, str]:
    facts["gated"] = True
    moe = "experts" in facts
    facts["source"] = "steplaw_moe" if moe else "steplaw"
    told = {"source": "Step Law's columns", "optimizer": "Step Law trains with AdamW"}
    floor = re.search(r"mlr([\d.e+-]+\d)", str(values.get("exp_name", "")))
    if floor:
        facts.setdefault("min_lr", float(floor[1]))
        told["min_lr"] = "from exp_name"
    facts.setdefault("seq_len", 2048)
    facts.setdefault("optimizer", "adamw")
    return told


RULES: dict[str, Callable[[Facts, Mapping[str, Any]], dict[str, str]]] = {
    "OLMo": _olmo,
    "OLMo-core": _olmo_core,
    "Megatron-LM": _megatron,
    "GPT-NeoX": _neox,
    "DeepSpeed": _deepspeed,
    "torchtitan": _torchtitan,
    "litgpt": _litgpt,
    "Levanter": _levanter,
    "nanochat": _nanochat,
    "nanoGPT": _nanogpt,
    "open_lm": _open_lm,
    "llm-foundry": _foundry,
    "nanotron": _nanotron,
    "MaxText": _maxtext,
    "Hugging Face Trainer": _transformers,
    "NeMo": _nemo,
    "fairseq": _fairseq,
    "lingua": _lingua,
    "torchtune": _torchtune,
    "Composer": _composer,
    "Axolotl": _transformers,
    "Step Law": _steplaw,
    "general": _general,
}
"""Framework -> its rules."""
