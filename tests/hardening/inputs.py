"""What users may hand in: good configurations with a few things wrong, and what is nothing at all."""

import json
from datetime import date, datetime
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pandas as pd
from hypothesis import strategies as st

from fields_ncpl import FIELDS
from tests.checkpoints import ADAMW

Strategy = st.SearchStrategy[Any]


class Unprintable:
    """A value of which nothing can be asked."""

    def __repr__(self) -> str:
        raise RuntimeError("no repr")

    def __float__(self) -> float:
        raise OverflowError("no float")

    def __eq__(self, other: object) -> bool:
        raise TypeError("no comparison")

    __hash__ = object.__hash__


TEXTS = (
    *(
        "",
        " ",
        "\n",
        "\x1b[31mred\x1b[0m",
        "\x00",
        "\ud800",
        "nan",
        "-inf",
        "1e400",
        "1e-400",
        "0x10",
        "1_000",
        "½",
        "１２",
    ),
    *(
        "9" * 400,
        "9" * 5000,
        "-" + "9" * 400,
        "1e" + "9" * 50,
        "adamw" * 200,
        "<script>alert(1)</script>",
        "=cmd|' /C'!A0",
    ),
    *(
        "../../etc/passwd",
        "/dev/zero",
        "/",
        "[1, 2",
        "{a: b",
        "\u202e",
        "true",
        "null",
        "~",
        "302M",
        "7B",
        "1:2:3",
        "1,2",
    ),
)
NUMBERS = (
    *(0, -1, 1, 2**31, 2**63, 2**64, 10**400, -(10**400), 0.0, -0.0, 5e-324, 1e-300, 1e300, 1.7e308),
    *(float("nan"), float("inf"), float("-inf"), True, False, 3 + 4j),
)
ODD: tuple[Any, ...] = (
    *(None, b"bytes", Decimal("sNaN"), Decimal("1e9999"), Decimal("0.002"), Fraction(10**400), Fraction(1, 3)),
    *(np.float32("nan"), np.int64(3), np.array([1.0, 2.0]), np.array(3), np.str_("adamw"), pd.NA, pd.NaT),
    *(
        date(2026, 1, 1),
        datetime(2026, 1, 1),
        object(),
        Unprintable(),
        len,
        int,
        [],
        {},
        [[[]]],
        {"a": {"b": 1}},
        (1,),
        {1},
    ),
)

json_values: Strategy = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(TEXTS),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4),
    max_leaves=8,
)
texts: Strategy = st.sampled_from(TEXTS) | st.text(st.characters(), max_size=30)
values: Strategy = st.one_of(
    texts,
    st.sampled_from(NUMBERS),
    st.sampled_from(ODD),
    st.floats(),
    st.integers(),
    st.floats(1e-6, 1e6),
    json_values,
)
names: Strategy = st.one_of(st.sampled_from([*FIELDS]), st.sampled_from(["lr", "n_layers", "wd", "bs"]), texts)
levels: Strategy = st.sampled_from([0.5, 0.9, 0.9, 0.9]) | values
REQUIRED = list(ADAMW)
PLAUSIBLE: dict[str, Strategy] = {
    "learning rate": st.floats(1e-4, 2e-2),
    "batch size": st.integers(16, 2048),
    "data size": st.floats(1, 40),
    "weight decay": st.floats(0, 1),
    "beta1": st.floats(0.5, 0.99),
    "warmup": st.integers(0, 100),
    "optimizer": st.sampled_from(["adamw", "muon", "soap", "lion"]),
    "source": st.sampled_from(["marin", "steplaw", "mine"]),
}
"""Fields with values that go with the others."""


def numbers_of(name: str) -> Strategy:
    """Values of a field within its range, and at its ends."""
    known = FIELDS[name]
    if known.kind in ("number", "count") and np.isfinite(known.high):
        low = max(known.low, 0.0)
        return st.sampled_from([low, known.high, int(known.high)]) | st.floats(low, known.high)
    return st.sampled_from(["adamw", "muon", "marin", "steplaw", "soap", "cosine", "wsd", True])


