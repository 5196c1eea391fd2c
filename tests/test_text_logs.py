"""Printed logs of many frameworks, folders of several files, and command lines: each run's last step and loss."""

import json
import warnings

import pytest

from ncpl import import_runs
from ncpl.command_lines import read_command_line
from ncpl.configs import read_configs
from ncpl.files import parse_value
from ncpl.logs.text_logs import read_text_log

ESCAPE = "\x1b[31m"
# Log -> last step, horizon, final loss.
LOGS = {
    "nanoGPT": (
        "step 0: train loss 10.9, val loss 10.91\niter 0: loss 10.9, time 12345.67ms, mfu -100.00%\n"
        "iter 1990: loss 3.1, time 123.1ms, mfu 38.12%\nstep 2000: train loss 3.2, val loss 3.3\n",
        (2000, 2000, 3.3),
    ),
    "speed run": (
        "import torch\nstep = 0\nloss = None\nstep:0/5100 val_loss:10.8 train_time:0ms step_avg:nanms\n"
        "step:5100/5100 train_loss:3.2 train_time:18999ms step_avg:151.1ms\n"
        "step:5100/5100 val_loss:3.28 train_time:18881ms step_avg:151.05ms\n",
        (5100, 5100, 3.28),
    ),
    "torchtitan": (
        "[titan] 2025-02-10 16:45:06,123 - root - INFO - step: 10  loss:  7.0012  grad_norm:  1.2345  tps: 1,234\n"
        f"[titan] 2025-02-10 16:45:06,123 - root - INFO - {ESCAPE}step: 20  {ESCAPE}loss:  6.5  tflops: 22.1\n",
        (20, 20, 6.5),
    ),
    "litgpt": (
        "Epoch 1 | iter 10 step 1 | loss train: 10.2, val: n/a | iter time: 300.12 ms (step) remaining time: 3 days\n"
        "Epoch 1 | iter 20 step 2 | loss train: 9.2, val: 9.300 | iter time: 300.12 ms (step) remaining time: 3 days\n",
        (2, 2, 9.3),
    ),
    "OLMo": (
        "2025-01-01 00:00:00\thost:0\ttrain:100\tINFO\t[step=4999/5000,epoch=0]\n    optim/total_grad_norm=0.9\n"
        "    train/CrossEntropyLoss=4.2\n    train/Perplexity=66.69\n    throughput/total_tokens=104,857,600\n",
        (4999, 5000, 4.2),
    ),
    "llm-foundry": (
        "[batch=4800/4800]:\n\t Train time/batch: 4799\n\t Train loss/train/total: 5.1\n"
        "\t Train metrics/train/LanguageCrossEntropy: 5.1\n\t Eval metrics/eval/LanguageCrossEntropy: 5.2\n",
        (4800, 4800, 5.2),
    ),
    "nanotron": (
        "01/12/2025 10:00:00 [INFO|DP=0|PP=0|TP=0]: iteration: 1000 / 1000 | consumed_tokens: 10.2M | "
        "tokens_per_sec: 300K | global_batch_size: 1.05M | lm_loss: 7.5 | lr: 0.0003 | grad_norm: 1.2\n",
        (1000, 1000, 7.5),
    ),
    "lingua": (
        "0: INFO 25-01-01 00:00:00 - step: 10  acc: 0  loss: 8.2  grad: 1.2e+00  flops: 1e+14  iter: 0.1  "
        "lr: 6.00e-06  mem: 10%\n",
        (10, 10, 8.2),
    ),
    "MaxText": (
        "completed step: 10, seconds: 1.2, TFLOP/s/device: 100.1, Tokens/s/device: 1000, total_weights: 65536, "
        "loss: 10.8\n",
        (10, 10, 10.8),
    ),
    "fairseq": (
        '2024-01-01 | INFO | train_inner | {"epoch": 1, "loss": "9.1", "num_updates": "50", "lr": "1e-5"}\n'
        "2024-01-01 | INFO | valid | epoch 001 | valid on 'valid' subset | loss 3 | ppl 8 | num_updates 100\n",
        (100, 100, 3 * 0.6931471805599453),
    ),
}


def read(path, **given):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return import_runs(path, **given)


@pytest.mark.parametrize(("text", "expected"), LOGS.values(), ids=LOGS)
@pytest.mark.parametrize("name", ["run.log", "run.txt", "stdout"])
def test_printed_logs(tmp_path, name, text, expected):
    (tmp_path / name).write_text(text)
    runs = read(tmp_path / name)
    step, horizon, loss = expected
    assert len(runs) == 1
    assert runs["max step"].tolist() == [horizon]
    assert runs["final_loss"].tolist() == pytest.approx([loss])
    assert runs["status"].tolist() == ["finished"]
    assert max(at for at, _ in next(iter(runs.attrs["curves"].values()))) == step
    # Speeds, memory and rounded batches are no quantity of the run.
    assert {"batch size", "model size"}.isdisjoint(runs.columns)


def test_trainer_prints_dicts_without_steps(tmp_path):
    lines = ["{'loss': 3.2, 'learning_rate': 0.0003, 'epoch': 0.1}", "{'eval_loss': 3.1, 'epoch': 0.2}"]
    lines.append("{'train_runtime': 100.0, 'train_loss': 4.0, 'epoch': 1.0}")
    (tmp_path / "slurm.out").write_text("\n".join(["Loading", *lines, "done"]))
    runs = read(tmp_path / "slurm.out")
    assert runs[["learning rate", "final_loss"]].to_numpy().tolist() == [[0.0003, 3.1]]


