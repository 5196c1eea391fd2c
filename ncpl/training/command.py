"""The training command: `run_train.py RECIPE`."""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from ncpl.blocks import check, describe, parse_overrides, read_yaml
from ncpl.recipe import NSPRecipe, Recipe

if TYPE_CHECKING:
    from accelerate import PartialState

DESCRIPTION = """Trains a forecaster by a recipe, on one CPU or many GPUs.

    accelerate launch run_train.py recipes/quickstart.yaml                # made-up runs, about a minute on a laptop
    accelerate launch run_train.py recipes/ncpl-mini.yaml --seed 7        # any key of the recipe, by its dotted name
    accelerate launch --config_file recipes/accelerate/ddp.yaml run_train.py recipes/ncpl-final.yaml

The same command, given again after an interruption, resumes from the last checkpoint.
"""


def parse(arguments: Sequence[str] | None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(
        prog="run_train.py",
        usage="accelerate launch run_train.py recipes/NAME.yaml [--key value ...]",
        description=DESCRIPTION,
        epilog="\n  ".join(
            ["keys of a recipe:", *describe(Recipe), "", "keys of a recipe with `kind: nsp`:", *describe(NSPRecipe)]
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("recipe", help="a YAML file, such as those in recipes/; --key value overrides one of its keys")
    given, rest = parser.parse_known_args(arguments)
    return read_yaml(given.recipe, parse_overrides(rest))


def main(arguments: Sequence[str] | None = None, callbacks: Sequence[Any] = ()) -> None:
    """Parse, load, build, train, evaluate, record.

    Args:
        arguments: the command line's.
        callbacks: `TrainerCallback`s for every stage.
    """
    try:
        values = parse(arguments)
        if values.get("kind") == "nsp":
            train_nsp(check(NSPRecipe, values), values)
            return
        recipe = check(Recipe, values)
    except ValueError as error:
        fail(error)
    # Only now: a wrong recipe need not wait seconds for these.
    import datasets
    import transformers
    from rich.console import Console

    from ncpl.training import evaluation, output

    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
        transformers.utils.logging.disable_progress_bar()
    process = join_processes()
    try:
        with process.local_main_process_first():
            folder = output.open_output(recipe)
    except ValueError as error:
        fail(error)

    record = folder / output.RECORD
    if not record.exists():
        train(recipe, callbacks)
    if process.is_main_process:
        told = json.loads(record.read_text())
        Console().print(evaluation.metrics_table(told["metrics"], told["prior_metrics"]))
        print(f"saved to {folder}")
        push_to_hub(folder, recipe.push_to_hub)
    process.wait_for_everyone()


def join_processes() -> "PartialState":
    """This process among those of the launch; on CPUs they communicate over gloo, which accelerate must be told."""
    import torch
    from accelerate import PartialState

    requested = os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true"
    return PartialState(cpu=requested or not torch.accelerator.is_available())


def train(recipe: Recipe, callbacks: Sequence[Any]) -> None:
    import torch
    from transformers import set_seed

    from modeling_ncpl import NCPLForecaster
    from ncpl.training import data
    from ncpl.training.evaluation import Evaluation
    from ncpl.training.model import build_model
    from ncpl.training.output import finish
    from ncpl.training.prior import make_prior
    from ncpl.training.stages import StageRun

    process, splits = join_processes(), recipe.data.splits
    set_seed(recipe.seed)

    # 1. The runs, the model and the plan: whatever a user can get wrong shows here.
    try:
        with process.local_main_process_first():
            runs = data.read_runs(recipe.data)
        train_runs = data.pool(runs[splits.train])
        prior = make_prior(recipe, train_runs)
        model, processor = build_model(recipe.model, train_runs, prior.law, prior.calibration)
        # What it was once taught it still answers: a checkpoint trained on curves stays one.
        model.config.curves |= recipe.data.config == "intermediate"
        targets = data.make_targets(train_runs, prior.forecasts)
        stages = [StageRun(name, stage, recipe, targets) for name, stage in recipe.stages.items()]
    except ValueError as error:
        fail(error)
    measured = {split: runs[split] for split in (splits.select, *splits.report)}
    evaluation = Evaluation(measured, processor.law)

    # 2. The stages, each from the best model of the one before; one that is done already is not done again.
    for stage in stages:
        if not stage.done:
            stage.train(model, processor, evaluation, callbacks)
        if stage is not stages[-1]:
            attention = recipe.model.attn_implementation
            model = NCPLForecaster.from_pretrained(stage.output, dtype=torch.float32, attn_implementation=attention)

    # 3. The record, beside the model.
    if process.is_main_process:
        finish(recipe, runs, {stage.name: stage.result for stage in stages}, evaluation.cells())
    process.wait_for_everyone()


def train_nsp(recipe: NSPRecipe, values: dict[str, Any]) -> None:
    """The predictor of benchmark scores: minutes on one core, without interruption."""
    from ncpl.nsp.train import train as train_scores

    blocks = {key: value for key, value in values.items() if key not in ("output_dir", "push_to_hub")}
    train_scores(blocks, recipe.output_dir, progress=sys.stderr.isatty())
    print(f"saved to {recipe.output_dir}")
    push_to_hub(recipe.output_dir, recipe.push_to_hub)


def push_to_hub(output: str | Path, repo_id: str | None) -> None:
    if repo_id:
        from ncpl.hub import push

        try:
            print(push(output, repo_id))
        except ValueError as error:
            fail(error)


def fail(error: ValueError) -> NoReturn:
    """A user's error: one line and exit status 2."""
    print(f"run_train.py: {error}", file=sys.stderr)
    sys.exit(2)
