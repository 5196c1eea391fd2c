"""How size and data meet in the loss: forms of the scaling law on the runs of every lab at hand.

    python benchmarks/forms.py --output benchmarks/results/forms.json

For each lab's well-tuned runs: the penalised misfit of each form, and the bias on the largest size of a fit without it.
The priors of `growth`, `beta_n` and `head` (`forms_ncpl.PRIORS`) come from here.
"""

import argparse
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.optimize import least_squares

sys.path.insert(0, str(Path(__file__).parent.parent))

from datasets_scripts.runs import load_runs
from fields_ncpl import SOURCES
from forms_ncpl import REFERENCE
from ncpl.files import write_json
from ncpl.record import provenance

# Coefficient -> prior mean and standard deviation: wide, to hear what the runs say.
COEFFICIENTS = {
    "E": (2.0, 1.0),
    "logA": (-0.6, 1.0),
    "alpha": (0.3, 0.2),
    "logB": (-1.4, 1.0),
    "beta": (0.4, 0.2),
    "growth": (0.0, 0.3),
    "beta_n": (0.0, 0.15),
    "log_gamma": (0.0, 0.7),
    "head": (0.0, 1.0),
}
CHINCHILLA = ("E", "logA", "alpha", "logB", "beta")
FORMS = {
    "Chinchilla": CHINCHILLA,
    "exponent of data grows with size": (*CHINCHILLA, "beta_n"),
    "data term grows with size": (*CHINCHILLA, "growth"),
    "both grow": (*CHINCHILLA, "growth", "beta_n"),
    "soft maximum of size and data terms": (*CHINCHILLA, "log_gamma"),
    "both grow, the head counts in part": (*CHINCHILLA, "growth", "beta_n", "head"),
}
# Scale of the Student-t errors, in nats.
SPREAD = 0.004
STARTS = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--data-dir", type=Path, default=Path("../shared/data"), help="folder with a folder a lab")
    args = parser.parse_args()
    labs = {name: judge(*columns) for name, columns in read_labs(args.data_dir).items()}
    result = {
        **provenance(),
        "seeds": [0, 1, 2, 3],
        "labs": labs,
    }
    write_json(args.output, result, 1)
    print(table_text(labs))


def read_labs(folder: Path) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """Lab and recipe -> logarithms of size and data size over `REFERENCE`, the output head's parameters over the
    others, and losses in nats per token."""
    tables: dict[str, pd.DataFrame] = {}
    for lab, group in (("olmo_ladder", "source"), ("gadre_open_lm", "dataset"), ("xlstm_nxai", "group")):
        runs = pd.read_csv(folder / lab / "runs.csv")
        runs = runs[runs["flag"].isna() & runs["final_loss"].notna() & (runs["params_nonemb"] > 3e7)]
        if lab == "gadre_open_lm":
            # The smallest runs are a different regime: a learning rate of 0.003 throughout, and seconds of training.
            runs = runs[(runs["params_nonemb"] > 5e7) & (runs["chinchilla_multiplier"] >= 0.5)]
        tables |= {f"{lab} {name}": own for name, own in runs.groupby(group)}
    for source, best in (("steplaw", 5), ("marin", 2)):
        losses: dict[tuple[float, ...], list[float]] = defaultdict(list)
        for row in load_runs(source, folder)["train"]:
            # Of Marin's optimizers the common one.
            if row["conf"]["optimizer"] == "adamw":
                conf = row["conf"]
                cell = conf["model size"] * 1e6, conf["data size"] * 1e9, conf["hidden dim"], SOURCES[source].vocab_size
                losses[cell].append(row["final_loss"])
        cells = [(*cell, float(np.mean(sorted(own)[:best]))) for cell, own in losses.items() if len(own) > best]
        tables[source] = pd.DataFrame(cells, columns=["params_nonemb", "tokens", "hidden", "vocab", "final_loss"])
    size, data = REFERENCE["model size"] * 1e6, REFERENCE["data size"] * 1e9
    return {
        name: tuple(
            np.asarray(values, dtype=float)
            for values in (
                np.log(own["params_nonemb"] / size),
                np.log(own["tokens"] / data),
                own["vocab"] * own["hidden"] / own["params_nonemb"],
                own["final_loss"],
            )
        )  # type: ignore[misc]
        for name, own in tables.items()
    }


