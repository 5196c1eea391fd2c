"""Result files and training records: where each came from is said in one form."""

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
RESULTS = [
    *sorted((ROOT / "benchmarks" / "results").glob("*.json")),
    *sorted((ROOT / "ncpl" / "checkpoints").glob("*/evaluation.json")),
    *sorted((ROOT / "ncpl" / "checkpoints").glob("*/*record.json")),
]


def origins(value):
    """Every mapping in a file that names a commit."""
    if isinstance(value, dict):
        found = [value] if {"commit", "git"} & value.keys() else []
        return found + [origin for item in value.values() for origin in origins(item)]
    return [origin for item in value for origin in origins(item)] if isinstance(value, list) else []


@pytest.mark.parametrize("path", RESULTS, ids=[path.relative_to(ROOT).as_posix() for path in RESULTS])
def test_a_commit_is_a_hash(path):
    """`commit` is a hash, or null where there was no repository; `dirty` stands beside it."""
    found = origins(json.loads(path.read_text()))
    assert found
    for origin in found:
        assert "git" not in origin
        assert origin["commit"] is None or (isinstance(origin["commit"], str) and len(origin["commit"]) == 40)
        assert isinstance(origin.get("dirty"), bool | None)
