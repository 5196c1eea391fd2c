"""Write the made-up runs of this folder: `python -m datasets_scripts.sample.generate [FOLDER]`.

No run here happened. Losses are the published Chinchilla prior (`published_ncpl`) plus valleys in the logarithms of
learning rate and batch size, an offset for the optimizer and Gaussian noise, so that a model trained on them has
something to find; curves are the prior over the tokens seen so far, raised while the learning rate is high, and end at
that loss.
"""

import csv
import io
import json
import math
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fields_ncpl import SOURCES
from published_ncpl import PUBLISHED_CHINCHILLA

SEED = 20260210
CURVE_POINTS = 36
NOISE_NATS = 0.003
NOTE = "made up: written by datasets_scripts/sample/generate.py, no such run happened"

# (layers, hidden dim, ffn dim, heads); the last shape is the one held out for ood_val.
SHAPES = {
    "marin": [(8, 448, 1792, 7), (12, 576, 2304, 9), (16, 704, 2816, 11), (20, 896, 3584, 14)],
    "steplaw": [(6, 576, 4608, 9), (8, 704, 5632, 11), (9, 832, 6656, 13), (11, 1088, 8704, 17)],
}
CURVE_KEYS = {"marin": ("c4en_steps", "c4en_losses"), "steplaw": ("smoothed_loss_steps", "smoothed_loss")}
COUNTS = {"train": 66, "in_val": 16, "ood_val": 14, "left out": 2, "diverged": 4, "NaN": 2}

# Mixtures of experts in one shape, the first layer dense: (experts, top k, expert dim, shared expert dim).
MOE_SHAPE = {"numl": 12, "h": 1024, "ffnh": 2816, "numh": 8}
MOE_EXPERTS = [(64, 1, 256, 256), (60, 2, 256, 512), (8, 1, 2048, 2048), (8, 3, 1536, 4608)]
MOE_TOKENS_B = (2, 4, 8, 16)

# Offset in nats, and best learning rate relative to AdamW's.
OPTIMIZERS = {"adamw": (0.0, 1.0), "lion": (0.012, 0.25), "muon": (-0.03, 2.0)}


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent
    for name, text in files().items():
        (folder / name).write_text(text, encoding="utf-8")


def files() -> dict[str, str]:
    """File name -> text of every file of the sample, the same on every call.

    >>> len(files())
    7
    """
    result = {}
    for source, configure in (("marin", _marin_fields), ("steplaw", _steplaw_fields)):
        rng = random.Random(f"{SEED} {source}")
        kinds = [kind for kind, count in COUNTS.items() for _ in range(count)]
        runs = [(kind, _run(rng, source, kind, i, configure)) for i, kind in enumerate(kinds)]
        splits = {
            split: [run["name"] for kind, run in runs if kind == split] for split in ("train", "in_val", "ood_val")
        }
        result[f"{source}_processed_data.json"] = _lines([run for kind, run in runs if kind in splits])
        result[f"{source}_keys_model_split.json"] = json.dumps({"note": NOTE, **splits}, indent=0) + "\n"
        result[f"{source}_unstable_runs.json"] = _lines([run for kind, run in runs if kind not in splits])
    result["moe_lr_bs_loss.csv"] = _moe_table()
    return result


def _lines(runs: list[dict[str, Any]]) -> str:
    """A JSON array with one run a line."""
    return "[\n" + ",\n".join(json.dumps(run) for run in runs) + "\n]\n"


def _run(
    rng: random.Random, source: str, kind: str, index: int, configure: Callable[..., dict[str, Any]]
) -> dict[str, Any]:
    shapes = SHAPES[source]
    layers, hidden, ffn, heads = shapes[-1] if kind == "ood_val" else rng.choice(shapes[:-1])
    params_m = layers * (4 * hidden**2 + 3 * hidden * ffn) / 1e6
    # A few (N, D) cells rather than a continuum: a run diverged by comparison with the others of its cell.
    tokens_b = round(rng.choice((20, 40, 80)) * params_m / 1e3, 4)
    batch = rng.choice((64, 128, 256, 512))
    max_step = round(tokens_b * 1e9 / (batch * SOURCES[source].seq_len))
    conf: dict[str, Any] = {
        "source": source,
        "model size": params_m,
        "data size": tokens_b,
        "num layers": layers,
        "num heads": heads,
        "hidden dim": hidden,
        "ffn dim": ffn,
    }
    optimizer = rng.choice(list(OPTIMIZERS)) if source == "marin" else "adamw"
    offset, lr_ratio = OPTIMIZERS[optimizer]
    best_lr = 4e-3 * lr_ratio * (params_m / 100) ** -0.4 * (batch / 256) ** 0.5
    # A power of two times a round number, as in a sweep.
    log2_off = rng.choice((-2, -1, 0, 1, 2)) + rng.uniform(-0.5, 0.5)
    if kind in ("diverged", "NaN"):
        log2_off += 6
    lr = float(f"{best_lr * 2**log2_off:.1e}")
    conf |= configure(rng, optimizer, lr, batch)

    a, alpha, b, beta, c = PUBLISHED_CHINCHILLA[source]
    lr_valley = 0.015 * math.log2(lr / best_lr) ** 2
    batch_valley = 0.006 * math.log2(batch / (160 * tokens_b**0.4)) ** 2
    floor = a * params_m**-alpha + c + offset + lr_valley + batch_valley + rng.gauss(0, NOISE_NATS)
    loss = floor + b * tokens_b**-beta
    if kind == "diverged":
        loss += rng.uniform(0.5, 3)

    def loss_at(frac: float) -> float:
        start_up = 2.5 * math.exp(-frac / 0.03)
        high_rate = 0.08 * (1 - frac)
        return loss + b * ((tokens_b * frac) ** -beta - tokens_b**-beta) + high_rate + start_up * (1 - frac)

    steps = [math.ceil(max_step * (i + 1) / CURVE_POINTS) for i in range(CURVE_POINTS)]
    losses: list[float | None] = [
        round(loss_at(step / max_step) + (rng.gauss(0, NOISE_NATS) if step < max_step else 0), 4) for step in steps
    ]
    if kind == "NaN":
        seen = rng.randrange(6, 20)
        steps, losses = steps[: seen + 1], [*losses[:seen], None]
    steps_key, losses_key = CURVE_KEYS[source]
    return {
        "name": f"sample-{source}-{index:04d}",
        "source": source,
        "note": NOTE,
        "conf": conf,
        "max_step": max_step,
        "final_loss": None if kind == "NaN" else round(loss, 4),
        steps_key: steps,
        losses_key: losses,
    }


