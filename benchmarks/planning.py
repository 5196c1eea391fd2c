"""Planning against published runs: accelerator-hours, memory, and the Chinchilla law fitted again.

    python benchmarks/planning.py --data ../shared/data

Hours are of full runs of grade A and B, with our default utilisation, against a constant one. The defaults of
`ncpl/hardware.toml` were chosen by people who had seen these runs: what is measured is the fit of two numbers, the
accelerator's utilisation and one width, not a forecast of unseen runs. `leave_out` is one: both numbers are fitted
again by a rule, medians and a grid, on the other runs, with one run or all runs of one model family left out.
"""

import argparse
import csv
import json
import re
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import minimize
from scipy.special import logsumexp

from ncpl.files import write_json
from ncpl.hardware import RECOMPUTATIONS, Shape, memory_gb, read_hardware, run_utilisation
from ncpl.record import provenance

RESULTS = Path(__file__).parent / "results"
NAMES = {
    **{"A100-80GB-SXM": "a100", "A100-40GB-SXM": "a100-40gb", "H100-SXM": "h100", "H800-SXM": "h800"},
    **{"MI250X (GCD)": "mi250x-gcd", "TPU v3 (chip)": "tpu-v3", "TPU v4": "tpu-v4", "V100-SXM2": "v100"},
}
# Published coefficients and standard errors (Besiroglu et al. 2024, arXiv 2404.10102).
BESIROGLU = {
    **{"A": (482.01, 124.58), "B": (2085.43, 1293.23), "E": (1.8172, 0.03)},
    **{"alpha": (0.3478, 0.02), "beta": (0.3658, 0.02)},
}
LLAMA_8B = Shape(32, 4096, 32, 8, 14336, 128256, 8192)
LLAMA_70B = Shape(80, 8192, 64, 8, 28672, 128256, 8192)
LLAMA_405B = Shape(126, 16384, 128, 8, 53248, 128256, 8192)
# Prefix of the fact -> shape; rows of other models have no published shape here or no pretraining.
SHAPES = {"titan-8b": LLAMA_8B, "titan-70b": LLAMA_70B, "titan-405b": LLAMA_405B}


