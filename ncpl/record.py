"""Where a result came from: versions, hardware and commit, for training records and benchmark files."""

import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

LIBRARIES = ("torch", "transformers", "accelerate", "peft", "datasets", "tokenizers", "numpy")


def provenance() -> dict[str, Any]:
    """Where a result came from, as every record and result file says it: `versions`, `hardware`, `commit` and `dirty`.

    `commit` is a hash or None, `dirty` says whether files differ from it or is None.

    >>> sorted(provenance())
    ['commit', 'dirty', 'hardware', 'versions']
    """
    return {"versions": versions(), "hardware": hardware(), **(git_state() or {"commit": None, "dirty": None})}


def versions() -> dict[str, str]:
    """Versions of Python, of this package and of the libraries that results depend on.

    >>> sorted(versions())[:3]
    ['accelerate', 'datasets', 'ncpl']
    """
    from ncpl import __version__

    found = {"python": platform.python_version(), "ncpl": __version__}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    if "torch" in sys.modules:
        # Its metadata may leave out the build, such as +cu124.
        found["torch"] = str(sys.modules["torch"].__version__)
    return found


def hardware() -> dict[str, Any]:
    """Processor, cores this process may use, memory in GiB and GPUs.

    >>> hardware()["cpu_cores"] >= 1
    True
    """
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"cpu": _cpu_name(), "cpu_cores": cores, "memory_gib": _memory_gib(), "gpus": gpus}


def git_state(folder: str | Path = Path(__file__).parent) -> dict[str, Any] | None:
    """Commit and whether files differ from it; None where there is no repository, or no commit yet.

    >>> git_state("/") is None
    True
    """

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True)
        except OSError:
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    commit = git("rev-parse", "HEAD")
    return None if commit is None else {"commit": commit, "dirty": bool(git("status", "--porcelain"))}


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _memory_gib() -> float | None:
    if "SC_PHYS_PAGES" not in getattr(os, "sysconf_names", {}):
        return None
    return round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1)
