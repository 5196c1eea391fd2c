"""Every argument of every public callable, given each kind of wrong value in turn: an answer, or a line that says why.

    python -m tests.hardening.arguments

Nothing is drawn: the matrix of calls and values is the same each time. A part is run by `tests/test_doors.py`.
"""

import argparse
import enum
import io
import itertools
import json
import os
import resource
import sys
from collections import OrderedDict, UserDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from fractions import Fraction
from functools import partial
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import pandas as pd
import torch
from transformers import Qwen3Config

from ncpl import ForecastCallback, Forecaster, NCPLForecaster, NCPLProcessor, NSPEnsemble, NSPModel, import_runs
from ncpl.hub.cards import checkpoint_card
from ncpl.hub.convert import convert
from ncpl.hub.push import push
from ncpl.live import follow, forecast_final
from ncpl.logs.importer import write_runs
from ncpl.nsp.benchmarks import load_predictor
from ncpl.recipe import Lora
from ncpl.run_log import read_log
from ncpl.training.backbone import scratch_config, train_tokenizer
from ncpl.training.model import add_adapters, merge_adapter
from ncpl.views.report import report
from pipeline_ncpl import ScalingForecastPipeline
from tests.checkpoints import ADAMW, CONFIGS, published_weights, save_tiny
from tests.hardening.doors import Counts, call
from tests.hardening.inputs import Unprintable
from text_ncpl import short

RUNS = [{"model size": n, "data size": d, "final_loss": 3 + 20 / n + 0.4 / d} for n in (50, 100) for d in (1, 2, 4)]
MOST_MEMORY = 8 * 2**30
MODEL = {"params": 7e9, "tokens": 2e12}


class Colour(enum.Enum):
    RED = 1


class Text(str):
    """Text that cannot be printed."""

    def __repr__(self) -> str:
        raise RuntimeError("no repr")


class Number(float):
    """A number that cannot be printed."""

    def __repr__(self) -> str:
        raise RuntimeError("no repr")


class Endless:
    """An array without end, by its own account."""

    def __len__(self) -> int:
        return 10**12

    def __getitem__(self, at: Any) -> Any:
        return 1.0


@dataclass
class Record:
    source: str = "marin"


def nested(depth: int, make: Callable[[Any], Any]) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = make(value)
    return value


def itself() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


PLAIN: tuple[Any, ...] = (

        None, True, False, 0, 1, -1, 3, 0.0, -0.5, 0.5, 5e-324, 1e308, 2**63, 10**400, -(10**400), 3 + 4j,
        float("nan"), float("inf"), float("-inf"), "", " ", "x", "\n", "\x00", "\x1b[31m", "\ud800", "nan", "1e400",
        "0.9", "9" * 5000, "../..", "/dev/zero", "/dev/null", "=1+1", "\u202e", "h100", "marin", "[1, 2", "{a: 1}",
        b"", b"x", bytearray(b"x"), Decimal("sNaN"), Decimal("NaN"), Decimal("1e9999"), Decimal("0.9"),
        Fraction(10**400), Fraction(9, 10), Path("x"), Path("\x00"), PurePosixPath("x"), date(2026, 1, 1),
        [], (), {}, set(), frozenset({1}), [None], [1], ["a"], [[]], [{}], [1, "a"], {1}, {"a"}, {1: 2}, {"a": 1},
        {None: 1}, {(1,): 1}, {"a": None}, {"a": []}, {"a": {"b": 1}}, {"\ud800": 1}, {"": 1}, {"\x1b": "\x1b"},
        {"params": 7e9}, [[1.0, 2.0]], (1, 2), (2, 1), range(3), range(10**12), ..., NotImplemented, Colour.RED, int,
        len, json, memoryview(b"x"),
)  # fmt: skip
FIELD_VALUES: tuple[tuple[Any, Any], ...] = (

        ("model size", 10**400), ("model size", Decimal("sNaN")), ("model size", np.array(3)), ("batch size", 2.5),
        ("learning rate", Fraction(1, 500)), ("learning rate", "2e-3"), ("optimizer", b"adamw"), ("optimizer", []),
        ("source", "\ud800"), ("source", Path("x")), ("source", np.str_("marin")), ("lr points", [[0, 1]]),
        ("lr points", np.eye(2)), ("max step", 0), ("nesterov", np.bool_(True)),
        ("vocab size", True), (b"source", 1), (1, 1), (None, None), ("lr", 1e-3), ("step", {}),
)  # fmt: skip


