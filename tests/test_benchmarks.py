"""Every benchmark answers `--help`; those that take seconds at their smallest settings finish and write a result."""

import json
import runpy
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "benchmarks"
SCRIPTS = [path for path in sorted(FOLDER.glob("*.py")) if ".parse_args(" in path.read_text(encoding="utf-8")]
SMALLEST = {
    "sweep": "--configs 4 --repeats 1 --scaling-sizes",
    "training_throughput": "--runs 2 --points 1 --plain-rows 2 --repeats 1",
    "tools": "",
}


def run(path, monkeypatch, *arguments):
    """What `python PATH ARGUMENTS` does, in this process."""
    monkeypatch.setattr(sys, "argv", [str(path), *map(str, arguments)])
    monkeypatch.syspath_prepend(str(path.parent))
    runpy.run_path(str(path), run_name="__main__")


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_a_benchmark_says_what_it_takes(path, monkeypatch, capsys):
    with pytest.raises(SystemExit) as stopped:
        run(path, monkeypatch, "--help")
    assert stopped.value.code == 0
    assert capsys.readouterr().out.startswith("usage:")


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", SMALLEST)
def test_a_benchmark_finishes_at_its_smallest(name, tmp_path, monkeypatch):
    monkeypatch.setenv("NCPL_DATA_DIR", str(tmp_path))
    output = tmp_path / "result.json"
    run(FOLDER / f"{name}.py", monkeypatch, *SMALLEST[name].split(), "--output", output)
    result = json.loads(output.read_text(encoding="utf-8"))
    assert {"hardware", "versions", "commit", "seeds"} <= result.keys()
