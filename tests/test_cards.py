"""Cards: valid for the Hub's client, and without a number that no result file holds."""

import json
import math
import re
from typing import Any

import huggingface_hub.constants
import pytest
from huggingface_hub import DatasetCard, ModelCard

import ncpl_cli
from datasets_scripts import SAMPLE_DIR
from ncpl.errors import CheckpointError
from ncpl.hub import ROOT, cards, push_dataset, push_space
from ncpl.hub.bundle import compatibility, requirements
from ncpl.hub.cards import EXAMPLES, checkpoint_card, widget_examples
from ncpl.hub.files import space_files
from tests.checkpoints import fresh_process, save_tiny
from tests.hub_server import HubServer
from tests.hub_server.server import TOKEN

DEPLOYMENT = ROOT / "docs" / "deployment.md"


def metrics(seed):
    """Made up, and all different: a mix-up of cells shows."""
    return {"mae": seed + 0.00123, "rmse": seed + 0.00234, "spearman": 0.9 + seed / 10, "bias": -seed - 0.00345}


RECORD: dict[str, Any] = {
    "recipe": {"model": {"scratch": {}}, "data": {"splits": {"train": "train", "select": "in_val"}}},
    "seed": 42,
    "parameters": 411889,
    "data": {
        "marin": {"sha256": "5eab" * 16, "runs": {"train": 909, "in_val": 205}},
        "steplaw": {"sha256": "b0b1" * 16, "runs": {"train": 930, "in_val": 288}},
    },
    "versions": {"python": "3.11.7", "torch": "2.13.0+cpu"},
    "hardware": {"cpu": "AMD EPYC 7B13", "cpu_cores": 2, "gpus": [], "processes": 1},
    "metrics": {
        "in_val": {
            "marin": {"final": {"n": 205, **metrics(0.011)}},
            "steplaw": {"final": {"n": 288, **metrics(0.012)}},
        },
        "ood_val": {
            "marin": {"final": {"n": 245, **metrics(0.013)}, "curve": {"n": 3675, **metrics(0.5)}},
            "steplaw": {"final": {"n": 296, **metrics(0.014)}},
        },
    },
    "prior_metrics": {"in_val": {"marin": {"final": {"n": 205, **metrics(0.021)}}}},
    "wall_s": 602.3,
}
EVALUATION: dict[str, Any] = {
    "model": "tiny",
    "level": 0.9,
    "cells": [
        {
            "source": "marin",
            "split": "ood_val",
            "runs": 244,
            "left_out": 1,
            "errors": {"model": metrics(0.031), "prior": metrics(0.032), "ncpl_1p7b": metrics(0.033)},
            "coverage": 0.9136,
            "width": 0.0612,
        },
    ],
    "sizes": [
        {
            "source": "marin",
            "split": "ood_val",
            "model_size": 520,
            "runs": 245,
            "mae": 0.0345,
            "low": 0.0312,
            "high": 0.0389,
        }
    ],
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    save_tiny(folder)
    (folder / "widget.json").write_text(json.dumps(widget_examples(folder)))
    return folder


@pytest.fixture
def folder(saved):
    yield saved
    for name in ("training_record.json", "evaluation.json", "calibration.png"):
        (saved / name).unlink(missing_ok=True)


def numbers(text):
    return re.findall(r"(?<![\w.])-?\d+(?:\.\d+)?(?:e-?\d+)?", text)


def leaves(value):
    if isinstance(value, dict):
        return [leaf for item in value.values() for leaf in leaves(item)]
    if isinstance(value, list):
        return [leaf for item in value for leaf in leaves(item)]
    return [value]


def unexplained(card, folder):
    """Numbers of a card that are neither in a result file, rounded or not, nor in a template's own text."""
    files = [json.loads((folder / name).read_text()) for name in cards.RESULT_FILES if (folder / name).exists()]
    files.append(json.loads((folder / "config.json").read_text()))
    files.append([compatibility(), requirements()])
    values = [leaf for file in files for leaf in leaves(file)]
    known = {number for leaf in values if isinstance(leaf, str) for number in numbers(leaf)}
    static = "".join(path.read_text() for path in cards.TEMPLATES.glob("*.md")) + "".join([*cards.TAGS, *EXAMPLES])
    known |= set(numbers(static))
    measured = [float(leaf) for leaf in values if isinstance(leaf, int | float)]
    found = []
    for number in numbers(card):
        decimals = len(number.partition(".")[2])
        if number not in known and not any(
            math.isfinite(value) and abs(round(value, decimals) - float(number)) < 1e-12 for value in measured
        ):
            found.append(number)
    return found


@pytest.mark.parametrize("name", ["ncpl-mini", "ncpl-qwen3-1.7b", "something-else"])
@pytest.mark.parametrize("files", [{}, {"training_record.json": RECORD}, {"evaluation.json": EVALUATION}])
def test_every_number_is_in_a_result_file(folder, name, files):
    for file, content in files.items():
        (folder / file).write_text(json.dumps(content))
    (folder / "calibration.png").write_bytes(b"\x89PNG")
    text = checkpoint_card(folder, f"me/{name}")
    assert unexplained(text, folder) == []
    assert f"# {name}" in text
    assert "![calibration.png](calibration.png)" in text
    if files:
        cell = EVALUATION["cells"][0]["errors"]["model"] if "evaluation.json" in files else metrics(0.013)
        assert " | ".join(f"{cell[metric]:.4f}" for metric in ("mae", "rmse", "spearman", "bias")) in text
    else:
        assert "Not measured" in text


NSP_RECORD = {
    "models": 123,
    "families": 38,
    "hardware": {"cpu": "AMD EPYC", "cpu_cores": 2, "gpus": ["NVIDIA H200"]},
    "versions": {"torch": "2.13.0"},
    "metrics": {
        "coverage_90": {"size": 0.9123},
        "size": {"mae": 0.0512, "models": 87, "mae_by_task": {"mmlu": 0.0433, "gsm8k": 0.0871}},
        "others": {"mae": 0.0312, "models": 88, "mae_by_task": {"mmlu": 0.0233}, "chosen_in_training": {"mae": 0.0277}},
        "emergence": {"auroc": 0.944},
    },
}


@pytest.mark.parametrize("record", [None, NSP_RECORD])
def test_the_score_predictors_card(tmp_path, record):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "nsp"}))
    if record:
        (tmp_path / "nsp_record.json").write_text(json.dumps(record))
    text = checkpoint_card(tmp_path, "me/nsp-base")
    assert unexplained(text, tmp_path) == []
    card = ModelCard(text)
    assert len(card.data.eval_results or []) == (5 if record else 0)
    assert ("| parameters and tokens | 87 | 0.0512 | 0.0433 | 0.0871 |" in text) == bool(record)
    assert ("| and three scores of its own | 88 | 0.0312 | 0.0233 | - |" in text) == bool(record)
    for figure in ("0.0277.", "0.912 (parameters and tokens)", "AUROC 0.944"):
        assert (figure in text) == bool(record), figure


