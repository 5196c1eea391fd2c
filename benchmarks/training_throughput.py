"""Training throughput: one padded row a curve point (plain) against packs with shared prefixes (ours).

    python benchmarks/training_throughput.py
    python benchmarks/training_throughput.py --device cuda --runs 16 --plain-rows 16

Both run alternately in one process on the same batches: collator, forward, backward and AdamW of one step. The
configurations are logged ones; their curves are made up, because speed does not depend on the losses. On a CPU both
compute in fp32; on a GPU plain is fp32, as published, and ours bf16 autocast over fp32 weights.
"""

import random
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from common import (  # type: ignore[import-not-found]
    build,
    parser,
    ratio,
    read_configs,
    report,
    seconds,
    spread,
)
from tqdm import tqdm

from fields_ncpl import max_step
from modeling_ncpl import NCPLForecaster
from ncpl.packing import PackedCollator, PlainCollator, Run
from ncpl.training.trainer import peak_flops
from processing_ncpl import NCPLProcessor


def make_run(config: Mapping[str, Any], points: int, rng: random.Random) -> Run:
    """A run with its final loss and so many points, evenly over its steps, of made-up residuals."""
    total = max_step(config)
    steps = [max(1, total * (i + 1) // points) for i in range(points)]
    return Run(config, 3.0, rng.gauss(0, 0.1), steps, [rng.gauss(0, 0.1) for _ in steps])


def train_step(model: NCPLForecaster, batches: Sequence[tuple[Any, Sequence[Run]]], bf16: bool) -> float:
    """The loss of one batch in micro-batches, each collated here, and its gradients."""
    model.zero_grad()
    targets = sum(run.targets for _, runs in batches for run in runs)
    losses = []
    for collator, runs in batches:
        batch = {name: value.to(model.device, non_blocking=True) for name, value in collator(runs).items()}
        with torch.autocast("cuda", torch.bfloat16) if bf16 else nullcontext():
            loss = model(**batch).loss * (sum(run.targets for run in runs) / targets)
        loss.backward()
        losses.append(loss.detach())
    return float(torch.stack(losses).sum())


def agreement(model: NCPLForecaster, processor: NCPLProcessor, runs: Sequence[Run]) -> dict[str, float]:
    """Relative errors of the packed loss and of each parameter's gradient (the largest), in fp32."""
    plain = train_step(model, [(PlainCollator(processor), runs)], False)
    expected = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    packed = train_step(model, [(PackedCollator(processor), runs)], False)
    errors = [
        float((parameter.grad - expected[name]).norm() / expected[name].norm())
        for name, parameter in model.named_parameters()
    ]
    return {"loss": abs(packed - plain) / abs(plain), "gradient": max(errors)}


def main() -> None:
    arguments = parser(__doc__ or "", "training_throughput")
    arguments.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    arguments.add_argument("--runs", type=int, default=30, help="runs in a batch")
    arguments.add_argument("--points", type=int, default=15, help="curve points of a run, beside its final loss")
    arguments.add_argument(
        "--plain-rows", type=int, default=32, help="rows in a plain micro-batch, its fastest on a CPU"
    )
    arguments.add_argument("--repeats", type=int, default=7)
    options = arguments.parse_args()
    cuda = options.device == "cuda"

    configs, data = read_configs()
    model, processor, name = build(options.device, configs, options.seed)
    rng = random.Random(options.seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, betas=(0.9, 0.99), weight_decay=0.01, fused=cuda)
    plain_collator, packed_collator = (
        PlainCollator(processor),
        PackedCollator(processor, pack_length=2048 if cuda else 256),
    )

    cases = {
        "one run": [options.points],
        "several runs in a pack": [options.points] * 8,
        "ragged": [options.points, 0, 3, 1, 8, options.points, 5, 2],
    }
    agreements = {}
    for case, counts in ({} if cuda else cases).items():
        chosen = zip(rng.sample(configs, len(counts)), counts, strict=True)
        agreements[case] = agreement(model, processor, [make_run(config, points, rng) for config, points in chosen])

    def batch() -> tuple[list[Run], list[tuple[PlainCollator, list[Run]]]]:
        runs = [make_run(config, options.points, rng) for config in rng.sample(configs, options.runs)]
        rows = [point for run in runs for point in run.points()]
        rng.shuffle(rows)
        return runs, [
            (plain_collator, rows[i : i + options.plain_rows]) for i in range(0, len(rows), options.plain_rows)
        ]

    def plain_step(micro_batches: Sequence[tuple[Any, Sequence[Run]]]) -> None:
        train_step(model, micro_batches, bf16=False)
        optimizer.step()

    def packed_step(runs: Sequence[Run]) -> None:
        train_step(model, [(packed_collator, runs)], bf16=cuda)
        optimizer.step()

    # The first steps allocate.
    runs, micro_batches = batch()
    packed_step(runs)
    plain_step(micro_batches[:1])
    plain_times, packed_times, bounds, once = [], [], [], []
    plain_tokens = packed_tokens = 0
    for _ in tqdm(range(options.repeats), disable=None):
        runs, micro_batches = batch()
        plain_times.append(seconds(lambda micro=micro_batches: plain_step(micro)))
        packed_times.append(seconds(lambda runs=runs: packed_step(runs)))
        rows = plain_collator(runs)["attention_mask"].sum().item()
        packs = packed_collator(runs)
        # A token that is padding is seen by itself alone and sees nothing else.
        seen = packs["attention_mask"][:, 0]
        real = seen.numel() // seen.shape[-1] - ((seen.sum(-1) == 1) & (seen.sum(-2) == 1)).sum().item()
        bounds.append(rows / real)
        prefixes = sum(len(processor.prefix(run.config)) for run in runs)
        branches = sum(len(processor.branch(point.config, *point.steps)) for run in runs for point in run.points())
        once.append(rows / (prefixes + branches))
        plain_tokens, packed_tokens = rows, packs["input_ids"].numel()

    targets = options.runs * (options.points + 1)
    speedup = ratio(plain_times, packed_times)
    shares = spread([a / b / bound for a, b, bound in zip(plain_times, packed_times, bounds, strict=True)])
    shares_once = spread([a / b / bound for a, b, bound in zip(plain_times, packed_times, once, strict=True)])
    unit = "targets (curve points and final losses) a second"
    rows_of_table: list[dict[str, Any]] = [
        {
            "figure": f"{unit}, {options.device}",
            "plain": targets / spread(plain_times)["median"],
            "ours": targets / spread(packed_times)["median"],
            "ratio": speedup,
            "target": ">= 40" if cuda else ">= 7",
        },
        {"figure": "share of the token-count bound, configuration once a run", "ours": shares_once, "target": ">= 0.9"},
        {"figure": "share of the token-count bound, every token once", "ours": shares, "target": ">= 0.9"},
    ]
    mfu: Any = "not measured"
    if cuda:
        parameters = sum(p.numel() for n, p in model.named_parameters() if "embed_tokens" not in n)
        if peak := peak_flops(bf16=True):
            mfu = 6 * parameters * packed_tokens / spread(packed_times)["median"] / peak
        rows_of_table.append({"figure": "model FLOPs utilisation, bf16", "ours": mfu, "target": ">= 0.45"})
    else:
        for case, errors in agreements.items():
            for what, target in (("loss", "<= 1e-6"), ("gradient", "<= 1e-5")):
                rows_of_table.append(
                    {"figure": f"relative error of the {what}, {case}", "ours": errors[what], "target": target}
                )
        for figure, target in (
            ("targets a second at Qwen3-1.7B's size, cuda", ">= 40"),
            ("model FLOPs utilisation, bf16, cuda", ">= 0.45"),
        ):
            rows_of_table.append({"figure": figure, "ours": "not measured", "target": target})
    report(
        options.output,
        [options.seed],
        rows_of_table,
        ratio=speedup,
        model=name,
        data=f"configurations of {data}; curves made up",
        batch={"runs": options.runs, "points": options.points, "plain_micro_batch_rows": options.plain_rows},
        tokens={"plain": plain_tokens, "ours": packed_tokens},
        token_count_bound={"configuration_once_a_run": spread(once), "every_token_once": spread(bounds)},
        seconds={"plain": plain_times, "ours": packed_times},
    )


if __name__ == "__main__":
    main()
