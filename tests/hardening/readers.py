"""The readers under atheris, a coverage-guided fuzzer: logs, configurations, documents and numbers.

    pip install -e ".[fuzz]"
    python -m tests.hardening.readers --seconds 1800

Where an input reaches code that none before it did, it is kept and mutated further; the seeds are the files of the
tests. A reader answers rightly or raises a `ValueError` of one line within two seconds of computing. Everything else is
a finding: it is printed, stored under `--findings`, and belongs into `tests/reader_findings`, which `make test` reads.
The counts go to `benchmarks/results/reliability.json` under `readers`.
"""

import argparse
import hashlib
import json
import math
import os
import re
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"

try:
    import atheris
except ImportError:
    sys.exit('atheris is not installed: pip install -e ".[fuzz]" (Linux)')

READERS = [
    *("ncpl.files", "ncpl.configs", "ncpl.logs", "ncpl.yaml_documents", "ncpl.assignments", "ncpl.command_lines"),
    *("ncpl.kinds", "text_ncpl", "fields_ncpl", "names_ncpl", "schedules_ncpl", "yaml"),
]
# What is imported within is instrumented where it is a reader's.
with atheris.instrument_imports(include=READERS):
    from ncpl.files import MAX_BYTES, parse_document, parse_value
    from ncpl.logs.derive import duration_of, number_of
    from ncpl.record import provenance
    from ncpl.training.checkpoints import write_json
    from tests.hardening.doors import HANG_SECONDS, RESULTS, one_line, place
    from tests.test_reader_mutations import FILES, SUFFIXES, configured, imported, refusal
    from text_ncpl import parse_count, parse_level, read_number, read_scalar

ROOT = Path(__file__).parents[2]
KINDS = sorted(MAX_BYTES)
NUMBERS = (
    *("1e-4", "128", "-0.5", ".5", "1e400", "nan", "-inf", "1_000", "302M", "1.5 T", "10%", "2e12T", "4800ba", "0.9"),
    *("[1, 2]", "[(0, 0.0), (100, 1e-3)]", "true", "1,000", "0x10", "１２", "9" * 400),
)


def read_file(read: Callable[[Path], Any], content: bytes, file: Path) -> Any:
    """A reader's answer to a file of these contents."""
    file.write_bytes(content)
    return read(file)


def numbers(content: bytes, _: Path) -> None:
    """Every parser of numbers, against Python's own `float` where a number is plain."""
    text = content.decode("utf-8", "replace")
    number = read_number(text)
    plain = re.fullmatch(r"\s*[-+]?\d+(\.\d*)?([eE][-+]?\d+)?\s*", text, re.ASCII)
    if plain and len(text) <= 300:
        assert number is not None
        assert float(number) == float(text), (number, text)
    for parse in (read_scalar, parse_value, parse_count, number_of, lambda t: number_of(t, counted=True)):
        parse(text)
    found = duration_of(text, "auto")
    assert found is None or math.isfinite(found[0])
    parse_level(text)


TARGETS: dict[str, Callable[[bytes, Path], Any]] = {
    "logs": lambda content, file: read_file(imported, content, file),
    "configurations": lambda content, file: read_file(configured, content, file),
    "documents": lambda content, file: parse_document(
        content.decode("utf-8", "replace"), KINDS[len(content) % len(KINDS)]
    ),
    "numbers": numbers,
}


def seeds(target: str) -> list[bytes]:
    """The first byte of an input chooses a file's suffix."""
    if target == "numbers":
        return [b"\0" + text.encode() for text in NUMBERS]
    return [
        bytes([SUFFIXES.index(Path(name).suffix) if Path(name).suffix in SUFFIXES else 0]) + content
        for name, content in FILES.items()
    ]