def test_the_command_writes_a_score_predictors_card(tmp_path, capsys, monkeypatch):
    """It forecasts no loss, so it has no widget."""
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "nsp"}))
    monkeypatch.setattr("sys.argv", ["ncpl", "card", str(tmp_path), "me/nsp-base"])
    with pytest.raises(SystemExit) as stop:
        ncpl_cli.main()
    assert not stop.value.code
    assert capsys.readouterr().out.strip() == str(tmp_path / "README.md")
    assert not (tmp_path / cards.WIDGET).exists()


def test_the_check_itself_finds_an_invented_number(folder):
    (folder / "training_record.json").write_text(json.dumps(RECORD))
    text = checkpoint_card(folder, "me/tiny")
    assert unexplained(text + "| marin | 0.0107 |", folder) == ["0.0107"]


def test_templates_hold_no_measured_number():
    """Only names, links and example values: a template cannot say how good a model is."""
    for path in cards.TEMPLATES.glob("*.md"):
        text = re.sub(
            r"```.*?```|`[^`]*`|\(http[^)]*\)|arXiv:?\s*\S+|Qwen3-1\.7B|Apache-2\.0|\{\{.*?\}\}|\{%.*?%\}",
            "",
            path.read_text(),
            flags=re.S,
        )
        assert re.findall(r"\d+\.\d+", text) == [], path.name


def test_cards_are_valid_and_round_trip(folder, tmp_path):
    (folder / "training_record.json").write_text(json.dumps(RECORD))
    card = ModelCard(checkpoint_card(folder, "me/ncpl-mini"))
    card.save(tmp_path / "README.md")
    again = ModelCard.load(tmp_path / "README.md")
    assert again.data.to_dict() == card.data.to_dict()
    assert again.text.strip() == card.text.strip()
    data = again.data
    assert (data.license, data.pipeline_tag, data.library_name) == ("apache-2.0", "tabular-regression", "transformers")
    assert data.datasets == ["me/ncpl-marin", "me/ncpl-steplaw"]
    assert "base_model" not in data.to_dict(), "trained from scratch"
    measured = {(result.dataset_name, result.metric_type): result.metric_value for result in data.eval_results}
    types = {"mae": "mae", "rmse": "rmse", "spearman": "spearmanr", "bias": "bias"}
    for split, sources in RECORD["metrics"].items():
        for source, kinds in sources.items():
            for metric, kind in types.items():
                expected = kinds["final"][metric]
                assert measured.pop((f"{source} {split}", kind)) == pytest.approx(expected, abs=5.01e-5)
    assert not measured
    titles = [item["example_title"] for item in data.widget]
    assert titles == list(EXAMPLES)
    forecasts = json.loads((folder / "widget.json").read_text())
    for item in data.widget:
        assert item["output"]["text"].startswith(f"{forecasts[item['example_title']]['forecast']['loss']:.4f} ")
        assert {name: values[0] for name, values in item["structured_data"].items()} == EXAMPLES[item["example_title"]]


