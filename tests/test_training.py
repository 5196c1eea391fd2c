"""Training through its door: recipes, both stages, resuming, adapters, several processes, and what is left on disk."""

import json
import math
import os
import signal
import time
import warnings
from itertools import chain
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import scipy.stats
import torch
from peft import AutoPeftModel

import run_train
from datasets_scripts import SAMPLE_DIR
from datasets_scripts.runs import data_hash
from laws_ncpl import law_from_dict
from modeling_ncpl import NCPLForecaster
from ncpl import Forecaster
from ncpl.metrics import regression_metrics
from ncpl.recipe import DataBlock, Stage, load_recipe
from ncpl.training.backbone import scratch_config, train_tokenizer
from ncpl.training.checkpoints import read_hashed
from ncpl.training.data import make_targets, pool, read_runs
from ncpl.training.model import load_adapter, merge_adapter
from ncpl.training.output import RECORD
from ncpl.training.trainer import BatchSampler
from processing_ncpl import NCPLProcessor
from tests.checkpoints import fresh_process
from tests.hub_server import HubServer
from tests.hub_server.server import TOKEN
from tests.trainings import Died, Interrupt, differences, launch, loss_curve, losses, weights

ROOT = Path(__file__).parent.parent

# ------------------------------------------------------------------------------------------------ parts


def test_published_schedule():
    """peak x min(1, s/w) x (1 - s/T)."""
    for warmup, w in ((1000, 1000), (0.1, 700)):
        stage = Stage(epochs=1, learning_rate=1e-5, warmup=warmup)
        for s in (0, 1, 350, 999, 1000, 3500, 7000):
            assert math.isclose(stage.rate(s, 7000), min(1, s / w) * (1 - s / 7000), abs_tol=1e-15)
    schedules: list[tuple[Any, float]] = [("linear", 0.5), ("cosine", 0.5), ("constant", 1.0)]
    for name, rate in schedules:
        stage = Stage(epochs=1, learning_rate=1, warmup=0, schedule=name)
        assert stage.rate(50, 100) == pytest.approx(rate)


@pytest.mark.parametrize("ties", [False, True])
def test_metrics_agree_with_scipy(ties):
    rng = np.random.default_rng(0)
    predicted, observed = rng.normal(3, 0.1, (2, 50))
    if ties:
        predicted, observed = predicted.round(1), observed.round(1)
    metrics = regression_metrics(predicted, observed)
    assert metrics["spearman"] == pytest.approx(scipy.stats.spearmanr(predicted, observed).statistic, abs=1e-12)
    assert metrics["mae"] == pytest.approx(sum(map(abs, predicted - observed)) / 50)
    assert metrics["rmse"] == pytest.approx(math.sqrt(sum((predicted - observed) ** 2) / 50))
    assert metrics["bias"] == pytest.approx(predicted.mean() - observed.mean())
    assert math.isnan(regression_metrics([1.0, 1.0], [1.0, 2.0])["spearman"])


@pytest.mark.parametrize(
    ("predicted", "observed", "message"),
    [([], [], "non-empty"), ([1.0], [1.0, 2.0], "equal"), ([1.0, math.nan], [1.0, 2.0], r"predicted\[1\]: got nan")],
)
def test_metrics_refuse(predicted, observed, message):
    with pytest.raises(ValueError, match=message):
        regression_metrics(predicted, observed)


def test_targets_are_losses_minus_prior():
    """Against the log itself, read without the project's code."""
    block = DataBlock(sources=["marin"], data_dir="sample", config="intermediate")
    logged = read_runs(block)["train"]["marin"]
    law = NCPLProcessor(_tokenizer(logged)).law
    targets = make_targets(logged, law([run.config for run in logged]))
    folder = ROOT / "datasets_scripts" / "sample"
    raw = {run["name"]: run for run in json.loads((folder / "marin_processed_data.json").read_text())}
    names = json.loads((folder / "marin_keys_model_split.json").read_text())["train"]
    a, alpha, b, beta, c = law.coefficients["marin"]
    for name, run in zip(names, targets, strict=True):
        conf = raw[name]["conf"]
        prior = a * conf["model size"] ** -alpha + b * conf["data size"] ** -beta + c
        assert run.final == pytest.approx(raw[name]["final_loss"] - prior, abs=1e-12)
        steps, losses = raw[name]["c4en_steps"], raw[name]["c4en_losses"]
        every = len(steps) // 15
        assert list(run.steps) == steps[::every]
        np.testing.assert_allclose(run.curve, np.array(losses[::every]) - prior, atol=1e-12)


