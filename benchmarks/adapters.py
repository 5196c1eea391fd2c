"""Adapting a forecaster to another lab's runs: low-rank adapters beside training every weight.

    NCPL_DATA_DIR=logs python benchmarks/adapters.py

A small forecaster is trained on Marin's runs, then goes on with StepLaw's train split in each way, same epochs and
learning rate; the epoch is chosen on in_val. Sizes are those of the files that a push sends. `benchmarks/tables.py`
writes the table in docs/deployment.md from the result.
"""

import contextlib
import io
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from common import ROOT, parser, report  # type: ignore[import-not-found]

sys.path.insert(0, str(ROOT))

import run_train

RECIPE = str(ROOT / "recipes" / "ncpl-mini.yaml")
WAYS = {"every weight": "null", "LoRA, rank 16": "{r: 16, alpha: 32}", "LoRA, rank 4": "{r: 4, alpha: 8}"}


def train(output: Path, data_dir: str, source: str, seed: int, epochs: int, rate: float, *more: str) -> dict[str, Any]:
    """One training by the recipe of the embedded default; its record."""
    overrides = {
        "output_dir": output,
        "seed": seed,
        "data.data_dir": data_dir,
        "data.sources": f"[{source}]",
        "stages.full.epochs": epochs,
        "stages.full.learning_rate": rate,
        "stages.full.evaluations": 5,
    }
    arguments = [word for key, value in overrides.items() for word in (f"--{key}", str(value))]
    with contextlib.redirect_stdout(io.StringIO()):
        run_train.main([RECIPE, *arguments, *more])
    return json.loads((output / "training_record.json").read_text())


def adapt(output: Path, base: Path, data_dir: str, seed: int, epochs: int, rate: float, lora: str) -> dict[str, Any]:
    own = ("scratch", "prompt_version", "number_embedding", "prior")  # the checkpoint's stay
    more = [word for key in own for word in (f"--model.{key}", "null")]
    more += ["--model.checkpoint", str(base), "--stages.full.lora", lora]
    record = train(output, data_dir, "steplaw", seed, epochs, rate, *more)
    stage = record["stages"]["full"]
    weights = sum(file.stat().st_size for file in output.glob("*.safetensors"))
    return {
        "trained_parameters": stage["trainable_parameters"],
        "weights_mb": round(weights / 1e6, 3),
        **{f"{split}_mae": record["metrics"][split]["steplaw"]["final"]["mae"] for split in ("in_val", "ood_val")},
        "wall_s": stage["wall_s"],
    }


def main() -> None:
    made = parser(str(__doc__), "adapters")
    made.add_argument("--data-dir", default=os.environ.get("NCPL_DATA_DIR", str(ROOT.parent / "shared" / "data")))
    made.add_argument("--epochs", type=int, default=20, help="of the base and of each adaptation")
    made.add_argument("--learning-rate", type=float, default=2e-3, help="peak, of each adaptation")
    given = made.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder, "base")
        train(base, given.data_dir, "marin", given.seed, given.epochs, 1e-3)
        ways: dict[str, dict[str, Any]] = {}
        priors: dict[str, Any] = {}
        for way, lora in WAYS.items():
            output = Path(folder, str(len(ways)))
            ways[way] = adapt(output, base, given.data_dir, given.seed, given.epochs, given.learning_rate, lora)
            priors = json.loads((output / "training_record.json").read_text())["prior_metrics"]
    prior = {split: priors[split]["steplaw"]["final"]["mae"] for split in ("in_val", "ood_val")}
    result = {"ways": ways, "prior": prior, "epochs": given.epochs, "learning_rate": given.learning_rate}
    full, rank_16 = ways["every weight"], ways["LoRA, rank 16"]
    rows = [
        {"figure": f"{name}: every weight, LoRA of rank 16", "plain": full[name], "ours": rank_16[name]}
        for name in full
    ]
    report(given.output, [given.seed], rows, **result)


if __name__ == "__main__":
    main()
