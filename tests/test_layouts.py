"""Runs as they lie on disk: folders of W&B, trackio and Trainer, tables of many kinds, standard input."""

import gzip
import io
import json
import sqlite3
import sys
import zipfile

import pandas as pd
import pytest

from ncpl import import_runs

SHAPE = {"num_layers": 12, "hidden_dim": 768, "ffn_dim": 3072, "num_heads": 12}
TRAINED = {"lr": 6e-4, "optimizer": "adamw", "global_batch_size": 256, "seq_len": 1024, "max_steps": 1000}
EXPECTED = {"model size": 84.934656, "batch size": 256, "data size": 0.262144, "learning rate": 6e-4, "max step": 1000}
TABLE = "name,params_no_embed,tokens,lr,val_loss\na,85e6,2e9,1e-3,3.1\nb,85e6,4e9,1e-3,3.0\n"


def check(runs, losses, statuses=None):
    for _, row in runs.iterrows():
        assert {name: row[name] for name in EXPECTED} == pytest.approx(EXPECTED)
    assert runs["final_loss"].tolist() == pytest.approx(losses)
    assert runs["status"].tolist() == (statuses or ["finished"] * len(losses))


def wandb_run(folder, loss, state=None):
    files = folder / "files"
    files.mkdir(parents=True)
    config = {"wandb_version": 1} | {name: {"desc": None, "value": v} for name, v in (SHAPE | TRAINED).items()}
    config["_wandb"] = {"value": {"python_version": "3.12", "t": {"1": [1]}}}
    # JSON is YAML.
    (files / "config.yaml").write_text(json.dumps(config))
    summary = {"_step": 1000, "_runtime": 12.5, "_timestamp": 1.7e9, "train/loss": loss + 0.1, "eval/loss": loss}
    (files / "wandb-summary.json").write_text(json.dumps(summary | ({"_step": state} if state else {})))
    (files / "wandb-metadata.json").write_text(json.dumps({"os": "Linux", "gpu_count": 8, "program": "train.py"}))
    (files / "requirements.txt").write_text("torch==2.9\n")
    (files / "output.log").write_text("step 1000: train loss 3.2, val loss 3.1\n")
    (folder / f"{folder.name}.wandb").write_bytes(b"\x00W&B\x01")


def test_wandb_run_folders(tmp_path):
    for i, loss in enumerate((3.5, 3.4)):
        wandb_run(tmp_path / "wandb" / f"run-2026010{i}_120000-abc{i}", loss)
    (tmp_path / "wandb" / "debug.log").write_text("2026-01-01 INFO setup\n")
    runs = import_runs(tmp_path)
    check(runs.sort_values("name"), [3.5, 3.4], ["finished", "finished"])
    assert sorted(runs["name"]) == ["run-20260100_120000-abc0", "run-20260101_120000-abc1"]
    single = import_runs(tmp_path / "wandb" / "run-20260100_120000-abc0")
    check(single, [3.5])


def metrics(loss):
    return [
        {"step": step, "train/loss": loss + 5 - step / 200, "val_loss": loss + 1 - step / 1000} for step in (500, 1000)
    ]


def test_trackios_database_and_parquet(tmp_path):
    file = tmp_path / "project.db"
    with sqlite3.connect(file) as database:
        database.execute(
            "create table metrics (run_id text, run_name text, timestamp text, step integer, metrics text)"
        )
        database.execute("create table configs (run_id text, run_name text, config text)")
        for name, loss in (("a", 3.5), ("b", 3.4)):
            config = SHAPE | TRAINED | {"_Username": "x", "_Created": "2026-01-01", "_Group": None}
            database.execute(
                "insert into configs (run_id, run_name, config) values (?, ?, ?)", (name, name, json.dumps(config))
            )
            for point in metrics(loss):
                step = point.pop("step")
                row = (name, name, "t", step, json.dumps(point))
                database.execute(
                    "insert into metrics (run_id, run_name, timestamp, step, metrics) values (?,?,?,?,?)", row
                )
    database.close()
    check(import_runs(file), [3.5, 3.4])
    folder = tmp_path / "parquet"
    folder.mkdir()
    rows = [{"run_name": name, **point} for name, loss in (("a", 3.5), ("b", 3.4)) for point in metrics(loss)]
    pd.DataFrame(rows).to_parquet(folder / "project.parquet")
    pd.DataFrame([{"run_name": name} | SHAPE | TRAINED for name in "ab"]).to_parquet(folder / "project_configs.parquet")
    pd.DataFrame([{"run_name": "a", "gpu": 1.0}]).to_parquet(folder / "project_system.parquet")
    check(import_runs(folder), [3.5, 3.4])