@st.composite
def configs(draw: Any, good: bool = False) -> Any:
    """A configuration, most often one of which a few fields are wrong, missing or added."""
    if not good and draw(st.integers(0, 19)) == 0:
        return draw(values)
    config: dict[Any, Any] = dict(ADAMW)
    for name in draw(st.sets(st.sampled_from(list(PLAUSIBLE)), max_size=3)):
        config[name] = draw(PLAUSIBLE[name])
    if good or draw(st.booleans()):
        return config
    for _ in range(draw(st.integers(1, 2))):
        name = draw(names)
        config[name] = draw(values | numbers_of(name) if name in FIELDS else values)
    if draw(st.integers(0, 9)) == 0:
        config.pop(draw(st.sampled_from(REQUIRED)), None)
    return config


@st.composite
def batches(draw: Any) -> Any:
    kind = draw(st.integers(0, 9))
    if kind < 5:
        return draw(configs())
    several = draw(st.lists(configs(), max_size=4))
    if kind < 8:
        return several
    rows = [row for row in several if isinstance(row, dict)]
    return pd.DataFrame([{text_of(k): text_of(v) if isinstance(v, str) else v for k, v in row.items()} for row in rows])


def text_of(value: Any) -> str:
    """Text that a data frame can hold: pandas keeps UTF-8."""
    return str(value).encode("utf-8", "replace").decode()


@st.composite
def sweeps(draw: Any) -> Any:
    fields: dict[Any, Any] = {}
    for name in draw(st.sets(st.sampled_from(list(PLAUSIBLE)), max_size=2)):
        fields[name] = draw(st.lists(PLAUSIBLE[name], min_size=1, max_size=4))
    if draw(st.booleans()):
        fields[draw(names)] = draw(st.lists(values, max_size=4) | values)
    return draw(configs()), fields if draw(st.integers(0, 19)) else draw(values)


@st.composite
def bounds(draw: Any) -> Any:
    """Bounds of at most two fields: each search takes a good part of a second."""
    fields: dict[Any, Any] = {}
    for name in draw(st.sets(st.sampled_from([*PLAUSIBLE]), min_size=1, max_size=2)):
        ends = draw(st.lists(PLAUSIBLE[name], min_size=2, max_size=2))
        fields[name] = ends if isinstance(ends[0], str) else tuple(sorted(ends))
    if draw(st.booleans()):
        fields = {draw(names): draw(st.lists(values, max_size=3) | values)}
    return draw(configs(good=True)), fields, draw(levels)


def pairs() -> Strategy:
    return st.tuples(configs(), configs(), levels)


@st.composite
def curves(draw: Any) -> Any:
    given = {"config": draw(configs()), "points": draw(st.integers(-2, 50) | values), "level": draw(levels)}
    if draw(st.booleans()):
        steps = st.lists(st.floats() | st.integers(-5, 3000), max_size=30)
        losses = st.lists(st.floats() | st.floats(2, 12), max_size=30)
        given["observed"] = draw(st.fixed_dictionaries({"step": steps, "loss": losses}) | values)
        given["window"] = draw(st.just(1) | values)
    return given


@st.composite
def costs(draw: Any) -> Any:
    given = {"config": draw(configs())}
    for name, good in (("gpu", st.sampled_from(["h100", "a100"])), ("count", st.just(64)), ("utilisation", st.none())):
        given[name] = draw(good | values)
    return given


@st.composite
def plans(draw: Any) -> Any:
    given: dict[str, Any] = {}
    for name in draw(st.sets(st.sampled_from(["flops", "gpu_hours", "cost", "days", "target_loss"]), max_size=2)):
        given[name] = draw(st.sampled_from([1e18, 1e21, 1e24, 2.5, 100.0]) | values)
    options = [
        "gpu",
        "count",
        "utilisation",
        "params",
        "tokens_per_param",
        "optimizers",
        "unique_tokens",
        "base",
        "level",
    ]
    for name in draw(st.sets(st.sampled_from(options), max_size=2)):
        given[name] = draw(values)
    return given


@st.composite
def score_requests(draw: Any) -> Any:
    good = {"params": 7e9, "tokens": 2e12}
    rows = st.fixed_dictionaries({"params": st.just(7e9) | values, "tokens": st.just(2e12) | values})
    models = draw(rows | st.just(good) | configs() | st.lists(rows, max_size=3) | values)
    return {"models": models, "like": draw(st.none() | values), "level": draw(levels)}


