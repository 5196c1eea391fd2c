"""What `ForecastCallback` costs: a real `transformers.Trainer` run on a CPU with and without it, alternated.

    python -m benchmarks.callback            # about four minutes on one core

A small Qwen3-shaped model is trained from scratch, with steps of 50 ms and more, logging every fifth step. In one run
the callback is at work in every second block of steps; the time of each such block is set against the blocks around
it. Losses of short runs of the same seed, with and without it, must be equal to the bit.
"""

import itertools
import math
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.data import Dataset
from transformers import PrinterCallback, Qwen3Config, Qwen3ForCausalLM, Trainer, TrainerCallback, TrainingArguments

from benchmarks.common import parser, report
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


class Alternated(ForecastCallback):
    """Forecasts in every second block of steps alone, and takes the time of each block and of all that it does.

    Args:
        block: steps of a block.
    """

    def __init__(self, block: int) -> None:
        super().__init__(CONFIG)
        self.block, self.taken, self.forecasts = block, 0.0, 0
        self.clock: list[tuple[float, float]] = []

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        start = time.perf_counter()
        super().on_train_begin(*args, **kwargs)
        self.taken += time.perf_counter() - start

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % self.block == 0:
            self.clock.append((time.perf_counter(), time.process_time()))
            if state.global_step // self.block % 2 == 1:
                # The time that it may take is a share of its own blocks'.
                self._began += self.clock[-1][0] - self.clock[-2][0]

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        # The log of a block's last step is its own.
        if (state.global_step - 1) // self.block % 2 == 0:
            return
        start, latest = time.perf_counter(), self.latest
        super().on_log(args, state, control, logs, **kwargs)
        self.taken += time.perf_counter() - start
        self.forecasts += self.latest is not latest

    def ratios(self, clock: int) -> list[float]:
        """Each block's time with forecasts over that of its neighbours; clock 0 is the wall's, 1 the processor's."""
        times = [after[clock] - before[clock] for before, after in itertools.pairwise(self.clock)]
        return [2 * times[i] / (times[i - 1] + times[i + 1]) for i in range(1, len(times) - 1, 2)]


def train(steps: int, seed: int, callbacks: list[TrainerCallback]) -> tuple[float, list[float]]:
    """Seconds of a training, and its logged losses."""
    torch.manual_seed(seed)
    model = Qwen3ForCausalLM(Qwen3Config(vocab_size=VOCABULARY, num_key_value_heads=4, head_dim=48, **SIZE))
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder, max_steps=steps, per_device_train_batch_size=BATCH, logging_steps=5, report_to=[], seed=seed,
            use_cpu=True, save_strategy="no", disable_tqdm=True, dataloader_pin_memory=False,
        )  # fmt: skip
        trainer = Trainer(model, arguments, train_dataset=Tokens(), callbacks=callbacks)
        trainer.remove_callback(PrinterCallback)
        start = time.perf_counter()
        trainer.train()
        taken = time.perf_counter() - start
    return taken, [row["loss"] for row in trainer.state.log_history if "loss" in row]


def mean(values: Sequence[float]) -> dict[str, float]:
    """Mean and its standard error."""
    return {"mean": statistics.fmean(values), "standard_error": statistics.stdev(values) / math.sqrt(len(values))}


def main() -> None:
    options = parser(__doc__ or "", "callback")
    options.add_argument("--steps", type=int, default=1640, help="of the long run")
    options.add_argument("--block", type=int, default=20, help="steps of a block")
    arguments = options.parse_args()
    torch.set_num_threads(1)
    load = [os.getloadavg()[0]]
    equal = all(
        train(60, seed, [])[1] == train(60, seed, [ForecastCallback(CONFIG)])[1]
        for seed in (arguments.seed, arguments.seed + 1)
    )
    callback = Alternated(arguments.block)
    whole, _ = train(arguments.steps, arguments.seed, [callback])
    load.append(os.getloadavg()[0])
    walls, processors = (mean(callback.ratios(clock)) for clock in (0, 1))
    rows: list[dict[str, Any]] = [
        {"figure": "time in the callback, % of its blocks'", "ours": 200 * callback.taken / whole, "target": "1"},
        {"figure": "time of steps with the callback over without, wall", "ours": walls["mean"], "target": "1.01"},
        {"figure": "its standard error", "ours": walls["standard_error"]},
        {"figure": "the same, processor time", "ours": processors["mean"], "target": "1.01"},
        {"figure": "its standard error, processor time", "ours": processors["standard_error"]},
        {"figure": "losses equal to the bit", "ours": "yes" if equal else "no", "target": "yes"},
        {"figure": "a step, ms", "ours": 1e3 * whole / arguments.steps},
        {"figure": "forecasts of the run", "ours": callback.forecasts},
        {"figure": "processes that wanted the two cores, at the start", "ours": load[0]},
        {"figure": "and at the end", "ours": load[1]},
    ]
    report(arguments.output, [arguments.seed, arguments.seed + 1], rows)


if __name__ == "__main__":
    main()