def _tokenizer(runs):
    return train_tokenizer([run.config for run in runs], 2, 400)


@pytest.mark.parametrize("parts", [1, 2, 3, 4, 16])
def test_batches_do_not_depend_on_how_they_are_split(parts):
    """The same runs a step, sorted by length, in micro-batches that differ by at most one run."""
    lengths = np.random.default_rng(0).integers(20, 60, 103).tolist()
    sampler, whole = (BatchSampler(lengths, 16, n, seed=3) for n in (parts, 1))
    assert list(sampler) == list(BatchSampler(lengths, 16, parts, seed=3))
    assert len(list(sampler)) == len(sampler)

    def batches(sampler):
        slots = np.array(list(sampler)).reshape(-1, sampler.parts, sampler.slots)
        return [[[i for i in part if i < len(lengths)] for part in batch] for batch in slots.tolist()]

    split = batches(sampler)
    assert [list(chain(*parts)) for parts in split] == [batch for (batch,) in batches(whole)]
    assert sorted(chain(*chain(*split))) == list(range(103))
    for batch in split:
        sizes = [len(part) for part in batch]
        assert max(sizes) - min(sizes) <= 1
        run_lengths = [lengths[i] for part in batch for i in part]
        assert run_lengths == sorted(run_lengths)
    first = list(sampler)
    sampler.epoch = 1
    assert list(sampler) != first


# ------------------------------------------------------------------------------------------------ whole trainings


def test_record(trained):
    record = json.loads((trained / RECORD).read_text())
    assert set(record) >= {"recipe", "seed", "data", "versions", "hardware", "commit", "dirty", "parameters", "metrics"}
    assert isinstance(record["commit"], str | None)
    assert record["seed"] == 1
    assert record["recipe"]["stages"]["full"]["warmup"] == 2
    assert record["data"]["steplaw"]["sha256"] == data_hash("steplaw", SAMPLE_DIR)
    assert record["data"]["steplaw"]["runs"] == {"train": 66, "in_val": 16, "ood_val": 14}
    assert record["versions"]["torch"] == torch.__version__
    assert record["parameters"] == sum(p.numel() for p in weights(trained).values())
    full = record["stages"]["full"]
    assert full["steps"] == 6
    assert full["trainable_parameters"] == record["parameters"] > record["stages"]["frozen"]["trainable_parameters"]
    for file in trained.glob("*.[jy]*"):
        assert str(trained.parent) not in file.read_text(), file
    again = load_recipe(trained / "recipe.yaml", {"output_dir": "x"})
    assert again == load_recipe(trained.parent / "tiny.yaml", {"output_dir": "x"})
    # The best checkpoint by in_val is the one that was kept.
    errors = {row["step"]: row["eval_in_val_mae"] for row in loss_curve(trained)["full"] if "eval_in_val_mae" in row}
    assert len(errors) == 6
    assert full["best_step"] == min(errors, key=lambda step: errors[step])
    assert record["metrics"]["in_val"]["steplaw"]["final"]["mae"] == pytest.approx(min(errors.values()), abs=1e-7)


def test_recorded_metrics_are_those_of_the_saved_model(trained):
    """Once more, one run at a time through model and processor as users load them."""
    record = json.loads((trained / RECORD).read_text())
    model, processor = NCPLForecaster.from_pretrained(trained).eval(), NCPLProcessor.from_pretrained(trained)
    processor.strict = False
    assert all(p.dtype == torch.float32 for p in model.parameters())
    runs = read_runs(DataBlock(sources=["steplaw"], data_dir="sample"))
    for split in ("in_val", "ood_val"):
        predicted = []
        for run in runs[split]["steplaw"]:
            batch = processor(run.config)
            with torch.no_grad():
                predicted += processor.losses(model(**batch).logits, batch["loss_mask"], [run.config]).tolist()
        expected = regression_metrics(predicted, [run.final_loss for run in runs[split]["steplaw"]])
        for name, value in record["metrics"][split]["steplaw"]["final"].items():
            assert value == pytest.approx(expected[name], abs=1e-6)