def with_field(name: Any, value: Any) -> dict[Any, Any]:
    return {**ADAMW, name: value}


# Made anew for each call: a generator is used up.
VALUES: dict[str, Callable[[], Any]] = {
    **{repr(value)[:40]: partial(lambda value: value, value) for value in PLAIN},
    "unprintable": Unprintable,
    "a list of the unprintable": lambda: [Unprintable()],
    "a mapping of the unprintable": lambda: {"model size": Unprintable()},
    "an unprintable key": lambda: {Unprintable(): 1},
    "unprintable text": lambda: Text("x"),
    "an unprintable number": lambda: Number(0.9),
    "an endless array": Endless,
    "a generator": lambda: iter([1, 2]),
    "a generator without end": lambda: itertools.repeat(1),
    "a generator of mappings": lambda: iter([dict(ADAMW)]),
    "a list that holds itself": itself,
    "lists, deep": lambda: nested(100_000, lambda value: [value]),
    "mappings, deep": lambda: nested(900, lambda value: {"a": value}),
    "a file": lambda: io.StringIO("a"),
    "a data class": Record,
    "an ordered mapping": lambda: OrderedDict(ADAMW),
    "a user's mapping": lambda: UserDict(ADAMW),
    "a read-only mapping": lambda: MappingProxyType(ADAMW),
    "a mapping's keys": lambda: ADAMW.keys(),
    "np nan": lambda: np.float32("nan"),
    "np int": lambda: np.int64(3),
    "np float": lambda: np.float64(0.9),
    "np float16": lambda: np.float16(0.9),
    "np longdouble": lambda: np.longdouble("1e4000"),
    "np bool": lambda: np.bool_(True),
    "np str": lambda: np.str_("marin"),
    "np bytes": lambda: np.bytes_(b"x"),
    "np date": lambda: np.datetime64("NaT"),
    "np complex": lambda: np.complex64(1j),
    "np void": lambda: np.void(b"x"),
    "np masked": lambda: np.ma.masked,
    "np 0-d": lambda: np.array(0.9),
    "np 0-d object": lambda: np.array({"a": 1}, object),
    "np empty": lambda: np.array([]),
    "np 1-d": lambda: np.array([1.0, 2.0]),
    "np 2-d": lambda: np.eye(2),
    "np texts": lambda: np.array(["a", "b"]),
    "np objects": lambda: np.array([None, {}], object),
    "np record": lambda: np.array([(1, 2.0)], [("a", int), ("b", float)]),
    "NA": lambda: pd.NA,
    "NaT": lambda: pd.NaT,
    "series": lambda: pd.Series([1.0, 2.0]),
    "series of fields": lambda: pd.Series(ADAMW),
    "empty series": lambda: pd.Series(dtype=float),
    "frame": lambda: pd.DataFrame({"a": [1], "b": [2]}),
    "good frame": lambda: pd.DataFrame([ADAMW]),
    "empty frame": pd.DataFrame,
    "frame of NA": lambda: pd.DataFrame([{**ADAMW, "learning rate": pd.NA}]),
    "frame of signalling NaN": lambda: pd.DataFrame([{**ADAMW, "learning rate": Decimal("sNaN")}]),
    "frame of objects": lambda: pd.DataFrame([{**ADAMW, "learning rate": Unprintable()}]),
    "frame of equal columns": lambda: pd.DataFrame([[1, 2]], columns=["step", "step"]),
    "frame of levels": lambda: pd.DataFrame([[1]], columns=pd.MultiIndex.from_tuples([("a", "b")])),
    "frame of numbers as names": lambda: pd.DataFrame([[1, 2]]),
    "frame of categories": lambda: pd.DataFrame({"model size": pd.Categorical(["a"])}),
    "index": lambda: pd.Index([1]),
    "timestamp": lambda: pd.Timestamp("2026-01-01"),
    "timedelta": lambda: pd.Timedelta(1),
    "interval": lambda: pd.Interval(0, 1),
    "tensor": lambda: torch.tensor(0.9),
    "tensor 1-d": lambda: torch.ones(2),
    "tensor on meta": lambda: torch.ones(2, device="meta"),
    "empty tensor": lambda: torch.ones(0),
    "a torch type": lambda: torch.float32,
    **{f"{name!r}: {short(value, 30)}": partial(with_field, name, value) for name, value in FIELD_VALUES},
}


