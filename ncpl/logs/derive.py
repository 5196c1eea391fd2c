"""From the quantities a framework wrote down to the registry's fields, derived only where that is certain."""

import math
import re
from collections.abc import Mapping
from typing import Any

from names_ncpl import optimizer_name
from ncpl.logs.rules import Facts

Told = dict[str, str]

_COUNTS = {"k": 1e3, "m": 1e6, "b": 1e9, "g": 1e9, "t": 1e12}
_SCALED = re.compile(r"([\d.,]+(?:e[+-]?\d+)?)\s*([kmbgt])(?:illion|n)?(?:\s*(?:tok(?:en)?s?|param(?:eter)?s?))?", re.I)
_DURATION = re.compile(
    r"([\d.]+(?:e[+-]?\d+)?)\s*(t|tok|tokens?|ba|steps?|batch|ep|epochs?|sp|samples?|dur|it|iters?)?", re.I
)
_DURATION_UNITS = {
    "t": "tokens", "tok": "tokens", "token": "tokens", "tokens": "tokens", "ba": "steps", "step": "steps",
    "steps": "steps", "batch": "steps", "it": "steps", "iter": "steps", "iters": "steps", "sp": "samples",
    "sample": "samples", "samples": "samples", "dur": "share", "ep": "epochs", "epoch": "epochs", "epochs": "epochs",
}  # fmt: skip

TEXTS = {"optimizer", "schedule", "tail", "activation", "name", "state", "duration", "warmup", "decay", "betas", "tied"}
TEXTS |= {"gated", "source", "multi_query", "unknown_attention", "warmup_in_units", "decay_in_units"}
COUNTED = {"params", "params_head", "params_body", "params_active", "tokens", "tokens_seen", "flops", "batch_tokens"}
COUNTED |= {"samples", "device_batch_tokens", "warmup_tokens"}
SUFFIXED = {"steps", "step", "batch", "seq_len", "vocab", "vocab_rows", "warmup_steps"}
"""Quantities that people write as 10k or 2M; small ones are not in an unknown unit."""
POSITIVE = COUNTED - {"warmup_tokens", "tokens_seen"} | {
    "batch",
    "batch_unknown",
    "device_batch",
    "accumulation",
    "devices",
    "gpus",
    "devices_a_node",
    "nodes",
    "steps",
}
POSITIVE |= {"layers", "width", "heads", "kv_heads", "head_dim", "ffn", "vocab", "vocab_rows", "seq_len", "lr"}
"""Quantities of which frameworks write -1 or 0 for unset."""
SMALLEST_COUNT = 1e4
"""Parameters and tokens below this are in an unknown unit: no model has 134 of them."""


def number_of(value: Any, counted: bool = False) -> float | int | None:
    """A quantity's number; None where the value is not one.

    >>> number_of("3e-4"), number_of("302M", counted=True), number_of("2T", counted=True), number_of([1, 2])
    (0.0003, 302000000, 2000000000000, None)
    """
    if isinstance(value, list) and len(value) == 1:
        # Schedules by epoch and accumulation are lists in fairseq, even of one.
        value = value[0]
    if isinstance(value, bool):
        return None
    if isinstance(value, str):
        text = value.strip().replace("_", "")
        found = _SCALED.fullmatch(text) if counted else None
        try:
            value = float(found[1].replace(",", "")) * _COUNTS[found[2].lower()] if found else float(text)
        except ValueError:
            return None
    if not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    if not math.isfinite(number):
        return None
    return int(number) if number.is_integer() and abs(number) < 1e15 else number


def duration_of(value: Any, unit: str) -> tuple[float, str] | None:
    """A length and its unit, from a number or a framework's time string.

    >>> duration_of("2e12T", "steps"), duration_of("4800ba", "steps"), duration_of(0.01, "auto")
    ((2000000000000.0, 'tokens'), (4800.0, 'steps'), (0.01, 'share'))
    """
    if isinstance(value, Mapping) and {"value", "unit"} <= value.keys():
        value, unit = value["value"], _DURATION_UNITS.get(str(value["unit"]).lower().rpartition(".")[2], unit)
    if isinstance(value, str) and value.strip().endswith("%"):
        number = number_of(value.strip()[:-1])
        return (number / 100, "share") if number is not None else None
    if isinstance(value, str):
        found = _DURATION.fullmatch(value.strip())
        if found is None:
            return None
        unit = _DURATION_UNITS.get((found[2] or "").lower(), unit)
        value = found[1]
    number = number_of(value)
    if number is None:
        return None
    if unit == "auto":
        unit = "share" if number <= 1 else "steps"
    return float(number), unit