def test_rates_of_both_stages(trained):
    """The logged learning rates are the published formula's, in each stage anew."""
    for name, warmup in (("frozen", 0.6), ("full", 2)):
        rates = [row["learning_rate"] for row in loss_curve(trained)[name] if "learning_rate" in row]
        expected = [1e-2 * min(1, s / warmup) * (1 - s / 6) for s in range(6)]
        assert rates == pytest.approx(expected, abs=1e-12)


def test_frozen_stage_leaves_the_backbone(tiny_recipe, tmp_path):
    run_train.main(tiny_recipe("frozen", stages__full="null"))
    run_train.main(tiny_recipe("start", stages__full="null", stages__frozen__learning_rate=1e-30))
    before, after = weights(tmp_path / "start"), weights(tmp_path / "frozen")
    for name in before:
        assert torch.equal(before[name], after[name]) == name.startswith("model."), name


def test_fitted_prior(tiny_recipe, tmp_path):
    """The network learns what a law that has not seen the run leaves over; a resumed training keeps the fit."""
    arguments = tiny_recipe("out", model__prior="configuration", stages__full="null", stages__frozen__epochs=1)
    with pytest.raises(Died):
        run_train.main(arguments, callbacks=[Interrupt("frozen", 2)])
    fitted = read_hashed(tmp_path / "out" / "stages" / "prior.json") or {}
    runs = pool(read_runs(DataBlock(sources=["steplaw"], data_dir="sample"))["train"])
    observed = np.array([run.final_loss for run in runs])
    seen = law_from_dict(fitted["law"])([run.config for run in runs])
    assert np.abs(seen - observed).mean() < np.abs(np.array(fitted["forecasts"]) - observed).mean() < 0.01
    run_train.main(arguments)
    kept = NCPLProcessor.from_pretrained(tmp_path / "out").law
    np.testing.assert_array_equal(kept([run.config for run in runs]), seen)
    # Better than the published Chinchilla law already, before the network has added anything.
    record = json.loads((tmp_path / "out" / RECORD).read_text())
    assert record["prior_metrics"]["in_val"]["steplaw"]["final"]["mae"] < 0.02
    assert not (tmp_path / "out" / "stages").exists()


def test_a_network_that_gains_nothing_has_no_effect(tiny_recipe, tmp_path, capsys):
    """One standard error: three steps at a tiny rate beat no law, and then the law's forecasts are what is saved."""
    rule = {"model__one_standard_error": "true", "stages__frozen": "null"}
    run_train.main(tiny_recipe("still", **rule, stages__full__learning_rate=1e-9))
    assert "forecasts use the law alone" in capsys.readouterr().out
    record = json.loads((tmp_path / "still" / RECORD).read_text())
    assert record["metrics"] == record["prior_metrics"]
    assert not record["stages"]["full"]["gain"]["kept"]
    config = read_runs(DataBlock(sources=["steplaw"], data_dir="sample"))["in_val"]["steplaw"][0].config
    forecaster = Forecaster.from_pretrained(tmp_path / "still")
    assert forecaster.predict(config)["loss"].item() == pytest.approx(forecaster.law([config])[0], abs=1e-6)


def test_a_network_that_gains_is_kept(tiny_recipe, trained, tmp_path):
    run_train.main(tiny_recipe("out", model__one_standard_error="true"))
    gain = json.loads((tmp_path / "out" / RECORD).read_text())["stages"]["full"]["gain"]
    own = gain["sources"]["steplaw"]
    assert gain["kept"]
    assert own["mean"] > own["standard_error"] > 0
    before = json.loads((trained / RECORD).read_text())
    errors = [before[of]["in_val"]["steplaw"]["final"]["mae"] for of in ("prior_metrics", "metrics")]
    assert own["mean"] == pytest.approx(errors[0] - errors[1], abs=1e-6)
    ours, theirs = weights(tmp_path / "out"), weights(trained)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("stage", ["frozen", "full"])
