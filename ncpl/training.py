"""Training a forecaster: runs to targets, a model to train, and transformers' Trainer stage by stage.

`run_train.py` calls these in order; every function can be used alone.
"""

import json
import math
import os
import shutil
import sys
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import yaml
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from peft import LoraConfig, PeftModel, get_peft_model
from rich.box import SIMPLE_HEAD
from rich.table import Table
from transformers import (
    AutoTokenizer,
    EvalPrediction,
    PrinterCallback,
    ProgressCallback,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from configuration_ncpl import NCPLConfig
from datasets_scripts import SAMPLE_DIR
from datasets_scripts.runs import data_hash, load_runs
from fields_ncpl import check_config
from laws_ncpl import ChinchillaLaw, law_from_dict
from modeling_ncpl import NCPLForecaster
from ncpl.backbone import scratch_config, train_tokenizer
from ncpl.metrics import regression_metrics
from ncpl.packing import PackedCollator, PlainCollator, Run
from ncpl.recipe import DataBlock, Lora, ModelBlock, Recipe, Stage
from ncpl.record import git_state, hardware, versions
from ncpl.trainer import Bars, BatchSampler, Epochs, ForecasterTrainer, Lines
from processing_ncpl import NCPLProcessor

RECORD = "training_record.json"
LOG = "training_log.json"
CURVE_POINTS = 15
"""Curves with more points keep every (length // 15)-th, as published."""

# ------------------------------------------------------------------------------------------------ runs


@dataclass(frozen=True)
class LoggedRun:
    """A run of a log, checked.

    Args:
        config: a checked configuration, with `max step`.
        final_loss: nats per token.
        steps, losses: points of its curve, training steps and nats per token.
    """

    config: Mapping[str, Any]
    final_loss: float
    steps: Sequence[float] = ()
    losses: Sequence[float] = ()


Runs = dict[str, dict[str, list[LoggedRun]]]
"""Split -> source -> runs."""


def read_runs(data: DataBlock) -> Runs:
    """The runs of a recipe's splits and sources.

    Raises:
        ValueError: an unknown source or split, a malformed file, a configuration that is not accepted.

    >>> runs = read_runs(DataBlock(sources=["marin"], data_dir="sample", config="intermediate"))
    >>> {split: len(of["marin"]) for split, of in runs.items()}, len(runs["train"]["marin"][0].steps)
    ({'train': 66, 'in_val': 16, 'ood_val': 14}, 18)
    """
    names = [data.splits.train, data.splits.select, *data.splits.report]
    runs: Runs = {name: {} for name in names}
    for source in data.sources:
        log = load_runs(source, _data_dir(data), data.config)
        for name in names:
            if name not in log:
                raise ValueError(f"data.splits: {source} has no split {name!r}, it has {', '.join(log)}")
            runs[name][source] = [_logged_run(row) for row in log[name] if row["final_loss"] is not None]
            if lost := len(log[name]) - len(runs[name][source]):
                warnings.warn(f"{source} {name}: {lost} runs have no final loss and are left out", stacklevel=2)
            if not runs[name][source]:
                raise ValueError(f"data.splits: {source} has no run with a final loss in {name!r}")
    return runs


def _data_dir(data: DataBlock) -> str | Path | None:
    return SAMPLE_DIR if data.data_dir == "sample" else data.data_dir


def _logged_run(row: Mapping[str, Any]) -> LoggedRun:
    try:
        # Not strict: a log may hold fields of its own, and a run that went wrong is a run all the same.
        config = check_config({**row["conf"], "max step": row["max_step"]}, strict=False)
    except ValueError as error:
        raise ValueError(f"{row['source']} run {row['name']!r}: {error}") from None
    curve = row.get("curve") or {"steps": [], "losses": []}
    points = [
        (step, loss)
        for step, loss in zip(curve["steps"], curve["losses"], strict=True)
        if 0 < step <= row["max_step"] and loss is not None
    ]
    if lost := len(curve["steps"]) - len(points):
        warnings.warn(f"{row['source']} run {row['name']!r}: {lost} curve points lie outside the run", stacklevel=3)
    kept = thin(points)
    return LoggedRun(config, row["final_loss"], [step for step, _ in kept], [loss for _, loss in kept])


def thin(points: Sequence[Any]) -> Sequence[Any]:
    """A curve's points for training: all, or every (length // 15)-th when there are more than 15 (NCPL, published).

    >>> len(thin(range(15))), list(thin(range(40)))[:3]
    (15, [0, 2, 4])
    """
    return points if len(points) <= CURVE_POINTS else points[:: len(points) // CURVE_POINTS]


def make_targets(runs: Sequence[LoggedRun], priors: Sequence[float] | np.ndarray) -> list[Run]:
    """Runs with the residuals to learn: their losses minus the prior's forecast of the final loss.

    >>> make_targets([LoggedRun({"source": "marin"}, 3.5, [10], [4.0])], [3.0])[0].curve
    [1.0]
    """
    return [
        Run(
            run.config,
            float(prior),
            run.final_loss - float(prior),
            run.steps,
            [loss - float(prior) for loss in run.losses],
        )
        for run, prior in zip(runs, priors, strict=True)
    ]


def pool(sources: Mapping[str, Sequence[LoggedRun]]) -> list[LoggedRun]:
    """All sources' runs, one after the other."""
    return [run for runs in sources.values() for run in runs]


# ------------------------------------------------------------------------------------------------ model


def build_model(
    block: ModelBlock,
    train: Sequence[LoggedRun],
    prior: Mapping[str, Any] | None = None,
    calibration: Mapping[str, Any] | None = None,
) -> tuple[NCPLForecaster, NCPLProcessor]:
    """The model before training, with fp32 weights, and its processor.

    Args:
        block: the recipe's.
        train: the training split, for a tokenizer from scratch.
        prior: the law's `to_dict()`, the published Chinchilla laws when absent; a checkpoint keeps its own.
        calibration: the calibration's `to_dict()`, where there is one; a checkpoint keeps its own.

    Raises:
        ValueError: the backbone or checkpoint does not load.
    """
    load = {"dtype": torch.float32, "attn_implementation": block.attn_implementation}
    hub = {} if block.revision is None else {"revision": block.revision}
    version = block.prompt_version or 1
    if block.scratch is not None:
        size = block.scratch
        tokenizer = train_tokenizer((run.config for run in train), version, size.vocab_size)
        text_config = scratch_config(len(tokenizer), size.hidden_size, size.num_layers, size.num_heads)
        config = NCPLConfig(text_config=text_config, **block.config)
        processor = NCPLProcessor(tokenizer, version, prior=prior, calibration=calibration)
        return NCPLForecaster._from_config(config, **load), processor
    if block.checkpoint is not None:
        processor = _load_processor(block)
        with _load_error("checkpoint", block.checkpoint):
            # What a checkpoint does not say about training is the recipe's: the loss.
            return NCPLForecaster.from_pretrained(block.checkpoint, **block.config, **load, **hub), processor
    assert block.backbone is not None
    with _load_error("backbone", block.backbone):
        model = NCPLForecaster.from_backbone(block.backbone, config=block.config, **load, **hub)
        tokenizer = AutoTokenizer.from_pretrained(block.backbone, **hub)
    return model, NCPLProcessor(tokenizer, version, prior=prior, calibration=calibration)


def _load_processor(block: ModelBlock) -> NCPLProcessor:
    assert block.checkpoint is not None
    with _load_error("checkpoint", block.checkpoint):
        return NCPLProcessor.from_pretrained(block.checkpoint, revision=block.revision or "main")


@contextmanager
def _load_error(key: str, name: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ValueError(f"model.{key}: {name!r} does not load: {' '.join(str(error).split())}") from error


@dataclass(frozen=True)
class FittedPrior:
    """The law whose residuals are learnt.

    Args:
        law: its `to_dict()`.
        forecasts: of the training runs, nats per token.
        calibration: a `Calibration`'s `to_dict()`, or None.
    """

    law: Mapping[str, Any]
    forecasts: np.ndarray
    calibration: Mapping[str, Any] | None = None


def make_prior(recipe: Recipe, train: Sequence[LoggedRun]) -> FittedPrior:
    """The law whose residuals are learnt, and what it forecasts for the training split.

    A law that is fitted here forecasts each training run as if it had not seen it (out of fold): its residuals on what
    it has seen are smaller than those the network will meet. It brings the calibration of intervals and divergence. The
    fit is kept in the output folder until training is done.

    Args:
        recipe: `model.prior` names the law.
        train: the training split.

    Raises:
        ValueError: the prior is not known.
    """
    name, configs = recipe.model.prior, [run.config for run in train]
    if recipe.model.checkpoint is not None:
        processor = _load_processor(recipe.model)
        return FittedPrior(processor.prior, processor.law(configs), processor.calibration)
    if name is None or name == "chinchilla":
        law = ChinchillaLaw()
    elif name != "configuration":
        try:
            law = law_from_dict(json.loads(Path(name).read_text(encoding="utf-8")))
        except (OSError, json.JSONDecodeError) as error:
            raise ValueError(
                f"model.prior: got {name!r}, expected chinchilla, configuration, or the path of a law's JSON ({error})"
            ) from None
    else:
        fitted: list[Any] = [_fit_configuration_law(recipe, train) if PartialState().is_main_process else None]
        broadcast_object_list(fitted)
        return FittedPrior(fitted[0]["law"], np.array(fitted[0]["forecasts"]), fitted[0]["calibration"])
    return FittedPrior(law.to_dict(), law(configs))


def _fit_configuration_law(recipe: Recipe, train: Sequence[LoggedRun]) -> dict[str, Any]:
    file = Path(recipe.output_dir) / "stages" / "prior.json"
    if not file.exists():
        # Only here, because it brings scipy and scikit-learn.
        from ncpl.fitting import fit, random_folds

        rows = [{"source": run.config["source"], "conf": run.config, "final_loss": run.final_loss} for run in train]
        fitted = fit(rows)
        calibration = fitted.calibration(_unstable(recipe.data, train), seed=recipe.seed).to_dict()
        state = {
            # The calibration's law is this one: it is kept once.
            "law": calibration.pop("law"),
            "forecasts": fitted.held_out(random_folds(rows, seed=recipe.seed)).tolist(),
            "calibration": calibration,
        }
        file.parent.mkdir(exist_ok=True)
        write_json(file, state)
    return json.loads(file.read_text())


def _unstable(data: DataBlock, train: Sequence[LoggedRun]) -> list[dict[str, Any]]:
    """Runs of no split that are no larger than those of their source trained on: what is known of divergence."""

    def size(config: Mapping[str, Any]) -> float:
        # The splits hold out mixtures of experts by what is active: their total sizes are nearly the same.
        return config.get("active size", config["model size"])

    kept = []
    for source in data.sources:
        largest = max(size(run.config) for run in train if run.config["source"] == source)
        rows = load_runs(source, _data_dir(data), data.config)["unstable"]
        kept += [row for row in rows if size(row["conf"]) <= largest]
    return kept


def add_adapters(model: NCPLForecaster, lora: Lora) -> PeftModel:
    """Low-rank adapters on the backbone; the number embedding and the head train in full (arXiv 2106.09685).

    Raises:
        ValueError: the backbone has no such layers.
    """
    config = LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.target_modules,
        modules_to_save=["numbers", "head"],
    )
    with _old_names_of_peft():
        return get_peft_model(model, config)


def load_adapter(adapter: str | Path) -> PeftModel:
    """An adapter that training wrote, over its base, which is found by the name the adapter holds.

    Raises:
        ValueError: the folder holds no adapter.
    """
    settings = Path(adapter) / "adapter_config.json"
    if not settings.exists():
        raise ValueError(f"adapter: {adapter} holds no adapter_config.json, expected a folder that training wrote")
    base = json.loads(settings.read_text())["base_model_name_or_path"]
    model = NCPLForecaster.from_pretrained(base, dtype=torch.float32)
    with _old_names_of_peft():
        return PeftModel.from_pretrained(model, str(adapter))


def merge_adapter(adapter: str | Path, output: str | Path) -> NCPLForecaster:
    """A forecaster with an adapter's changes written into its weights, saved with its processor.

    Args:
        adapter: folder of an adapter that training wrote.
        output: folder for the merged forecaster.

    Raises:
        ValueError: the folder holds no adapter.
    """
    merged = load_adapter(adapter).merge_and_unload()
    merged.save_pretrained(output)
    NCPLProcessor.from_pretrained(adapter).save_pretrained(output)
    return merged


@contextmanager
def _old_names_of_peft() -> Iterator[None]:
    """peft 0.21 asks transformers for activation checkpointing by its old name, which warns."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        yield


# ------------------------------------------------------------------------------------------------ evaluation


@dataclass
class Evaluation:
    """What is measured all along: every (split, source) cell, from one pass over all of them.

    Args:
        runs: split -> source -> runs.
        law: the prior, configurations -> losses in nats per token.
    """

    runs: Runs
    law: Callable[[Sequence[Mapping[str, Any]]], np.ndarray]
    items: list[Run] = field(init=False)
    """One item for each loss to forecast."""

    def __post_init__(self) -> None:
        self.items, self._cells = [], list[tuple[str, str, str]]()
        for split, sources in self.runs.items():
            for source, runs in sources.items():
                for run in make_targets(runs, self.law([run.config for run in runs])):
                    for point in run.points():
                        self.items.append(point)
                        self._cells.append((split, source, "final" if point.final is not None else "curve"))
        self._prior = np.array([item.prior for item in self.items])
        self._residual = np.array([item.curve[0] if item.final is None else item.final for item in self.items])

    def cells(self, residuals: np.ndarray | None = None) -> dict[str, dict[str, dict[str, dict[str, float]]]]:
        """Metrics by split, source and kind (`final` or `curve`); of the prior alone without residuals."""
        predicted = self._prior + (0.0 if residuals is None else np.asarray(residuals, np.float64))
        observed = self._prior + self._residual
        table: dict[str, Any] = {}
        for cell in dict.fromkeys(self._cells):
            split, source, kind = cell
            at = np.array([other == cell for other in self._cells])
            metrics = regression_metrics(predicted[at], observed[at])
            table.setdefault(split, {}).setdefault(source, {})[kind] = metrics
        return table

    def gains(self, residuals: np.ndarray, split: str) -> dict[str, dict[str, float]]:
        """By how much the residuals lower the mean error of a split's sources below the prior's, in nats per token.

        Args:
            residuals: one for each item.
            split: its name.

        Returns:
            source -> `mean` and `standard_error` of its gain. Runs of one optimizer, size and data size count as one
            witness: their errors move together.
        """
        gains = np.abs(self._residual) - np.abs(self._residual - np.asarray(residuals, np.float64))
        fields = ("optimizer", "model size", "active size", "data size")
        groups = [str([item.config.get(name) for name in fields]) for item in self.items]
        found = {}
        for source in self.runs[split]:
            at = np.array([cell == (split, source, "final") for cell in self._cells])
            mean, off = gains[at].mean(), defaultdict[str, float](float)
            for group, value in zip(np.array(groups)[at], gains[at], strict=True):
                off[group] += value - mean
            error = math.sqrt(sum(value**2 for value in off.values())) / at.sum()
            found[source] = {"mean": float(mean), "standard_error": float(error)}
        return found

    def __call__(self, prediction: EvalPrediction) -> dict[str, float]:
        """The cells as the Trainer logs them, with each split's mean error over its sources, `SPLIT_mae`."""
        flat: dict[str, float] = {}
        for split, sources in self.cells(cast(np.ndarray, prediction.predictions)).items():
            for source, kinds in sources.items():
                for kind, metrics in kinds.items():
                    prefix = f"{split}_{source}_" + ("curve_" if kind == "curve" else "")
                    flat |= {prefix + name: value for name, value in metrics.items() if name != "n"}
            flat[f"{split}_mae"] = float(np.mean([kinds["final"]["mae"] for kinds in sources.values()]))
        return flat


def metrics_table(metrics: Mapping[str, Any], prior: Mapping[str, Any]) -> Table:
    """The final metrics beside the prior's, for people."""
    table = Table(title="forecast error, nats per token", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in ("split", "source", "loss", "n", "MAE", "RMSE", "Spearman", "bias", "prior"):
        table.add_column(name, justify="left" if name in ("split", "source", "loss") else "right", no_wrap=True)
    for split, sources in metrics.items():
        for source, kinds in sources.items():
            for kind, m in kinds.items():
                figures = [f"{m[name]:.4f}" for name in ("mae", "rmse", "spearman", "bias")]
                before = f"{prior[split][source][kind]['mae']:.4f}"
                table.add_row(split, source, kind, str(m["n"]), *figures, before)
    return table


# ------------------------------------------------------------------------------------------------ stages


@dataclass
class StageRun:
    """One stage of a training: what goes in and where it is kept.

    Args:
        name: of the stage, `frozen` or `full`.
        stage: its settings.
        recipe: the whole recipe.
        runs: targets of the training split.

    Raises:
        ValueError: the batch does not split into micro-batches over the processes.
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
        packed = self.recipe.data.packed
        self.items = list(self.runs) if packed else [point for run in self.runs for point in run.points()]
        self.micro_batch = self._micro_batch()
        """Items a micro-batch on one process."""

    @property
    def done(self) -> bool:
        return (self.folder / "stage.json").exists()

    @property
    def result(self) -> dict[str, Any]:
        """Of a stage that is done: its `report` (steps, best step, metrics, parameters, wall time in seconds and the
        step it was resumed from) and its `log`."""
        return json.loads((self.folder / "stage.json").read_text())

    def train(
        self,
        model: NCPLForecaster,
        processor: NCPLProcessor,
        evaluation: Evaluation,
        callbacks: Sequence[TrainerCallback] = (),
    ) -> None:
        """Trains the stage, from its last checkpoint if there is one, and saves the model that did best.

        Args:
            model: trained in place; its weights are fp32.
            processor: the model's.
            evaluation: chooses the checkpoint and measures the result.
            callbacks: for the Trainer.
        """
        start = time.perf_counter()
        # Adapters start from random weights: the same ones, whatever happened before in this process.
        set_seed(self.recipe.seed)
        trainable = self._trainable(model, processor)
        trainer = self._trainer(trainable, processor, evaluation, callbacks)
        resumed = last_checkpoint(self.folder)
        trainer.train(resume_from_checkpoint=None if resumed is None else str(resumed))
        residuals = np.asarray(trainer.predict(cast(Any, evaluation.items)).predictions)
        select = self.recipe.data.splits.select
        gains = evaluation.gains(residuals, select)
        # One that helps some sources and not others has learnt these sources' runs, which says little of larger ones.
        beaten = all(gain["mean"] > gain["standard_error"] for gain in gains.values())
        kept = beaten or not (self.last and self.recipe.model.one_standard_error)
        if not kept:
            if trainer.is_world_process_zero():
                told = [f"{name} {gain['mean']:.4f} ± {gain['standard_error']:.4f}" for name, gain in gains.items()]
                print(f"{select}: the network gains {', '.join(told)} nats over the prior, which speaks alone")
            for name, parameter in trainable.named_parameters():
                if "head" in name.split("."):
                    parameter.data.zero_()
            residuals = np.zeros_like(residuals)
        trainer.save_model(str(self.output))
        report = {
            "steps": trainer.state.global_step,
            "best_step": trainer.state.best_global_step,
            "gain": {"kept": kept, "sources": gains},
            "metrics": evaluation.cells(residuals),
            "parameters": sum(p.numel() for p in trainable.parameters()),
            "trainable_parameters": sum(p.numel() for p in trainable.parameters() if p.requires_grad),
            "resumed_from_step": 0 if resumed is None else int(resumed.name.rpartition("-")[2]),
            "wall_s": round(time.perf_counter() - start, 1),
        }
        if trainer.is_world_process_zero():
            # Pickled arguments hold this machine's paths and are no part of a model.
            (self.output / "training_args.bin").unlink(missing_ok=True)
            write_json(self.folder / "stage.json", {"report": report, "log": trainer.state.log_history})
            for checkpoint in self.folder.glob("checkpoint-*"):
                shutil.rmtree(checkpoint)
        trainer.accelerator.wait_for_everyone()
        trainer.accelerator.free_memory()

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
        stage, items = self.stage, self.items
        batch = self.micro_batch * stage.gradient_accumulation_steps * PartialState().num_processes
        total = math.ceil(math.ceil(len(items) / batch) * stage.epochs)
        every = math.ceil(total / stage.evaluations)
        log_every = 10 if every >= 10 else 1
        # Checkpoints fall on logged steps, so that a resumed run logs the same means as an unbroken one.
        every = math.ceil(every / log_every) * log_every
        lengths = [len(processor.prefix(item.config)) + len(item.steps) for item in items]
        sampler = BatchSampler(lengths, batch, self.recipe.seed)
        on_gpu = PartialState().device.type == "cuda"
        splits = list(evaluation.runs)

        def line(state: Any, logs: Mapping[str, float]) -> str | None:
            errors = [f"{split} MAE {logs[f'eval_{split}_mae']:.4f}" for split in splits if f"eval_{split}_mae" in logs]
            return f"{self.name} step {state.global_step}/{state.max_steps}: {', '.join(errors)}" if errors else None

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
            per_device_train_batch_size=self.micro_batch,
            per_device_eval_batch_size=2 * self.micro_batch,
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
            save_total_limit=2,
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
        trainer = ForecasterTrainer(
            model=model,
            args=arguments,
            train_dataset=items,
            eval_dataset=evaluation.items,
            data_collator=self._collator(processor),
            processing_class=processor,
            compute_metrics=evaluation,
            stage=stage,
            sampler=sampler,
            callbacks=[Epochs(sampler), *callbacks],
        )
        trainer.remove_callback(PrinterCallback if arguments.disable_tqdm else ProgressCallback)
        trainer.add_callback((Lines if arguments.disable_tqdm else Bars)(line))
        return trainer

    def _collator(self, processor: NCPLProcessor) -> PlainCollator | PackedCollator:
        if not self.recipe.data.packed:
            return PlainCollator(processor)
        return PackedCollator(processor, self.recipe.model.attn_implementation, device=PartialState().device)

    def _micro_batch(self) -> int:
        stage, processes = self.stage, PartialState().num_processes
        parts = processes * stage.gradient_accumulation_steps
        targets = sum(item.targets for item in self.items) / len(self.items)
        micro_batch = stage.batch_size / parts / targets
        if micro_batch < 1 or (targets == 1 and micro_batch != int(micro_batch)):
            raise ValueError(
                f"stages.{self.name}.batch_size: {stage.batch_size} targets do not split into {parts} equal parts "
                f"({processes} processes x {stage.gradient_accumulation_steps} micro-batches)"
            )
        return round(micro_batch)


def last_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that was written to its end; a run that was killed may have left half of one.

    >>> last_checkpoint(Path("/nonexistent")) is None
    True
    """
    for checkpoint in sorted(folder.glob("checkpoint-*"), key=lambda path: -int(path.name.rpartition("-")[2])):
        try:
            # Written last.
            json.loads((checkpoint / "trainer_state.json").read_text())
        except (OSError, json.JSONDecodeError):
            continue
        return checkpoint
    return None


# ------------------------------------------------------------------------------------------------ processes, folders


def join_processes() -> PartialState:
    """This process among those of the launch; on CPUs they talk over gloo, which accelerate does only when told."""
    told = os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true"
    return PartialState(cpu=told or not torch.accelerator.is_available())


def open_output(recipe: Recipe) -> Path:
    """The output folder, in which `recipe.yaml` says whose it is.

    Raises:
        ValueError: the folder holds a training by another recipe, or something else.
    """
    folder = Path(recipe.output_dir)
    file = folder / "recipe.yaml"
    ours = recipe.to_dict()
    if file.exists():
        theirs = yaml.safe_load(file.read_text())
        for key, (old, new) in _differences(theirs, ours).items():
            raise ValueError(
                f"output_dir: {folder} holds a training whose {key} is {old!r}, this recipe says {new!r}; give another "
                "output_dir, or remove the folder"
            )
    elif folder.exists() and any(folder.iterdir()):
        raise ValueError(f"output_dir: {folder} holds something that is no training; give a new or empty folder")
    if PartialState().is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
        file.write_text(yaml.safe_dump(ours, sort_keys=False))
    return folder


def _differences(old: Any, new: Any, key: str = "") -> dict[str, tuple[Any, Any]]:
    if isinstance(old, dict) and isinstance(new, dict):
        found: dict[str, tuple[Any, Any]] = {}
        for name in {**old, **new}:
            found |= _differences(old.get(name), new.get(name), f"{key}.{name}" if key else name)
        return found
    return {} if old == new else {key: (old, new)}


def finish(recipe: Recipe, runs: Runs, stages: Sequence[StageRun], evaluation: Evaluation) -> None:
    """Writes the record and the log beside the trained model, and removes what was needed for resuming alone.

    The record says where the model comes from and how good it is: recipe, seed, hash of the data, versions, hardware,
    git state, parameters, metrics, those of the prior alone, and wall time in seconds.
    """
    output, process = Path(recipe.output_dir), PartialState()
    reports = {stage.name: stage.result["report"] for stage in stages}
    last = reports[stages[-1].name]
    record = {
        "recipe": recipe.to_dict(),
        "seed": recipe.seed,
        "data": {
            source: {
                "sha256": data_hash(source, _data_dir(recipe.data)),
                "runs": {split: len(sources[source]) for split, sources in runs.items()},
            }
            for source in recipe.data.sources
        },
        "versions": versions(),
        "hardware": {**hardware(), "device": process.device.type, "processes": process.num_processes},
        "git": git_state(),
        "parameters": last["parameters"],
        "metrics": last["metrics"],
        "prior_metrics": evaluation.cells(),
        "stages": reports,
        "wall_s": round(sum(report["wall_s"] for report in reports.values()), 1),
    }
    write_json(output / LOG, {stage.name: stage.result["log"] for stage in stages})
    write_json(output / RECORD, record)
    for weights in output.glob("*.safetensors"):
        # safetensors keeps what it writes to the owner; a model is there to be shared.
        weights.chmod((output / RECORD).stat().st_mode)
    shutil.rmtree(output / "stages")


def write_json(file: Path, data: Any) -> None:
    """Writes JSON in one piece: a reader sees the old file or the new one."""
    part = file.with_name(file.name + ".part")
    part.write_text(json.dumps(_strict(data), indent=2, allow_nan=False) + "\n", encoding="utf-8")
    part.replace(file)


def _strict(data: Any) -> Any:
    """JSON has no NaN: null stands for a figure that is not defined."""
    if isinstance(data, Mapping):
        return {key: _strict(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_strict(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data
