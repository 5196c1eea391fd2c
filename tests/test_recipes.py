"""Recipes of both models: what is accepted, and what is told of the rest."""

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import yaml

import run_train
from ncpl import Forecaster
from ncpl.blocks import describe, parse_overrides
from ncpl.recipe import Recipe, load_recipe
from tests.trainings import TINY

ROOT = Path(__file__).parent.parent
RECIPES = [path for path in sorted((ROOT / "recipes").glob("*.yaml")) if not path.stem.startswith("nsp")]

# ------------------------------------------------------------------------------------------------ recipes


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_are_accepted(path):
    recipe = load_recipe(path)
    assert recipe.output_dir == f"outputs/{path.stem}"
    assert recipe.data.splits.train == "train"
    assert recipe.data.splits.select == "in_val"


def test_published_recipes():
    """The published hyper-parameters, as DESIGN.md lists them."""
    for name, frozen, full in (("final", 20, 1000), ("intermediate", 10, 400)):
        recipe = load_recipe(ROOT / "recipes" / f"ncpl-{name}.yaml")
        assert recipe.model.backbone == "Qwen/Qwen3-1.7B"
        assert recipe.model.config == {"prompt_version": 1, "number_embedding": "mlp", "loss_type": "mse"}
        assert (recipe.data.config, recipe.seed, recipe.model.prior) == (name, 42, "chinchilla")
        one, two = (stage for _, stage in recipe.stages.items())
        assert (one.epochs, one.learning_rate, one.warmup) == (frozen, 5e-5, 0.1)
        assert (two.epochs, two.learning_rate, two.warmup) == (full, 1e-5, 1000)
        for stage in (one, two):
            assert (stage.betas, stage.weight_decay, stage.max_grad_norm) == ((0.9, 0.99), 0.01, 1.0)
            # A run of the intermediate configuration has 16 losses or more: as many losses a batch.
            assert stage.batch_size == (480 if name == "final" else 30)
            assert (stage.bf16, stage.tf32, stage.schedule) == (False, False, "linear")


BAD_RECIPES = [
    ({"stages.full.epoch": "3"}, "stages.full.epoch: not a key, did you mean stages.full.epochs?"),
    ({"modle.backbone": "x"}, "modle: not a key, did you mean model?"),
    ({"stages.full.epochs": "many"}, "stages.full.epochs: got 'many', expected a number"),
    ({"stages.full.epochs": "0"}, "stages.full.epochs: got 0, expected more than 0"),
    ({"stages.full.learning_rate": "-1e-4"}, "stages.full.learning_rate: got -0.0001, expected more than 0"),
    ({"stages.full.learning_rate": ".nan"}, "stages.full.learning_rate: got nan, expected a number"),
    ({"stages.full.learning_rate": "null"}, "stages.full.learning_rate: missing, expected a number"),
    ({"stages.full.batch_size": "2.5"}, "stages.full.batch_size: got 2.5, expected an integer"),
    ({"stages.full.batch_size": "0"}, "stages.full.batch_size: got 0, expected at least 1"),
    ({"stages.full.gradient_accumulation_steps": "70"}, "stages.full.batch_size: got 22, expected at least the 70"),
    ({"stages.full.betas": "[0.9]"}, "stages.full.betas: got [0.9], expected a list of 2 numbers"),
    ({"stages.full.bf16": "1"}, "stages.full.bf16: got 1, expected true or false"),
    ({"stages.full.schedule": "liner"}, "did you mean linear?"),
    ({"stages.full.epochs.max": "3"}, "stages.full.epochs: holds 2, there is no stages.full.epochs.max"),
    ({"stages.full": "3"}, "stages.full: got 3, expected a block of epochs"),
    ({"stages.frozen": "null", "stages.full": "null"}, "stages: got no stage, expected frozen, full, or both"),
    ({"stages.frozen.lora.r": "4"}, "stages.frozen.lora: the backbone is frozen"),
    ({"stages.full.lora.r": "0"}, "stages.full.lora.r: got 0, expected at least 1"),
    ({"model.scratch": "null"}, "model: got none of backbone, scratch and checkpoint, expected one"),
    ({"model.backbone": "x/y"}, "model: got backbone and scratch of backbone, scratch and checkpoint, expected one"),
    ({"model.scratch.hidden_size": "18"}, "model.scratch.hidden_size: got 18, expected a multiple of twice num_heads"),
    ({"model.prompt_version": "3"}, "model.prompt_version: got 3, expected 1 or 2"),
    ({"model.scratch": "null", "model.checkpoint": "x"}, "model.prompt_version: a checkpoint keeps its own"),
    ({"model.one_standard_error": "true", "data.config": "intermediate"}, "model.one_standard_error: judges final"),
    ({"data.config": "finale"}, "data.config: got 'finale', expected final or intermediate; did you mean final?"),
    ({"data.sources": "[]"}, "data.sources: got an empty list"),
    ({"data.splits.select": "train"}, "data.splits: a split has one role, got train train"),
    ({"seed": "one"}, "seed: got 'one', expected an integer"),
    ({"push_to_hub": "me/x", "stages.full.lora.r": "4"}, "push_to_hub: an adapter needs its base on the Hub"),
]


@pytest.mark.parametrize(("changes", "message"), BAD_RECIPES, ids=lambda value: "".join(value)[:40])
def test_bad_recipes(tmp_path, changes, message):
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(TINY))
    with pytest.raises(ValueError, match=re.escape(message)):
        load_recipe(path, changes)


