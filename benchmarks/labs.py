"""Runs of other labs as configurations and losses, for benchmarks of adaptation.

Each lab is a list of `Row`s as the dataset builders give them: `source` (the lab), `conf` (the registry's fields) and
`final_loss` in nats per token. Fields that a log does not state are left out.
"""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from datasets_scripts.runs import load_runs

Row = dict[str, Any]


def read_labs(folder: Path) -> dict[str, list[Row]]:
    """Lab -> its finished runs, without StepLaw's and Marin's (`home_labs`)."""
    readers: list[Callable[[Path], dict[str, pd.DataFrame]]] = [_olmo, _gadre, _formll, _xlstm, _chinchilla, _grid]
    tables = {name: table for reader in readers for name, table in reader(folder).items()}
    return {
        name: [_row(name, {str(key): v for key, v in run.items()}) for run in table.to_dict("records")]
        for name, table in tables.items()
    }


def home_labs(folder: Path) -> dict[str, list[Row]]:
    """StepLaw's and Marin's runs of the splits that may be looked at, train and in_val."""
    labs = {}
    for source in ("steplaw", "marin"):
        splits = load_runs(source, folder)
        labs[source] = [dict(row) for split in ("train", "in_val") for row in splits[split]]
    return labs


def group(lab: str) -> str:
    """The laboratory behind a lab's name: its data mixes and recipes are never counted as independent."""
    return lab.split(" ")[0]


def flops(row: Mapping[str, Any]) -> float:
    """6 N D, N without embeddings."""
    conf = row["conf"]
    return 6.0 * float(conf.get("active size", conf["model size"])) * 1e6 * float(conf["data size"]) * 1e9


def _row(lab: str, run: Mapping[str, Any]) -> Row:
    """One run; `run` has `params`, `tokens`, `final_loss` and what else of the table's columns is known."""
    known = {name: value for name, value in run.items() if not (isinstance(value, float) and math.isnan(value))}
    conf: dict[str, Any] = {
        "source": lab,
        "model size": known["params"] / 1e6,
        "data size": known["tokens"] / 1e9,
        "optimizer": "adamw",
    }
    names = {
        "hidden": "hidden dim",
        "lr_peak": "learning rate",
        "batch_seqs": "batch size",
        "seq_len": "seq len",
        "vocab": "vocab size",
    }
    conf |= {ours: known[theirs] for theirs, ours in names.items() if theirs in known}
    return {"name": str(run["run"]), "source": lab, "conf": conf, "final_loss": float(run["final_loss"])}


def _olmo(folder: Path) -> dict[str, pd.DataFrame]:
    runs = pd.read_csv(folder / "olmo_ladder" / "runs.csv")
    return {"olmo": runs[runs["flag"].isna()].assign(params=lambda own: own["params_nonemb"])}


def _gadre(folder: Path) -> dict[str, pd.DataFrame]:
    runs = pd.read_csv(folder / "gadre_open_lm" / "runs.csv").assign(params=lambda own: own["params_nonemb"])
    return {f"gadre {mix}": own for mix, own in runs.groupby("dataset")}


def _formll(folder: Path) -> dict[str, pd.DataFrame]:
    """Recipes with one run a budget as they are; of the others, every point at which the loss was read is a run."""
    runs = pd.read_csv(folder / "formll_porian" / "runs.csv").assign(params=lambda own: own["params_nonemb"])
    points = pd.read_csv(folder / "formll_porian" / "curves.csv").rename(columns={"loss": "final_loss"})
    tables = {}
    for (dataset, recipe), own in runs.groupby(["dataset", "recipe"]):
        found = points[points["run"].isin(own["run"])]
        if len(found):
            own = found[["run", "tokens", "final_loss"]].merge(own.drop(columns=["tokens", "final_loss"]), on="run")
        tables[f"formll {dataset} {recipe}"] = own
    return tables


def _xlstm(folder: Path) -> dict[str, pd.DataFrame]:
    runs = pd.read_csv(folder / "xlstm_nxai" / "runs.csv").assign(params=lambda own: own["params_nonemb"])
    runs = runs[runs["flag"].isna() & runs["final_loss"].notna()]
    return {f"xlstm {name}": own for name, own in runs.groupby("group")}


def _chinchilla(folder: Path) -> dict[str, pd.DataFrame]:
    """The paper counts all parameters; its vocabulary of 32,000 is tied, and width goes with the root of the size."""
    runs = pd.read_csv(folder / "chinchilla" / "runs.csv")
    width = 1024.0 * (runs["params"] / 300e6) ** 0.5
    without = (runs["params"] - 32_000 * width).clip(lower=runs["params"] / 4)
    return {
        "chinchilla": runs.assign(
            params=without, vocab=32_000, seq_len=2048, run=[f"chinchilla-{i}" for i in range(len(runs))]
        )
    }


def _grid(folder: Path) -> dict[str, pd.DataFrame]:
    runs = pd.read_csv(folder / "gadre_open_lm" / "grid_runs.csv")
    return {"gadre grid": runs.assign(params=runs["params_nonemb"])}
