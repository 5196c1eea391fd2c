"""Whatever a user may hand in, at every door: an answer, or a `ValueError` of one printable line, within two seconds.

    python -m tests.hardening.doors --cases 10000

Hypothesis makes the inputs. The counts go to `benchmarks/results/reliability.json` under `doors`; every failure is
printed with its input. Part of the cases is run by `tests/test_doors.py`.
"""

import argparse
import faulthandler
import json
import os
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from functools import partial
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"

import asyncio

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

import ncpl_cli
from fields_ncpl import check_config
from handler import App, EndpointHandler, Waiting
from ncpl import Forecaster
from ncpl.configs import read_configs, read_grid
from ncpl.files import parse_document, read_file
from ncpl.hub.embed import CHECKPOINTS
from ncpl.record import provenance
from ncpl.training.checkpoints import write_json
from ncpl.views.inputs import config_of, from_query
from tests.hardening import inputs
from text_ncpl import short

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "reliability.json"
HANG_SECONDS = 2.0
COMPUTES = {"plan": 60.0, "optimize": 20.0}
"""Doors that search, which takes seconds by design; seconds after which they hang."""
GIVEN_UP_SECONDS = 90
MOST_MESSAGE = 300


class GivenUp(BaseException):
    """A call that has taken `GIVEN_UP_SECONDS`; no `except Exception` catches it."""


@dataclass
class Counts:
    """What a door did with its cases."""

    bound_s: float = HANG_SECONDS
    cases: int = 0
    refused: int = 0
    tracebacks: int = 0
    hangs: int = 0
    messages: int = 0
    """Errors that are longer than a line, or hold what a terminal obeys."""
    slowest_s: float = 0.0
    failures: dict[str, str] = field(default_factory=dict)
    """What went wrong and where -> the shortest input that showed it."""

    def failed(self, what: str, given: Any) -> None:
        shown = short(given, 2000)
        if len(shown) < len(self.failures.get(what, shown + "x")):
            self.failures[what] = shown

    def figures(self) -> dict[str, Any]:
        return {
            "cases": self.cases,
            "refused": self.refused,
            "tracebacks": self.tracebacks,
            "hangs": self.hangs,
            "bad_messages": self.messages,
            "slowest_s": round(self.slowest_s, 2),
        }


@contextmanager
def bounded() -> Iterator[None]:
    """Ends what runs for too long; what Python cannot interrupt ends the process, with the place."""

    def give_up(*_: Any) -> None:
        raise GivenUp

    before = signal.signal(signal.SIGPROF, give_up)
    signal.setitimer(signal.ITIMER_PROF, GIVEN_UP_SECONDS)
    faulthandler.dump_traceback_later(300, exit=True, file=2)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        faulthandler.cancel_dump_traceback_later()
        signal.signal(signal.SIGPROF, before)


