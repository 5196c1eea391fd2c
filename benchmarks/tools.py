"""Three questions to planners of pretraining runs: our plan, and what others answer.

    python -m benchmarks.tools [--chinchilla PYTHON]

Q1: which size and how many tokens for 1e21 FLOPs? Q2: for 1e22 FLOPs, serving of 2e12 tokens included? Q3: what is the
cheapest run with a loss of 2.4 nats? `chinchilla` (PyPI) is run by a Python that has it; web calculators that use a
published law are computed from its formula, which is said. Losses are each on the law's own evaluation set, so those
of Q3 do not compare across laws.
"""

import argparse
import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ncpl import Forecaster
from ncpl.allocations import BESIROGLU, HOFFMANN, AllocationLaw, kaplan_optimum
from ncpl.files import write_json
from ncpl.record import provenance
from published_ncpl import StepLaw

RESULTS = Path(__file__).parent / "results"
SERVED = 2e12
CHINCHILLA = """
import json, tempfile, numpy as np
from chinchilla import Chinchilla
grid = dict.fromkeys(("E", "a", "b", "alpha", "beta"), [1, 2])
seeds = {"C": (1e15, 1e16), "N_to_D": (10, 100)}
tool = Chinchilla(tempfile.mkdtemp(), param_grid=grid, seed_ranges=seeds, log_level=50)
tool.E, tool.A, tool.B, tool.alpha, tool.beta = 1.8172, 482.01, 2085.43, 0.3478, 0.3658
print(json.dumps([float(value) for value in tool.allocate_compute(1e21)]))
"""


def ours(forecaster: Forecaster, **asked: Any) -> dict[str, Any]:
    """A plan's answer with what no other tool gives: interval, valley, learning rate, batch size, cost."""
    best = forecaster.plan(base={"source": "steplaw", "optimizer": "adamw"}, **asked).best
    names = ("params", "tokens", "loss", "lower", "upper", "params_low", "params_high", "learning rate", "batch size")
    return {name: float(best[name]) for name in (*names, "flops", "cost_usd")}


def with_serving(law: AllocationLaw) -> dict[str, float]:
    """Q2 by a published law."""
    params = np.geomspace(1e7, 1e12, 100_001)
    tokens = 1e22 / 6 / params - SERVED / 3
    allowed = tokens > 0
    losses = law.E + law.A / params[allowed] ** law.alpha + law.B / tokens[allowed] ** law.beta
    at = int(losses.argmin())
    return {"params": float(params[allowed][at]), "tokens": float(tokens[allowed][at])}


def cheapest(law: AllocationLaw) -> dict[str, float]:
    """Q3 by a published law."""
    for flops in np.geomspace(1e17, 1e25, 20_001):
        params, tokens = law.optimum(float(flops))
        if law.loss(params, tokens) <= 2.4:
            return {"params": params, "tokens": tokens, "flops": float(flops)}
    raise AssertionError("no budget reaches 2.4")


def pair(found: tuple[float, float]) -> dict[str, float]:
    return {"params": found[0], "tokens": found[1]}


def main() -> None:
    """Asks everyone and writes the answers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chinchilla", help="a Python that has PyPI's chinchilla")
    parser.add_argument("--output", type=Path, default=RESULTS / "tools.json")
    arguments = parser.parse_args()
    forecaster = Forecaster.from_pretrained()
    first = ours(forecaster, flops=1e21)
    size = [{"model size": first["params"] / 1e6, "data size": first["tokens"] / 1e9, "seq len": 2048}]
    laws: dict[str, Callable[[float], tuple[float, float]]] = {
        "hoffmann": HOFFMANN.optimum, "besiroglu": BESIROGLU.optimum, "kaplan": kaplan_optimum,
    }  # fmt: skip
    result: dict[str, Any] = {
        **provenance(),
        "seeds": [],
        "date": time.strftime("%Y-%m-%d"),
        "ncpl": {"q1": first, "q2": ours(forecaster, flops=1e22, inference_tokens=SERVED),
                 "q3": ours(forecaster, target_loss=2.4)},
        "formula": {name: {"q1": pair(optimum(1e21))} for name, optimum in laws.items()},
        "steplaw": {"q1": {"learning rate": float(StepLaw().learning_rate(size)[0]),
                           "batch size": float(StepLaw().batch_size(size)[0])}},
    }  # fmt: skip
    for name, law in (("hoffmann", HOFFMANN), ("besiroglu", BESIROGLU)):
        result["formula"][name] |= {"q2": with_serving(law), "q3": cheapest(law)}
    if arguments.chinchilla:
        said = subprocess.run([arguments.chinchilla, "-c", CHINCHILLA], capture_output=True, text=True, check=True)
        result["chinchilla"] = {"q1": pair(tuple(json.loads(said.stdout.splitlines()[-1])))}
    write_json(arguments.output, result)
    print(json.dumps({name: result[name] for name in ("ncpl", "formula", "steplaw")}, indent=1))


if __name__ == "__main__":
    main()