Call = tuple[Callable[..., Any], dict[str, Any], tuple[str, ...]]
"""A callable, right arguments by name, and those that are tried beside them."""


def forecasts(folder: Path, forecaster: Forecaster, lab: Forecaster) -> dict[str, Call]:
    """Name -> call, of what forecasts."""
    comparison = forecaster.compare(ADAMW, ADAMW)
    steps = {"step": [400, 500], "loss": [4.0, 3.9]}
    return {
        "from_pretrained": (Forecaster.from_pretrained, {"path_or_repo": None}, ()),
        "save_pretrained": (forecaster.save_pretrained, {"folder": folder / "saved"}, ()),
        "predict": (forecaster.predict, {"configs": ADAMW, "level": 0.9}, ()),
        "lab predict": (lab.predict, {"configs": {**ADAMW, "source": "mine"}}, ()),
        "sweep": (forecaster.sweep, {"config": ADAMW, "grid": {"learning rate": [1e-3]}, "level": 0.9}, ()),
        "sweep values": (lambda v: forecaster.sweep(ADAMW, {"learning rate": v}), {"v": [1e-3]}, ()),
        "sweep value": (lambda v: forecaster.sweep(ADAMW, {"learning rate": [1e-3, v]}), {"v": 2e-3}, ()),
        "compare": (forecaster.compare, {"config_a": ADAMW, "config_b": ADAMW, "level": 0.9}, ()),
        "comparison plot": (comparison.plot, {"names": ("A", "B")}, ()),
        "cost": (forecaster.cost, {"config": ADAMW, "gpu": "h100", "count": 8}, ("utilisation", "hardware")),
        "benchmarks": (forecaster.benchmarks, {"models": MODEL, "level": 0.9}, ("like", "model")),
        "benchmarks configuration": (forecaster.benchmarks, {"models": ADAMW}, ("like", "level", "model")),
        "curve": (forecaster.curve, {"config": ADAMW, "points": 3, "level": 0.9}, ("observed", "window")),
        "curve steps": (lambda v: forecaster.curve(ADAMW, 3, {**steps, "step": v}), {"v": [400, 500]}, ()),
        "curve losses": (lambda v: forecaster.curve(ADAMW, 3, {**steps, "loss": v}), {"v": [9, 8.9]}, ()),
        "curve loss": (lambda v: forecaster.curve(ADAMW, 3, {**steps, "loss": [9, v]}), {"v": 8.9}, ()),
        "curve step": (lambda v: forecaster.curve(ADAMW, 3, {**steps, "step": [4, v]}), {"v": 5}, ()),
        "curve window": (lambda v: forecaster.curve(ADAMW, 3, steps, window=v), {"v": 1}, ()),
        "curve plot": (forecaster.curve(ADAMW, 3).plot, {"observed": None}, ()),
        "forecast_final": (
            forecast_final,
            {"config": ADAMW, "steps": [400, 500], "losses": [4.0, 3.9], "level": 0.9, "window": 1},
            ("forecaster",),
        ),
        "ForecastCallback": (ForecastCallback, {"config": ADAMW}, ("forecaster", "level")),
    }


