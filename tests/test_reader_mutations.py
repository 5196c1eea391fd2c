"""Valid files of every framework, mutated at random: the right rows or one sentence, never a traceback, never long.

`NCPL_MUTATIONS=10000` tries more.
"""

import math
import os
import random
import re
import warnings
from pathlib import Path

import pandas as pd
import pytest

from fields_ncpl import FIELDS, PRIOR_NEEDS, check_config
from ncpl import import_runs
from ncpl.configs import read_configs
from tests.test_malformed_logs import TABLE, history
from tests.test_text_logs import LOGS, MEGATRON
from tests.work import calls

FOLDER = Path(__file__).parent / "framework_configs"
FILES = {path.name: path.read_bytes() for path in sorted(FOLDER.iterdir()) if path.name != "expected.json"}
FILES |= {f"{name}.log": text.encode() for name, (text, _) in LOGS.items()}
FILES |= {"megatron.log": MEGATRON.encode(), "table.csv": TABLE.encode(), "history.csv": history(range(50)).encode()}
FINDINGS = Path(__file__).parent / "reader_findings"
SUFFIXES = (".csv", ".yaml", ".json", ".jsonl", ".log", ".sh", ".toml", ".py", ".tsv", ".txt", "")
PIECES = (
    b"null", b"NaN", b"-1", b"1e999", b'"', b"'", b"{", b"}", b"[", b"]", b":", b"=", b"true", b"\x00", b"\xff",
    b"${a}",
    b"$((1<<9))", b"&a", b"*a", b"!!python/x", b"9" * 400, b"-", b"\r", b"\xc2\xa0", b"**9", b'"""', b"#", b"\\",
)  # fmt: skip
NUMBERS = (b"0", b"-1", b'"x"', b"1e30", b"[1, 2]", b"null", b"{}", b"nan", b"inf", b"1,5", b'"12M"', b"true", b"0.5")
# Of functions, to read one file: the largest here takes 80,000, a second some ten million.
MOST_CALLS = 1_000_000
SEPARATORS = (b";", b"\t", b"|", b" ")


def mutated(content, draw):
    """Cut short, a piece put in or taken out, a number of another type, a line twice, other separators or encoding."""
    at = draw.randrange(len(content) + 1)
    lines = content.split(b"\n")
    numbers = list(re.finditer(rb"\d+\.?\d*", content))
    kind = draw.randrange(8)
    if kind == 0:
        return content[:at]
    if kind == 1:
        return content[:at] + draw.choice(PIECES) + content[at:]
    if kind == 2:
        return content[:at] + content[at + draw.randint(1, 30) :]
    if kind == 3 and numbers:
        number = draw.choice(numbers)
        return content[: number.start()] + draw.choice(NUMBERS) + content[number.end() :]
    if kind == 4:
        return b"\n".join([*lines[: draw.randrange(len(lines))], draw.choice(lines), *lines])
    if kind == 5:
        return content.replace(b",", draw.choice(SEPARATORS))
    if kind == 6:
        return content.decode("utf-8", "ignore").encode(draw.choice(("utf-16", "utf-16-le", "utf-8-sig")), "ignore")
    return content.replace(*draw.choice(((b"\n", b"\r\n"), (b":", b"="), (b"=", b":"), (b" ", b""))))


def is_good(run):
    """A run's fields are numbers and texts that `check_config` takes, its loss a finite one or none."""
    fields = {name: value for name, value in run.items() if name in FIELDS and not pd.isna(value)}
    # What a file leaves unsaid is no fault of its reader.
    check_config({**dict.fromkeys(PRIOR_NEEDS, 1), "source": "theirs", **fields}, strict=False)
    loss = run["final_loss"]
    return loss is None or math.isnan(loss) or 0 < loss < math.inf


def imported(file):
    """A file's runs, each of which is looked at."""
    runs = import_runs(file)
    assert list(runs.columns[:1]) == ["name"]
    assert list(runs.columns[-2:]) == ["final_loss", "status"]
    wrong = [run for run in runs.to_dict("records") if not is_good(run)]
    assert not wrong
    return len(runs)


def configured(file):
    """A file's configurations: mappings, of which each passes the check of all doors or is refused in a line."""
    configs, origins = read_configs([str(file)])
    assert len(configs) == len(origins)
    for config in configs:
        error = refusal(config, check_config)[0]
        assert error is None or (len(str(error)) <= 300 and str(error).isprintable())
    return len(configs)


def refusal(given, read):
    """Why something is refused, and what is read of it; None for the other."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return None, read(given)
    except ValueError as error:
        return error, None


@pytest.mark.parametrize("seed", range(4))
def test_a_mutated_file_gives_good_rows_or_one_sentence(tmp_path, seed):
    draw, taken = random.Random(seed), 0
    for case in range(int(os.environ.get("NCPL_MUTATIONS", "400")) // 4):
        name, content = draw.choice(list(FILES.items()))
        for _ in range(draw.randint(1, 4)):
            content = mutated(content, draw)
        file = tmp_path / f"{case}{draw.choice((Path(name).suffix, draw.choice(SUFFIXES)))}"
        file.write_bytes(content)
        with calls() as made:
            error, rows = refusal(file, imported if case % 3 else configured)
        taken += bool(rows)
        # A subclass, such as a fault of decoding, is no message of ours.
        assert error is None or type(error) is ValueError, (name, content)
        assert "\n" not in str(error)
        assert len(str(error)) <= 300, str(error)
        assert made.count < MOST_CALLS, (name, content)
    assert taken, "no mutated file was read: nothing was proved of rows"


@pytest.mark.parametrize("name", sorted(path.name for path in FINDINGS.iterdir()))
def test_what_the_fuzzer_found_gives_good_rows_or_one_sentence(name):
    """`python -m tests.hardening.readers` found these; the first word of a name is the reader."""
    read = {"logs": imported, "configurations": configured}[name.partition("-")[0]]
    error, _ = refusal(FINDINGS / name, read)
    assert error is None or (type(error) is ValueError and len(str(error)) <= 300 and str(error).isprintable())