# ------------------------------------------------------------------------------------------------ text

DOCUMENTS = {
    "yaml": (
        *("source: marin\nmodel size: 134\ndata size: 2.7\noptimizer: adamw\nlearning rate: 2e-3\nbatch size: 128\n",),
        *(
            "a: &a [1]\nb: *a\n<<: {c: 1}\n",
            "!!timestamp 2026-01-01",
            "!!map x",
            "? [1]\n: 2",
            "--- 1\n--- 2",
            "[" * 999,
        ),
        *(
            "a: !!python/object:os.system x",
            "x: 1:2:08",
            "0: 1\n'0': 2",
            "- " * 500,
            "a: |\n  b\n",
            "%YAML 9.9\n---\n1",
            "*a",
        ),
    ),
    "json": (
        json.dumps(ADAMW),
        "[" * 99_999,
        '{"a": 1, "a": 2}',
        "[1e999]",
        '"\\ud800"',
        "NaN",
        "-",
        "9" * 5000,
        "[[1]]",
    ),
    "toml": ("a = 1\n[b]\nc = 1979-05-27\n", "a.b.c = 1", "a = " + "[" * 999, "a = 0x1f", "a = 1e999", 'a = """x"""'),
    "python": (
        "a = 1\nb = 2 * a\n",
        "a = 9 ** 9 ** 9",
        "import os",
        "a = [1] * 10 ** 9",
        "a = " + "(" * 500,
        "a = 1 / 0",
        "a=1e309",
    ),
}
TABLES = (
    ",".join(ADAMW) + "\n" + ",".join(map(str, ADAMW.values())) + "\n",
    "sep=;\na;b\n1;2\n",
    'a,b\n"1\n2",3\n', "a\tb\n1\t2",
    "name,params_no_embed,tokens,lr,val_loss\na,85e6,2e9,1e-3,3.1\n",
    "a,b\n" + "x" * 140_000 + ",1\n", "step,loss\n1,9\n2,8\n", '"', ",,,\n", "a,a\n1,2\n",
)  # fmt: skip


@st.composite
def mutated(draw: Any, kept: tuple[str, ...]) -> str:
    """A good or a bad text, with a few pieces cut, doubled, or put in."""
    text = draw(st.sampled_from(kept))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, min(len(text), 300)))
        length = draw(st.integers(0, 12))
        change = draw(st.integers(0, 3))
        if change == 0:
            text = text[:at] + text[at + length :]
        elif change == 1:
            text = text[:at] + text[at : at + length] * draw(st.integers(2, 40)) + text[at + length :]
        else:
            text = text[:at] + draw(texts | st.sampled_from(list(":,-[]{}&*!|>'\"%@`#?\n\t="))) + text[at:]
    return text


@st.composite
def documents(draw: Any) -> Any:
    kind = draw(st.sampled_from(list(DOCUMENTS)))
    return draw(mutated(DOCUMENTS[kind]) | texts), kind


@st.composite
def files(draw: Any) -> Any:
    suffix = draw(
        st.sampled_from([".yaml", ".json", ".jsonl", ".csv", ".tsv", ".toml", ".py", ".txt", "", ".parquet", ".db"])
    )
    kept = {".json": "json", ".toml": "toml", ".py": "python", ".yaml": "yaml"}.get(suffix)
    every = tuple(text for several in DOCUMENTS.values() for text in several) + TABLES
    text = draw(mutated(DOCUMENTS[kept] if kept else every if suffix in ("", ".txt") else TABLES))
    content = text.encode(draw(st.sampled_from(["utf-8", "utf-8", "utf-16", "utf-16-le"])), "surrogatepass")
    if draw(st.integers(0, 4)) == 0:
        at = draw(st.integers(0, min(len(content), 300)))
        content = content[:at] + draw(st.binary(max_size=8)) + content[at:]
    return suffix, content


GOOD_ARGUMENTS = [f"{name}={value}" for name, value in ADAMW.items()]