def test_resuming_gives_the_unbroken_curve(trained, tiny_recipe, tmp_path, stage):
    """Interrupted in the middle of an epoch, with a half-written checkpoint left behind."""
    arguments = tiny_recipe("out")
    with pytest.raises(Died):
        run_train.main(arguments, callbacks=[Interrupt(stage, 5)])
    folder = tmp_path / "out" / "stages" / stage
    assert (folder / "checkpoint-4" / "trainer_state.json").exists()
    (folder / "checkpoint-5").mkdir()
    (folder / "checkpoint-5" / "trainer_state.json").write_text('{"best')
    run_train.main(arguments)
    resumed = tmp_path / "out"
    assert json.loads((resumed / RECORD).read_text())["stages"][stage]["resumed_from_step"] == 4
    assert loss_curve(resumed) == loss_curve(trained)
    for name, value in weights(trained).items():
        assert torch.equal(value, weights(resumed)[name]), name


def test_a_folder_belongs_to_one_recipe(trained, capsys):
    recipe = [str(trained.parent / "tiny.yaml"), "--output_dir", str(trained)]
    before = (trained / RECORD).stat().st_mtime_ns
    run_train.main(recipe)
    assert "saved to" in capsys.readouterr().out
    assert (trained / RECORD).stat().st_mtime_ns == before
    with pytest.raises(SystemExit) as caught:
        run_train.main([*recipe, "--stages.full.epochs", "4"])
    assert caught.value.code == 2
    assert "whose stages.full.epochs is 2.0, this recipe says 4.0" in capsys.readouterr().err
    (trained.parent / "other").mkdir()
    (trained.parent / "other" / "thesis.txt").write_text("mine")
    with pytest.raises(SystemExit):
        run_train.main([*recipe[:2], str(trained.parent / "other")])
    assert "holds something that is no training" in capsys.readouterr().err


def test_push_to_hub(trained, monkeypatch, capsys):
    """What was trained is pushed whole, by the same command with one key more."""
    with HubServer() as server:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.url)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        recipe = str(trained.parent / "tiny.yaml")
        run_train.main([recipe, "--output_dir", str(trained), "--push_to_hub", "me/tiny"])
        files = set(huggingface_hub.HfApi(endpoint=server.url, token=TOKEN).list_repo_files("me/tiny"))
    assert {path.name for path in trained.iterdir()} <= files
    assert "README.md" in files
    assert server.url in capsys.readouterr().out


def test_accumulation_and_packing_change_no_batch(tiny_recipe, tmp_path):
    """With curve points, and a last batch that fills no micro-batch: the order of sums alone differs.

    By 1e-4 of the learning rate at most: Adam divides a gradient by its own size, so that a rounding difference of a
    gradient near zero moves its weight by a share of the learning rate, which is twice the largest of any recipe.
    """
    for packed, accumulated in ((False, 1), (False, 4), (True, 1), (True, 3)):
        changes: dict[str, Any] = {"data__config": "intermediate", "data__packed": packed, "stages__full": "null"}
        changes |= {"stages__frozen__gradient_accumulation_steps": accumulated, "stages__frozen__batch_size": 16}
        changes |= {"stages__frozen__learning_rate": 1e-3}
        run_train.main(tiny_recipe(f"{packed}-{accumulated}", **changes, stages__frozen__evaluations=1))
    for name in ("False-4", "True-1", "True-3"):
        assert differences(tmp_path / name, tmp_path / "False-1") < 1e-7
    record = json.loads((tmp_path / "True-3" / RECORD).read_text())
    assert record["metrics"]["in_val"]["steplaw"]["curve"]["n"] == 16 * 18
    assert record["stages"]["frozen"]["steps"] == 2 * math.ceil(66 / 16)