MEGATRON = """using world size: 64, data-parallel size: 32
------------------------ arguments ------------------------
  data_parallel_size .............................. 32
  ffn_hidden_size ................................. 8192
  group_query_attention ........................... True
  hidden_size ..................................... 2048
  lr .............................................. 0.0003
  lr_decay_style .................................. cosine
  lr_warmup_iters ................................. 500
  micro_batch_size ................................ 8
  num_attention_heads ............................. 32
  num_layers ...................................... 16
  num_query_groups ................................ 8
  optimizer ....................................... adam
  seq_length ...................................... 4096
  swiglu .......................................... True
  train_iters ..................................... 20000
  train_samples ................................... None
-------------------- end of arguments ---------------------
 [2025-03-10] iteration      100/   20000 | consumed samples:        25600 | learning rate: 6.0E-05 | lm loss: 7.2E+00 |
 [2025-03-10] iteration    20000/   20000 | consumed samples:      5120000 | learning rate: 3.0E-05 | lm loss: 2.5E+00 |
 validation loss at iteration 20000 | lm loss value: 2.523412E+00 | lm loss PPL: 1.247092E+01 |
"""


def test_the_arguments_a_log_begins_with(tmp_path):
    (tmp_path / "train.log").write_text(MEGATRON)
    row = read(tmp_path / "train.log").iloc[0]
    expected = {"model size": 973.078528, "batch size": 256, "data size": 20.97152, "learning rate": 3e-4}
    expected |= {"warmup": 500, "max step": 20000, "seq len": 4096, "final_loss": 2.523412}
    assert {name: row[name] for name in expected} == pytest.approx(expected)
    (tmp_path / "killed.log").write_text(MEGATRON.replace(" 20000/   20000", " 9000/   20000").rpartition(" val")[0])
    assert read(tmp_path / "killed.log")["status"].tolist() == ["unfinished"]


MODEL = {"model_type": "gpt2", "n_layer": 12, "n_embd": 768, "n_head": 12, "vocab_size": 50257, "n_positions": 1024}
DEEPSPEED = {"train_batch_size": 256, "optimizer": {"type": "AdamW", "params": {"lr": 1e-3}}} | {
    "scheduler": {"type": "WarmupCosineLR", "params": {"total_num_steps": 10000, "warmup_num_steps": 500}},
    "zero_optimization": {"stage": 2},
}


def test_one_run_in_several_files(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(MODEL))
    (folder / "ds_config.json").write_text(json.dumps(DEEPSPEED))
    (folder / "paths.yml").write_text("data_path: x\nsave: y\n")
    runs = read(folder)
    expected = {"model size": 84.934656, "batch size": 256, "max step": 10000, "warmup": 500, "learning rate": 1e-3}
    assert len(runs) == 1
    assert {name: runs.iloc[0][name] for name in expected} == pytest.approx(expected)
    with pytest.warns(UserWarning, match="read as"):
        configs, names = read_configs([str(folder / "config.json"), str(folder / "ds_config.json"), "seq len=1024"])
    assert names == ["config.json + ds_config.json"]
    assert configs[0]["data size"] == pytest.approx(2.62144)
    # With the log of the training beside them, its loss is this run's.
    (folder / "log.csv").write_text("step,loss\n5000,4.0\n10000,3.5\n")
    runs = read(folder)
    assert runs[["model size", "final_loss"]].to_numpy().tolist() == [[pytest.approx(84.934656), 3.5]]


def test_configurations_that_differ_are_several_runs(tmp_path):
    for i, rate in enumerate((1e-3, 2e-3)):
        (tmp_path / f"{i}.json").write_text(json.dumps(MODEL | {"learning_rate": rate}))
    assert read(tmp_path)["learning rate"].tolist() == [1e-3, 2e-3]
    with pytest.warns(UserWarning, match="read as Hugging Face"):
        configs, names = read_configs(
            [*(str(tmp_path / f"{i}.json") for i in (0, 1)), "tokens=1", "optimizer=adamw", "batch size=8", "seq len=8"]
        )
    assert len(configs) == len(names) == 2


def test_a_peak_rate_is_the_largest_logged(tmp_path):
    (tmp_path / "log.csv").write_text("step,learning_rate,loss\n0,0.0,9\n10,2e-4,5\n20,4e-5,4\n")
    runs = read(tmp_path / "log.csv")
    assert runs["learning rate"].tolist() == [2e-4]
    assert "largest logged" in runs.attrs["report"]["derived"]["learning rate"]


def test_a_setting_called_loss_is_no_loss(tmp_path):
    (tmp_path / "a.yaml").write_text("n_layer: 2\nd_model: 64\nval_loss_every: 125\nloss: {_component_: my.Loss}\n")
    assert read(tmp_path / "a.yaml")["final_loss"].isna().all()


@pytest.mark.parametrize(
    ("text", "cell", "option", "printed"),
    [
        ("1e-4", 1e-4, 1e-4, 1e-4),
        ("128", 128, 128, 128),
        ("False", False, False, False),
        ("adamw", "adamw", "adamw", "adamw"),
        ("1_000", "1_000", "1_000", "1_000"),
        ("None", "None", "None", None),
        ("[1,2]", [1, 2], "[1,2]", "[1,2]"),
        ("lr=1e-3,betas=x", "lr=1e-3,betas=x", {"lr": 1e-3, "betas": "x"}, "lr=1e-3,betas=x"),
    ],
)
def test_a_text_is_one_value_but_for_what_its_door_writes(text, cell, option, printed):
    """Tables write lists, options pairs, and Python prints None."""
    assert parse_value(text) == cell
    assert read_command_line(f"python train.py --value {text}") == {"value": option}
    assert list(read_text_log([f"  value ............ {text}"])) == [("config", {"value": printed})]
