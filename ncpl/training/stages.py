"""The stages of a training, each run by transformers' Trainer."""

import math
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from accelerate import PartialState
from peft import PeftModel
from transformers import PrinterCallback, ProgressCallback, TrainerCallback, TrainingArguments, set_seed

from modeling_ncpl import NCPLForecaster
from ncpl.errors import Stopped, TrainingError
from ncpl.packing import PackedCollator, PlainCollator, Run
from ncpl.recipe import Recipe, Stage
from ncpl.training.checkpoints import (
    altered,
    checkpoints,
    damage,
    hash_file,
    newest_whole,
    read_hashed,
    write_hashed,
    writing,
)
from ncpl.training.evaluation import Evaluation
from ncpl.training.model import add_adapters, name_base_class
from ncpl.training.output import LOCK, LOG, OWNER, RECORD
from ncpl.training.processes import on_main_process
from ncpl.training.trainer import (
    Bars,
    BatchSampler,
    BestFolder,
    Epochs,
    ForecasterTrainer,
    GracefulStop,
    Lines,
    MicroBatchCollator,
)
from processing_ncpl import NCPLProcessor

EVALUATION_ROWS = 64
"""Prompts in a batch of an evaluation, on one process."""


@dataclass
class StageRun:
    """One stage of a training: what goes in and where it is kept.

    Args:
        name: of the stage, `frozen` or `full`.
        stage: its settings.
        recipe: the whole recipe.
        runs: targets of the training split.

    Raises:
        ValueError: a batch has fewer runs than micro-batches.
    """

    name: str
    stage: Stage
    recipe: Recipe
    runs: Sequence[Run]

    def __post_init__(self) -> None:
        output = Path(self.recipe.output_dir)
        self.folder = output / "stages" / self.name
        """For checkpoints while the stage runs, its log and its report."""
        self.last = self.name == self.recipe.stages.items()[-1][0]
        self.output = output if self.last else self.folder / "model"
        """For the trained model."""
        self.parts = PartialState().num_processes * self.stage.gradient_accumulation_steps
        """Micro-batches an optimizer step, over all processes."""
        if self.stage.batch_size < self.parts:
            raise ValueError(
                f"stages.{self.name}.batch_size: {self.stage.batch_size} runs do not fill {self.parts} micro-batches "
                f"({PartialState().num_processes} processes x {self.stage.gradient_accumulation_steps} accumulated)"
            )

    @property
    def done(self) -> bool:
        """Whether the stage has ended and its model is as it was written."""
        result = read_hashed(self.folder / "stage.json")
        if result is None:
            return False
        wrong = altered(self.output, result["files"])
        if wrong:
            print(f"{self.output}: {wrong}; the stage {self.name} is trained again")
        return wrong is None

    @property
    def result(self) -> dict[str, Any]:
        """Of a stage that is done: its `report` (steps, best step, metrics, parameters, wall time in seconds and the
        step it was resumed from), its `log`, and the SHA-256 of the `files` it wrote."""
        return read_hashed(self.folder / "stage.json")  # type: ignore[return-value]

    def train(
        self,
        model: NCPLForecaster,
        processor: NCPLProcessor,
        evaluation: Evaluation,
        callbacks: Sequence[TrainerCallback] = (),
    ) -> None:
        """Trains the stage, from its newest whole checkpoint if there is one, and saves the model that did best.

        Args:
            model: trained in place; its weights are fp32.
            processor: the model's.
            evaluation: chooses the checkpoint and measures the result.
            callbacks: for the Trainer.

        Raises:
            Stopped: SIGINT or SIGTERM came; a checkpoint is written.
            TrainingError: a loss or gradient is not finite, or a checkpoint cannot be written or read.
        """
        start = time.perf_counter()
        # Adapters start from random weights: the same ones, whatever happened before in this process.
        set_seed(self.recipe.seed)
        trainable = self._trainable(model, processor)
        trainer = self._trainer(trainable, processor, evaluation, callbacks)
        resumed = on_main_process(self._resume_from)
        self._run(trainer, resumed)
        residuals, gain = self._judge(trainer, trainable, evaluation)
        with writing(self.output):
            trainer.save_model(str(self.output))
            if trainer.is_world_process_zero():
                name_base_class(self.output)
        report = {
            "steps": trainer.state.global_step,
            "best_step": trainer.state.best_global_step,
            "gain": gain,
            "metrics": evaluation.cells(residuals),
            "parameters": sum(p.numel() for p in trainable.parameters()),
            "trainable_parameters": sum(p.numel() for p in trainable.parameters() if p.requires_grad),
            "resumed_from_step": 0 if resumed is None else int(resumed.name.rpartition("-")[2]),
            "wall_s": round(time.perf_counter() - start, 1),
        }
        if trainer.is_world_process_zero():
            with writing(self.folder):
                self._close(report, trainer.state.log_history)
        trainer.accelerator.wait_for_everyone()
        trainer.accelerator.free_memory()

    def _resume_from(self) -> Path | None:
        """The checkpoint to resume from; newer ones that are not whole are named and removed."""
        found, problems = newest_whole(self.folder)
        for checkpoint in checkpoints(self.folder)[: len(problems)]:
            shutil.rmtree(checkpoint)
        for problem in problems:
            print(f"{self.folder}: {problem}; it is removed", flush=True)
        if problems or found:
            print(f"stage {self.name}: {f'resumes from {found.name}' if found else 'starts anew'}", flush=True)
        return found

    def _run(self, trainer: ForecasterTrainer, resumed: Path | None) -> None:
        stop = GracefulStop()
        trainer.add_callback(stop)
        try:
            trainer.train(resume_from_checkpoint=None if resumed is None else str(resumed))
        finally:
            stop.restore()
        state = trainer.state
        if stop.signal is not None and state.global_step < state.max_steps:
            raise Stopped(
                f"stopped in stage {self.name} after step {state.global_step} of {state.max_steps}", stop.signal
            )
        best = self.folder / f"checkpoint-{state.best_global_step}"
        if wrong := damage(best):
            raise TrainingError(
                f"{best}, whose weights did best: {wrong}; the same command trains again from the last whole one"
            )

    def _judge(
        self, trainer: ForecasterTrainer, model: NCPLForecaster | PeftModel, evaluation: Evaluation
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """The residuals that the model forecasts, and whether it is kept; a model that is not forecasts none."""
        residuals = np.asarray(trainer.predict(cast(Any, evaluation.items)).predictions)
        select = self.recipe.data.splits.select
        gains = evaluation.gains(residuals, select)
        # A gain on some sources and not on others is fitted to these sources' runs, and says little of larger ones.
        beaten = all(gain["mean"] > gain["standard_error"] for gain in gains.values())
        kept = beaten or not (self.last and self.recipe.model.one_standard_error)
        if not kept:
            if trainer.is_world_process_zero():
                shown = [f"{name} {gain['mean']:.4f} ± {gain['standard_error']:.4f}" for name, gain in gains.items()]
                print(
                    f"network rejected: its gain on {select} over the law is within one standard error "
                    f"({', '.join(shown)} nats per token); forecasts use the law alone"
                )
            for name, parameter in model.named_parameters():
                if "head" in name.split("."):
                    parameter.data.zero_()
            residuals = np.zeros_like(residuals)
        return residuals, {"kept": kept, "sources": gains}

    def _close(self, report: dict[str, Any], log: list[dict[str, Any]]) -> None:
        # Pickled arguments hold this machine's paths and are no part of a model.
        (self.output / "training_args.bin").unlink(missing_ok=True)
        ours = ("recipe.yaml", RECORD, LOG, LOCK, OWNER)
        files = [path for path in self.output.iterdir() if path.is_file() and path.name not in ours]
        hashes = {path.name: hash_file(path) for path in sorted(files)}
        write_hashed(self.folder / "stage.json", {"report": report, "log": log, "files": hashes})
        for checkpoint in checkpoints(self.folder):
            shutil.rmtree(checkpoint)

    def _trainable(self, model: NCPLForecaster, processor: NCPLProcessor) -> NCPLForecaster | PeftModel:
        model.requires_grad_(True)
        if self.name == "frozen":
            model.model.requires_grad_(False)
        if self.stage.lora is None:
            return model
        if self.recipe.model.checkpoint is None:
            # An adapter is nothing without its base, and this one is on no Hub.
            base = Path(f"{self.recipe.output_dir}-base").resolve()
            if PartialState().is_main_process:
                model.save_pretrained(base)
                processor.save_pretrained(base)
            model.name_or_path = str(base)
        return add_adapters(model, self.stage.lora)

    def _trainer(
        self,
        model: NCPLForecaster | PeftModel,
        processor: NCPLProcessor,
        evaluation: Evaluation,
        callbacks: Sequence[TrainerCallback],
    ) -> ForecasterTrainer:
        runs, splits = self.runs, list(evaluation.runs)
        lengths = [len(processor.prefix(run.config)) + len(run.steps) for run in runs]
        sampler = BatchSampler(lengths, self.stage.batch_size, self.parts, self.recipe.seed)
        arguments = self._arguments(sampler)

        def line(state: Any, logs: Mapping[str, float]) -> str | None:
            errors = [f"{split} MAE {logs[f'eval_{split}_mae']:.4f}" for split in splits if f"eval_{split}_mae" in logs]
            return f"{self.name} step {state.global_step}/{state.max_steps}: {', '.join(errors)}" if errors else None

        trainer = ForecasterTrainer(
            model=model,
            args=arguments,
            train_dataset=[*enumerate(runs), None],
            eval_dataset=evaluation.items,
            data_collator=MicroBatchCollator(self._collator(processor), runs[0]),
            processing_class=processor,
            compute_metrics=evaluation,
            stage=self.stage,
            sampler=sampler,
            callbacks=[Epochs(sampler), BestFolder(), *callbacks],
        )
        trainer.remove_callback(PrinterCallback if arguments.disable_tqdm else ProgressCallback)
        trainer.add_callback((Lines if arguments.disable_tqdm else Bars)(line))
        return trainer

    def _arguments(self, sampler: BatchSampler) -> TrainingArguments:
        stage, on_gpu = self.stage, PartialState().device.type == "cuda"
        every = math.ceil(math.ceil(sampler.steps * stage.epochs) / stage.evaluations)
        log_every = 10 if every >= 10 else 1
        # Checkpoints fall on logged steps, so that a resumed run logs the same means as an unbroken one.
        every = math.ceil(every / log_every) * log_every
        arguments = TrainingArguments(
            output_dir=str(self.folder),
            num_train_epochs=stage.epochs,
            learning_rate=stage.learning_rate,
            adam_beta1=stage.betas[0],
            adam_beta2=stage.betas[1],
            adam_epsilon=stage.epsilon,
            weight_decay=stage.weight_decay,
            max_grad_norm=stage.max_grad_norm,
            optim="adamw_torch_fused" if on_gpu else "adamw_torch",
            per_device_train_batch_size=sampler.slots,
            per_device_eval_batch_size=EVALUATION_ROWS,
            gradient_accumulation_steps=stage.gradient_accumulation_steps,
            activation_checkpointing=stage.activation_checkpointing,
            bf16=stage.bf16,
            tf32=stage.tf32 if on_gpu else None,
            use_cpu=PartialState().device.type == "cpu",
            seed=self.recipe.seed,
            eval_strategy="steps",
            save_strategy="steps",
            eval_steps=every,
            save_steps=every,
            logging_steps=log_every,
            load_best_model_at_end=True,
            metric_for_best_model=f"eval_{self.recipe.data.splits.select}_mae",
            greater_is_better=False,
            # Replacing a NaN loss by the mean would hide it, and looking for one waits for the GPU at each step.
            logging_nan_inf_filter=False,
            remove_unused_columns=False,
            # A flex mask is built on the GPU, where worker processes must not be.
            dataloader_num_workers=2 if on_gpu and self.recipe.model.attn_implementation != "flex_attention" else 0,
            dataloader_pin_memory=on_gpu,
            accelerator_config={"non_blocking": on_gpu},
            ddp_find_unused_parameters=False,
            report_to="none",
            disable_tqdm=not sys.stderr.isatty(),
        )
        # A process has one GPU: without a launcher the Trainer would spread, and multiply, the batch over all.
        arguments._n_gpu = min(arguments.n_gpu, 1)
        return arguments

    def _collator(self, processor: NCPLProcessor) -> PlainCollator | PackedCollator:
        if not self.recipe.data.packed:
            return PlainCollator(processor)
        return PackedCollator(processor, self.recipe.model.attn_implementation, device=PartialState().device)
