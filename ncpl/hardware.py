"""What a training run costs: FLOPs, memory, accelerator-hours, money, energy.

FLOPs count 6 for each parameter that multiplies (the output head included, the input embedding not) and each token, and
12 x layers x width x sequence length for attention, over the full square, as in PaLM's model FLOPs utilisation
(Chowdhery et al. 2022, arXiv 2204.02311, appendix B). Utilisation is that of the whole run: hours that were paid for,
restarts and evaluations included, which is less than a step's.
"""

import difflib
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from fields_ncpl import DEFAULT_SEQ_LEN, DEFAULT_VOCAB_SIZE, SOURCES, known_seq_len
from ncpl.errors import as_path, one_line, short
from ncpl.files import read_document
from text_ncpl import as_number

_FACTS = Path(__file__).with_name("hardware.toml")
# Bytes a parameter of AdamW in mixed precision: fp32 weights and gradients, two fp32 moments (ZeRO, arXiv 1910.02054).
WEIGHTS, GRADIENTS = 4, 4
# Of other optimizers; matrices with one moment (Muon, Lion), with factors or none.
MOMENTS = {"muon": 4, "lion": 4, "sgd": 4, "scion": 4, "adafactor": 0, "soap": 16, "kron": 16}
ADAM_MOMENTS = 8
RECOMPUTATIONS = ("none", "selective", "full")
# For a logit: bf16, fp32, and the gradient in both.
_LOGIT_BYTES = 12
# Share of a layer's activations that selective recomputation keeps: measured peaks of Llama 3.1 8B (docs/planning.md).
_SELECTIVE = 0.4
# Free memory that a card needs: the context, buffers of communication, fragments.
_RESERVED_GB = 4.0


@dataclass(frozen=True)
class Accelerator:
    """One kind of accelerator; `hardware.toml` explains the units."""

    name: str
    title: str
    bf16_tflops: float
    memory_gb: float
    bandwidth_tb_s: float
    watts: float
    price_usd_h: float
    price_date: str
    price_source: str
    spec_source: str
    utilisation: float


@dataclass(frozen=True)
class Site:
    """Where the accelerators run; `hardware.toml` explains the values."""

    pue: float
    co2_kg_kwh: float
    host: float
    load: float


@dataclass(frozen=True)
class Hardware:
    """Accelerators and the site.

    Args:
        accelerators: name -> facts.
        site: power and electricity.

    >>> read_hardware().find("H100 SXM").memory_gb
    80
    """

    accelerators: Mapping[str, Accelerator]
    site: Site

    def find(self, name: str) -> Accelerator:
        """The accelerator of this name, whatever its case, spaces and form factor.

        Raises:
            ValueError: there is none; says which there are.
        """
        plain = (name if isinstance(name, str) else short(name)).lower().replace(" ", "-").replace("_", "-")
        for candidate in (plain, plain.removeprefix("nvidia-"), plain.removesuffix("-sxm"), plain.replace("-80gb", "")):
            if candidate in self.accelerators:
                return self.accelerators[candidate]
        near = difflib.get_close_matches(plain, self.accelerators, 1, 0.5)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"gpu: got {short(name)}, {hint}known: {', '.join(self.accelerators)}")


def read_hardware(path: str | Path | None = None) -> Hardware:
    """Our facts, a user's file on top of them.

    Args:
        path: TOML of the same form as `ncpl/hardware.toml`; single values are enough.

    Raises:
        ValueError: the file cannot be read, or has a key or a value that is not accepted.
    """
    return _ours() if path is None else _hardware(as_path(path, "hardware", "the path of a TOML file"))


@lru_cache(1)
def _ours() -> Hardware:
    return _hardware()


def _hardware(path: Path | None = None) -> Hardware:
    facts = tomllib.loads(_FACTS.read_text(encoding="utf-8"))
    if path is not None:
        _override(facts, path)
    accelerators = {name: Accelerator(name, **values) for name, values in facts["accelerators"].items()}
    return Hardware(accelerators, Site(**facts["site"]))


def _override(facts: dict[str, Any], path: Path) -> None:
    try:
        own = read_document(path)
    except ValueError as error:
        raise ValueError(one_line(f"hardware: {error}")) from None
    if not isinstance(own, dict):
        raise ValueError(one_line(f"hardware: {one_line(path, 120)}: got {short(own)}, expected TOML tables"))
    unknown = own.keys() - {"site", "accelerators"}
    tables = own.get("accelerators", {})
    if unknown or not all(isinstance(table, dict) for table in (tables, own.get("site", {}), *tables.values())):
        came = one_line(", ".join(own), 80)
        raise ValueError(f"hardware: {one_line(path, 80)}: got {came}, expected [site] and [accelerators.NAME] tables")
    _update(facts["site"], own.get("site", {}), Site, f"{path}: site")
    for name, values in tables.items():
        known = facts["accelerators"].setdefault(name.lower(), {})
        _update(
            known,
            {"title": name, **dict.fromkeys(_TOLD, "yours"), **values} if not known else values,
            Accelerator,
            name,
        )
        missing = {field.name for field in fields(Accelerator)} - known.keys() - {"name"}
        if missing:
            raise ValueError(f"hardware: {path}: accelerators.{name}: missing {', '.join(sorted(missing))}")