def loss(c: Mapping[str, float], n: np.ndarray, d: np.ndarray, head: np.ndarray) -> np.ndarray:
    """`E + ((A e^(-alpha n))^(1/gamma) + (B e^(growth n - (beta + beta_n n) d))^(1/gamma))^gamma`, where a share of the
    head counts towards n."""
    n = n + np.log1p(np.maximum(c["head"], -0.5) * head)
    gamma = np.exp(c["log_gamma"])
    size, data = c["logA"] - c["alpha"] * n, c["logB"] + c["growth"] * n - (c["beta"] + c["beta_n"] * n) * d
    return c["E"] + np.exp(gamma * np.logaddexp(size / gamma, data / gamma))


def fit(
    free: Sequence[str], n: np.ndarray, d: np.ndarray, head: np.ndarray, losses: np.ndarray
) -> tuple[dict[str, float], float, dict[str, float]]:
    """Maximum a posteriori with Student-t errors of 4 degrees of freedom: coefficients, half the penalised misfit,
    standard errors."""

    def coefficients(z: np.ndarray) -> dict[str, float]:
        moved = {name: COEFFICIENTS[name][0] + COEFFICIENTS[name][1] * v for name, v in zip(free, z, strict=True)}
        return {name: mean for name, (mean, _) in COEFFICIENTS.items()} | moved

    def misfit(z: np.ndarray) -> np.ndarray:
        error = (loss(coefficients(z), n, d, head) - losses) / SPREAD
        return np.concatenate([np.sign(error) * np.sqrt(5 * np.log1p(error**2 / 4)), z])

    starts = [np.random.default_rng(k).normal(size=len(free)) * 0.5 * (k > 0) for k in range(STARTS)]
    found = min((least_squares(misfit, start, max_nfev=600) for start in starts), key=lambda result: result.cost)
    spread = np.sqrt(np.diagonal(np.linalg.inv(found.jac.T @ found.jac)))
    errors = {name: float(COEFFICIENTS[name][1] * s) for name, s in zip(free, spread, strict=True)}
    return coefficients(found.x), float(found.cost), errors


def judge(n: np.ndarray, d: np.ndarray, head: np.ndarray, losses: np.ndarray) -> dict[str, Any]:
    largest = n > n.max() - 0.01
    forms = {}
    for name, free in FORMS.items():
        c, cost, errors = fit(free, n, d, head, losses)
        figures = {"misfit": cost, "rms": float(np.sqrt(np.mean((loss(c, n, d, head) - losses) ** 2)))}
        if len(np.unique(n.round(2))) > 2:
            without, _, _ = fit(free, *(values[~largest] for values in (n, d, head, losses)))
            figures["largest_size_bias"] = float((loss(without, n, d, head) - losses)[largest].mean())
        forms[name] = figures | {name: c[name] for name in ("alpha", "beta", "growth", "beta_n", "head")}
        forms[name] |= {f"{key}_error": errors[key] for key in ("head",) if key in errors}
    return {"runs": len(n), "sizes": len(np.unique(n.round(2))), "forms": forms}


def table_text(labs: Mapping[str, Any]) -> str:
    lines = ["| runs of | " + " | ".join(FORMS) + " |", "|---" * (len(FORMS) + 1) + "|"]
    for lab, found in labs.items():
        cells = []
        for figures in found["forms"].values():
            own = [f"{key} {figures[key]:+.2f}" for key in ("growth", "beta_n", "head") if figures[key]]
            own += [f"± {figures[key]:.2f}" for key in ("head_error",) if key in figures]
            cells.append(", ".join([f"{figures['misfit']:.0f}", *own]))
        lines.append(f"| {lab} ({found['runs']}) | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
