"""NCPL-intermediate as a small network: whether one that reads configurations learns what the law of curves gets wrong.

    python -m benchmarks.intermediate            # about four minutes on one core

On one random fifth of xLSTM's runs, held out; the network (Qwen3's shape, from scratch) is trained on the residuals of
the other runs' curves over a law that has not seen them, with runs packed by shared prefixes. A fifth of those chooses
the epoch and, by the one-standard-error rule, whether the network speaks at all. The held-out runs are forecast once.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from benchmarks.common import data_folder, parser, report
from benchmarks.curves import FRACTIONS, final_losses
from benchmarks.lab_curves import curve_run, multipowerlaw, olmo, xlstm
from configuration_ncpl import NCPLConfig
from fields_ncpl import check_config
from modeling_ncpl import NCPLForecaster
from ncpl.fitting.curves import fit_curves, held_out
from ncpl.packing import PackedCollator, Run
from ncpl.training.backbone import scratch_config, train_tokenizer
from processing_ncpl import NCPLProcessor

EPOCHS, BATCH, RATE, DELTA = 30, 32, 1e-3, 0.02
Rows = Sequence[dict[str, Any]]


def residuals(train: Rows, held: Rows, more: Rows) -> tuple[list[Run], list[Run]]:
    """What the law of curves gets wrong at `FRACTIONS`, of the training runs by laws that have not seen them."""
    finals, _, known = final_losses(train, held)
    runs = [curve_run(row) for row in known]
    law = fit_curves([*runs, *map(curve_run, more)], other_labs=False)
    blind = {id(run): own for own, run, _, _ in held_out(law, runs)}
    seen = [
        _run(row, run.at(FRACTIONS) - run.forecast - blind[id(run)].shape(run.shape, FRACTIONS, run.forecast))
        for row, run in zip(known, runs, strict=True)
    ]
    unseen = []
    for row, final in zip(held, finals.tolist(), strict=True):
        run = curve_run(row)
        unseen.append(_run(row, run.at(FRACTIONS) - final - law.shape(run.shape, FRACTIONS, final)))
    return seen, unseen


def _run(row: dict[str, Any], residual: np.ndarray) -> Run:
    config = check_config(row["conf"], strict=False)
    steps = tuple((FRACTIONS[:-1] * config["max step"]).tolist())
    return Run(config, 0.0, float(residual[-1]), steps, tuple(residual[:-1].tolist()), row["name"])


def errors(model: NCPLForecaster, runs: Sequence[dict[str, Any]]) -> np.ndarray:
    """What is left of each collated run's residuals, (runs, fractions) in the order of its pack."""
    left = []
    with torch.inference_mode():
        for batch in runs:
            logits, mask = model(**batch).logits, batch["loss_mask"][:, 1:]
            left.append((batch["labels"][:, 1:] - logits[:, :-1])[mask].abs().numpy())
    return np.array(left)


def train(runs: Sequence[Run], seed: int) -> tuple[NCPLForecaster, PackedCollator, dict[str, float]]:
    """A network at its best epoch, and what it gains on the runs that chose that."""
    part = np.random.default_rng(seed).permutation(len(runs)) % 5
    own, select = ([run for run, p in zip(runs, part, strict=True) if (p == 0) == chosen] for chosen in (False, True))
    processor = NCPLProcessor(train_tokenizer([run.config for run in own]), prompt_version=2)
    collate = PackedCollator(processor)
    torch.manual_seed(seed)
    text_config = scratch_config(len(processor.tokenizer), 64, 2, 4)
    model = NCPLForecaster(
        NCPLConfig(text_config=text_config, prompt_version=2, number_embedding="log", loss_type="huber",
                   huber_delta=DELTA, curves=True)
    )  # fmt: skip
    torch.nn.init.zeros_(model.head.weight)
    torch.nn.init.zeros_(model.head.bias)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.05)
    draw = np.random.default_rng(seed)
    order = draw.permutation(len(own))
    batches = [collate([own[j] for j in order[i : i + BATCH]]) for i in range(0, len(own), BATCH)]
    alone = [collate([run]) for run in select]
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=EPOCHS * len(batches), pct_start=0.05)
    before = errors(model, alone)
    best: tuple[float, dict[str, torch.Tensor]] = (math.inf, {})
    for epoch in range(EPOCHS):
        for i in draw.permutation(len(batches)):
            loss = model(**batches[i]).loss
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
        if epoch % 3 == 2:
            now = float(errors(model, alone).mean())
            if now < best[0]:
                best = now, {name: value.clone() for name, value in model.state_dict().items()}
    model.load_state_dict(best[1])
    gains = (before - errors(model, alone)).mean(1)
    error = float(gains.std(ddof=1) / math.sqrt(len(gains)))
    return model, collate, {"gain": float(gains.mean()), "standard_error": error}


def main() -> None:
    arguments = parser(__doc__ or "", "intermediate").parse_args()
    torch.set_num_threads(1)
    folder = data_folder()
    rows, more = xlstm(folder), [*olmo(folder), *multipowerlaw(folder)]
    fold = np.random.default_rng(arguments.seed).permutation(len(rows)) % 5
    seen, unseen = residuals(
        [row for row, f in zip(rows, fold, strict=True) if f],
        [row for row, f in zip(rows, fold, strict=True) if not f],
        more,
    )
    law = np.abs([[run.final or 0.0, *run.curve] for run in unseen])
    seeds = [arguments.seed + i for i in range(3)]
    found = []
    for seed in seeds:
        model, collate, chosen = train(seen, seed)
        left = errors(model, [collate([run]) for run in unseen])
        found.append(
            chosen | {"seed": seed, "kept": chosen["gain"] > chosen["standard_error"], "curve": float(left.mean())}
        )
        print(found[-1], flush=True)
    errors_with = [one["curve"] for one in found]
    figures = {
        "law": float(law.mean()),
        "mean": float(np.mean(errors_with)),
        "spread": float(np.std(errors_with, ddof=1)),
    }
    table = [
        {"figure": "error of held-out curves with the network, nats", "plain": figures["law"], "ours": figures["mean"]},
        {"figure": "kept by the one-standard-error rule, of three", "ours": sum(one["kept"] for one in found)},
    ]
    report(arguments.output, seeds, table, **figures, runs={"train": len(seen), "held": len(unseen)}, networks=found)


if __name__ == "__main__":
    main()
