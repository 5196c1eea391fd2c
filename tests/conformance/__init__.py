"""transformers' own common tests, run on our classes. `make conformance` fetches them and runs them."""

import sys
from pathlib import Path

import transformers

# Ignored by git: the tests of the installed version, as a package `transformers_tests`.
UPSTREAM = Path(__file__).parent / "upstream" / transformers.__version__
PACKAGE = UPSTREAM / "transformers_tests"


def add_upstream_to_path() -> bool:
    """Makes `transformers_tests` importable; whether it was fetched for the installed version."""
    if PACKAGE.is_dir() and str(UPSTREAM) not in sys.path:
        sys.path.insert(0, str(UPSTREAM))
    return PACKAGE.is_dir()
