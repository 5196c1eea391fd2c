"""Anyone's logs and configurations under the registry's names: what is read, derived, asked for, and kept apart."""

import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ncpl import import_runs
from ncpl.configs import read_configs
from ncpl.logs.frameworks import FRAMEWORKS, GENERIC, QUANTITIES
from ncpl.logs.translate import flatten, translate
from tests.test_cli import run

DATA = Path(os.environ.get("NCPL_DATA_DIR") or Path(__file__).parents[2] / "shared" / "data")
TABLES = ("wandb_xlstm", "wandb_history_olmo", "open_lm_semicolon", "isoflop_formll")
# What the logs cannot give; it comes from the data's own documentation.
UNLOGGED = {"wandb_history_olmo": {"weight decay", "warmup"}, "isoflop_formll": {"seq len"}}


@pytest.mark.parametrize("name", TABLES)
def test_tables_as_labs_export_them(name):
    file = DATA / "imports" / f"{name}.csv"
    if not file.exists():
        pytest.skip(f"no {file}")
    runs, expected = import_runs(file), pd.read_csv(file.with_suffix(".expected.csv"))
    assert len(runs) == len(expected)
    if set(runs["name"]) == set(expected["name"]):
        runs = runs.set_index("name").loc[expected["name"]].reset_index()
    for column in set(expected.columns) - {"name"} - UNLOGGED.get(name, set()):
        ours, theirs = runs[column].astype(float), expected[column].astype(float)
        both = ours.notna() & theirs.notna()
        assert both.sum() >= 0.9 * theirs.notna().sum(), column
        np.testing.assert_allclose(ours[both], theirs[both], rtol=2e-3, err_msg=column)


CONFIGS = {
    "nanoGPT": (
        {"batch_size": 12, "block_size": 1024, "gradient_accumulation_steps": 40, "max_iters": 600000, "n_layer": 12}
        | {"n_embd": 768, "n_head": 12, "learning_rate": 6e-4, "lr_decay_iters": 600000},
        {"batch size": 480, "seq len": 1024, "model size": 84.934656, "data size": 294.912, "optimizer": "adamw"},
    ),
    "OLMo-core": (
        {"model": {"d_model": 1024, "n_layers": 16, "block": {"attention": {"n_heads": 16}}, "vocab_size": 100278}}
        | {
            "data_loader": {"global_batch_size": 1048576},
            "trainer": {"max_duration": {"value": 10**10, "unit": "tokens"}},
        }
        | {"train_module": {"max_sequence_length": 4096, "optim": {"lr": 1e-3}}},
        {"batch size": 256, "data size": 10, "max step": 9536, "learning rate": 1e-3},
    ),
    "torchtitan": (
        {"training": {"local_batch_size": 8, "global_batch_size": 256, "seq_len": 2048, "steps": 1000}}
        | {"optimizer": {"name": "AdamW", "lr": 8e-4}, "lr_scheduler": {"decay_ratio": 0.2, "warmup_steps": 50}},
        {"batch size": 256, "data size": 0.524288, "decay": 0.2, "warmup": 50, "lr_schedule": "linear"},
    ),
    "llm-foundry": (
        {"model": {"d_model": 768, "n_layers": 12, "n_heads": 12, "expansion_ratio": 4, "max_seq_len": 2048}}
        | {
            "global_train_batch_size": 256,
            "max_duration": "4800ba",
            "optimizer": {"name": "decoupled_adamw", "lr": 6e-4},
        }
        | {"scheduler": {"name": "cosine_with_warmup", "t_warmup": "100ba", "alpha_f": 0.1}},
        {"model size": 84.934656, "max step": 4800, "warmup": 100, "min_lr_ratio": 0.1, "optimizer": "adamw"},
    ),
}


@pytest.mark.parametrize(("config", "expected"), CONFIGS.values(), ids=CONFIGS)
def test_configurations_of_frameworks(config, expected):
    found = translate(flatten(config)).fields
    assert {name: found[name] for name in expected} == pytest.approx(expected)


def test_everything_missing_is_asked_for_at_once(tmp_path):
    file = tmp_path / "args.json"
    file.write_text(json.dumps({"per_device_train_batch_size": 8, "max_steps": 100, "learning_rate": 1e-3}))
    with pytest.raises(ValueError, match=r"model size.*; devices.*; seq len") as error:
        read_configs([str(file)])
    assert len(str(error.value)) <= 300
    with pytest.warns(UserWarning, match="read as Hugging Face Trainer"):
        configs, _ = read_configs([str(file), "devices=4", "seq len=512", "model size=10"])
    assert configs[0]["batch size"] == 32


def test_runs_that_are_not_to_learn_from_are_kept_apart(tmp_path):
    rows = [("a", "finished", 3.0), ("b", "crashed", 3.1), ("c", "finished", "NaN"), ("d", "finished", 3.5)]
    text = "name,State,params_no_embed,tokens,lr,val_loss\n"
    file = tmp_path / "runs.csv"
    file.write_text(text + "".join(f"{n},{s},85e6,2e9,{i}e-3,{v}\n" for i, (n, s, v) in enumerate(rows, 1)))
    runs = import_runs(file)
    assert runs["status"].tolist() == ["finished", "crashed", "diverged", "diverged"]


def test_the_table_in_the_docs_is_the_code():
    assert (Path(__file__).parents[1] / "docs" / "importing.md").read_text(encoding="utf-8").endswith(table())


def table() -> str:
    """What is recognised, framework by framework."""
    lines = ["| quantity | names |", "|---|---|"]
    text = ""
    for framework in (*FRAMEWORKS, GENERIC):
        rows = [f"| {QUANTITIES.get(name, name)} | {words} |" for name, words in framework.names.items()]
        text += f"\n## {framework.name}\n\n" + "\n".join([*lines, *rows]) + "\n"
    return text


def test_a_count_that_gives_no_size_says_what_to_do_at_import_and_adapt(tmp_path, capsys):
    file = tmp_path / "runs.csv"
    head = "name,config.model.n_params,tokens,val_loss\n"
    file.write_text(head + "".join(f"{i},{n}000000,2e9,{4 - n / 1000}\n" for i, n in enumerate((85, 160, 300))))
    fix = '--map "model.n_params=model size"'
    _, _, said = run("import", file, capsys=capsys)
    assert fix in said
    status, _, said = run("adapt", file, "--source", "acme", "--out", tmp_path / "acme", capsys=capsys)
    assert status == 2
    assert fix in said
    mapped = tmp_path / "mapped.csv"
    run("import", file, "--map", "model.n_params=model size", "--out", mapped, capsys=capsys)
    status, _, said = run("adapt", mapped, "--source", "acme", "--out", tmp_path / "acme", capsys=capsys)
    assert status == 0, said