class Findings:
    """What went wrong, once for each kind of error and line of ours, as files."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.seen = folder, set[str]()

    def add(self, target: str, what: str, suffix: str, content: bytes) -> None:
        if what in self.seen:
            return
        self.seen.add(what)
        name = f"{target}-{hashlib.sha256(content).hexdigest()[:12]}{suffix}"
        (self.folder / name).write_bytes(content)
        print(f"FOUND {target} | {what} | {name}", flush=True)


def once(target: str, data: bytes, folder: Path, findings: Findings) -> None:
    """One input: the reader's answer, or what is wrong with it."""
    suffix = SUFFIXES[data[0] % len(SUFFIXES)] if data else ""
    content, file = data[1:], folder / f"file{suffix}"
    start, what = time.process_time(), None
    try:
        error, _ = refusal(content, lambda given: TARGETS[target](given, file))
        if error is not None and (type(error) is not ValueError or not one_line(str(error))):
            what = f"{type(error).__name__} {place(error)}: {str(error)[:80]!r}"
    except Exception as error:
        what = f"{type(error).__name__} {place(error)}: {str(error)[:80]!r}"
    spent = time.process_time() - start
    if spent > HANG_SECONDS:
        what = f"{spent:.1f} s"
    if what:
        findings.add(target, what, suffix, content)


def fuzz(target: str, seconds: float, given: argparse.Namespace) -> None:
    """In a process of its own, which libFuzzer ends."""
    with TemporaryDirectory() as name:
        folder, corpus = Path(name), Path(name) / "corpus"
        corpus.mkdir()
        given.findings.mkdir(parents=True, exist_ok=True)
        for i, content in enumerate(seeds(target)):
            (corpus / str(i)).write_bytes(content)
        findings = Findings(given.findings)
        limits = [f"-max_total_time={seconds:.0f}", f"-seed={given.seed + 1}", "-max_len=4096", "-timeout=60"]
        limits += ["-rss_limit_mb=4096", "-verbosity=1", f"-artifact_prefix={given.findings}/"]
        atheris.Setup([sys.argv[0], *limits, str(corpus)], lambda data: once(target, data, folder, findings))
        atheris.Fuzz()


def run(target: str, seconds: float, given: argparse.Namespace) -> dict[str, Any]:
    """A target's inputs and findings, as its process says them."""
    command = [sys.executable, "-m", "tests.hardening.readers", "--target", target, "--seconds", str(seconds)]
    command += ["--seed", str(given.seed), "--findings", str(given.findings)]
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", cwd=ROOT)
    computed = round(resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before)
    said = done.stdout + done.stderr
    runs = re.search(r"Done (\d+) runs? in (\d+) second", said)
    reached = re.findall(r"cov: (\d+)", said)
    if done.returncode or not runs or not reached:
        # A hang, a lack of memory, or a fault outside Python: libFuzzer has kept the input.
        print(said[-3000:])
        return {"inputs": 0, "findings": 1, "ended": done.returncode}
    found = [line for line in said.splitlines() if line.startswith("FOUND ")]
    print("\n".join(found))
    branches = {"reached_by_seeds": int(reached[0]), "reached": int(reached[-1])}
    return {
        "inputs": int(runs[1]),
        "seconds": int(runs[2]),
        "cpu_seconds": computed,
        "findings": len(found),
        **branches,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=1800, help="in all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--target", choices=TARGETS, help="(used by itself) one reader, in this process")
    parser.add_argument("--findings", type=Path, default=ROOT / "outputs" / "reader_findings")
    parser.add_argument("--output", type=Path, default=RESULTS)
    given = parser.parse_args()
    if given.target:
        fuzz(given.target, given.seconds, given)
        return
    shares = {"logs": 0.4, "configurations": 0.3, "documents": 0.2, "numbers": 0.1}
    found: dict[str, Any] = {}
    for target, share in shares.items():
        found[target] = run(target, given.seconds * share, given)
        print(target, found[target], flush=True)
    total = {
        key: sum(counts.get(key, 0) for counts in found.values())
        for key in ("inputs", "findings", "seconds", "cpu_seconds")
    }
    results = json.loads(given.output.read_text()) if given.output.exists() else {}
    results["readers"] = {**total, "by_reader": found, "seeds": [given.seed], **provenance()}
    write_json(given.output, results)
    sys.exit(1 if total["findings"] else 0)


if __name__ == "__main__":
    main()