def call(counts: Counts, door: Callable[[Any], None], given: Any) -> None:
    """One call of a door, counted. Time is the processor's, so that a busy machine hangs nothing."""
    counts.cases += 1
    start = time.process_time()
    try:
        with bounded(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            door(given)
    except GivenUp:
        counts.failed("given up", given)
    except ValueError as error:
        counts.refused += 1
        if not one_line(str(error)):
            counts.messages += 1
            counts.failed(f"message {place(error)}: {str(error)[:80]!r}", given)
    except Exception as error:
        counts.tracebacks += 1
        counts.failed(f"{type(error).__name__} {place(error)}: {str(error)[:80]!r}", given)
    seconds = time.process_time() - start
    counts.slowest_s = max(counts.slowest_s, seconds)
    if seconds > counts.bound_s:
        counts.hangs += 1
        counts.failed(f"{seconds:.1f} s", given)


def one_line(message: str) -> bool:
    return 0 < len(message) <= MOST_MESSAGE and message.isprintable()


def place(error: BaseException) -> str:
    """The last line of ours that the error came through."""
    ours = [f for f in traceback.extract_tb(error.__traceback__) if f.filename.startswith(str(ROOT))]
    ours = [f for f in ours if ".venv" not in f.filename and "tests/hardening" not in f.filename]
    return f"at {Path(ours[-1].filename).name}:{ours[-1].lineno}" if ours else "outside"


# ------------------------------------------------------------------------------------------------ the doors


class Doors:
    """Every door, with what comes in at it. A door raises what its callers see."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.forecaster = Forecaster.from_pretrained()
        self.app = App(str(CHECKPOINTS / "ncpl-mini"))
        self.app.handler = EndpointHandler(self.app.folder)
        self.all: dict[str, tuple[st.SearchStrategy[Any], Callable[[Any], Any], float]] = {
            # Name: inputs, call, and its share of the cases.
            "registry": (inputs.configs(), lambda config: (check_config(config), check_config(config, False)), 4),
            "predict": (inputs.batches(), self.predict, 3),
            "sweep": (inputs.sweeps(), lambda c: self.forecaster.sweep(c[0], c[1]), 1),
            "optimize": (inputs.bounds(), lambda c: self.forecaster.optimize(c[0], c[1], c[2]), 0.3),
            "compare": (inputs.pairs(), lambda c: self.forecaster.compare(*c), 1),
            "curve": (inputs.curves(), lambda c: self.forecaster.curve(**c), 1),
            "cost": (inputs.costs(), lambda c: self.forecaster.cost(**c), 1),
            "plan": (inputs.plans(), lambda c: self.forecaster.plan(**c), 0.2),
            "scores": (inputs.score_requests(), lambda c: self.forecaster.benchmarks(**c), 0.5),
            "documents": (inputs.documents(), lambda c: parse_document(*c), 4),
            "files": (inputs.files(), self.file, 3),
            "arguments": (inputs.argument_lists(), lambda c: (read_configs(c), read_grid(c)), 3),
            "command line": (inputs.commands(), self.command, 2),
            "app": (inputs.forms(), lambda c: (from_query(c[0]), self.predict(config_of(c[1]))), 2),
            "handler": (inputs.requests(), self.app.handler, 3),
            "server": (inputs.bodies(), self.serve, 3),
        }

    def predict(self, given: Any) -> Any:
        return self.forecaster.predict(given)

    def file(self, given: tuple[str, bytes]) -> None:
        suffix, content = given
        path = self.folder / f"file{suffix}"
        path.write_bytes(content)
        # Whatever is read must be configurations or be refused; what stands in them may be anyone's.
        rows = read_file(path, limit=1000)
        read_configs([str(path)])
        assert all(isinstance(row, dict) for row in rows)

    def command(self, arguments: list[str]) -> None:
        """The command in this process. Its error is raised again, as the line that was printed."""
        out, err = StringIO(), StringIO()
        before, sys.argv = sys.argv, ["ncpl", *arguments]
        try:
            with redirect_stdout(out), redirect_stderr(err):
                ncpl_cli.main()
        except SystemExit as end:
            status = end.code or 0
        else:
            status = 0
        finally:
            sys.argv = before
        for stream in (out, err):
            text = stream.getvalue()
            text.encode()
            if not text.replace("\n", "").isprintable():
                raise RuntimeError(f"control characters are printed: {text[:200]!r}")
        if status == 2:
            errors = [line for line in err.getvalue().splitlines() if not line.startswith("note: ")]
            if len(errors) != 1 or not errors[0].startswith("error: "):
                raise RuntimeError(f"{len(errors)} lines of error: {err.getvalue()[:200]!r}")
            raise ValueError(errors[0].removeprefix("error: "))
        if status != 0:
            raise RuntimeError(f"exit status {status}")

    def serve(self, body: bytes) -> None:
        """A request to the ASGI application; an answer of 400 is raised again as its message."""
        sent: list[Any] = []

        async def receive() -> Any:
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: Any) -> None:
            sent.append(message)

        async def serve() -> None:
            assert self.app.handler is not None
            self.app.waiting = Waiting(self.app.handler.forecast)
            work = asyncio.create_task(self.app.waiting.run())
            scope = {"type": "http", "path": "/", "method": "POST", "headers": []}
            await self.app(scope, receive, send)
            work.cancel()

        asyncio.run(serve())
        status, answer = sent[0]["status"], json.loads(sent[1]["body"])
        if status == 400:
            raise ValueError(answer["error"])
        if status != 200:
            raise RuntimeError(f"status {status}: {answer}")


def cases_of(strategy: st.SearchStrategy[Any], many: int, number: int, test: Callable[[Any], None]) -> None:
    """Calls the test with so many values."""

    @seed(number)
    @settings(
        max_examples=many,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],
    )
    @given(strategy)
    def once(value: Any) -> None:
        test(value)

    once()


def knock(doors: Doors, name: str, many: int, number: int = 0) -> Counts:
    """So many cases at one door."""
    strategy, door, _ = doors.all[name]
    counts = Counts(bound_s=COMPUTES.get(name, HANG_SECONDS))
    cases_of(strategy, many, number, partial(call, counts, door))
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=10_000, help="in all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="one door")
    parser.add_argument("--output", type=Path, help=f"for the counts; default: {RESULTS.name}, but not with --only")
    given = parser.parse_args()
    found: dict[str, Counts] = {}
    with TemporaryDirectory() as folder:
        doors = Doors(Path(folder))
        names = [given.only] if given.only else list(doors.all)
        shares = {name: doors.all[name][2] for name in names}
        for name in names:
            many = max(3, round(given.cases * shares[name] / sum(shares.values())))
            counts = found[name] = knock(doors, name, many, given.seed)
            print(name, counts.figures(), flush=True)
            for what, shown in counts.failures.items():
                print(f"  {what}\n    {shown}")
    failed = any(counts.failures for counts in found.values())
    output = given.output or (None if given.only else RESULTS)
    if output:
        results = json.loads(output.read_text()) if output.exists() else {}
        total = {
            key: sum(counts.figures()[key] for counts in found.values())
            for key in Counts().figures()
            if key[-1] != "_s"
        }
        total["slowest_s"] = max(counts.slowest_s for counts in found.values())
        by_door = {name: counts.figures() for name, counts in found.items()}
        results["doors"] = {**total, "by_door": by_door, "seeds": [given.seed], **provenance()}
        write_json(output, results)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