# ------------------------------------------------------------------------------------------------ batch, steps, tokens


def lengths(facts: Facts, told: Told) -> None:
    """Batch, steps and tokens from each other, in place: what was given stays, what follows from it is added."""
    if "duration" in facts:
        length = duration_of(facts["duration"], "steps")
        if length is not None and length[1] in ("steps", "tokens", "samples"):
            facts.setdefault(length[1], number_of(length[0]))
            told.setdefault(length[1], f"the run's length, {facts['duration']}")
    seq = facts.get("seq_len")
    _batch(facts, told, seq)
    batch = facts.get("batch")
    a_step = facts.get("batch_tokens") or (batch * seq if batch and seq else None)
    if "steps" not in facts:
        if "samples" in facts and batch:
            facts["steps"] = int(facts["samples"] // batch)
            told["steps"] = f"{facts['samples']:g} sequences over a batch of {batch:g}"
        elif "tokens" in facts and a_step:
            facts["steps"] = max(1, int(facts["tokens"] / a_step + 1e-3))
            told["steps"] = f"{facts['tokens']:.4g} tokens over {a_step:g} a step"
    if "tokens" not in facts:
        if "samples" in facts and seq:
            facts["tokens"] = facts["samples"] * seq
            told["tokens"] = f"{facts['samples']:g} sequences of {seq:g} tokens"
        elif "steps" in facts and a_step:
            facts["tokens"] = facts["steps"] * a_step
            told["tokens"] = f"{facts['steps']:g} steps of {a_step:g} tokens"


def _batch(facts: Facts, told: Told, seq: float | None) -> None:
    if "batch" in facts:
        # More sequences than anyone packs into a step, and a multiple of the sequence length: tokens.
        if seq and facts["batch"] >= 2**15 and facts["batch"] % seq == 0 and not _agrees(facts, facts["batch"] * seq):
            facts["batch_tokens"] = facts["batch"]
            facts["batch"] = facts["batch"] // seq
            told["batch"] = f"{facts['batch_tokens']:g} is taken for tokens, a multiple of {seq:g}"
        return
    devices, micro = _devices(facts), facts.get("accumulation", 1)
    unknown = facts.get("batch_unknown")
    if "batch_tokens" not in facts and unknown and seq and unknown >= 2**17 and unknown % seq == 0:
        facts["batch_tokens"] = unknown
    each = facts.get("device_batch", 0) * micro
    if unknown and each and unknown > each and unknown % each == 0 and "batch_tokens" not in facts:
        facts["batch"] = unknown
        told["batch"] = f"{unknown:g}, beside {facts['device_batch']:g} of one device"
        return
    if "batch_tokens" not in facts and "device_batch_tokens" in facts and devices and "accumulation" in facts:
        facts["batch_tokens"] = facts["device_batch_tokens"] * micro * devices
    if "device_batch" in facts and devices:
        facts["batch"] = facts["device_batch"] * micro * devices
        told["batch"] = f"{facts['device_batch']:g} a device x {micro:g} micro-steps x {devices:g} devices"
    elif "batch_tokens" in facts and seq:
        facts["batch"] = number_of(facts["batch_tokens"] / seq)
        told["batch"] = f"{facts['batch_tokens']:g} tokens over {seq:g} a sequence"
    elif seq:
        for tokens, steps in (("tokens", "steps"), ("tokens_seen", "step")):
            if facts.get(tokens) and facts.get(steps):
                found = facts[tokens] / facts[steps] / seq
                if found >= 1 and abs(found - round(found)) < 0.01 * max(1.0, found**0.5):
                    facts["batch"] = round(found)
                    told["batch"] = f"{facts[tokens]:g} tokens over {facts[steps]:g} steps of sequences of {seq:g}"
                    return


def _devices(facts: Facts) -> float | None:
    """Devices that see different data: all devices over those that share one model; None where it is not told."""
    if "devices" in facts:
        return facts["devices"]
    gpus = facts.get("gpus")
    if gpus is None and "devices_a_node" in facts:
        gpus = facts["devices_a_node"] * facts.get("nodes", 1)
    sharing = math.prod(max(1, facts.get(f"{kind}_parallel", 1)) for kind in ("tensor", "pipeline", "context"))
    return gpus // sharing if gpus and gpus % sharing == 0 else None


def _agrees(facts: Facts, a_step: float) -> bool:
    """Whether steps and tokens say that a step has so many tokens."""
    if not facts.get("tokens") or not facts.get("steps"):
        return False
    return abs(facts["tokens"] / facts["steps"] / a_step - 1) < 0.1


def contradiction(facts: Facts) -> str | None:
    """What steps, batch, sequence length and tokens say against each other; None where they agree."""
    steps, batch, seq, tokens = (facts.get(name) for name in ("steps", "batch", "seq_len", "tokens"))
    if not (steps and batch and seq and tokens):
        return None
    made = steps * batch * seq
    if 0.95 <= made / tokens <= 1.05:
        return None
    return f"{steps:g} steps x {batch:g} sequences x {seq:g} tokens are {made:.4g} tokens, but {tokens:.4g} are given"


# ------------------------------------------------------------------------------------------------ size


def layer_parameters(facts: Facts) -> tuple[float, float] | None:
    """Parameters of a layer's attention, and of a feed-forward layer of width 1; None where the shape is incomplete."""
    width, layers = facts.get("width"), facts.get("layers")
    if not width or not layers or facts.get("unknown_attention"):
        return None
    heads = facts.get("heads")
    head = facts.get("head_dim") or (width / heads if heads else None)
    keys = facts.get("kv_heads") or heads
    inner = heads * head if heads and head else width
    inner_keys = keys * head if keys and head else width
    attention = 2 * width * inner + 2 * width * inner_keys
    return attention, (3 if facts.get("gated", True) else 2) * width


def shape_size(facts: Facts) -> tuple[float, float | None] | None:
    """Non-embedding parameters that the shape makes, and the active ones of a mixture of experts.

    Biases, norms, positions and routers, a thousandth of the whole, are left out.

    >>> shape_size({"layers": 32, "width": 4096, "heads": 32, "kv_heads": 8, "ffn": 14336, "gated": True})
    (6979321856.0, None)
    """
    made = layer_parameters(facts)
    if made is None:
        return None
    attention, wide = made
    layers = facts["layers"]
    experts = facts.get("experts")
    if not experts:
        return (layers * (attention + wide * facts["ffn"]), None) if facts.get("ffn") else None
    width, top = facts.get("expert_dim"), facts.get("top_k")
    if not width or not top:
        return None
    shared = facts.get("shared_dim") or facts.get("shared_experts", 0) * width
    dense = facts.get("dense_layers", 0)
    if dense and not facts.get("ffn"):
        return None
    body = layers * attention + dense * wide * facts.get("ffn", 0)
    total, active = (body + (layers - dense) * wide * (count * width + shared) for count in (experts, top))
    return total, active


def size(facts: Facts, told: Told) -> None:
    """Non-embedding parameters, in place, from what counts them or from the shape."""
    made = shape_size(facts)
    if "params_body" in facts:
        return
    if made is not None:
        facts["params_body"] = made[0]
        told["params_body"] = "from the shape: attention and feed-forward layers, vocabulary aside"
        if made[1] is not None:
            facts.setdefault("params_active", made[1])
            told.setdefault("params_active", "from the shape")
        return
    rows, width = facts.get("vocab_rows") or facts.get("vocab"), facts.get("width")
    if facts.get("embedding") is not None:
        rows_total, source = facts["embedding"], facts.get("params_head") or facts.get("params")
        if source:
            facts["params_body"] = source - rows_total
            told["params_body"] = (
                f"{source:.6g} less {rows_total:.4g} of the embedding, found from the shapes of all runs"
            )
    elif "params_head" in facts and rows and width:
        facts["params_body"] = facts["params_head"] - rows * width
        told["params_body"] = f"{facts['params_head']:.6g} less the output embedding, {rows:g} x {width:g}"
    elif "params" in facts and rows and width:
        copies, how = _copies(facts, rows * width)
        facts["params_body"] = facts["params"] - copies * rows * width
        told["params_body"] = f"{facts['params']:.6g} less {copies} x vocabulary {rows:g} x width {width:g} ({how})"
    if facts.get("params_body", 1) <= 0:
        del facts["params_body"]
        told.pop("params_body")


def _copies(facts: Facts, embedding: float) -> tuple[int, str]:
    """How many times the embedding is in a count of all parameters."""
    tied = facts.get("tied")
    if isinstance(tied, bool):
        return (1, "embeddings are tied") if tied else (2, "embeddings are not tied")
    if facts.get("layers"):
        usual = 12 * facts["layers"] * facts["width"] ** 2
        rest = {copies: (facts["params"] - copies * embedding) / usual for copies in (1, 2)}
        near = {copies: abs(math.log(part)) for copies, part in rest.items() if part > 0}
        if near:
            best = min(near, key=lambda copies: near[copies])
            return best, "as many as leave what layers and width make"
    return 2, "embeddings are taken not to be tied"


# ------------------------------------------------------------------------------------------------ schedule, optimizer


def schedule(facts: Facts, told: Told) -> None:
    """Warmup in steps, the decay's share, and the schedule's name, in place."""
    steps, batch, seq = facts.get("steps"), facts.get("batch"), facts.get("seq_len")
    a_step = facts.get("batch_tokens") or (batch * seq if batch and seq else None)
    per = {"steps": 1, "samples": batch, "tokens": a_step, "share": 1 / steps if steps else None}
    for length in ("warmup", "decay"):
        if f"{length}_steps" not in facts:
            found = None
            if facts.get(length) is not None:
                found = duration_of(facts[length], "auto")
            for unit in ("tokens", "samples", "share"):
                if found is None and facts.get(f"{length}_{unit}") is not None:
                    number = number_of(facts[f"{length}_{unit}"])
                    found = (float(number), unit) if number is not None else None
            if found is not None and per.get(found[1]):
                facts[f"{length}_steps"] = int(found[0] / per[found[1]] + 1e-6)  # type: ignore[operator]
                if found[1] != "steps":
                    told[f"{length}_steps"] = f"{found[0]:g} {found[1]}" + (
                        " of the run" if found[1] == "share" else ""
                    )
                whole = {"share": 1, "tokens": facts.get("tokens"), "samples": facts.get("samples")}.get(found[1])
                if whole:
                    facts.setdefault(f"{length}_share", round(found[0] / whole, 6))
    if "decay_share" not in facts and facts.get("decay_steps") and steps and facts["decay_steps"] <= steps:
        facts["decay_share"] = round(facts["decay_steps"] / steps, 6)
    if isinstance(facts.get("schedule"), str):
        facts["schedule"] = _schedule_name(facts["schedule"], facts.get("tail"))
    if facts.get("schedule") == "constant":
        for name in ("min_lr", "min_lr_ratio", "decay_share"):
            facts.pop(name, None)
    if "min_lr" in facts and "min_lr_ratio" in facts:
        facts.pop("min_lr_ratio" if "lr" in facts and facts["min_lr"] else "min_lr")


_SCHEDULES = (
    (r"wsd|warmup_stable|trapez|linear_envelope|stable_decay", "linear"),
    (r"cos", "cosine"),
    (r"inv|rsqrt", "inverse_sqrt"),
    (r"1[-_]sqrt|minus[-_]sqrt|^sqrt", "1-sqrt"),
    (r"const|warmuplr|^max|^fixed|^none$", "constant"),
    (r"exp", "exponential"),
    (r"lin|warmupdecay|poly", "linear"),
)


def _schedule_name(given: str, tail: Any) -> str:
    """One name for the shape of the learning rate's decay.

    >>> _schedule_name("cosine_with_warmup", None), _schedule_name("WSD", "minus_sqrt")
    ('cosine', '1-sqrt')
    """
    text = given.strip().lower().rpartition(".")[2]
    if re.search(_SCHEDULES[0][0], text) and isinstance(tail, str):
        text = tail.lower()
    return next((name for pattern, name in _SCHEDULES if re.search(pattern, text)), text)


# ------------------------------------------------------------------------------------------------ fields

_FIELDS = {
    "source": "source",
    "layers": "num layers",
    "heads": "num heads",
    "width": "hidden dim",
    "ffn": "ffn dim",
    "vocab": "vocab size",
    "experts": "num experts",
    "top_k": "top k",
    "expert_dim": "expert dim",
    "shared_dim": "shared expert dim",
    "optimizer": "optimizer",
    "lr": "learning rate",
    "adam_lr": "adam_lr",
    "min_lr": "min_lr",
    "min_lr_ratio": "min_lr_ratio",
    "warmup_steps": "warmup",
    "weight_decay": "weight decay",
    "batch": "batch size",
    "clip": "max_grad_norm",
    "beta1": "beta1",
    "beta2": "beta2",
    "epsilon": "epsilon",
    "momentum": "momentum",
    "schedule": "lr_schedule",
    "decay_share": "decay",
    "steps": "max step",
    "seq_len": "seq len",
}
"""Quantity -> the registry's field of the same unit."""

FACT_OF = {field: quantity for quantity, field in _FIELDS.items()}
SCALED = {"model size": ("params_body", 1e6), "active size": ("params_active", 1e6), "data size": ("tokens", 1e9)}
"""Field -> quantity and how many of it a unit of the field is."""


def derive(facts: Facts, told: Told) -> dict[str, Any]:
    """The registry's fields of one run, from its quantities.

    Args:
        facts: quantity -> value, changed in place: what follows is added.
        told: quantity -> how it was derived, added to.
    """
    if isinstance(facts.get("betas"), str):
        facts["betas"] = [float(text) for text in re.findall(r"\d*\.\d+|\d+", facts["betas"])]
    betas = facts.get("betas")
    if isinstance(betas, list | tuple) and len(betas) >= 2 and all(isinstance(beta, int | float) for beta in betas[:2]):
        facts.setdefault("beta1", betas[0])
        facts.setdefault("beta2", betas[1])
    if "gated" not in facts:
        facts["gated"] = _gated(facts)
    lengths(facts, told)
    size(facts, told)
    if "tokens" not in facts and facts.get("flops") and facts.get("params_body"):
        active = facts.get("params_active") or facts["params_body"]
        facts["tokens"] = facts["flops"] / 6 / active
        told["tokens"] = "FLOPs / (6 x parameters)"
        lengths(facts, told)
    schedule(facts, told)
    if isinstance(facts.get("optimizer"), str):
        facts["optimizer"] = optimizer_name(facts["optimizer"])
    if not facts.get("experts"):
        for name in ("top_k", "expert_dim", "shared_dim"):
            facts.pop(name, None)
    if facts.get("experts") and "shared_dim" not in facts and facts.get("shared_experts") and facts.get("expert_dim"):
        facts["shared_dim"] = facts["shared_experts"] * facts["expert_dim"]
    fields: dict[str, Any] = {}
    for field, (quantity, factor) in SCALED.items():
        value = facts.get(quantity)
        if value is not None and not (
            quantity == "params_active" and not facts.get("experts") and value == facts.get("params_body")
        ):
            fields[field] = number_of(float(f"{value / factor:.12g}"))
    for quantity, field in _FIELDS.items():
        value = facts.get(quantity)
        if value is not None and value != "" and not isinstance(value, list | dict):
            fields[field] = value
    return fields


def _gated(facts: Facts) -> bool:
    activation = str(facts.get("activation", "")).lower()
    if re.search("glu|silu|swish", activation):
        return True
    if re.search("gelu|relu", activation):
        return False
    width, wide = facts.get("width"), facts.get("ffn")
    return not (width and wide and wide == 4 * width)


def missing(fields: Mapping[str, Any], facts: Facts) -> list[str]:
    """What a forecast still needs, each with its unit and in the terms of what is there already."""
    needs = []
    if "model size" not in fields:
        if facts.get("params") or facts.get("params_head"):
            counted = f"its {facts.get('params') or facts.get('params_head'):.4g} parameters count the embedding"
            wants = [f"{FACT_OF_NAME[name]}" for name in ("vocab", "width") if not facts.get(name)]
            needs.append(
                f"model size (million non-embedding parameters; {counted}) or {' and '.join(wants) or 'ffn dim'}"
            )
        else:
            shape = [name for name in ("num layers", "hidden dim", "ffn dim") if name not in fields]
            needs.append("model size (million non-embedding parameters)" + (f" or {', '.join(shape)}" if shape else ""))
    asked_seq = False
    if "batch size" not in fields:
        micro = facts.get("device_batch")
        if micro is not None:
            each = micro * facts.get("accumulation", 1)
            what = "devices (that see different data; " + f"{each:g} sequences a step on each)"
            needs.append(what)
        elif "device_batch_tokens" in facts and "accumulation" in facts and "batch_tokens" not in facts:
            each = facts["device_batch_tokens"] * facts["accumulation"]
            needs.append(f"devices (that see different data; {each:g} tokens a step on each)")
        elif "batch_tokens" in facts or "device_batch_tokens" in facts:
            if "batch_tokens" not in facts:
                needs.append("batch size (sequences a step, of all devices)")
            if not facts.get("seq_len"):
                needs.append("seq len (tokens a sequence)")
                asked_seq = True
        else:
            unclear = facts.get("batch_unknown")
            what = f"; {unclear:g} may be of one device, or tokens" if unclear else ""
            needs.append(f"batch size (sequences a step, of all devices{what})")
    if not asked_seq and not facts.get("seq_len") and ("data size" not in fields or "max step" not in fields):
        needs.append("seq len (tokens a sequence)")
    if "data size" not in fields and "steps" not in facts and "samples" not in facts:
        needs.append("data size (billion tokens) or max step (training steps)")
    if "optimizer" not in fields:
        needs.append("optimizer (name)")
    if "learning rate" not in fields:
        needs.append("learning rate (peak)")
    return needs


FACT_OF_NAME = {"vocab": "vocab size (entries)", "width": "hidden dim (residual width)"}
