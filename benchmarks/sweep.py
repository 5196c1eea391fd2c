"""Sweeps over learning rate x batch size: a loop of single configurations (plain) against `Forecaster.sweep` (ours).

    python benchmarks/sweep.py
    python benchmarks/sweep.py --device cuda --scaling-sizes 1000 10000

Plain is the published evaluation, batch 1 and two passes a configuration; for the embedded default, whose network adds
nothing and is not asked, it is a loop of `Forecaster.predict`. Both run alternately in one process, plain on a share of
the grid each time, so that after all repeats it has forecast every configuration once, if not told to take fewer. How
time and memory grow with the grid is measured on `write_sweep` to a CSV file, each size in a process of its own that
has swept a window before.
"""

import json
import math
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import (  # type: ignore[import-not-found]
    build,
    parser,
    ratio,
    read_configs,
    report,
    seconds,
    spread,
)
from tqdm import tqdm

from fields_ncpl import check_config, training_order
from ncpl.checkpoint import DEFAULT
from ncpl.forecaster import Forecaster
from ncpl.sweep_files import WINDOW, write_sweep

CONFIG = {
    "source": "marin",
    "model size": 268.435456,
    "data size": 5.36870912,
    "num layers": 32,
    "num heads": 8,
    "hidden dim": 768,
    "ffn dim": 3072,
    "optimizer": "adamw",
    "learning rate": 4e-3,
    "warmup": 1000,
    "weight decay": 0.1,
    "batch size": 128,
    "max_grad_norm": 1,
    "min_lr_ratio": 0,
    "beta1": 0.9,
    "beta2": 0.98,
    "epsilon": 1e-15,
}


def grid_of(size: int) -> dict[str, list[float]]:
    """Learning rates x batch sizes, `size` combinations in all and about as many of both."""
    batches = max(count for count in range(1, math.isqrt(size) + 1) if size % count == 0)
    rates = size // batches
    return {
        "learning rate": np.geomspace(1e-4, 1e-2, rates).tolist(),
        # Up to where the run is hardly longer than its warmup.
        "batch size": np.linspace(32, 1031, batches).round().astype(int).tolist(),
    }


BATCHES = 25
"""Batch sizes of the grids that grow, by the number of learning rates alone: configurations of one learning rate share
the beginning of their prompts, which a grid that grows in both fields computes for ever fewer of its rows."""


def growing(size: int) -> dict[str, list[float]]:
    """A grid in which work is in proportion to `size`, a multiple of `BATCHES`."""
    return {
        "learning rate": np.geomspace(1e-4, 1e-2, size // BATCHES).tolist(),
        "batch size": np.linspace(32, 1031, BATCHES).round().astype(int).tolist(),
    }


def load(device: str, seed: int) -> tuple[Forecaster, str, str]:
    configs, data = read_configs()
    model, processor, name = build(device, configs, seed)
    return Forecaster.of(model.to(torch.bfloat16) if device == "cuda" else model, processor, device), name, data


@torch.inference_mode()
def plain_loss(forecaster: Forecaster, config: dict[str, Any]) -> float:
    """One configuration as the published evaluation does it, or by `predict` where there is no network to ask."""
    network = forecaster.network
    if network is None:
        return float(forecaster.predict(config)["loss"].item())
    config = training_order(check_config(config))
    batch = network.processor(config).to(network.device)
    loss_mask = batch.pop("loss_mask")
    for _ in range(2):
        logits = network.model(**batch).logits
    return float(network.processor.losses(logits, loss_mask, [config])[0])


def measure_scaling(size: int, device: str, seed: int) -> None:
    """In a process of its own: time and peak memory of one size."""
    forecaster, *_ = load(device, seed)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "sweep.csv"
        # A whole window first: fresh memory comes page by page, which takes a fifth of a process's first window and
        # nothing of the later ones, that only large grids have.
        write_sweep(forecaster, CONFIG, grid_of(WINDOW), path)
        once = min(_timed(forecaster, grid_of(1), path)[1] for _ in range(3))
        wall, cpu = _timed(forecaster, growing(size), path)
        rows = sum(1 for _ in path.open()) - 1
    assert rows == size, (rows, size)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    times = {"seconds": wall, "cpu_seconds": cpu, "cpu_seconds_of_one": once}
    print(json.dumps({"configurations": size, **times, "peak_memory_mib": peak}))


def _timed(forecaster: Forecaster, grid: dict[str, list[float]], path: Path) -> tuple[float, float]:
    """Seconds of the clock and of the processor that a grid takes."""
    wall, cpu = time.perf_counter(), time.process_time()
    write_sweep(forecaster, CONFIG, grid, path)
    return time.perf_counter() - wall, time.process_time() - cpu


def scaling(sizes: list[int], device: str, seed: int, repeats: int) -> list[dict[str, float]]:
    """The fastest of some repeats for each size; the largest is run once."""
    found = []
    for size in sizes:
        runs = []
        for _ in tqdm(range(repeats if size < max(sizes) else 1), desc=f"{size} configurations", disable=None):
            command = [sys.executable, __file__, "--measure", size, "--device", device, "--seed", seed]
            done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True)
            runs.append(json.loads(done.stdout.splitlines()[-1]))
        found.append(min(runs, key=lambda run: run["seconds"]))
    return found