def searches(forecaster: Forecaster) -> dict[str, Call]:
    """Name -> call, of what searches. A search takes a good part of a second."""
    bounds = {"learning rate": (1e-3, 2e-3), "batch size": (64, 128)}
    planned = forecaster.plan(flops=1e20)

    def within(limits: Any) -> Any:
        return forecaster.optimize(ADAMW, bounds, constraints=limits)

    return {
        "optimize": (
            forecaster.optimize,
            {"config": ADAMW, "bounds": {"learning rate": (1e-3, 2e-3)}, "level": 0.9},
            ("constraints", "within"),
        ),
        "optimize bounds": (lambda v: forecaster.optimize(ADAMW, {"learning rate": v}), {"v": (1e-3, 2e-3)}, ()),
        "optimize bound": (lambda v: forecaster.optimize(ADAMW, {"learning rate": (1e-3, v)}), {"v": 2e-3}, ()),
        "optimize choices": (lambda v: forecaster.optimize(ADAMW, {"optimizer": v}), {"v": ["muon", "lion"]}, ()),
        "optimize choice": (lambda v: forecaster.optimize(ADAMW, {"optimizer": ["muon", v]}), {"v": "lion"}, ()),
        "optimize divergence": (lambda v: within({"divergence": v}), {"v": 0.5}, ()),
        "optimize batch tokens": (lambda v: within({"batch tokens": v}), {"v": 1e6}, ()),
        "optimize batch size": (lambda v: within({"batch size": v}), {"v": 8}, ()),
        "plan": (
            forecaster.plan,
            {"flops": 1e20},
            (
                *("base", "gpu", "count", "hardware", "level", "utilisation", "params", "tokens_per_param"),
                *("optimizers", "inference_tokens", "unique_tokens"),
            ),
        ),
        "plan gpu_hours": (forecaster.plan, {"gpu_hours": 1e3}, ()),
        "plan cost": (forecaster.plan, {"cost": 1e4}, ()),
        "plan days": (forecaster.plan, {"days": 3}, ()),
        "plan target_loss": (forecaster.plan, {"target_loss": 3.0}, ()),
        "plan optimizer": (lambda v: forecaster.plan(flops=1e20, optimizers=["adamw", v]), {"v": "muon"}, ()),
        "plan scores": (planned.scores, {"like": None, "level": 0.9}, ()),
        "plan to_dict": (planned.to_dict, {"curves": False}, ()),
    }


def of_runs(folder: Path, forecaster: Forecaster) -> dict[str, Call]:
    """Name -> call, of what reads a lab's own runs."""
    file = folder / "runs.csv"
    file.write_text("name,model size,data size,final_loss\na,50,1,3.8\nb,100,2,3.4\nc,100,4,3.3\n")

    def changed(**changes: Any) -> Any:
        return forecaster.adapt([{**row, **changes} for row in RUNS], "mine")

    def evaluated(column: Any) -> Any:
        return forecaster.adapt([{**row, "c4": 3.0} for row in RUNS], "mine", eval={"c4": column})

    return {
        "import_runs": (import_runs, {"path": file, "map": None, "eval": None}, ()),
        "import_runs map": (lambda v: import_runs(file, map={"model size": v}), {"v": "model size"}, ()),
        "adapt": (forecaster.adapt, {"runs": RUNS, "source": "mine"}, ("parent", "eval")),
        "adapt loss": (lambda v: changed(final_loss=v), {"v": 3.0}, ()),
        "adapt field": (lambda v: changed(optimizer=v), {"v": "adamw"}, ()),
        "adapt status": (lambda v: changed(status=v), {"v": "finished"}, ()),
        "adapt size": (lambda v: forecaster.adapt([*RUNS, {**RUNS[0], "model size": v}], "mine"), {"v": 70}, ()),
        "adapt eval": (evaluated, {"column": "c4"}, ()),
        "suggest": (
            forecaster.suggest,
            {"candidates": [ADAMW, {**ADAMW, "model size": 200}], "budget_flops": 1e20, "target": ADAMW},
            ("level",),
        ),
    }


