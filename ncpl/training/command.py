"""The training command: `run_train.py RECIPE`."""

import argparse
import errno
import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from ncpl.blocks import check, describe, parse_overrides, read_yaml
from ncpl.errors import Stopped
from ncpl.recipe import NSPRecipe, Recipe

DISK_ERRORS = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.EFBIG,
    errno.EIO,
    errno.ENOTDIR,
    errno.ENAMETOOLONG,
}
"""Of the disk or the path, not of this program."""

DESCRIPTION = """Trains a forecaster by a recipe, on one CPU or many GPUs.

    accelerate launch run_train.py recipes/quickstart.yaml                # made-up runs, two minutes on two CPU cores
    accelerate launch run_train.py recipes/ncpl-mini.yaml --seed 7        # any key of the recipe, by its dotted name
    accelerate launch --config_file recipes/accelerate/ddp.yaml run_train.py recipes/ncpl-final.yaml

The same command, given again after an interruption, resumes from the last checkpoint.
"""


def parse(arguments: Sequence[str] | None, program: str) -> dict[str, Any]:
    parser = argparse.ArgumentParser(
        prog=program,
        usage=f"{program} recipes/NAME.yaml [--key value ...]",
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


def main(arguments: Sequence[str] | None = None, callbacks: Sequence[Any] = (), program: str = "run_train.py") -> None:
    """Trains by a recipe, from the command line to the record.

    Args:
        arguments: the command line's.
        callbacks: `TrainerCallback`s for every stage.
        program: the command's name, for its messages.
    """
    try:
        values = parse(arguments, program)
        if values.get("kind") == "nsp":
            train_nsp(check(NSPRecipe, values))
        else:
            train_forecaster(check(Recipe, values), callbacks)
    except ValueError as error:
        end(program, str(error), 2)
    except Stopped as error:
        end(program, f"{error}; the same command resumes there", 128 + error.signal)
    except KeyboardInterrupt:
        end(program, "interrupted; the same command resumes from the last checkpoint", 128 + signal.SIGINT)
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        end(
            program,
            f"{error.filename or 'output_dir'}: {error.strerror}; the same command resumes once this is mended",
            2,
        )


def train_forecaster(recipe: Recipe, callbacks: Sequence[Any] = ()) -> None:
    """Trains NCPL in an output folder of its own, and prints its errors beside the prior's."""
    # Only now: a wrong recipe need not wait seconds for these.
    import datasets
    import transformers
    from rich.console import Console

    from ncpl.training.evaluation import metrics_table
    from ncpl.training.output import RECORD, hold_output, open_output
    from ncpl.training.processes import join_processes, on_main_process

    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
        transformers.utils.logging.disable_progress_bar()
    process, folder = join_processes(), Path(recipe.output_dir)
    with hold_output(folder):
        if on_main_process(lambda: open_output(recipe)) is None:
            train(recipe, callbacks)
    process.wait_for_everyone()
    if process.is_main_process:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        Console().print(metrics_table(record["metrics"], record["prior_metrics"]))
        print(f"saved to {folder}")
        push_to_hub(folder, recipe.push_to_hub)
    process.wait_for_everyone()


def train(recipe: Recipe, callbacks: Sequence[Any]) -> None:
    """The runs, the prior, the model, the stages and the record, in order."""
    import torch
    from transformers import set_seed

    from modeling_ncpl import NCPLForecaster
    from ncpl.training.data import make_targets, pool, read_runs
    from ncpl.training.evaluation import Evaluation
    from ncpl.training.model import build_model
    from ncpl.training.output import finish
    from ncpl.training.prior import make_prior
    from ncpl.training.processes import join_processes, on_main_process
    from ncpl.training.stages import StageRun

    process, splits = join_processes(), recipe.data.splits
    set_seed(recipe.seed)

    # 1. The runs, the model and the stages: whatever a user can get wrong shows here.
    with process.local_main_process_first():
        runs = read_runs(recipe.data)
    train_runs = pool(runs[splits.train])
    prior = make_prior(recipe, train_runs)
    model, processor = build_model(recipe.model, train_runs, prior.law, prior.calibration)
    # A checkpoint that was trained on curves still forecasts them.
    model.config.curves |= recipe.data.config == "intermediate"
    targets = make_targets(train_runs, prior.forecasts)
    stages = [StageRun(name, stage, recipe, targets) for name, stage in recipe.stages.items()]
    evaluation = Evaluation({split: runs[split] for split in (splits.select, *splits.report)}, processor.law)

    # 2. Each stage starts from the best model of the one before; one that is done is not done again.
    for stage in stages:
        if not on_main_process(lambda stage=stage: stage.done):  # type: ignore[misc]
            stage.train(model, processor, evaluation, callbacks)
        if stage is not stages[-1]:
            attention = recipe.model.attn_implementation
            model = NCPLForecaster.from_pretrained(stage.output, dtype=torch.float32, attn_implementation=attention)

    # 3. The record, beside the model.
    if process.is_main_process:
        finish(recipe, runs, {stage.name: stage.result for stage in stages}, evaluation.cells())
    process.wait_for_everyone()


def train_nsp(recipe: NSPRecipe) -> None:
    """Trains NSP, which takes minutes on one core, without interruption."""
    from ncpl.nsp.train import train as train_scores

    train_scores(recipe, progress=sys.stderr.isatty())
    print(f"saved to {recipe.output_dir}")
    push_to_hub(recipe.output_dir, recipe.push_to_hub)


def push_to_hub(output: str | Path, repo_id: str | None) -> None:
    """Pushes the trained model, where the recipe names a repository."""
    if repo_id:
        from ncpl.hub.push import push

        print(push(output, repo_id))


def end(program: str, message: str, status: int) -> NoReturn:
    """One line, said by the first process alone, and the exit status."""
    if os.environ.get("RANK", "0") == "0":
        print(f"{program}: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(status)
