"""transformers' Trainer for forecasters: published schedule and optimizer, forecasts measured, throughput logged."""

import math
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object, reduce
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback

from ncpl.errors import TrainingError
from ncpl.hardware import read_hardware
from ncpl.packing import PlainCollator, Run
from ncpl.recipe import Stage
from ncpl.training.checkpoints import MANIFEST, checkpoints, write_manifest, writing

LARGEST_LOSS = 1e12
"""Of a training loss (nats, squared for MSE) or gradient norm; above it a training has diverged beyond repair."""


class BatchSampler(Sampler[int]):
    """A new random order of the runs each epoch, in batches that do not depend on how they are split.

    A batch is sorted by length and split into `parts` micro-batches that differ by at most one run: they pad little,
    and their weighted gradients sum to that of the batch. Each fills the same number of slots, so that accelerate
    deals whole ones to the processes; a slot without a run holds the index `len(lengths)`. The order depends on seed
    and epoch alone, so that an interrupted epoch can be resumed.

    Args:
        lengths: prompt length of each run, tokens.
        batch_size: runs an optimizer step, over all micro-batches and processes.
        parts: micro-batches an optimizer step, over all processes.
        seed: of the order.

    >>> list(BatchSampler([5, 1, 3], batch_size=3, parts=2, seed=0))
    [1, 2, 0, 3]
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, parts: int, seed: int) -> None:
        self.lengths, self.batch_size, self.parts, self.seed, self.epoch = lengths, batch_size, parts, seed, 0
        self.slots = math.ceil(batch_size / parts)
        """Places for runs in a micro-batch."""

    @property
    def steps(self) -> int:
        """Optimizer steps an epoch."""
        return math.ceil(len(self.lengths) / self.batch_size)

    def __len__(self) -> int:
        return self.steps * self.parts * self.slots

    def __iter__(self) -> Iterator[int]:
        order = np.random.default_rng((self.seed, self.epoch)).permutation(len(self.lengths))
        for start in range(0, len(order), self.batch_size):
            batch = sorted(order[start : start + self.batch_size].tolist(), key=lambda i: self.lengths[i])
            for part in np.array_split(batch, self.parts):
                yield from part.tolist()
                yield from [len(self.lengths)] * (self.slots - len(part))


@dataclass
class MicroBatchCollator:
    """A micro-batch's model inputs, with the number of its `targets` and the indices of its `items`.

    Args:
        collate: collator of runs.
        stand_in: computed, with weight zero, where a micro-batch holds no run, because every process takes every step.
    """

    collate: Callable[[Sequence[Run]], dict[str, Any]]
    stand_in: Run

    def __call__(self, slots: Sequence[tuple[int, Run] | None]) -> dict[str, Any]:
        filled = [slot for slot in slots if slot is not None]
        batch = self.collate([run for _, run in filled] or [self.stand_in])
        batch["targets"] = torch.tensor([sum(run.targets for _, run in filled)])
        batch["items"] = torch.tensor([index for index, _ in filled], dtype=torch.long)
        return batch


class ForecasterTrainer(Trainer):
    """transformers' Trainer with the published schedule and optimizer, targets for predictions, and throughput."""

    data_collator: Any
    lr_scheduler: Any

    def __init__(self, *args: Any, stage: Stage, sampler: BatchSampler, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.stage, self.sampler = stage, sampler
        self.plain = PlainCollator(self.processing_class)
        self._watched: list[tuple[int, Tensor, Tensor]] = []
        self._work: Tensor | None = None
        self._since = 0.0

    def _get_train_sampler(self, train_dataset: Sized | None = None) -> BatchSampler:
        return self.sampler

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        return self._one_row_a_target(super().get_eval_dataloader, eval_dataset)

    def get_test_dataloader(self, test_dataset: Any) -> DataLoader:
        return self._one_row_a_target(super().get_test_dataloader, test_dataset)

    def _one_row_a_target(self, make: Callable[[Any], DataLoader], dataset: Any) -> DataLoader:
        """Forecasts are gathered over processes and put in order row by row, which a pack has not."""
        collator, self.data_collator = self.data_collator, self.plain
        try:
            return make(dataset)
        finally:
            self.data_collator = collator

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Every parameter decays, as in the published training; the Trainer would leave out norms and biases."""
        return [name for name, _ in model.named_parameters()]

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> torch.optim.lr_scheduler.LRScheduler:
        if self.lr_scheduler is None:
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(
                optimizer or self.optimizer, lambda step: self.stage.rate(step, num_training_steps)
            )
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Loss, and each row's predicted and true residual in nats, in place of all tokens' logits."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            output = model(**inputs)
        at = inputs["loss_mask"].int().argmax(-1, keepdim=True)
        predicted = output["logits"].float().gather(1, at - 1).squeeze(1)
        return output["loss"].detach(), predicted, inputs["labels"].gather(1, at).squeeze(1)

    def get_batch_samples(self, epoch_iterator: Iterator, num_batches: int, device: torch.device) -> tuple[list, None]:
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        targets = torch.cat([batch["targets"] for batch in batches]).to(device).float().mean()
        self._targets = self.accelerator.reduce(targets, "mean")
        return batches, None

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The model's mean over the micro-batch's targets, weighted by their number: micro-batches and processes then
        sum to the mean over the whole batch, also where they hold unequal numbers of targets."""
        weight = inputs.pop("targets").squeeze() / self._targets
        inputs.pop("items")
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        loss = loss * weight
        return (loss, outputs) if return_outputs else loss

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        if self._work is None:
            # Evaluations and checkpoints stand between a logged step and the next, and do not count.
            self._work, self._since = torch.zeros(2, dtype=torch.long, device=self.args.device), time.perf_counter()
        pad = self.processing_class.tokenizer.pad_token_id
        # Summed on the device and read when the loss is logged: no synchronisation of its own.
        self._work += torch.stack([(inputs["input_ids"] != pad).sum(), inputs["targets"].squeeze()])
        items = inputs["items"]
        loss = super().training_step(model, inputs, num_items_in_batch)
        self._watched.append((self.state.global_step + 1, items, loss))
        return loss

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        # Of sharded weights (FSDP2) each process holds a part of the norm's square.
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        step, items, _ = self._watched[-1]
        self._watched.append((step, items, torch.as_tensor(norm)))
        return norm

    def check_finite(self) -> None:
        """Stops where a loss or a gradient norm since the last logged step is not finite, or absurd.

        Read here and not at each step, because reading waits for the GPU; checkpoints are written after it.

        Raises:
            TrainingError: the step, what it came to, and the runs of that micro-batch.
        """
        watched, self._watched = self._watched, []
        values = torch.stack([value.detach().float().reshape(()) for _, _, value in watched] or [torch.zeros(())])
        wrong = ~(values.abs() < LARGEST_LOSS)
        if not self.accelerator.reduce(wrong.any().to(self.args.device, torch.float32)).item():
            return
        told: list[Any] = [None]
        if wrong.any():
            step, items, value = watched[int(wrong.int().argmax())]
            told = [(step, value.item(), items.tolist())]
        step, value, items = min(found for found in gather_object(told) if found)
        runs = [self.train_dataset[i][1] for i in items]
        worst = max(runs, key=lambda run: max(map(abs, [run.final or 0.0, *run.curve])), default=None)
        names = ", ".join(run.name for run in runs[:3]) + (f" and {len(runs) - 3} more" if len(runs) > 3 else "")
        raise TrainingError(
            f"step {step}: loss or gradient norm is {value:g}; its micro-batch holds the runs {names}"
            + (f"; {worst.name} lies furthest from the prior in final_loss or curve" if worst else "")
            + "; lower learning_rate, or look at these runs"
        )

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Writes a checkpoint, and last its manifest, by which it is verified before it is used."""
        checkpoint = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        with writing(checkpoint):
            # A manifest of an earlier attempt would list files that are about to change.
            (checkpoint / MANIFEST).unlink(missing_ok=True)
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
            if self.is_world_process_zero():
                write_manifest(checkpoint)
                self._remove_superseded(checkpoint)
        self.accelerator.wait_for_everyone()

    def _remove_superseded(self, newest: Path) -> None:
        """Keeps two checkpoints, the newest and the best, or the one before where the newest is the best. The Trainer's
        own rotation would do so before the newest is whole, and would remove folders that are only called alike."""
        before = [path for path in checkpoints(newest.parent) if path != newest]
        best = [path for path in before if path.name == f"checkpoint-{self.state.best_global_step}"]
        for path in before:
            if path not in (best or before)[:1]:
                shutil.rmtree(path)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        self.check_finite()
        if "loss" in logs and self._work is not None:
            tokens, targets = self.accelerator.reduce(self._work).tolist()
            seconds = time.perf_counter() - self._since
            logs |= {"tokens_per_s": tokens / seconds, "targets_per_s": targets / seconds}
            if peak := peak_flops(self.stage.bf16):
                used = self._flops_a_token() * tokens / seconds
                logs["mfu"] = used / (peak * self.accelerator.num_processes)
            self._work = None
        super().log(logs, start_time)

    def _flops_a_token(self) -> int:
        """Two a weight forwards, two for the activations' gradients, and two for the weight's own where it trains."""
        weights = [(p.numel(), p.requires_grad) for name, p in self.model.named_parameters() if "embed" not in name]
        return sum((6 if trained else 4) * n for n, trained in weights)


def peak_flops(bf16: bool) -> float | None:
    """Peak of this machine's GPU in FLOP/s, dense, in bf16 or in TF32; None without one, or for one not listed."""
    if not torch.cuda.is_available():
        return None
    device = torch.cuda.get_device_name().lower()
    listed = [
        gpu for gpu in read_hardware().accelerators.values() if all(part in device for part in gpu.name.split("-"))
    ]
    # "NVIDIA H100 PCIe" is an h100 and an h100-pcie: the longest name says most.
    peaks = [gpu.bf16_tflops * 1e12 for gpu in sorted(listed, key=lambda gpu: len(gpu.name))]
    return None if not peaks else peaks[-1] if bf16 else peaks[-1] / 2


class BestFolder(TrainerCallback):
    """Names the best checkpoint by where it is now: the output folder may have moved since."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.best_global_step:
            state.best_model_checkpoint = str(Path(args.output_dir) / f"checkpoint-{state.best_global_step}")


class GracefulStop(TrainerCallback):
    """On SIGINT (Ctrl-C) or SIGTERM, writes a checkpoint after the step at hand and ends the training."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self._since = 0.0
        self._before: dict[int, Any] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._receive) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore(self) -> None:
        """Gives the signals back to whom they belonged."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _receive(self, number: int, frame: Any) -> None:
        # A launcher passes on what the terminal has sent to all: twice within seconds is once.
        if self.signal is not None and time.monotonic() - self._since > 5:
            self.restore()
            signal.raise_signal(number)
        elif self.signal is None:
            self.signal, self._since = number, time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        process = PartialState()
        stop = self.signal is not None
        if process.num_processes > 1:
            if process.device.type == "cuda" and state.global_step % args.logging_steps:
                return
            # Processes may have received the signal at different steps, and stop at one.
            flag = torch.tensor([float(stop)], device=process.device)
            stop = bool(reduce(flag, "sum").item())
        if stop:
            self.signal = self.signal or signal.SIGTERM
            control.should_log = control.should_save = control.should_training_stop = True


class Epochs(TrainerCallback):
    """Tells the sampler the epoch, also when one is gone on with (accelerate's own way misses a wrapped sampler)."""

    def __init__(self, sampler: BatchSampler) -> None:
        self.sampler = sampler

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.sampler.epoch = int(round(state.epoch or 0, 6))


class Bars(ProgressCallback):
    """The Trainer's progress bars, with one short line an evaluation in place of all metrics."""

    def __init__(self, line: Callable[[Any, dict[str, float]], str | None]) -> None:
        super().__init__()
        self.line = line

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        if state.is_world_process_zero and self.training_bar is not None and (text := self.line(state, logs or {})):
            self.training_bar.write(text)


class Lines(PrinterCallback):
    """The same lines where the output is piped and bars are off."""

    def __init__(self, line: Callable[[Any, dict[str, float]], str | None]) -> None:
        self.line = line

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        if state.is_world_process_zero and (text := self.line(state, logs or {})):
            print(text, flush=True)