_TOLD = ("price_date", "price_source", "spec_source")


def _update(known: dict[str, Any], own: Mapping[str, Any], kind: Any, where: str) -> None:
    accepted = {field.name: field.type for field in fields(kind) if field.name != "name"}
    for key, value in own.items():
        if key not in accepted:
            raise ValueError(f"hardware: {where}.{key}: not a known key, known: {', '.join(accepted)}")
        text = accepted[key] is str
        number = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e300
        if not (isinstance(value, str) if text else number):
            raise ValueError(
                f"hardware: {where}.{key}: got {short(value)}, expected {'text' if text else 'a number >= 0'}"
            )
        known[key] = value


@dataclass(frozen=True)
class Shape:
    """A decoder's shape.

    Args:
        layers, width, heads, kv_heads, ffn: of the transformer; `ffn` is the width of one expert in a mixture.
        vocab: entries of the vocabulary.
        seq_len: tokens a sequence.
        ffn_matrices: 3 with a gate, 2 without.
        tied: whether the head is the input embedding.
        experts, top_k, shared: routed experts, how many a token visits, width of the shared expert; 0 where dense.
        head_dim: width of a head where it is not width / heads.

    >>> llama = Shape(32, 4096, 32, 32, 11008, 32000, 4096)
    >>> f"{llama.params:,}", f"{llama.flops_per_token() / (6 * llama.params):.3f}"
    ('6,738,149,376', '1.140')
    """

    layers: int
    width: int
    heads: int
    kv_heads: int
    ffn: int
    vocab: int
    seq_len: int
    ffn_matrices: int = 3
    tied: bool = False
    experts: int = 0
    top_k: int = 0
    shared: int = 0
    head_dim: int = 0

    @property
    def attention_width(self) -> int:
        """All heads together."""
        return self.heads * self.head_dim if self.head_dim else self.width

    @property
    def kv_width(self) -> float:
        """All heads of keys together."""
        return self.attention_width * self.kv_heads / self.heads

    def _body(self, ffn_width: float) -> float:
        attention = self.width * (2 * self.attention_width + 2 * self.kv_width)
        return self.layers * (attention + self.ffn_matrices * self.width * ffn_width)

    @property
    def body_params(self) -> int:
        """Parameters of the matrices between embedding and head; what a mixture stores."""
        return round(self._body(self.ffn * (self.experts or 1) + self.shared))

    @property
    def active_body_params(self) -> int:
        """The same, of a mixture what a token visits."""
        return round(self._body(self.ffn * (self.top_k if self.experts else 1) + self.shared))

    @property
    def params(self) -> int:
        """All parameters of matrices; norms, biases and routers, about 1 in 10,000, are left out."""
        return self.body_params + self.width * self.vocab * (1 if self.tied else 2)

    def flops_per_token(self) -> float:
        """Of forward and backward pass of one token: the head and attention over the full square included."""
        matrices = self.active_body_params + self.width * self.vocab
        return 6 * matrices + 12 * self.layers * self.attention_width * self.seq_len


