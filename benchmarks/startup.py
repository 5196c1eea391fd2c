"""Start-up: `ncpl --help`, and a cold `ncpl predict` against importing torch and transformers' model code (plain).

    python benchmarks/startup.py

All run alternately, each time in a fresh process with everything on disk already read once; `predict` uses the default
checkpoint, without network.
"""

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from common import (  # type: ignore[import-not-found]
    ROOT,
    parser,
    ratio,
    report,
    spread,
)
from tqdm import tqdm

SCRIPT = Path(sys.executable).with_name("ncpl")
# The installed command, or what it calls.
NCPL = [str(SCRIPT)] if SCRIPT.exists() else [sys.executable, "-c", "from ncpl_cli import main; main()"]


def run(command: Sequence[str]) -> float:
    """Wall time of a command in seconds."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    start = time.perf_counter()
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    elapsed = time.perf_counter() - start
    if done.returncode:
        sys.exit(f"{' '.join(command)}: {done.stderr}")
    return elapsed


def main() -> None:
    arguments = parser(__doc__ or "", "startup")
    arguments.add_argument("--repeats", type=int, default=10)
    arguments.add_argument("--model", help="a checkpoint folder; the embedded default when absent")
    options = arguments.parse_args()
    model = ["--model", options.model] if options.model else []
    commands = {
        "import": [sys.executable, "-c", "import torch, transformers.models.qwen3.modeling_qwen3"],
        "predict": [*NCPL, "predict", str(ROOT / "examples" / "marin-1b.yaml"), *model],
        "help": [*NCPL, "--help"],
    }
    for command in commands.values():
        run(command)
    times: dict[str, list[float]] = {name: [] for name in commands}
    for _ in tqdm(range(options.repeats), disable=None):
        for name, command in commands.items():
            times[name].append(run(command))
    predict = ratio(times["predict"], times["import"])
    rows = [
        {"figure": "ncpl --help, seconds", "ours": spread(times["help"]), "target": "<= 0.3"},
        {
            "figure": "ncpl predict, cold, seconds; plain: importing torch and transformers' model code",
            "plain": spread(times["import"])["median"],
            "ours": spread(times["predict"])["median"],
            "ratio": ratio(times["import"], times["predict"]),
            "target": ">= 0.77",
        },
    ]
    # As the target is put: the time of ours over that of plain.
    report(options.output, [options.seed], rows, ratio=rows[1]["ratio"], predict_over_import=predict, seconds=times)


if __name__ == "__main__":
    main()