@st.composite
def argument_lists(draw: Any) -> list[str]:
    """`field=value` arguments, of which a few are wrong."""
    arguments = list(GOOD_ARGUMENTS)
    for _ in range(draw(st.integers(0, 3))):
        value = texts | st.sampled_from(
            ["1e-3:1e-2:5", "1e-3:1e-2:1000000000000", "1,2,3", "a,b", "1:2", "0:1:3", ":::", "1e-3,2e-3"]
        )
        written = st.builds(lambda name, value: f"{name}={value}", names, value)
        arguments.insert(draw(st.integers(0, len(arguments))), draw(written | texts))
    return arguments


# Options that would wait, serve, send or write are not among them.
COMMANDS = {
    "predict": ("--level", "--json", "--model"),
    "curve": ("--level", "--points", "--window", "--observed", "--json"),
    "sweep": ("--level", "--json", "--model"),
    "optimize": ("--level", "--json"),
    "compare": ("--level", "--json"),
    "cost": ("--gpu", "--count", "--utilisation", "--hardware"),
    "plan": (
        "--flops",
        "--gpu-hours",
        "--cost",
        "--days",
        "--target-loss",
        "--gpu",
        "--count",
        "--params",
        "--compare",
    ),
    "suggest": ("--budget", "--level"),
    "benchmarks": ("--params", "--tokens", "--like", "--level"),
    "import": ("--map", "--eval"),
    "adapt": ("--source", "--out", "--parent"),
    "evaluate": ("--data-dir", "--split", "--level"),
    "push": ("--dataset",),
    "card": ("--json",),
    "merge": ("--json",),
    "fields": ("--json",),
}


@st.composite
def commands(draw: Any) -> list[str]:
    """A command with arguments; no system passes zero bytes."""
    name = draw(st.sampled_from([*COMMANDS, "predict", "predict", "sweep"]) | texts)
    arguments = (
        draw(argument_lists())
        if name not in ("import", "push", "card", "merge", "adapt")
        else draw(st.lists(texts, max_size=2))
    )
    for option in draw(st.sets(st.sampled_from(COMMANDS.get(name, ("--debugg", "--level"))), max_size=2)):
        value = draw(texts | st.sampled_from(["0.9", "3", "1e21", "h100", "-1", "1e400"]))
        arguments += [option] if option == "--json" else [option, value]
    passed = [name, *arguments]
    return [argument.replace("\0", "") for argument in passed if argument not in ("--help", "-")]


@st.composite
def forms(draw: Any) -> Any:
    """An address of the app, and what stands in its form."""
    written = {name: str(value) for name, value in ADAMW.items()}
    for _ in range(draw(st.integers(0, 3))):
        written[draw(names)] = draw(texts)
    written["further fields"] = draw(st.just("") | mutated(DOCUMENTS["yaml"]) | texts)
    return draw(texts | st.sampled_from(["tab=sweep&lr=1e-3", "lr=1&lr=2", "a" * 30_000, "%ff%00=1"])), written


@st.composite
def requests(draw: Any) -> Any:
    """A request to the endpoint, as a JSON reader gives it."""
    plain: Strategy = (
        json_values | st.sampled_from([n for n in NUMBERS if not isinstance(n, complex)]) | st.sampled_from(TEXTS)
    )
    config = dict(ADAMW)
    for _ in range(draw(st.integers(0, 2))):
        config[draw(names)] = draw(plain)
    columns = {name: [value] for name, value in config.items()}
    form = st.sampled_from([config, [config], columns, {"table": columns}, [config] * 300, {"table": config}])
    given = {"inputs": draw(form | plain)} if draw(st.integers(0, 9)) else draw(plain)
    if isinstance(given, dict) and draw(st.booleans()):
        given["parameters"] = draw(plain | st.builds(lambda level: {"level": level}, plain))
    return given


def bodies() -> Strategy:
    """A request's body: JSON as Python writes it, or what is none."""
    written = requests().map(lambda given: json.dumps(given).encode())
    kept = tuple(json.dumps({"inputs": ADAMW, "parameters": {"level": level}}) for level in (0.9, None, "x", 10**400))
    text = mutated((*kept, *DOCUMENTS["json"])).map(lambda text: text.encode("utf-8", "surrogatepass"))
    return written | text | st.binary(max_size=40)