def rows_of(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def errors(ratios: list[float]) -> dict[str, Any]:
    """Median of |ratio - 1|, and the share within a factor of 1.6."""
    away = [abs(ratio - 1) for ratio in ratios]
    near = [1 / 1.6 <= ratio <= 1.6 for ratio in ratios]
    return {"runs": len(ratios), "median_error": statistics.median(away), "within_1.6": sum(near) / len(near)}


def hours(path: Path) -> dict[str, Any]:
    """Ours over published accelerator-hours of full runs of grade A and B."""
    found: list[dict[str, Any]] = []
    reported: list[float] = []
    for row in rows_of(path):
        scored = row["kind"] == "full run" and row["grade"] in ("A", "B") and row["accel_hours"]
        if not scored:
            continue
        gpu = read_hardware().find(NAMES[row["accelerator"]])
        layers, width = int(row["layers"]), int(row["d_model"])
        # The gemstones' rows have no heads or vocabulary: published parameters stand for the matrices.
        shape = Shape(layers, width, 1, 1, 1, 1, int(row["seq_len"]))
        per_token = 6 * float(row["params_active"]) + 12 * layers * width * shape.seq_len
        ideal = per_token * float(row["tokens"]) / (gpu.bf16_tflops * 1e12 * 3600)
        published = float(row["accel_hours"])
        ours = ideal / run_utilisation(gpu, shape)
        found.append({"run": row["run_id"], "published": published, "ours": ours, "ratio": ours / published})
        found[-1] |= {"run_utilisation": ideal / published, "width": width, "gpu": gpu.name}
        found[-1]["family"] = row["model"].replace("-", " ").split()[0].lower()
        if row["mfu_reported_pct"]:
            reported.append(ideal / (float(row["mfu_reported_pct"]) / 100) / published)
    constant = [{**row, "ratio": row["run_utilisation"] / 0.35} for row in found]
    return {
        "default": errors([row["ratio"] for row in found]),
        "constant_0.35": errors([row["ratio"] for row in constant]),
        "reported_utilisation": errors(reported),
        "leave_out": {name: errors(left_out(found, name)) for name in ("run", "family")},
        "rows": found,
    }


def left_out(rows: list[dict[str, Any]], name: str) -> list[float]:
    """Ours over published hours of each run, by utilisations that are fitted without its run or family."""
    ratios = []
    for group in dict.fromkeys(row[name] for row in rows):
        others = [row for row in rows if row[name] != group]
        narrow, shares = fitted(others)
        for row in rows:
            if row[name] == group:
                share = shares.get(row["gpu"], shares["any"]) * width_factor(row["width"], narrow)
                ratios.append(row["run_utilisation"] / share)
    return ratios


def fitted(rows: list[dict[str, Any]]) -> tuple[float, dict[str, float]]:
    """The width below which models are slow, and each accelerator's utilisation: medians, the width from a grid."""
    best: tuple[float, float, dict[str, float]] | None = None
    for narrow in (0.0, 125.0, 250.0, 500.0, 1000.0, 2000.0):
        wide = [(row["gpu"], row["run_utilisation"] / width_factor(row["width"], narrow)) for row in rows]
        shares = {gpu: statistics.median(u for own, u in wide if own == gpu) for gpu, _ in wide}
        shares["any"] = statistics.median(u for _, u in wide)
        away = statistics.median(abs(float(np.log(u / shares[gpu]))) for gpu, u in wide)
        if best is None or away < best[0]:
            best = away, narrow, shares
    assert best is not None
    return best[1:]


def width_factor(width: float, narrow: float) -> float:
    """What a model of this width keeps of a wide one's utilisation; 1 at 4,096."""
    return (1 + narrow / 4096) * width / (width + narrow)


def memory(path: Path) -> dict[str, Any]:
    """Ours over measured peaks of pretraining steps that are not marked doubtful."""
    found: list[dict[str, Any]] = []
    for row in rows_of(path):
        shape = next((own for prefix, own in SHAPES.items() if row["fact_id"].startswith(prefix)), None)
        told = row["recomputation"] in RECOMPUTATIONS and row["unit"].startswith("GiB peak")
        if row["kind"] != "measured" or shape is None or not told or "DOUBTFUL" in row["notes"]:
            continue
        split = dict(re.findall(r"(FSDP|TP|PP|CP) (\d+)", row["parallelism"]))
        context, tensor = int(split.get("CP", 1)), int(split.get("TP", 1))
        long = Shape(**{**shape.__dict__, "seq_len": int(row["seq_len"]) // context})
        parts = memory_gb(long, int(row["n_gpus"]), int(row["micro_batch"]), row["recomputation"], tensor=tensor)
        ours = sum(parts.values()) * 1e9 / 2**30
        published = float(row["value"])
        found.append({"fact": row["fact_id"], "published": published, "ours": ours, "ratio": ours / published})
        found[-1]["pipeline"] = "PP" in split
        # The share that selective recomputation keeps was chosen on these.
        found[-1]["chosen_on"] = row["fact_id"].startswith("titan-8b") and row["recomputation"] == "selective"
    plain = [row["ratio"] for row in found if not row["pipeline"]]
    unseen = [row["ratio"] for row in found if not row["chosen_on"] and not row["pipeline"]]
    return {
        "all": errors([row["ratio"] for row in found]),
        "without_pipeline": errors(plain),
        "without_pipeline_not_chosen_on": errors(unseen),
        "rows": found,
    }


def refit(path: Path) -> dict[str, Any]:
    """L = E + A N^-alpha + B D^-beta by Huber loss on log losses, the five highest left out, from many starts."""
    runs = sorted(rows_of(path), key=lambda row: float(row["final_loss"]))[:-5]
    n, d, loss = (np.log([float(row[name]) for row in runs]) for name in ("params", "tokens", "final_loss"))

    def objective(x: np.ndarray) -> float:
        terms = np.stack([x[0] - x[3] * n, x[1] - x[4] * d, np.full_like(n, x[2])])
        away = np.abs(logsumexp(terms, axis=0) - loss)
        return float(np.where(away <= 1e-3, away**2 / 2, 1e-3 * (away - 5e-4)).sum()) * 1e3

    starts = [(a, b, 0.5, p, p) for a in (4, 6, 8) for b in (5, 7.5, 10) for p in (0.3, 0.4)]
    best = min((minimize(objective, start, method="L-BFGS-B") for start in starts), key=lambda found: found.fun)
    best = minimize(objective, best.x, method="Nelder-Mead", options={"maxiter": 20000, "xatol": 1e-7, "fatol": 1e-10})
    ours = dict(zip(("A", "B", "E"), np.exp(best.x[:3]).tolist(), strict=True))
    ours |= {"alpha": float(best.x[3]), "beta": float(best.x[4])}
    table = {
        name: {"published": value, "standard_error": error, "ours": ours[name], "errors": (ours[name] - value) / error}
        for name, (value, error) in BESIROGLU.items()
    }
    return {"runs": len(runs), "coefficients": table}


def main() -> None:
    """Runs everything and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(__file__).parent.parent.parent / "shared" / "data")
    parser.add_argument("--output", type=Path, default=RESULTS / "planning.json")
    arguments = parser.parse_args()
    result = {
        **provenance(),
        "seeds": [],
        "date": time.strftime("%Y-%m-%d"),
        "hours": hours(arguments.data / "planning" / "runs.csv"),
        "memory": memory(arguments.data / "planning" / "memory.csv"),
        "chinchilla": refit(arguments.data / "chinchilla" / "runs.csv"),
    }
    write_json(arguments.output, result)
    for part in ("hours", "memory", "chinchilla"):
        shown: Any = result[part]
        print(part, json.dumps({name: value for name, value in shown.items() if name != "rows"}, indent=2))


if __name__ == "__main__":
    main()
