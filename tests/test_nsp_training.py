"""NSP's leaderboard and training: what the builder reads, the folds, and what a training keeps."""

import json
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from configuration_nsp import CHANCE, CORE_TASKS
from datasets_scripts.leaderboard import OPTIONS, Leaderboard, chance, load_leaderboard
from modeling_nsp import NSPModel
from ncpl.blocks import check
from ncpl.nsp import loss_link
from ncpl.nsp.benchmarks import benchmarks
from ncpl.nsp.scores import Scores
from ncpl.nsp.train import train as train_scores
from ncpl.recipe import NSPRecipe


def made_up_leaderboard(folder: Path) -> Path:
    """Twelve families whose scores follow a sigmoid of size and a family's effect."""
    random, rows = np.random.default_rng(0), []
    for family in range(12):
        quality, tokens = random.normal(0, 0.5), 10 ** random.uniform(11, 13)
        for params in 10 ** random.uniform(8, 11, 4):
            z = quality + 0.5 * np.log(params / 7e9) + 0.4 * np.log(tokens / 1e12)
            row = {"model": f"lab/f{family}-{params:.3g}", "family": f"f{family}", "params": params, "tokens": tokens}
            for task in CORE_TASKS:
                row[task] = CHANCE[task] + (1 - CHANCE[task]) / (1 + np.exp(-z - random.normal(0, 0.1)))
            rows.append(row)
    rows[0]["tokens"] = None
    (folder / "obs_scaling").mkdir(parents=True)
    pd.DataFrame(rows).to_csv(folder / "obs_scaling" / "models.csv", index=False)
    return folder


@pytest.fixture(scope="module")
def leaderboard(tmp_path_factory):
    return made_up_leaderboard(tmp_path_factory.mktemp("leaderboard"))


def test_the_builder_reads_and_says_what_it_cannot_read(leaderboard, tmp_path):
    table = load_leaderboard("obs_scaling", leaderboard, cache_dir=tmp_path)
    assert len(table) == 48
    assert set(CORE_TASKS) <= set(table.columns)
    assert table["flops"].isna().sum() == 1
    assert np.allclose(table["flops"].dropna(), (6 * table["params"] * table["tokens"]).dropna())
    with pytest.raises(ValueError, match="unknown configuration 'obs'"):
        Leaderboard(config_name="obs")
    with pytest.raises(ValueError, match=r"benchmarks\.csv is missing"):
        Leaderboard(config_name="olmo_ladder", data_dir=leaderboard)
    percent = tmp_path / "table.csv"
    pd.DataFrame({"model": ["a", "b"], "params": [1e9, 2e9], "mmlu": [26.0, 60.0]}).to_csv(percent, index=False)
    builder = Leaderboard(tmp_path, config_name="table", data_files=percent)
    with pytest.warns(UserWarning, match="read as percent"):
        builder.download_and_prepare()
    assert json.loads(builder.as_dataset(split="train")[0]["scores"]) == {"mmlu": 0.26}


def test_chance_is_told_once():
    for task, value in CHANCE.items():
        assert value == pytest.approx(chance(task)), task
    assert all(options >= 0 for options in OPTIONS.values())


def test_folds_keep_families_apart(leaderboard, tmp_path):
    scores = Scores.from_table(load_leaderboard("obs_scaling", leaderboard, cache_dir=tmp_path), CORE_TASKS)
    tested = []
    for train, test in scores.folds(4):
        assert not set(scores.families[train]) & set(scores.families[test])
        tested += list(test)
    assert sorted(tested) == list(range(1, 48))  # each once, but for the model without tokens
    pair = next((i, scores.sibling(i)) for i in range(1, 48) if scores.sibling(i) is not None)
    assert scores.features[pair[1], 0] < scores.features[pair[0], 0]


@pytest.mark.filterwarnings("ignore:no link from loss")
def test_training_learns_size_and_family_and_keeps_its_record(leaderboard, tmp_path):
    recipe = {
        "kind": "nsp",
        "data": {"data_dir": str(leaderboard), "min_scores": 10},
        "training": {"steps": 150},
        "evaluation": {"folds": 2, "seeds": [0]},
        "output_dir": str(tmp_path / "out"),
    }
    record = train_scores(check(NSPRecipe, recipe), progress=False)
    metrics = record["metrics"]
    assert 0 < metrics["others"]["chosen_in_training"]["mae"] < metrics["size"]["mae"]
    assert metrics["sibling"]["mae"] < 0.75 * metrics["size"]["mae"]
    assert metrics["others"]["mae"] < 0.6 * metrics["size"]["mae"]
    assert {"hardware", "versions", "commit", "seeds"} <= set(record)
    model = NSPModel.from_pretrained(tmp_path / "out").eval()
    assert json.loads((tmp_path / "out" / "nsp_record.json").read_text())["models"] == 48
    assert len(model.config.families) == 12
    # A family's stored effect is what its own scores say.
    table = pd.read_csv(leaderboard / "obs_scaling" / "models.csv").iloc[1:]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rows = [{"params": r.params, "tokens": r.tokens, "domain": "general"} for r in table.itertuples()]
        plain = benchmarks(rows, model=model)
        alike = benchmarks([{**row, "like": f} for row, f in zip(rows, table["family"], strict=True)], model=model)
    truth = table[list(CORE_TASKS)].to_numpy()
    errors = [np.abs(t[list(CORE_TASKS)].to_numpy() - truth).mean() for t in (alike, plain)]
    assert errors[0] < 0.75 * errors[1]


def test_real_leaderboard_has_what_the_protocols_need(real_data_dir, tmp_path):
    table = load_leaderboard("obs_scaling", real_data_dir, cache_dir=tmp_path)
    assert table["tokens"].notna().sum() >= 90
    assert table["code"].sum() >= 10
    for source in ("olmo_ladder", "gadre_open_lm"):
        rows = load_leaderboard(source, real_data_dir, cache_dir=tmp_path)
        assert rows["loss"].notna().all()
        link = loss_link.fit_loss_link(rows, source)
        assert len(link.tasks) >= 5