def exponent(points: list[dict[str, float]], of: str) -> float:
    """Slope of log time over log size, by least squares."""
    sizes, times = ([point[name] for point in points] for name in ("configurations", of))
    return float(np.polyfit(np.log(sizes), np.log(times), 1)[0])


def compare(
    forecaster: Forecaster, size: int, plain_size: int | None, repeats: int, seed: int
) -> tuple[dict[str, list[float]], int, float]:
    """Seconds a configuration of plain and ours; how many losses both gave, and their largest difference in nats."""
    grid = grid_of(size)
    swept = forecaster.sweep(CONFIG, grid)
    rows = swept[list(grid)].astype(object).to_dict("records")
    order = np.random.default_rng(seed).permutation(size)[:plain_size]
    plain_loss(forecaster, CONFIG)
    times: dict[str, list[float]] = {"plain": [], "ours": []}
    errors = []
    for share in tqdm(np.array_split(order, repeats), disable=None):
        start = time.perf_counter()
        losses = np.array([plain_loss(forecaster, {**CONFIG, **rows[i]}) for i in share])
        times["plain"].append((time.perf_counter() - start) / len(share))
        times["ours"].append(seconds(lambda: forecaster.sweep(CONFIG, grid)) / size)
        errors.append(float(np.abs(losses - swept["loss"].to_numpy()[share]).max()))
    return times, len(order), max(errors)


def scaling_rows(points: list[dict[str, float]]) -> list[dict[str, Any]]:
    """What the sizes say about time and memory; `points` begin with the smallest."""
    smallest, largest = points[0], points[-1]
    sizes = f"{smallest['configurations']:,} to {largest['configurations']:,} configurations"
    reference = next((point for point in points if point["configurations"] == 10_000), smallest)
    over = f"{largest['configurations']:,} over {reference['configurations']:,} configurations"
    memory = largest["peak_memory_mib"] - reference["peak_memory_mib"]
    exponents = {name: exponent(points, name) for name in ("cpu_seconds", "seconds")}
    grown = [{**point, "grown": point["cpu_seconds"] - point["cpu_seconds_of_one"]} for point in points]
    once = 1000 * min(point["cpu_seconds_of_one"] for point in points)
    return [
        {"figure": "processor time of a grid of one configuration, ms", "ours": once},
        {"figure": f"exponent of processor time above that of one, {sizes}", "ours": exponent(grown, "grown")},
        {"figure": f"exponent of processor time, {sizes}", "ours": exponents["cpu_seconds"], "target": "1.0 +- 0.05"},
        {"figure": f"exponent of wall time, {sizes}", "ours": exponents["seconds"], "target": "1.0 +- 0.05"},
        {"figure": f"peak memory of {over}, MiB", "ours": memory, "target": "<= 300"},
    ]


def main() -> None:
    arguments = parser(__doc__ or "", "sweep")
    arguments.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    arguments.add_argument("--configs", type=int, default=10_000, help="configurations in the compared grid")
    arguments.add_argument("--plain-configs", type=int, help="of these, for the plain loop; all when absent")
    arguments.add_argument("--repeats", type=int, default=5)
    arguments.add_argument("--scaling-sizes", type=int, nargs="*", default=[1_000, 10_000, 100_000, 1_000_000])
    arguments.add_argument("--measure", type=int, help="(used by itself) one size, in this process")
    options = arguments.parse_args()
    warnings.filterwarnings("ignore", "this checkpoint has no calibration")
    if options.measure:
        measure_scaling(options.measure, options.device, options.seed)
        return
    cuda = options.device == "cuda"
    forecaster, name, data = load(options.device, options.seed)
    compared = {options.device: (forecaster, options.plain_configs)}
    if DEFAULT.is_dir() and not cuda:
        embedded = Forecaster.from_pretrained(device="cpu")
        compared["cpu, the embedded default, plain: a loop of predict"] = (embedded, min(500, options.configs))
    table: list[dict[str, Any]] = []
    times = {}
    for what, (chosen, plain_size) in compared.items():
        times[what], count, error = compare(chosen, options.configs, plain_size, options.repeats, options.seed)
        row: dict[str, Any] = {"figure": f"configurations a second in a grid of {options.configs:,}, {what}"}
        row |= {key: 1 / spread(found)["median"] for key, found in times[what].items()}
        table.append({**row, "ratio": ratio(**times[what]), "target": ">= 100" if cuda else ">= 15"})
        row = {"figure": f"largest difference of {count:,} losses, nats, {what}", "ours": error}
        table.append({**row, "target": "bfloat16's" if cuda else "<= 1e-5"})
    points = scaling(options.scaling_sizes, options.device, options.seed, options.repeats)
    if len(points) > 1:
        table += scaling_rows(points)
    if not cuda:
        table.append({"figure": "sweep at Qwen3-1.7B's size, cuda", "ours": "not measured", "target": ">= 100"})
    report(
        options.output,
        [options.seed],
        table,
        ratio=table[0]["ratio"],
        model=name,
        data=f"tokenizer from {data}; one configuration, varied",
        seconds_a_configuration=times,
        scaling=points,
    )


if __name__ == "__main__":
    main()
