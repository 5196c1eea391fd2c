"""Coverage-guided fuzzing of the readers of files, by atheris; what it finds is kept in `FOUND` and run by the tests.

    pip install atheris && python -m tests.hardening.readers --minutes 30

An input's first byte chooses the reader, the rest is the file. Anything but an answer or a `ValueError` of one
printable line, within two seconds, is a finding. The counts go to `benchmarks/results/reliability.json` (`readers`).
"""

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from ncpl.files import read_file
from ncpl.logs.importer import read_foreign
from ncpl.record import provenance
from ncpl.training.checkpoints import write_json
from tests.hardening.inputs import DOCUMENTS, TABLES
from text_ncpl import MOST_MESSAGE

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results" / "reliability.json"
SUFFIXES = (".yaml", ".json", ".jsonl", ".csv", ".toml", ".py", "")
"""Of the file, by the input's first byte; without a suffix its content tells the kind."""
SECONDS = 2.0
FOUND: dict[str, bytes] = {}
"""What was found wrong, by what was wrong with it, and is mended."""


def read(data: bytes, folder: Path) -> str:
    """Reads an input as a file, and as a run of anyone's; what is wrong with how that ended, "" where nothing is."""
    path = folder / f"file{SUFFIXES[data[0] % len(SUFFIXES)]}" if data else folder / "file"
    path.write_bytes(data[1:])
    start = time.process_time()
    for reader in (read_file, lambda path: read_foreign(path, {})):
        try:
            reader(path)
        except ValueError as error:
            if not (str(error).isprintable() and len(str(error)) <= MOST_MESSAGE):
                return f"message {str(error)[:100]!r}"
        except Exception as error:
            return f"{type(error).__name__}: {error}"
    seconds = time.process_time() - start
    return "" if seconds < SECONDS else f"{seconds:.1f} s"


def seeds(folder: Path) -> None:
    """Good and bad files of every kind, to start from."""
    kinds = DOCUMENTS | {"csv": TABLES}
    for kind, texts in kinds.items():
        first = SUFFIXES.index({"python": ".py"}.get(kind, f".{kind}"))
        for i, text in enumerate(texts):
            if len(text) < 4000:
                (folder / f"{kind}-{i}").write_bytes(bytes([first]) + text.encode("utf-8", "surrogatepass"))


def fuzz(corpus: str, found: str, seconds: int) -> None:
    """The fuzzer's process; it ends at the first finding, whose input it leaves in `found`."""
    import atheris

    with atheris.instrument_imports(include=["ncpl.files", "ncpl.logs"]):
        pass
    for function in ("ncpl.files", "ncpl.logs.readers", "ncpl.logs.importer", "ncpl.logs.frameworks"):
        module = __import__(function, fromlist=["*"])
        for name in [name for name in vars(module) if callable(vars(module)[name])]:
            value = vars(module)[name]
            if getattr(value, "__module__", "") == function and hasattr(value, "__code__"):
                setattr(module, name, atheris.instrument_func(value))
    folder = Path(tempfile.mkdtemp())
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)

    def once(data: bytes) -> None:
        if wrong := read(data, folder):
            raise RuntimeError(wrong)

    options = [f"-max_total_time={seconds}", f"-artifact_prefix={found}/", "-max_len=4096", "-timeout=20"]
    atheris.Setup([sys.argv[0], corpus, *options, "-print_final_stats=1", "-verbosity=0"], once)
    atheris.Fuzz()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--output", type=Path, default=RESULTS)
    given = parser.parse_args()
    findings: dict[str, str] = {}
    until = time.monotonic() + given.minutes * 60
    with tempfile.TemporaryDirectory() as base:
        corpus, found = Path(base, "corpus"), Path(base, "found")
        corpus.mkdir()
        found.mkdir()
        seeds(corpus)
        while (left := int(until - time.monotonic())) > 0:
            process = multiprocessing.get_context("spawn").Process(target=fuzz, args=(str(corpus), str(found), left))
            process.start()
            process.join()
            for file in found.iterdir():
                findings.setdefault(read(file.read_bytes(), Path(base)), repr(file.read_bytes()[:300]))
                file.unlink()
        inputs = len(list(corpus.iterdir()))
    for wrong, data in findings.items():
        print(wrong, data, flush=True)
    figures: dict[str, Any] = {"minutes": given.minutes, "inputs_kept": inputs, "findings": len(findings)}
    results = json.loads(given.output.read_text()) if given.output.exists() else {}
    results["readers"] = {**figures, **provenance()}
    write_json(given.output, results)
    sys.exit(1 if findings else 0)


if __name__ == "__main__":
    main()
