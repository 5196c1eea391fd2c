"""What `ForecastCallback` costs: a real `transformers.Trainer` run on a CPU with and without it, alternated.

    python -m benchmarks.callback            # about four minutes on one core

A small Qwen3-shaped model is trained from scratch, with steps of 50 ms and more, logging every fifth step. Each pair
of runs begins from the same seed, in an order that alternates. Losses must be equal to the bit.
"""

import tempfile
import time
from typing import Any

import torch
from torch.utils.data import Dataset
from transformers import PrinterCallback, Qwen3Config, Qwen3ForCausalLM, Trainer, TrainerCallback, TrainingArguments

from benchmarks.common import parser, ratio, report, spread
from ncpl import ForecastCallback

VOCABULARY, LENGTH, BATCH = 512, 128, 4
SIZE = {"hidden_size": 192, "intermediate_size": 576, "num_hidden_layers": 4, "num_attention_heads": 4}
# A run whose first steps these are.
CONFIG = {
    "source": "mine", "model size": 2.0, "data size": 0.02, "optimizer": "adamw", "learning rate": 1e-3,
    "batch size": BATCH, "seq len": LENGTH, "vocab size": VOCABULARY, "warmup": 100,
}  # fmt: skip


class Tokens(Dataset):
    """Sequences with a pattern that a model learns slowly."""

    def __len__(self) -> int:
        return 4096

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        tokens = (torch.arange(LENGTH) * (index % 61 + 1) + index // 61) % VOCABULARY
        return {"input_ids": tokens, "labels": tokens}


class Watched(ForecastCallback):
    """Takes the time of all that the callback does while a run trains."""

    taken, forecasts = 0.0, 0

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        start = time.perf_counter()
        super().on_train_begin(*args, **kwargs)
        self.taken += time.perf_counter() - start

    def on_log(self, *args: Any, **kwargs: Any) -> None:
        start, latest = time.perf_counter(), self.latest
        super().on_log(*args, **kwargs)
        self.taken += time.perf_counter() - start
        self.forecasts += self.latest is not latest


def train(steps: int, seed: int, callbacks: list[TrainerCallback]) -> tuple[tuple[float, float], list[float]]:
    """Wall and processor seconds of a training, and its logged losses."""
    torch.manual_seed(seed)
    model = Qwen3ForCausalLM(Qwen3Config(vocab_size=VOCABULARY, num_key_value_heads=4, head_dim=48, **SIZE))
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder, max_steps=steps, per_device_train_batch_size=BATCH, logging_steps=5, report_to=[], seed=seed,
            use_cpu=True, save_strategy="no", disable_tqdm=True, dataloader_pin_memory=False,
        )  # fmt: skip
        trainer = Trainer(model, arguments, train_dataset=Tokens(), callbacks=callbacks)
        trainer.remove_callback(PrinterCallback)
        wall, processor = time.perf_counter(), time.process_time()
        trainer.train()
        taken = time.perf_counter() - wall, time.process_time() - processor
    return taken, [row["loss"] for row in trainer.state.log_history if "loss" in row]


def main() -> None:
    options = parser(__doc__ or "", "callback")
    options.add_argument("--pairs", type=int, default=6, help="of runs, with and without the callback")
    options.add_argument("--steps", type=int, default=120, help="of a run")
    arguments = options.parse_args()
    torch.set_num_threads(1)
    train(5, 0, [ForecastCallback(CONFIG)])
    plain, watched, shares, equal, forecasts = [], [], [], True, 0
    for pair in range(arguments.pairs):
        seed, callback = arguments.seed + pair, Watched(CONFIG)
        runs = {}
        for name in ("plain", "watched") if pair % 2 == 0 else ("watched", "plain"):
            runs[name] = train(arguments.steps, seed, [callback] if name == "watched" else [])
        plain.append(runs["plain"][0])
        watched.append(runs["watched"][0])
        shares.append(callback.taken / watched[-1][0])
        equal &= runs["plain"][1] == runs["watched"][1]
        forecasts += callback.forecasts
        print(pair, plain[-1], watched[-1], shares[-1], equal, flush=True)
    walls, processors = (ratio([run[i] for run in watched], [run[i] for run in plain]) for i in (0, 1))
    step = spread([1e3 * run[0] / arguments.steps for run in plain])
    rows: list[dict[str, Any]] = [
        {"figure": "time in the callback, % of a run's", "ours": spread([100 * share for share in shares])}
        | {"target": "1"},
        {"figure": "a run's time with the callback over without, wall", "ours": walls, "target": "1.01"},
        {"figure": "the same, processor time", "ours": processors, "target": "1.01"},
        {"figure": "losses equal to the bit", "ours": "yes" if equal else "no", "target": "yes"},
        {"figure": "a step without the callback, ms", "ours": step},
        {"figure": "forecasts a run", "ours": forecasts / arguments.pairs},
    ]
    report(arguments.output, range(arguments.seed, arguments.seed + arguments.pairs), rows)


if __name__ == "__main__":
    main()