def shape_of(config: Mapping[str, Any]) -> Shape:
    """A checked configuration's shape; what it leaves out is as real models of its size have it.

    `model size` is believed: where it differs from what the shape makes, the feed-forward width is what makes it up.

    >>> shape_of({"source": "marin", "model size": 6500, "data size": 100}).layers
    32
    """
    size = float(config["model size"]) * 1e6
    experts = int(config.get("num experts", 0))
    active = float(config.get("active size", config["model size"])) * 1e6
    source = SOURCES.get(str(config.get("source")))
    vocab = int(config.get("vocab size") or (source.vocab_size if source else DEFAULT_VOCAB_SIZE))
    seq_len = int(known_seq_len(config) or DEFAULT_SEQ_LEN)
    near = nearest_shape(active, vocab, seq_len)
    layers, width = int(config.get("num layers", near.layers)), int(config.get("hidden dim", near.width))
    if "num layers" not in config and "hidden dim" in config:
        layers = max(1, round(active / (12 * width**2)))
    elif "hidden dim" not in config and "num layers" in config:
        width = max(64, 64 * round(math.sqrt(active / (12 * layers)) / 64))
    heads = int(config.get("num heads", max(1, width // (128 if width >= 2048 else 64))))
    made = replace(near, layers=layers, width=width, heads=heads, kv_heads=heads, head_dim=0)
    attention = layers * 4 * width**2
    left = (size - attention) / (3 * layers * width)
    if not experts:
        ffn = left if left > 0 else config.get("ffn dim", near.ffn)
        return replace(made, ffn=round(ffn))
    shared, top_k = int(config.get("shared expert dim", 0)), int(config["top k"])
    expert = int(config.get("expert dim") or max(1, round((left - shared) / experts)))
    return replace(made, ffn=expert, experts=experts, top_k=top_k, shared=shared)


@lru_cache(4096)
def nearest_shape(params: float, vocab: int = DEFAULT_VOCAB_SIZE, seq_len: int = DEFAULT_SEQ_LEN) -> Shape:
    """A shape of nearly so many non-embedding parameters, in the proportions of real models.

    Width over depth is near 100 (Llama 7B to 70B: 128 to 102; models of a hundred million: about 60), a gated
    feed-forward layer is 8/3 wide, a head 128 (64 in models less than 2,048 wide).

    >>> shape = nearest_shape(6.5e9)
    >>> shape.layers, shape.width, shape.heads, shape.ffn
    (32, 4096, 32, 11008)
    """
    aspect = min(128.0, 60 * (max(params, 1e8) / 1e8) ** 0.17)
    best, least = None, math.inf
    for width in range(64, 65_537, 64):
        if width % (256 if width >= 2048 else 128 if width >= 1024 else 64):
            continue
        ffn = 256 * math.ceil(8 * width / 3 / 256)
        layer = 4 * width**2 + 3 * width * ffn
        if layer > 4 * params and width > 64:
            break
        layers = max(1, round(params / layer))
        miss = abs(math.log(layers * layer / params)) + 0.1 * abs(math.log(width / layers / aspect))
        if miss < least:
            heads = max(1, width // (128 if width >= 2048 else 64))
            best, least = Shape(layers, width, heads, heads, ffn, vocab, seq_len), miss
    assert best is not None
    return best


def run_utilisation(accelerator: Accelerator, shape: Shape) -> float:
    """The share of the peak that a whole run keeps: the accelerator's, less for narrow models.

    A model of width w gets `w / (w + 500)` of what a wide one gets: small matrices do not fill an accelerator.
    """
    return accelerator.utilisation * (1 + _NARROW / 4096) * shape.width / (shape.width + _NARROW)


_NARROW = 500


def memory_gb(
    shape: Shape,
    gpus: int = 1,
    micro_batch: int = 1,
    recomputation: str = "selective",
    optimizer: str = "adamw",
    tensor: int = 1,
    state_bytes: float | None = None,
) -> dict[str, float]:
    """Memory of one accelerator, in GB (1e9 bytes), by what it holds.

    Weights, gradients and moments are shared out over all accelerators (ZeRO stage 3, FSDP); two layers and the head
    are gathered in bf16 while they are used. Activations are bf16 with FlashAttention: between the layers a token's
    hidden state, within them what `recomputation` keeps; the loss holds the logits in fp32 with their gradient.

    Args:
        shape: of the model.
        gpus: over how many everything is shared out.
        micro_batch: sequences at a time on an accelerator.
        recomputation: "none", "selective" (all but the dear parts) or "full" (everything but the layers' inputs).
        optimizer: its name; AdamW's two fp32 moments where it is none of `MOMENTS`.
        tensor: accelerators that share a layer (tensor and sequence parallel).
        state_bytes: bytes a parameter of weights, gradients and moments; 16 for AdamW in mixed precision.
    """
    moments = MOMENTS.get(optimizer, ADAM_MOMENTS)
    states: dict[str, float] = {"weights": WEIGHTS, "gradients": GRADIENTS, "optimizer": moments}
    if state_bytes is not None:
        states = {"weights": state_bytes / 4, "gradients": state_bytes / 4, "optimizer": state_bytes / 2}
    held = {name: each * shape.params / gpus for name, each in states.items()}
    layer = shape.body_params / shape.layers
    gathered = 2 * (2 * layer + shape.width * shape.vocab) / tensor if gpus > tensor else 2 * layer
    tokens = micro_batch * shape.seq_len / tensor
    inputs = 2 * tokens * shape.width
    ffn = (shape.ffn * shape.top_k + shape.shared) if shape.experts else shape.ffn
    # Copies of the hidden state, 2 bytes an element: norms and residuals, queries to output, the feed-forward parts.
    whole = inputs * (8 + 3 * shape.attention_width / shape.width + (shape.ffn_matrices + 1) * ffn / shape.width)
    kept = {"none": whole, "selective": _SELECTIVE * whole, "full": inputs}[recomputation]
    held["gathered"] = gathered
    held["activations"] = shape.layers * kept + (whole if recomputation == "full" else 0)
    held["logits"] = _LOGIT_BYTES * tokens * shape.vocab
    return {name: value / 1e9 for name, value in held.items()}


def smallest_count(shape: Shape, accelerator: Accelerator, optimizer: str = "adamw") -> int | None:
    """The smallest power of two of accelerators that holds a run with full recomputation; None if none up to 2^20 does.

    A layer is shared by up to 8 of them.
    """
    for power in range(21):
        count = 2**power
        needed = sum(memory_gb(shape, count, recomputation="full", optimizer=optimizer, tensor=min(8, count)).values())
        if needed + _RESERVED_GB <= accelerator.memory_gb:
            return count
    return None


def checkpoint_gb(shape: Shape, optimizer: str = "adamw") -> float:
    """A resumable checkpoint on disk, GB: bf16 and fp32 weights, and the moments (14 bytes a parameter for AdamW)."""
    return shape.params * (2 + WEIGHTS + MOMENTS.get(optimizer, ADAM_MOMENTS)) / 1e9


def run_memory_gb(shape: Shape, accelerator: Accelerator, count: int, optimizer: str) -> tuple[float, str]:
    """Memory of an accelerator in a run of `count`, and what is recomputed: as little as fits, one sequence at a time.

    Where nothing fits, what is needed at least.
    """
    needed = 0.0
    for recomputation in RECOMPUTATIONS:
        for tensor in (1, 8):
            if tensor <= count:
                parts = memory_gb(shape, count, 1, recomputation, optimizer, tensor)
                needed = sum(parts.values()) + _RESERVED_GB
                if needed <= accelerator.memory_gb:
                    return needed, recomputation
    return needed, "full"


def cost(
    config: Mapping[str, Any],
    gpu: str = "h100",
    count: int = 64,
    utilisation: float | None = None,
    hardware: Hardware | None = None,
) -> dict[str, Any]:
    """What a run costs.

    Args:
        config: a checked configuration.
        gpu: name of the accelerator.
        count: of accelerators.
        utilisation: share of the peak, over the whole run; what whole runs usually keep (`run_utilisation`) if absent.
        hardware: facts; ours if absent.

    Returns:
        `flops`; `utilisation`; `gpu_hours`; `days` of wall clock; `cost_usd`; `energy_mwh` and `co2_t`, of the site;
        `memory_gb_per_gpu` with the `recomputation` it takes, and whether it `fits`; `smallest_count` of accelerators
        that hold it (None: none does); `checkpoint_gb`; `params`, all of them.

    Raises:
        ValueError: an accelerator that is not known, a count or a utilisation that is not one.

    >>> run = {"source": "marin", "optimizer": "adamw", "model size": 6500, "data size": 2000, "seq len": 4096}
    >>> found = cost(run, "a100", 1024)
    >>> f"{found['flops']:.2e} {found['gpu_hours']:,.0f} {found['fits']}"
    '9.72e+22 216,321 True'
    """
    hardware = hardware or read_hardware()
    accelerator, count = hardware.find(gpu), check_count(count)
    shape = shape_of(config)
    share = run_utilisation(accelerator, shape) if utilisation is None else check_utilisation(utilisation)
    flops = shape.flops_per_token() * float(config["data size"]) * 1e9
    hours = flops / (accelerator.bf16_tflops * 1e12 * share * 3600)
    optimizer = str(config.get("optimizer", "adamw"))
    memory, recomputation = run_memory_gb(shape, accelerator, count, optimizer)
    energy = energy_mwh(hours, accelerator, hardware.site)
    return {
        "flops": flops,
        "utilisation": share,
        "gpu_hours": hours,
        "days": hours / count / 24,
        "cost_usd": hours * accelerator.price_usd_h,
        "energy_mwh": energy,
        "co2_t": energy * hardware.site.co2_kg_kwh,
        "memory_gb_per_gpu": memory,
        "recomputation": recomputation,
        "fits": memory <= accelerator.memory_gb,
        "smallest_count": smallest_count(shape, accelerator, optimizer),
        "checkpoint_gb": checkpoint_gb(shape, optimizer),
        "params": shape.params,
    }


def energy_mwh(hours: float, accelerator: Accelerator, site: Site) -> float:
    """Energy of so many accelerator-hours, with their hosts and the building."""
    return hours * accelerator.watts * site.load * (1 + site.host) * site.pue / 1e6


def check_count(count: Any) -> int:
    """A count of accelerators that is one."""
    number = as_number(count)
    if number is None or not 1 <= number <= 10**7 or number != int(number):
        raise ValueError(f"count: got {short(count)}, expected a whole number of accelerators, 1 to 10 million")
    return int(number)


def check_utilisation(utilisation: Any) -> float:
    """A utilisation that is one."""
    number = as_number(utilisation)
    if number is None or not 0 < number <= 1:
        raise ValueError(f"utilisation: got {short(utilisation)}, expected a share of the peak, above 0 and at most 1")
    return float(number)
