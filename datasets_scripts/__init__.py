"""`datasets` builders that turn raw run logs into rows, one module each."""

from pathlib import Path

SAMPLE_DIR = Path(__file__).parent / "sample"
"""Folder of a small, made-up set of runs in the layout of the real ones, for examples and tests without a network."""
