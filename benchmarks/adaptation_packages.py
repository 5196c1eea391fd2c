"""Forecasts by the packages `chinchilla` and `simple-scaling-laws`, run by a Python of their own.

    uv venv --python 3.12 packages && VIRTUAL_ENV=packages uv pip install chinchilla simple-scaling-laws pandas
    python benchmarks/adaptation.py --packages packages/bin/python

Reads a JSON object a line from standard input, `runs` ([parameters, tokens, loss] of each) and `held` ([parameters,
tokens]), and writes one a line: package -> losses of the held runs, a sentence where the package refuses the runs, or
null where it is not installed.
"""

import json
import sys
import tempfile
import warnings
from importlib.util import find_spec

import numpy as np


def package_chinchilla(runs: np.ndarray, held: np.ndarray) -> np.ndarray:
    """`chinchilla` (asymmetric absolute error, BFGS), from 32 starts in place of its example's 3,125.

    Those take minutes a fit; a median stands in where its best fit is not finite.
    """
    import pandas as pd
    from chinchilla import Chinchilla  # type: ignore[import-not-found]

    n, d, losses = runs.T
    spans = {"E": (1, 2), "a": (1, 10), "b": (1, 10), "alpha": (0.1, 0.7), "beta": (0.1, 0.7)}
    with tempfile.TemporaryDirectory() as folder, np.errstate(all="ignore"):
        pd.DataFrame({"C": 6 * n * d, "N": n, "D": d, "loss": losses}).to_csv(f"{folder}/df.csv", index=False)
        fit = Chinchilla(folder, {name: np.linspace(*span, 2) for name, span in spans.items()}, log_level=50)
        fit.fit(parallel=False)
        found = np.asarray(fit.predict_loss(*held.T), dtype=float)
    return np.where(np.isfinite(found), found, np.median(losses))


def package_simple(runs: np.ndarray, held: np.ndarray) -> np.ndarray:
    """`simple-scaling-laws`, its default law, medians."""
    import polars as pl  # type: ignore[import-not-found]
    from simple_scaling_laws import fit  # type: ignore[import-not-found]

    def columns(some: np.ndarray) -> dict[str, list[float]]:
        return {"model_size__params": some[:, 0].tolist(), "dataset_size__tokens": some[:, 1].tolist()}

    own = {"training_run_id": [f"run-{i}" for i in range(len(runs))], "test_set_id": ["validation"] * len(runs)}
    table = pl.DataFrame({**own, **columns(runs), "test_loss__loss": runs[:, 2].tolist()})
    asked = pl.DataFrame({"point_id": [f"{i:06d}" for i in range(len(held))], **columns(held)})
    found = fit(table, n_draws=50, seed=0).predict(asked, quantiles=[0.5])
    return np.asarray(found.sort("point_id")["test_loss__loss__median"].to_numpy())


PACKAGES = {"chinchilla": package_chinchilla, "simple_scaling_laws": package_simple}


def main() -> None:
    warnings.simplefilter("ignore")
    # What a package prints must not come between the answers.
    answers, sys.stdout = sys.stdout, sys.stderr
    for line in sys.stdin:
        asked = json.loads(line)
        runs, held = np.array(asked["runs"], dtype=float), np.array(asked["held"], dtype=float)
        found: dict[str, list[float] | str | None] = {}
        for name, forecast in PACKAGES.items():
            if find_spec(name) is None:
                found[name] = None
                continue
            try:
                found[name] = forecast(runs, held).tolist()
            except Exception as error:  # a package's own failure is part of what is measured
                found[name] = f"{type(error).__name__}: {error}"[:200]
        print(json.dumps(found), file=answers, flush=True)


if __name__ == "__main__":
    main()
