"""The same batch by any accumulation, number of processes and packing, and sharded weights (FSDP2): the same weights.

    python -m tests.hardening.distributed

Trains a tiny model for six steps in each way, processes over gloo on this machine's CPU, and compares the weights with
those of one process, unaccumulated and unpacked. The largest difference of any weight, and whether it is none at all,
go to `benchmarks/results/reliability.json` under `batch_parity`. Nothing here says anything of GPUs and NCCL.
"""

import argparse
import itertools
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import DistributedType

from ncpl.record import provenance
from ncpl.training.checkpoints import write_json
from tests.hardening.training_kills import RESULTS, finished, start
from tests.trainings import TINY, weights

FSDP = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_TRANSFORMER_CLS_TO_WRAP": "Qwen3DecoderLayer",
    "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
}
"""`recipes/accelerate/fsdp2.yaml`, as accelerate's launcher hands it to processes."""
BOUND = 1e-6
"""Of a weight's difference where the order of sums differs."""


def shard_on_cpu() -> None:
    """Lets accelerate shard over gloo, which it does for several GPUs alone; called in each process."""
    os.environ.update(FSDP)
    initialise = PartialState.__init__

    def initialised(self: PartialState, *args: Any, **kwargs: Any) -> None:
        initialise(self, *args, **kwargs)
        if self.distributed_type == DistributedType.MULTI_CPU:
            PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU

    PartialState.__init__ = initialised


def ways() -> list[tuple[str, int, dict[str, Any]]]:
    """Name, number of processes, and what changes in the recipe."""
    found: list[tuple[str, int, dict[str, Any]]] = []
    for packed, processes, accumulated in itertools.product((False, True), (1, 2), (1, 2, 4)):
        name = f"{processes} process{'es' if processes > 1 else ''}, accumulation {accumulated}"
        name += ", packed" if packed else ", plain"
        found.append((name, processes, {"packed": packed, "accumulated": accumulated}))
    for packed in (False, True):
        name = f"FSDP2 on 2 processes, accumulation 2, {'packed' if packed else 'plain'}"
        found.append((name, 2, {"packed": packed, "accumulated": 2, "sharded": True}))
    return found


def train(base: Path, number: int, processes: int, packed: bool, accumulated: int, sharded: bool = False) -> Path:
    """Trains in one way; both stages, with curve points, and a last batch that is smaller.

    The learning rate is one that recipes use: Adam divides a gradient by its own size, so that a rounding difference of
    a gradient near zero moves its weight by a share of the rate.
    """
    folder = base / str(number)
    stage = {"epochs": 2, "batch_size": 24, "learning_rate": 1e-3, "evaluations": 1}
    stages = {name: {**stage, "gradient_accumulation_steps": accumulated} for name in ("frozen", "full")}
    data = {**TINY["data"], "config": "intermediate", "packed": packed}
    (base / f"{number}.yaml").write_text(json.dumps({**TINY, "data": data, "stages": stages}))
    arguments = [str(base / f"{number}.yaml"), "--output_dir", str(folder)]
    log = base / f"{number}.txt"
    children = start(arguments, processes, 29700 + number, log, shard_on_cpu if sharded else None)
    if not finished(children):
        raise RuntimeError(log.read_text()[-3000:])
    return folder


def compare() -> dict[str, Any]:
    """Every way's largest difference from the first."""
    differences: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        expected: dict[str, Any] = {}
        for number, (name, processes, changes) in enumerate(ways()):
            found = weights(train(Path(folder), number, processes, **changes))
            expected = expected or found
            differences[name] = max((found[w] - expected[w]).abs().max().item() for w in expected)
            print(f"{name}: {differences[name]:.1e}", flush=True)
    reference, *others = differences
    return {
        "what": f"largest difference of any weight from {reference}; both stages, curve points, a smaller last batch",
        "differences": {name: differences[name] for name in others},
        "bitwise": [name for name in others if differences[name] == 0],
        "bound": BOUND,
        "beyond": [name for name in others if not differences[name] <= BOUND],
        "gpu": "not measured",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=RESULTS)
    given = parser.parse_args()
    found = compare()
    results = json.loads(given.output.read_text()) if given.output.exists() else {}
    results["batch_parity"] = {**found, "seeds": [TINY["seed"]], **provenance()}
    write_json(given.output, results)
    sys.exit(1 if found["beyond"] else 0)


if __name__ == "__main__":
    main()
