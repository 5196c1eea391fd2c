"""What kind of file this is: by its suffix, else by its first characters."""

import json
import re
from pathlib import Path

KINDS = {
    ".json": "json",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".yaml": "yaml",
    ".yml": "yaml",
    ".toml": "toml",
    ".py": "python",
    ".sh": "shell",
    ".bash": "shell",
    ".sbatch": "shell",
    ".slurm": "shell",
    ".csv": "csv",
    ".tsv": "csv",
    ".log": "log",
    ".out": "log",
    ".parquet": "parquet",
    ".db": "sqlite",
    ".sqlite": "sqlite",
}
"""Suffix -> kind of file; any other file is told by its first characters."""

ACCEPTED = "a .yaml, .yml, .json, .jsonl, .csv, .tsv, .toml, .py, .sh, .log or .parquet file"

PEEK = 2**16
"""First bytes by which a kind is told."""

_OPTION = re.compile(r"(?:^|[\s\"'(])--[a-zA-Z][\w.-]*[\w](?=[\s=\"')]|$)")
_ASSIGNMENT = re.compile(r"\[|class \w+|@\w+|(import|from) \w|[\w.\-\"]+\s*(:\s*\w+\s*)?=")
LOGGED = re.compile(
    r"^-+ arguments -+|\[(step|batch)=\d+/\d+|'(eval_)?loss': |"
    r"\b(global_?step|iter|iteration|step|batch)\b\W{0,12}\d[^\n]{0,400}(loss|bpb)|"
    r"loss\W{0,4}\d[^\n]{0,300}\bnum_updates\W{0,4}\d",
    re.I | re.M,
)
"""A line of a training's text log: the arguments follow, or a step and its loss."""


def suffix_kind(path: str | Path) -> str | None:
    """The kind that a file's suffix says; None where it says none."""
    return KINDS.get(Path(path).suffix.lower())


def kind_by_content(head: bytes) -> str:
    """The kind of a file by its first characters.

    >>> kind_by_content(b"name,lr\\na,1e-3\\n"), kind_by_content(b"lr: 1e-3\\n"), kind_by_content(b'{"lr": 1e-3}')
    ('csv', 'yaml', 'json')
    >>> kind_by_content(b"torchrun train.py --lr 3e-4 --steps 100"), kind_by_content(b"iter 10: loss 4.2, time 3ms")
    ('shell', 'log')
    """
    if head.startswith(b"PAR1"):
        return "parquet"
    if head.startswith(b"SQLite format 3"):
        return "sqlite"
    text = head[:PEEK].decode(encoding(head), errors="ignore").lstrip("\ufeff").lstrip()
    first, _, rest = text.partition("\n")
    first = first.strip()
    if first.startswith(("{", "[")) and not re.fullmatch(r"\[+[\w.\- \"]+\]+", first):
        try:
            json.loads(first)
        except (ValueError, RecursionError):
            return "log" if LOGGED.search(text) else "json"
        return "jsonl" if rest.strip() else "json"
    if re.match(r"#!.*\b(ba|z|k)?sh\b", first):
        return "shell"
    if LOGGED.search(text):
        return "log"
    statements = [line.strip() for line in text.splitlines() if line.strip() and not line.strip().startswith("#")]
    bare = separator(first)
    if bare in first and not re.match(r"[\w. \-\"']+:(\s|$)", first) and len(statements) > 1:
        cells = first.count(bare)
        if statements[0] == first and abs(statements[1].count(bare) - cells) <= 1 and not _OPTION.search(first):
            return "csv"
    if len(_OPTION.findall("\n".join(statements))) >= 2:
        return "shell"
    if statements and all(_ASSIGNMENT.match(line) for line in statements[:3]):
        return "toml" if any(line.startswith("[") for line in statements) else "python"
    return "csv" if bare in first and not re.match(r"[\w. \-\"']+:(\s|$)", first) else "yaml"


def encoding(head: bytes) -> str:
    """The encoding that the first bytes tell: UTF-16 with or without a mark, else UTF-8."""
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "utf-16"
    if len(head) >= 4 and head[:200].count(0) * 3 > len(head[:200]):
        return "utf-16-be" if head[0] == 0 else "utf-16-le"
    return "utf-8-sig"


def separator(header: str) -> str:
    """The separator that stands most often outside quotes."""
    bare = re.sub(r'"[^"]*"', "", header)
    return max(",;\t|", key=bare.count)