def of_networks(folder: Path) -> dict[str, Call]:
    """Name -> call, of what a network forecasts."""
    save_tiny(folder / "tiny")
    forecaster = Forecaster.from_pretrained(folder / "tiny")
    assert forecaster.network is not None
    processor = forecaster.network.processor
    pipeline = ScalingForecastPipeline(model=forecaster.network.model, processor=processor)
    several = {"configs": [ADAMW, ADAMW], "final_loss": [3.0, 3.0], "steps": [[1], [2]], "curve": [[4.0], [4.0]]}
    return {
        "network predict": (forecaster.predict, {"configs": ADAMW}, ()),
        "network sweep value": (lambda v: forecaster.sweep(ADAMW, {"learning rate": [1e-3, v]}), {"v": 2e-3}, ()),
        "processor": (processor, {"configs": ADAMW}, ("final_loss", "steps", "curve", "return_tensors")),
        "processor batch": (processor, several, ()),
        "processor loss": (lambda v: processor([ADAMW], [v]), {"v": 3.0}, ()),
        "processor step": (lambda v: processor(ADAMW, steps=[v]), {"v": 3}, ()),
        "pipeline": (pipeline, {"inputs": ADAMW}, ("level", "batch_size")),
    }


def loaded(path: Any) -> Any:
    """NSP by `from_pretrained`, whose OSError is transformers' word for what is not there."""
    try:
        return NSPModel.from_pretrained(path)
    except OSError:
        return None


def of_scores() -> dict[str, Call]:
    """Name -> call, of what forecasts benchmark scores."""
    nsp = load_predictor("nsp-base")
    ensemble = NSPEnsemble.from_members([nsp, nsp]).eval()
    fields: dict[str, Any] = {
        "params": 7e9,
        "tokens": 2e12,
        "flops": None,
        "domain": "code",
        "moe": True,
        "like": None,
        "name": "x",
    }
    fields |= {"scores": {"hellaswag": 0.8}, "siblings": [{**MODEL, "hellaswag": 0.8}], "hellaswag": 0.8}
    return {
        "NSP": (nsp, {"features": MODEL}, ()),
        "NSP ensemble": (ensemble, {"features": MODEL}, ()),
        "NSP extractor": (nsp.extractor, {"models": MODEL}, ("return_tensors",)),
        "NSP interval": (partial(nsp.interval, nsp(MODEL)), {"level": 0.9}, ()),
        "NSP ensemble of": (NSPEnsemble.from_members, {"members": [nsp], "weights": [1.0]}, ()),
        "NSP config": (lambda v: nsp({"config": v, "tokens": 2e12}), {"v": {"model_type": "gpt2"}}, ()),
        "NSP config kind": (lambda v: nsp({"config": {"model_type": v}, "tokens": 2e12}), {"v": "gpt2"}, ()),
        "NSP load": (loaded, {"path": "nsp-base"}, ()),
        **{
            f"NSP {name}": (lambda v, name=name: nsp({**MODEL, name: v}), {"v": good}, ())
            for name, good in fields.items()
        },
    }


def adapter(folder: Path) -> Path:
    """An adapter over the tiny checkpoint, as training writes it."""
    model = NCPLForecaster.from_pretrained(folder / "tiny")
    add_adapters(model, Lora(r=2, target_modules=["q_proj"])).save_pretrained(folder / "adapter")
    NCPLProcessor.from_pretrained(folder / "tiny").save_pretrained(folder / "adapter")
    return folder / "adapter"


def published(folder: Path) -> dict[str, Any]:
    """A checkpoint in the published layout, and the folder of its backbone."""
    (folder / "published").mkdir()
    torch.save(published_weights(), folder / "published" / "pytorch_model.bin")
    train_tokenizer(CONFIGS, prompt_version=1, vocab_size=400).save_pretrained(folder / "backbone")
    Qwen3Config(**scratch_config(400, 32, 2, 2)).save_pretrained(folder / "backbone")
    return {"published": folder / "published", "backbone": folder / "backbone"}


