"""Hub faults, hostile files and misbehaving clients, counted; and 100 clients of the server for ten minutes.

    python -m tests.hardening.hub_serving --seconds 600

The counts go to `benchmarks/results/reliability.json` under `hub` and `serving`. A case fails when something is lost or
let out, when an error is not one line, or when it takes longer than its bound.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from ncpl.record import provenance

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "reliability.json"
SUITES = {
    "hub": ("tests/test_hub.py", "tests/test_hub_code.py", "tests/test_hub_security.py"),
    "serving": ("tests/test_serving.py", "tests/test_handler.py"),
}


class Outcomes:
    """A pytest plugin that counts cases by outcome."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.outcome != "passed":
            self.counts[report.outcome] += 1


def count(files: tuple[str, ...]) -> dict[str, int]:
    outcomes = Outcomes()
    pytest.main(["-q", "-n", "0", *(str(ROOT / file) for file in files)], plugins=[outcomes])
    return {"cases": outcomes.counts.total(), "failed": outcomes.counts["failed"]}


def load(seconds: float) -> dict[str, Any]:
    """`benchmarks/serving.py` for so long: requests, and what was not answered with 200."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "serving.json"
        script = ROOT / "benchmarks" / "serving.py"
        command = [sys.executable, str(script), "--seconds", str(seconds), "--output", str(output)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return clients(json.loads(output.read_text()))


def clients(result: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {"seconds": result["seconds"], "memory_mib": result["memory_mib"]}
    found["idle_ms"] = result["idle"]["median_ms"]
    found["p99_over_idle"] = result["paced"]["p99_ms"] / result["idle"]["median_ms"]
    found["per_second"] = result["busy"]["per_second"]
    for name in ("paced", "busy", "beside"):
        statuses = result[name]["statuses"]
        wrong = sum(number for status, number in statuses.items() if status != "200")
        found[name] = {"requests": result[name]["requests"], "errors_and_resets": wrong}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600, help="of load by 100 clients")
    parser.add_argument("--load", type=Path, help="a result of benchmarks/serving.py that is taken over")
    parser.add_argument("--output", type=Path, default=RESULTS)
    given = parser.parse_args()
    found: dict[str, Any] = {name: count(files) for name, files in SUITES.items()}
    under_load = clients(json.loads(given.load.read_text())) if given.load else load(given.seconds)
    found["serving"]["clients"] = under_load
    results = json.loads(given.output.read_text()) if given.output.exists() else {}
    results |= {name: {**counts, **provenance()} for name, counts in found.items()}
    given.output.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(found, indent=2))
    if any(counts["failed"] for counts in found.values()):
        sys.exit(1)


if __name__ == "__main__":
    main()
