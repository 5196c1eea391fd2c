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
from dataclasses import dataclass
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


def agreements(
    model: NCPLForecaster, processor: NCPLProcessor, configs: Sequence[Any], points: int, rng: random.Random
) -> list[dict[str, Any]]:
    """Rows of the table: relative errors of the packed loss and gradients for three kinds of batches."""
    cases = {
        "one run": [points],
        "several runs in a pack": [points] * 8,
        "ragged": [points, 0, 3, 1, 8, points, 5, 2],
    }
    rows = []
    for case, counts in cases.items():
        chosen = zip(rng.sample(configs, len(counts)), counts, strict=True)
        errors = agreement(model, processor, [make_run(config, own, rng) for config, own in chosen])
        for what, target in (("loss", "<= 1e-6"), ("gradient", "<= 1e-5")):
            rows.append({"figure": f"relative error of the {what}, {case}", "ours": errors[what], "target": target})
    return rows


@dataclass
class Batches:
    """Batches of made-up runs, each in both forms, and the tokens that each form computes."""

    configs: Sequence[Any]
    plain: PlainCollator
    packed: PackedCollator
    rng: random.Random
    runs: int
    points: int
    plain_rows: int

    def draw(self) -> tuple[list[Run], list[tuple[PlainCollator, list[Run]]]]:
        """A batch's runs, and the same as micro-batches of plain rows."""
        runs = [make_run(config, self.points, self.rng) for config in self.rng.sample(self.configs, self.runs)]
        rows = [point for run in runs for point in run.points()]
        self.rng.shuffle(rows)
        places = range(0, len(rows), self.plain_rows)
        return runs, [(self.plain, rows[i : i + self.plain_rows]) for i in places]

    def tokens(self, processor: NCPLProcessor, runs: Sequence[Run]) -> dict[str, int]:
        """Tokens of one batch: of plain rows, of packs with and without their padding, and of every token once."""
        packs = self.packed(runs)
        # A token that is padding is seen by itself alone and sees nothing else.
        seen = packs["attention_mask"][:, 0]
        padding = ((seen.sum(-1) == 1) & (seen.sum(-2) == 1)).sum().item()
        prefixes = sum(len(processor.prefix(run.config)) for run in runs)
        branches = sum(len(processor.branch(point.config, *point.steps)) for run in runs for point in run.points())
        return {
            "plain": self.plain(runs)["attention_mask"].sum().item(),
            "packed": packs["input_ids"].numel(),
            "real": seen.numel() // seen.shape[-1] - padding,
            "once": prefixes + branches,
        }


def measure(
    model: NCPLForecaster, processor: NCPLProcessor, batches: Batches, repeats: int, cuda: bool
) -> tuple[list[float], list[float], list[dict[str, int]]]:
    """Seconds of the plain and of the packed steps, alternately on the same batches, and the batches' tokens."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, betas=(0.9, 0.99), weight_decay=0.01, fused=cuda)

    def step(micro_batches: Sequence[tuple[Any, Sequence[Run]]], bf16: bool) -> None:
        train_step(model, micro_batches, bf16)
        optimizer.step()

    # The first steps allocate.
    runs, micro_batches = batches.draw()
    step([(batches.packed, runs)], cuda)
    step(micro_batches[:1], False)
    plain, packed, tokens = [], [], []
    for _ in tqdm(range(repeats), disable=None):
        runs, micro_batches = batches.draw()
        plain.append(seconds(lambda micro=micro_batches: step(micro, False)))
        packed.append(seconds(lambda runs=runs: step([(batches.packed, runs)], cuda)))
        tokens.append(batches.tokens(processor, runs))
    return plain, packed, tokens


def utilisation(model: NCPLForecaster, tokens: int, times: Sequence[float], cuda: bool) -> list[dict[str, Any]]:
    """Rows of the table: model FLOPs utilisation, which a CPU does not show."""
    if not cuda:
        figures = {
            "targets a second at Qwen3-1.7B's size, cuda": ">= 40",
            "model FLOPs utilisation, bf16, cuda": ">= 0.45",
        }
        return [{"figure": name, "ours": "not measured", "target": target} for name, target in figures.items()]
    parameters = sum(p.numel() for n, p in model.named_parameters() if "embed_tokens" not in n)
    peak = peak_flops(bf16=True)
    share = 6 * parameters * tokens / spread(times)["median"] / peak if peak else "not measured"
    return [{"figure": "model FLOPs utilisation, bf16", "ours": share, "target": ">= 0.45"}]


def read_options() -> Any:
    arguments = parser(__doc__ or "", "training_throughput")
    arguments.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    arguments.add_argument("--runs", type=int, default=30, help="runs in a batch")
    arguments.add_argument("--points", type=int, default=15, help="curve points of a run, beside its final loss")
    help_rows = "rows in a plain micro-batch, its fastest on a CPU"
    arguments.add_argument("--plain-rows", type=int, default=32, help=help_rows)
    arguments.add_argument("--repeats", type=int, default=7)
    return arguments.parse_args()


def main() -> None:
    options = read_options()
    cuda = options.device == "cuda"
    configs, data = read_configs()
    model, processor, name = build(options.device, configs, options.seed)
    rng = random.Random(options.seed)
    errors = [] if cuda else agreements(model, processor, configs, options.points, rng)
    packed_collator = PackedCollator(processor, pack_length=2048 if cuda else 256)
    batches = Batches(
        configs, PlainCollator(processor), packed_collator, rng, options.runs, options.points, options.plain_rows
    )
    plain, packed, tokens = measure(model, processor, batches, options.repeats, cuda)

    bounds = {"every token once": "real", "configuration once a run": "once"}
    gains = {name: [row["plain"] / row[of] for row in tokens] for name, of in bounds.items()}
    shares = {
        name: spread([a / b / gain for a, b, gain in zip(plain, packed, own, strict=True)])
        for name, own in gains.items()
    }
    targets = options.runs * (options.points + 1)
    speedup = ratio(plain, packed)
    rows: list[dict[str, Any]] = [
        {
            "figure": f"targets (curve points and final losses) a second, {options.device}",
            "plain": targets / spread(plain)["median"],
            "ours": targets / spread(packed)["median"],
            "ratio": speedup,
            "target": ">= 40" if cuda else ">= 7",
        },
        *(
            {"figure": f"share of the token-count bound, {name}", "ours": shares[name], "target": ">= 0.9"}
            for name in ("configuration once a run", "every token once")
        ),
        *errors,
        *utilisation(model, tokens[-1]["packed"], packed, cuda),
    ]
    report(
        options.output,
        [options.seed],
        rows,
        ratio=speedup,
        model=name,
        data=f"configurations of {data}; curves made up",
        batch={"runs": options.runs, "points": options.points, "plain_micro_batch_rows": options.plain_rows},
        tokens={"plain": tokens[-1]["plain"], "ours": tokens[-1]["packed"]},
        token_count_bound={name.replace(" ", "_"): spread(own) for name, own in gains.items()},
        seconds={"plain": plain, "ours": packed},
    )


if __name__ == "__main__":
    main()