def of_files(folder: Path, forecaster: Forecaster) -> dict[str, Call]:
    """Name -> call, of what is written, converted, sent or followed. Nothing is sent: pushes are dry runs."""
    log = folder / "log.csv"
    log.write_text("step,loss\n400,4.5\n500,4.4\n")
    followed = {"log": log, "config": ADAMW, "forecaster": forecaster, "level": 0.9, "window": 1.0, "every": None}
    fresh = (folder / "fresh" / str(i) for i in itertools.count())
    options = ("private", "revision", "create_pr", "tag", "message", "token")

    def merged(adapter: Any, out: Any = None) -> Any:
        return merge_adapter(adapter, next(fresh) if out is None else out)

    def converted(out: Any = None, **given: Any) -> Any:
        return convert(out=next(fresh) if out is None else out, **given)

    return {
        "push": (push, {"folder": folder / "tiny", "repo_id": "me/x", "dry_run": True}, ("base_model", *options)),
        "merge": (merged, {"adapter": adapter(folder)}, ("out",)),
        "convert": (converted, published(folder), ("out", "revision", "curves")),
        "follow": (lambda **given: next(follow(**given), None), followed, ()),
        "read_log": (read_log, {"path": log}, ()),
        "report": (partial(report, forecaster), {"config": ADAMW, "gpu": "h100", "gpus": 64, "level": 0.9}, ()),
        "picture": (forecaster.curve(ADAMW, 3).plot().save, {"path": folder / "curve.svg"}, ()),
        "write_runs": (partial(write_runs, import_runs(folder / "runs.csv")), {"path": folder / "written.csv"}, ()),
        "checkpoint_card": (checkpoint_card, {"folder": folder / "tiny", "repo_id": "me/x"}, ("base_model",)),
    }


class Matrix:
    """Calls that are right, and which of their arguments are tried."""

    def __init__(self, folder: Path) -> None:
        forecaster = Forecaster.from_pretrained()
        self.calls = {
            **forecasts(folder, forecaster, forecaster.adapt(RUNS, source="mine")),
            **of_runs(folder, forecaster),
            **of_networks(folder),
            **of_files(folder, forecaster),
            **of_scores(),
            **searches(forecaster),
        }

    def cells(self, only: str = "") -> Iterator[tuple[str, str, str]]:
        """The call, the argument and the value of each case."""
        for name, (_, good, more) in self.calls.items():
            if name.startswith(only):
                for argument in (*good, *more):
                    for value in VALUES:
                        yield name, argument, value

    def call(self, counts: Counts, cell: tuple[str, str, str]) -> None:
        """One case, counted under its call and argument."""
        name, argument, value = cell
        door, good, _ = self.calls[name]
        call(counts, lambda given: door(**{**good, argument: given}), VALUES[value]())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="calls that begin so")
    given = parser.parse_args()
    # What takes all memory fails alone.
    resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY, MOST_MEMORY))
    total = Counts(bound_s=60)
    with TemporaryDirectory() as folder:
        matrix = Matrix(Path(folder))
        # Relative paths are written to, and read, here.
        (Path(folder) / "here" / "below").mkdir(parents=True)
        os.chdir(Path(folder) / "here" / "below")
        for (name, argument), cells in itertools.groupby(matrix.cells(given.only), key=lambda cell: cell[:2]):
            found: dict[str, list[str]] = {}
            for cell in cells:
                counts = Counts(bound_s=total.bound_s)
                matrix.call(counts, cell)
                for what in counts.failures:
                    found.setdefault(what, []).append(cell[2])
                for count in ("cases", "tracebacks", "messages", "refused", "hangs"):
                    setattr(total, count, getattr(total, count) + getattr(counts, count))
            for what, values in found.items():
                print(f"{name} | {argument} | {what} | {len(values)} values, such as {values[0]}", flush=True)
    print(total.figures())
    sys.exit(1 if total.tracebacks + total.messages + total.hangs else 0)


if __name__ == "__main__":
    main()