def test_all_problems_of_a_recipe_are_told_at_once(tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(TINY))
    with pytest.raises(ValueError, match=r"stages\.full\.epoch: not a key") as caught:
        load_recipe(path, {"stages.full.epoch": "3", "seed": "one", "data.packed": "7"})
    for part in ("seed: got 'one', expected an integer", "data.packed: got 7, expected true or false"):
        assert part in str(caught.value)
    with pytest.raises(ValueError, match=r"; and \d+ more$") as caught:
        load_recipe(path, {f"stages.full.nonsense{i}": "1" for i in range(50)})
    assert len(str(caught.value)) <= 300


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "recipe.yaml: cannot be read"),
        ("model: {", "recipe.yaml: not YAML"),
        ("model: {}\nmodel: {}", "model: given twice"),
        ("- a list", "expected the blocks model, data and stages"),
        ("stages: {full: {epochs: 1, learning_rate: 1e-3}}", "model: missing, expected a block of"),
    ],
)
def test_bad_recipe_files(tmp_path, text, message):
    path = tmp_path / "recipe.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ValueError, match=message):
        load_recipe(path)


def test_yaml_numbers_and_overrides(tmp_path):
    """A recipe is YAML 1.2, in which 1e-4 is a number (YAML 1.1 reads text)."""
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(TINY) + "output_dir: there\n")
    assert yaml.safe_load("rate: 1e-4") == {"rate": "1e-4"}
    words = ["--stages.full.learning_rate", "1e-4", "--stages.frozen=null", "--stages.full.lora.alpha", "8"]
    recipe = load_recipe(path, parse_overrides(words))
    full = recipe.stages.full
    assert full is not None
    assert full.lora is not None
    assert (full.learning_rate, full.lora.alpha, recipe.stages.frozen, recipe.output_dir) == (1e-4, 8.0, None, "there")
    assert "stages.full.lora.alpha (a number, 32.0)" in describe(Recipe)
    for words, message in ((["epochs", "3"], "not an option"), (["--seed"], "no value"), (["--a", "--b"], "no value")):
        with pytest.raises(ValueError, match=message):
            parse_overrides(words)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stages__full__epoch": 3}, "did you mean stages.full.epochs?"),
        ({"data__sources": "[marine]"}, "did you mean 'marin'?"),
        ({"data__splits__select": "val"}, "data.splits: steplaw has no split 'val', it has train, in_val, ood_val"),
        ({"data__data_dir": "/nonexistent"}, "data_dir: /nonexistent is not a folder"),
        ({"model__scratch": "null", "model__backbone": "/nonexistent"}, "model.backbone: '/nonexistent' does not load"),
        ({"model__prior": "chinchila"}, "model.prior: got 'chinchila', expected chinchilla, configuration"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_user_errors_end_with_status_2(tiny_recipe, capsys, changes, message):
    with pytest.raises(SystemExit) as caught:
        run_train.main(tiny_recipe(**changes))
    assert caught.value.code == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert len(error.splitlines()) == 1


def test_score_recipes_are_checked_too(tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        run_train.main([str(ROOT / "recipes" / "nsp-base.yaml"), "--training.step", "3", "--output_dir", str(tmp_path)])
    assert caught.value.code == 2
    assert "training.step: not a key, did you mean training.steps?" in capsys.readouterr().err


def test_a_score_recipe_of_a_wrong_type_leaves_the_folder_alone(tmp_path, capsys):
    (tmp_path / "model.safetensors").write_text("mine")
    recipe = [str(ROOT / "recipes" / "nsp-base.yaml"), "--output_dir", str(tmp_path)]
    for change, message in (
        (["--evaluation.seeds", "three"], "evaluation.seeds: got 'three', expected a list of integers"),
        (["--model.hidden_size", "wide"], "model.hidden_size: got 'wide', expected an integer"),
        (["--seed", "1.5"], "seed: got 1.5, expected an integer"),
    ):
        with pytest.raises(SystemExit) as caught:
            run_train.main([*recipe, *change])
        assert caught.value.code == 2
        assert message in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]


def test_the_recipe_of_whole_curves_runs_end_to_end_in_packs(tmp_path):
    """With a backbone of a few thousand weights in place of the published one, on made-up curves."""
    changes = {
        "model.backbone": "null", "model.scratch": "{hidden_size: 16, num_layers: 1, num_heads: 2, vocab_size: 400}",
        "data.data_dir": "sample", "data.packed": "true", "output_dir": str(tmp_path),
        "stages.frozen.epochs": "1", "stages.frozen.gradient_accumulation_steps": "2", "stages.frozen.evaluations": "1",
        "stages.full.epochs": "2", "stages.full.gradient_accumulation_steps": "2", "stages.full.evaluations": "2",
    }  # fmt: skip
    words = [word for name, value in changes.items() for word in (f"--{name}", value)]
    run_train.main([str(ROOT / "recipes" / "ncpl-intermediate.yaml"), *words])
    record = json.loads((tmp_path / "training_record.json").read_text(encoding="utf-8"))
    for source in ("marin", "steplaw"):
        curve = record["metrics"]["in_val"][source]["curve"]
        assert curve["n"] > 200
        assert math.isfinite(curve["mae"])
    forecaster = Forecaster.from_pretrained(tmp_path)
    config = {"source": "marin", "model size": 300, "data size": 6, "optimizer": "adamw", "learning rate": 4e-3}
    config |= {"batch size": 128, "seq len": 4096}
    drawn = forecaster.curve(config, 5)
    assert forecaster.network is not None
    # The network's curve and not the law's.
    expected = forecaster.network.curve(forecaster.check([config])[0], drawn["step"].tolist())
    np.testing.assert_allclose(drawn["loss"], expected, atol=1e-5)
