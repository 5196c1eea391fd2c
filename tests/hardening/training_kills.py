"""Kills a training again and again, at random moments, and compares what it ends with with an unbroken training.

    python -m tests.hardening.training_kills --kills 20 --kills-of-two 10

The weights must be the same bitwise. The counts go to `benchmarks/results/reliability.json` under `training_kills`.
"""

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", ACCELERATE_USE_CPU="true", PYTHONWARNINGS="ignore")

import torch
import yaml

import run_train
from ncpl.record import provenance
from ncpl.training import evaluation, model, output, prior, processes, stages  # noqa: F401  (loaded once, then forked)
from ncpl.training.checkpoints import write_json
from tests.trainings import ROOT, TINY, weights

RESULTS = ROOT / "benchmarks" / "results" / "reliability.json"


def start(
    arguments: list[str], count: int, port: int, log: Path, prepare: Callable[[], None] | None = None
) -> list[int]:
    """A training on so many processes, each a fork of this one, which has imported everything and computed nothing."""
    children = []
    for rank in range(count):
        child = os.fork()
        if child:
            children.append(child)
            continue
        if count > 1:
            names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
            os.environ.update(zip(names, map(str, (rank, rank, count, "127.0.0.1", port)), strict=True))
        with log.open("a") as stream:
            os.dup2(stream.fileno(), 1)
            os.dup2(stream.fileno(), 2)
        status = 1
        try:
            if prepare is not None:
                prepare()
            run_train.main(arguments)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(status)
    return children


def finished(children: list[int]) -> bool:
    """Waits for processes; whether all of them ended well."""
    statuses = [os.waitpid(child, 0)[1] for child in children]
    return not any(statuses)


def run(arguments: list[str], count: int, port: int, log: Path, folder: Path | None, rng: random.Random) -> bool:
    """One launch; with a folder it is killed soon after it has written there. Whether it ended by itself."""
    children = start(arguments, count, port, log)
    ended: dict[int, int] = {}

    def poll() -> bool:
        for child in children:
            if child not in ended and os.waitpid(child, os.WNOHANG)[0]:
                ended[child] = 0
        return len(ended) == len(children)

    if folder is not None:
        before, wanted = written(folder), rng.randint(1, 4)
        while not poll() and len(written(folder) - before) < wanted:
            time.sleep(0.002)
        until = time.monotonic() + rng.random() * 0.3
        while not poll() and time.monotonic() < until:
            time.sleep(0.002)
        if not poll():
            for child in children:
                if child not in ended:
                    os.kill(child, signal.SIGKILL)
            while not poll():
                time.sleep(0.01)
            return False
    while not poll():
        time.sleep(0.05)
    return True


def written(folder: Path) -> set[str]:
    """Checkpoints and ended stages, as paths."""
    return {str(path) for pattern in ("checkpoint-*", "stage.json") for path in folder.glob(f"stages/*/{pattern}")}


def kill(count: int, kills: int, base: Path, rng: random.Random) -> dict[str, Any]:
    """Kills one training so many times, begins others while these are not enough, and lets each come to its end."""
    recipe, log = base / "tiny.yaml", base / f"log-{count}.txt"
    settings = {name: {**stage, "epochs": 5, "evaluations": 15} for name, stage in TINY["stages"].items()}
    recipe.write_text(yaml.safe_dump({**TINY, "stages": settings}))
    ports = iter(range(29600 + 500 * count, 40000))
    unbroken = base / f"unbroken-{count}"
    run([str(recipe), "--output_dir", str(unbroken)], count, next(ports), log, None, rng)
    expected = weights(unbroken)
    counts = {"kills": 0, "trainings": 0, "bitwise_equal": 0, "lost": 0}
    while counts["kills"] < kills:
        folder = base / f"killed-{count}-{counts['trainings']}"
        arguments = [str(recipe), "--output_dir", str(folder)]
        while counts["kills"] < kills and not run(arguments, count, next(ports), log, folder, rng):
            counts["kills"] += 1
            print(f"{count} process(es): {counts['kills']} kills", flush=True)
        run(arguments, count, next(ports), log, None, rng)
        counts["trainings"] += 1
        equal = False
        if (folder / "training_record.json").exists():
            ended = weights(folder)
            equal = all(torch.equal(ended[name], value) for name, value in expected.items())
        if not equal:
            print(log.read_text()[-3000:])
        counts["bitwise_equal" if equal else "lost"] += 1
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="of trainings on one process")
    parser.add_argument("--kills-of-two", type=int, default=10, help="of trainings on two processes, over gloo")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--output", type=Path, default=RESULTS)
    given = parser.parse_args()
    rng = random.Random(given.seed)
    with tempfile.TemporaryDirectory() as folder:
        found = {
            "one_process": kill(1, given.kills, Path(folder), rng),
            "two_processes": kill(2, given.kills_of_two, Path(folder), rng),
        }
    results = json.loads(given.output.read_text()) if given.output.exists() else {}
    results["training_kills"] = {**found, "seeds": [given.seed], **provenance()}
    write_json(given.output, results)
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