LLAMA = {"model_type": "llama", "num_hidden_layers": 12, "hidden_size": 768, "intermediate_size": 2048} | {
    "num_attention_heads": 12, "vocab_size": 32000, "architectures": ["LlamaForCausalLM"]
}  # fmt: skip
ARGUMENTS = {"per_device_train_batch_size": 16, "gradient_accumulation_steps": 4, "learning_rate": 6e-4} | {
    "max_steps": 1000, "optim": "adamw_torch", "lr_scheduler_type": "cosine", "world_size": 4, "max_seq_length": 1024
}  # fmt: skip


def trainer_state(steps):
    log = [{"step": s, "loss": 6 - s / 400, "learning_rate": 6e-4 * (1 - s / 1000), "epoch": s / 1000} for s in steps]
    log += [{"step": steps[-1], "eval_loss": 3.4, "epoch": 1.0}, {"step": steps[-1], "train_loss": 5.0, "epoch": 1.0}]
    return {"global_step": steps[-1], "max_steps": 1000, "train_batch_size": 16, "log_history": log}


def test_a_trainers_output_folder(tmp_path):
    for folder, steps in ((tmp_path / "checkpoint-500", [100, 500]), (tmp_path / "checkpoint-1000", [100, 500, 1000])):
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(LLAMA))
        (folder / "trainer_state.json").write_text(json.dumps(trainer_state(steps)))
        (folder / "training_args.json").write_text(json.dumps(ARGUMENTS))
        (folder / "training_args.bin").write_bytes(b"PK\x03\x04")
        (folder / "tokenizer_config.json").write_text("{}")
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    (tmp_path / "all_results.json").write_text(json.dumps({"train_loss": 5.0}))
    runs = import_runs(tmp_path)
    assert len(runs) == 1
    expected = EXPECTED | {"learning rate": 6e-4, "lr_schedule": "cosine", "optimizer": "adamw", "final_loss": 3.4}
    assert {name: runs.iloc[0][name] for name in expected} == pytest.approx(expected)
    assert runs["name"].tolist() == [tmp_path.name]


def test_a_folder_of_many_runs(tmp_path):
    for name, loss in (("a", 3.5), ("b", 3.4), ("c", 3.3)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(SHAPE | TRAINED))
        rows = [json.dumps(point) for point in metrics(loss)]
        (tmp_path / name / "metrics.jsonl").write_text("\n".join(rows[: 1 if name == "c" else 2]) + "\n")
    runs = import_runs(tmp_path)
    assert runs["name"].tolist() == ["a", "b", "c"]
    check(runs, [3.5, 3.4, 3.8], ["finished", "finished", "unfinished"])


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet", "json", "yaml", "no suffix"])
def test_one_table_in_many_files(tmp_path, kind):
    frame = pd.read_csv(io.StringIO(TABLE))
    file = tmp_path / ("runs" if kind == "no suffix" else f"runs.{kind}")
    if kind == "parquet":
        frame.to_parquet(file)
    elif kind in ("jsonl", "json", "yaml"):
        rows = frame.to_dict("records")
        file.write_text("\n".join(map(json.dumps, rows)) if kind == "jsonl" else json.dumps(rows))
    else:
        file.write_text(TABLE.replace(",", "\t") if kind == "tsv" else TABLE)
    runs = import_runs(file)
    assert runs[["name", "model size", "data size", "final_loss"]].to_numpy().tolist() == [
        ["a", 85, 2, 3.1],
        ["b", 85, 4, 3],
    ]


@pytest.mark.parametrize("text", [TABLE, "step,val_loss\n10,4\n20,3.1\n"])
def test_standard_input(monkeypatch, text):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    assert 3.1 in import_runs("-")["final_loss"].tolist()


def test_archives_and_binary_logs_are_refused_with_what_to_do(tmp_path):
    (tmp_path / "runs.csv.gz").write_bytes(gzip.compress(TABLE.encode()))
    with pytest.raises(ValueError, match="gzip; unpack it"):
        import_runs(tmp_path / "runs.csv.gz")
    with zipfile.ZipFile(tmp_path / "runs.zip", "w") as archive:
        archive.writestr("runs.csv", TABLE)
    with pytest.raises(ValueError, match="zip archive"):
        import_runs(tmp_path / "runs.zip")
    board = tmp_path / "board"
    board.mkdir()
    (board / "events.out.tfevents.1700000000.host.1.0").write_bytes(b"\x18\x00\x00\x00")
    with pytest.raises(ValueError, match=r"TensorBoard.*export the scalars as CSV"):
        import_runs(board)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no runs"):
        import_runs(tmp_path / "empty")