def test_the_backbone_is_the_base_model(folder):
    record = {**RECORD, "recipe": {"model": {"backbone": "Qwen/Qwen3-1.7B"}}}
    (folder / "training_record.json").write_text(json.dumps(record))
    assert ModelCard(checkpoint_card(folder, "me/big")).data.base_model == "Qwen/Qwen3-1.7B"
    record["recipe"]["model"]["backbone"] = "/models/Qwen3"
    (folder / "training_record.json").write_text(json.dumps(record))
    assert "/home/somebody" not in checkpoint_card(folder, "me/big")


def test_a_folder_without_a_checkpoint_and_a_broken_record(folder, tmp_path):
    with pytest.raises(CheckpointError, match=r"no config\.json and no adapter_config\.json"):
        checkpoint_card(tmp_path, "me/tiny")
    (folder / "training_record.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"training_record\.json: cannot be read as JSON"):
        checkpoint_card(folder, "me/tiny")


@pytest.fixture
def hub(monkeypatch):
    with HubServer() as server:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.url)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield server


READS_DATA = """
import json
from datasets import load_dataset
out = {}
for repo in sys.argv[1:]:
    final = load_dataset(repo, "final")
    stream = load_dataset(repo, "intermediate", split="train", streaming=True)
    first = next(iter(stream))
    out[repo] = {
        "runs": {split: rows.num_rows for split, rows in final.items()},
        "default": load_dataset(repo, split="train").column_names,
        "streamed": [first["name"], json.loads(first["conf"])["source"], len(first["curve"]["steps"])],
    }
print(json.dumps(out))
"""


def test_datasets_are_pushed_and_read_by_name(hub, tmp_path):
    for source in ("marin", "steplaw", "steplaw_moe"):
        first = push_dataset(source, f"me/ncpl-{source}", data_dir=SAMPLE_DIR)
        assert push_dataset(source, f"me/ncpl-{source}", data_dir=SAMPLE_DIR).commit == first.commit
        repository = hub.storage[f"datasets/me/ncpl-{source}"]
        assert repository.history() == [f"Push the {source} runs", "initial commit"]
        card = DatasetCard(repository.files()["README.md"].decode())
        assert [entry["config_name"] for entry in card.data.to_dict()["configs"]] == ["final", "intermediate"]
        assert set(repository.files()) - {"README.md"} == {
            path for path in repository.files() if path.endswith(".parquet")
        }
    got = fresh_process(READS_DATA, "me/ncpl-marin", "me/ncpl-steplaw", home=tmp_path, **hub.environment())
    for source in ("marin", "steplaw"):
        from datasets_scripts.runs import load_runs

        runs = load_runs(source, SAMPLE_DIR)
        shown = got[f"me/ncpl-{source}"]
        assert shown["runs"] == {split: rows.num_rows for split, rows in runs.items()}
        assert "curve" not in shown["default"]
        assert shown["streamed"][1] == source
        assert shown["streamed"][2] > 0


def test_the_space_is_whole(hub):
    push_space("me/forecasts")
    files = hub.storage["spaces/me/forecasts"].files()
    assert files.keys() == space_files().keys()
    card = ModelCard(files["README.md"].decode()).data.to_dict()
    assert (card["sdk"], card["app_file"], card["python_version"]) == ("gradio", "app.py", "3.11")
    compile(files["app.py"], "app.py", "exec")
    ours = set(re.findall(r"^from (ncpl\S*) import", files["app.py"].decode(), re.M))
    assert all(f"{name.replace('.', '/')}.py" in files or f"{name}/__init__.py" in files for name in ours)


def test_the_adapters_table_is_its_results():
    """docs/deployment.md holds what benchmarks/adapters.py measured, and nothing else."""
    result = json.loads((ROOT / "benchmarks" / "results" / "adapters.json").read_text())
    block = re.search(r"<!-- generated:adapters -->\n(.*)<!-- /generated:adapters -->", DEPLOYMENT.read_text(), re.S)
    assert block
    lines = [line for line in block[1].splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]
    expected = [
        [
            way,
            f"{m['trained_parameters']:,}",
            f"{m['weights_mb']:.2f}",
            f"{m['in_val_mae']:.4f}",
            f"{m['ood_val_mae']:.4f}",
        ]
        for way, m in result["ways"].items()
    ]
    assert rows[:-1] == expected
    assert rows[-1][-2:] == [f"{result['prior'][split]:.4f}" for split in ("in_val", "ood_val")]


@pytest.mark.parametrize(("name", "metric", "cells"), [("ncpl-mini", "mae", 6), ("nsp-base", "mae", 3)])
def test_embedded_cards_hold_their_results(name, metric, cells):
    """The shipped cards are what their result files give, with the Hub's `model-index` for each measured cell."""
    folder = ROOT / "ncpl" / "checkpoints" / name
    text = (folder / "README.md").read_text()
    assert text == checkpoint_card(folder, name), f"ncpl card {folder} {name}"
    results = ModelCard(text).data.eval_results
    assert results
    assert len({(result.dataset_name) for result in results if result.metric_type == metric}) == cells
    if name == "ncpl-mini":
        evaluation = json.loads((folder / "evaluation.json").read_text())
        assert cells == len(evaluation["cells"])
        assert results[0].metric_value == round(evaluation["cells"][0]["errors"]["model"]["mae"], 4)