def test_adapter(trained, tiny_recipe, tmp_path):
    """From a trained forecaster: only adapters and heads are saved, the base stays, and merging changes nothing."""
    own = {"model__scratch": "null", "model__prompt_version": "null", "model__number_embedding": "null"}
    lora = {"stages__frozen": "null", "stages__full__lora__r": 4, "stages__full__lora__alpha": 8}
    before = weights(trained)
    run_train.main(tiny_recipe("adapter", model__checkpoint=trained, **own, **lora))
    adapter = tmp_path / "adapter"
    settings = json.loads((adapter / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == str(trained)
    assert (settings["r"], settings["modules_to_save"]) == (4, ["numbers", "head"])
    names = set(weights(adapter, "adapter_model.safetensors"))
    assert all("lora_" in name or "numbers" in name or "head" in name for name in names)
    assert any("lora_" in name for name in names)
    assert not (adapter / "model.safetensors").exists()
    record = json.loads((adapter / RECORD).read_text())
    assert record["stages"]["full"]["trainable_parameters"] < record["parameters"]

    merged = merge_adapter(adapter, tmp_path / "merged")
    assert all(torch.equal(value, weights(trained)[name]) for name, value in before.items())
    changed = {name for name, value in weights(tmp_path / "merged").items() if not torch.equal(value, before[name])}
    assert any("q_proj" in name for name in changed)
    assert not any("embed" in name or "norm" in name for name in changed)
    processor = NCPLProcessor.from_pretrained(tmp_path / "merged")
    batch = processor(
        {
            "source": "steplaw",
            "model size": 100,
            "data size": 4,
            "optimizer": "adamw",
            "learning rate": 1e-3,
            "batch size": 128,
        }
    )
    adapted = load_adapter(adapter).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft below 0.22 asks transformers by names that go away
        auto = AutoPeftModel.from_pretrained(adapter, trust_remote_code=True).eval()
    for name, weight in adapted.state_dict().items():
        assert torch.equal(weight, auto.state_dict()[name])
    with torch.no_grad():
        expected = adapted(**batch).logits
        assert torch.allclose(merged.eval()(**batch).logits, expected, atol=2e-6)
        assert not torch.allclose(NCPLForecaster.from_pretrained(trained).eval()(**batch).logits, expected, atol=1e-4)
    with pytest.raises(ValueError, match=r"holds no adapter_config.json"):
        merge_adapter(trained, tmp_path / "no")


def test_adapter_after_a_first_stage_keeps_its_base(tiny_recipe, tmp_path):
    run_train.main(tiny_recipe("out", stages__full__lora__r=2))
    settings = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == str(tmp_path / "out-base")
    merge_adapter(tmp_path / "out", tmp_path / "merged")
    NCPLForecaster.from_pretrained(tmp_path / "out-base")


def test_backbone_from_a_folder(tiny_recipe, tmp_path):
    """A causal language model's own weights are what stage 1 starts from and keeps."""
    from transformers import AutoConfig, AutoModelForCausalLM

    runs = pool(read_runs(DataBlock(sources=["steplaw"], data_dir="sample"))["train"])
    tokenizer = _tokenizer(runs)
    shape = scratch_config(len(tokenizer), 16, 1, 2)
    backbone = AutoModelForCausalLM.from_config(AutoConfig.for_model(**shape))
    backbone.save_pretrained(tmp_path / "qwen")
    tokenizer.save_pretrained(tmp_path / "qwen")
    changes = {"model__scratch": "null", "model__backbone": tmp_path / "qwen", "stages__full": "null"}
    run_train.main(tiny_recipe("out", **changes))
    saved = weights(tmp_path / "out")
    for name, value in backbone.model.state_dict().items():
        assert torch.equal(saved[f"model.{name}"], value), name


def test_bf16_keeps_fp32_weights_and_numbers(tiny_recipe, trained, tmp_path):
    run_train.main(tiny_recipe("bf16", stages__frozen__bf16="true", stages__full="null"))
    assert all(value.dtype == torch.float32 for value in weights(tmp_path / "bf16").values())
    rounded, exact = losses(tmp_path / "bf16", "frozen"), losses(trained, "frozen")
    assert rounded != exact
    assert rounded == pytest.approx(exact, rel=0.05)
    # Two learning rates that bf16 cannot tell apart are two inputs all the same.
    model = NCPLForecaster.from_pretrained(trained)
    values = torch.tensor([[1.0, 1.001]])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        embedded = model.numbers(values)
    assert torch.equal(embedded, model.numbers(values))
    assert not torch.equal(embedded[0, 0], embedded[0, 1])


def test_saved_folder_loads_without_the_project(trained, tmp_path):
    code = """
import json, sys, torch
from transformers import AutoModel, AutoProcessor
model = AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True)
processor = AutoProcessor.from_pretrained(sys.argv[1], trust_remote_code=True)
config = json.loads(sys.argv[2])
batch = processor(config)
with torch.no_grad():
    print(json.dumps(processor.losses(model(**batch).logits, batch["loss_mask"], [config]).tolist()))
"""
    config = {"source": "steplaw", "model size": 100, "data size": 4, "optimizer": "adamw", "learning rate": 1e-3}
    config["batch size"] = 128
    there = fresh_process(code, trained, json.dumps(config), home=tmp_path, HF_HUB_OFFLINE="1")
    model, processor = NCPLForecaster.from_pretrained(trained).eval(), NCPLProcessor.from_pretrained(trained)
    batch = processor(config)
    with torch.no_grad():
        assert there == processor.losses(model(**batch).logits, batch["loss_mask"], [config]).tolist()


# ------------------------------------------------------------------------------------------------ as users launch it


def test_killed_and_launched_again(tiny_recipe, trained, tmp_path):
    """`accelerate launch`, killed in stage 2 as soon as there is a checkpoint, and the same command again."""
    arguments = tiny_recipe("out")
    running = launch(arguments, "--cpu", "--num_processes", "1")
    folder = tmp_path / "out" / "stages" / "full"
    while running.poll() is None and not list(folder.glob("checkpoint-*/trainer_state.json")):
        time.sleep(0.01)
    os.killpg(running.pid, signal.SIGKILL)
    running.communicate()
    again = launch(arguments, "--cpu", "--num_processes", "1")
    out = again.communicate(timeout=300)[0]
    assert again.returncode == 0, out
    assert "forecast error, nats per token" in out
    assert "%|" not in out  # no progress bars in a pipe
    assert loss_curve(tmp_path / "out") == loss_curve(trained)


@pytest.mark.slow
def test_two_processes_are_one(tiny_recipe, trained, tmp_path):
    """Each batch over two processes: the same steps, and no run is measured twice (16 and 14 fill no batch)."""
    config = "recipes/accelerate/ddp-cpu.yaml"
    running = launch(tiny_recipe("out"), "--config_file", config, "--main_process_port", "29512")
    out = running.communicate(timeout=500)[0]
    assert running.returncode == 0, out
    one, two = (json.loads((f / RECORD).read_text()) for f in (trained, tmp_path / "out"))
    assert two["hardware"]["processes"] == 2
    for split, n in (("in_val", 16), ("ood_val", 14)):
        assert two["metrics"][split]["steplaw"]["final"]["n"] == n
        for name, value in one["metrics"][split]["steplaw"]["final"].items():
            assert two["metrics"][split]["steplaw"]["final"][name] == pytest.approx(value, abs=1e-4)
    assert losses(tmp_path / "out", "full") == pytest.approx(losses(trained, "full"), rel=1e-3)


@pytest.mark.slow
def test_quickstart(tmp_path):
    running = launch(["recipes/quickstart.yaml", "--output_dir", str(tmp_path / "out")])
    out = running.communicate(timeout=500)[0]
    assert running.returncode == 0, out
    record = json.loads((tmp_path / "out" / RECORD).read_text())
    for split in ("in_val", "ood_val"):
        for source in ("marin", "steplaw"):
            for kind in ("final", "curve"):
                ours, prior = (record[name][split][source][kind]["mae"] for name in ("metrics", "prior_metrics"))
                assert ours < prior
