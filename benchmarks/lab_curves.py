"""Runs with loss curves of the labs in the folder of real logs, as rows `source`, `conf`, `final_loss`, `curve`."""

import math
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ncpl.fitting import fit
from ncpl.fitting.curves import CurveRun


def xlstm(folder: Path) -> list[dict[str, Any]]:
    """xLSTM's Llama and mLSTM runs without a flag; losses are means of 50 steps, here at the window's middle."""
    runs, curves = _read(folder / "xlstm_nxai")
    rows = []
    for run in _each(runs[runs["flag"].isna()]):
        steps = int(run.steps)
        falling = np.linspace(750, steps - 1000, 24)
        done = (falling - 750) / max(steps - 1750, 1)
        cosine = 0.1 + 0.9 * (1 + np.cos(np.pi * done)) / 2
        peak = float(run.lr_peak)
        points = [(0.0, 0.0), *zip(falling.tolist(), (peak * cosine).tolist(), strict=True), (float(steps), 0.0)]
        conf = {
            "source": "xlstm_llama" if "llama" in run.arch else "xlstm_mlstm",
            **_size(run, run.params_nonemb),
            "optimizer": "adamw",
            "learning rate": peak,
            "batch size": int(run.batch_seqs),
            "seq len": int(run.seq_len),
            "warmup": 750,
            "weight decay": 0.1,
            "max_grad_norm": 0.5,
            "max step": steps,
            "lr points": points,
        }
        curve = curves[(curves["run"] == run.run) & (curves["split"] == "train") & (curves["step"] < steps)]
        row: dict[str, Any] = {
            "name": run.run,
            "source": conf["source"],
            "conf": conf,
            "final_loss": float(run.final_loss),
        }
        rows.append(row | {"group": run.group, "curve": (curve["step"].to_numpy() - 25, curve["loss"].to_numpy())})
    return rows


def olmo(folder: Path) -> list[dict[str, Any]]:
    """AI2's model ladder: validation losses on C4."""
    runs, curves = _read(folder / "olmo_ladder")
    rows = []
    for run in _each(runs[runs["flag"].isna()]):
        conf = {
            "source": "olmo_ladder",
            **_size(run, run.params_nonemb),
            "optimizer": "adamw",
            "learning rate": float(run.lr_peak),
            "batch size": int(run.batch_seqs),
            "seq len": int(run.seq_len),
            "warmup": int(run.warmup_steps),
            "weight decay": 0.1,
            "min_lr_ratio": 0.1,
            "lr_schedule": "cosine",
            "max step": int(run.steps),
        }
        curve = curves[curves["run"] == run.run]
        row: dict[str, Any] = {
            "name": run.run,
            "source": "olmo_ladder",
            "conf": conf,
            "final_loss": float(run.final_loss),
        }
        rows.append(row | {"group": "olmo_ladder", "curve": (curve["step"].to_numpy(), curve["loss"].to_numpy())})
    return rows


# The schedules of the multi-power law's runs, as fields.
_SCHEDULES: dict[str, dict[str, Any]] = {
    "constant": {"lr_schedule": "constant"},
    "cosine": {"lr_schedule": "cosine", "min_lr_ratio": 0.1},
    "wsdld": {"lr_schedule": "wsd", "decay": 1 / 6, "min_lr_ratio": 0.1},
    "wsd": {"lr_schedule": "wsd", "decay": 1 / 6, "min_lr_ratio": 0.1, "cooldown shape": "exponential"},
}


def multipowerlaw(folder: Path) -> list[dict[str, Any]]:
    """Three sizes under nine schedules; tokens are not logged, and a batch of 2^19 tokens is assumed."""
    runs, curves = _read(folder / "multipowerlaw")
    rows = []
    for run in _each(runs):
        steps, kind = int(run.steps), str(run.schedule).split("_")[0]
        schedule = _SCHEDULES.get(kind)
        if schedule is None:
            low = int(str(run.schedule).split("_")[1]) * 1e-5
            schedule = {"lr points": [(0, 0), (2160, 3e-4), (8000, 3e-4), (8000, low), (steps, low)]}
        conf = {
            "source": "multipowerlaw",
            "model size": float(str(run.size_label)[:-1]),
            "data size": steps * 2**19 / 1e9,
            "optimizer": "adamw",
            "learning rate": 3e-4,
            "batch size": 256,
            "warmup": 2160,
            "max step": steps,
            **schedule,
        }
        curve = curves[curves["run"] == run.run]
        row: dict[str, Any] = {
            "name": run.run,
            "source": "multipowerlaw",
            "conf": conf,
            "final_loss": float(run.final_loss),
        }
        rows.append(row | {"group": run.size_label, "curve": (curve["step"].to_numpy(), curve["loss"].to_numpy())})
    return rows


def curve_run(row: dict[str, Any]) -> CurveRun:
    """What the fit reads of a row; `forecast`, where it has one, is of a law that has not seen it."""
    run = CurveRun.of(row["conf"], row["curve"][0], row["curve"][1], row["final_loss"])
    return replace(run, forecast=float(row.get("forecast", math.nan)))


def with_forecasts(rows: Sequence[dict[str, Any]], folds: int = 4) -> list[dict[str, Any]]:
    """Rows with the final loss that the configuration law forecasts for them from the other folds, and how surely."""
    part = np.random.default_rng(1).permutation(len(rows)) % folds
    forecasts, known = np.empty(len(rows)), np.empty(len(rows))
    for i in range(folds):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            law = fit([row for row, p in zip(rows, part, strict=True) if p != i]).law()
            mine = np.flatnonzero(part == i)
            configs = [rows[int(j)]["conf"] for j in mine]
            forecasts[mine], known[mine] = law(configs), law.uncertainty(configs)["known"]
    found = zip(rows, forecasts.tolist(), known.tolist(), strict=True)
    return [row | {"forecast": value, "uncertainty": sure} for row, value, sure in found]


def _read(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Runs, and the points of their curves in order."""
    return pd.read_csv(folder / "runs.csv"), pd.read_csv(folder / "curves.csv").sort_values(["run", "step"])


def _each(runs: pd.DataFrame) -> list[Any]:
    return list(runs.itertuples())


def _size(run: Any, parameters: float) -> dict[str, Any]:
    shape = {"model size": parameters / 1e6, "data size": float(run.tokens) / 1e9}
    for name, value in (("num layers", run.layers), ("num heads", run.heads), ("hidden dim", run.hidden)):
        if value is not None and math.isfinite(float(value)):
            shape[name] = int(value)
    return shape | {"vocab size": int(run.vocab)}