def _marin_fields(rng: random.Random, optimizer: str, lr: float, batch: int) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "optimizer": optimizer,
        "learning rate": lr,
        "warmup": rng.choice((0, 250, 500, 1000)),
        "weight decay": rng.choice((0, 0.1, 0.2)),
        "batch size": batch,
        "max_grad_norm": rng.choice((0, 1, 1.0)),
        "min_lr_ratio": rng.choice((0, 0.1)),
        "beta1": rng.choice((0.9, 0.95)),
    }
    if optimizer == "muon":
        momentum = fields.pop("beta1")
        return fields | {
            "adam_lr": float(f"{lr / 5:.1e}"),
            "decay": rng.choice((0.5, 1)),
            "lr_schedule": rng.choice(("linear", "cosine")),
            "momentum": momentum,
            "muon_epsilon": 1e-05,
        }
    fields["beta2"] = rng.choice((0.95, 0.98))
    if optimizer == "adamw":
        fields |= {"epsilon": rng.choice((1e-08, 1e-15, 1e-25)), "nesterov": rng.choice((True, False))}
    return fields


def _steplaw_fields(rng: random.Random, optimizer: str, lr: float, batch: int) -> dict[str, Any]:
    return {"optimizer": optimizer, "learning rate": lr, "min_lr": 1e-05, "batch size": batch}


def _moe_table() -> str:
    """Step Law's CSV: three learning rates and two batch sizes in each cell, and a diverged run of each architecture.

    Of the upstream columns those that say what ran, and both losses.
    """
    rng = random.Random(f"{SEED} steplaw_moe")
    layers, hidden = MOE_SHAPE["numl"], MOE_SHAPE["h"]
    cells = [(experts, tokens_b) for experts in MOE_EXPERTS for tokens_b in MOE_TOKENS_B]
    grid = [(*cell, log2_off, batch) for cell in cells for log2_off in (-1.5, 0, 1.5) for batch in (64, 256)]
    rows: list[dict[str, Any]] = []
    for experts, tokens_b, log2_off, batch in [*grid, *((e, rng.choice(MOE_TOKENS_B), 6, 64) for e in MOE_EXPERTS)]:
        count, top_k, width, shared = experts
        dense = layers * 4 * hidden**2 + 3 * hidden * MOE_SHAPE["ffnh"]
        total = dense + (layers - 1) * 3 * hidden * (count * width + shared)
        active = dense + (layers - 1) * 3 * hidden * (top_k * width + shared)
        best_lr = 1.5e-3 * (active / 1e8) ** -0.3 * (batch / 128) ** 0.5
        lr = float(f"{best_lr * 2 ** (log2_off + rng.uniform(-0.25, 0.25)):.3e}")
        a, alpha, b, beta, c = PUBLISHED_CHINCHILLA["steplaw"]
        # Experts at rest help as if a model were larger.
        size_m = (active**0.7 * total**0.3) / 1e6
        loss = a * size_m**-alpha + b * tokens_b**-beta + c + rng.gauss(0, NOISE_NATS)
        loss += 0.015 * math.log2(lr / best_lr) ** 2 + 0.006 * math.log2(batch / (60 * tokens_b**0.4)) ** 2
        if log2_off == 6:
            loss += rng.uniform(0.5, 3)
        lost = log2_off == 6 and experts == MOE_EXPERTS[0]
        rows.append(
            {"exp_name": f"sample-steplaw_moe-{len(rows):04d}", "seq_len": SOURCES["steplaw"].seq_len, **MOE_SHAPE}
            | {"nume": count, "topk": top_k, "moeh": width, "sed": shared, "N": total, "Na": active}
            | {"D": tokens_b * 10**9, "lr": lr, "bs": batch}
            | {"ti": int(tokens_b * 1e9 / (batch * SOURCES["steplaw"].seq_len))}
            | {"loss": "nan" if lost else round(loss + rng.gauss(0, 0.03), 6)}
            | {"smooth loss": "nan" if lost else round(loss, 9), "note": NOTE}
        )
    text = io.StringIO()
    table = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    return text.getvalue()


if __name__ == "__main__":
    main()
