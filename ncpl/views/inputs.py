"""The app's inputs: texts with names, read as configurations, kept in the page's address."""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode

from fields_ncpl import FIELDS, REQUIRED
from ncpl.configs import by_name
from ncpl.errors import one_line
from ncpl.files import parse_document

Inputs = Mapping[str, str]
Config = dict[str, Any]

FORM = REQUIRED
"""The fields that have an input of their own."""
MORE = "further fields"
"""The input for all other fields, a line each."""
OPTIONS = {
    "level": "0.9",
    "compare.with": "optimizer: muon\nlearning rate: 0.008",
    "curve.observed": "",
    "sweep.field": "learning rate",
    "sweep.values": "5e-4:1.6e-2:21",
    "sweep.field 2": "batch size",
    "sweep.values 2": "",
    "plan.budget": "training FLOPs",
    "plan.amount": "1e21",
    "plan.gpu": "h100",
    "plan.count": "64",
    "runs.source": "mine",
    "benchmarks.params": "7B",
    "benchmarks.tokens": "2T",
    "benchmarks.like": "",
}
"""The other inputs, by tab, and what stands in them at first."""
INPUTS = (*FORM, MORE, *OPTIONS)

TABS = ("forecast", "compare", "curve", "sweep", "plan", "runs", "benchmarks")
"""The page's tabs, each a view."""
PRESETS: dict[str, Config] = {
    "Marin, AdamW, 302M parameters, 12B tokens": {
        "source": "marin", "model size": 302, "data size": 12, "optimizer": "adamw", "learning rate": 4e-3,
        "batch size": 128,
    },
    "Marin, Muon, 302M parameters, 12B tokens": {
        "source": "marin", "model size": 302, "data size": 12, "optimizer": "muon", "learning rate": 8e-3,
        "batch size": 128,
    },
    "Step Law, AdamW, 215M parameters, 11.4B tokens": {
        "source": "steplaw", "model size": 214.7, "data size": 11.4, "optimizer": "adamw", "learning rate": 1e-3,
        "batch size": 352,
    },
    "Marin, AdamW, 1.2B parameters, 24B tokens": {
        "source": "marin", "model size": 1200, "data size": 24, "optimizer": "adamw", "learning rate": 2e-3,
        "batch size": 256, "lr_schedule": "cosine", "warmup": 2000, "weight decay": 0.1,
    },
}  # fmt: skip
"""Title -> configuration."""


def config_of(inputs: Inputs) -> Config:
    """The configuration that stands in the form, unchecked.

    Raises:
        ValueError: the further fields are not `field: value` lines, or one is given twice.

    >>> config_of({"source": "marin", "model size": "302M", "further fields": "lr_schedule: cosine"})
    {'source': 'marin', 'model size': '302M', 'lr_schedule': 'cosine'}
    """
    config = {name: inputs[name].strip() for name in FORM if inputs.get(name, "").strip()}
    more = fields_in(inputs.get(MORE, ""), MORE)
    for name in by_name(more):
        if name in config:
            raise ValueError(f"{name}: given twice, in its own input and among the {MORE}")
    return {**config, **by_name(more)}


def fields_in(text: str, where: str) -> Config:
    """The fields of `field: value` lines, by the rules of configuration files.

    Raises:
        ValueError: not such lines; says where.

    >>> fields_in("lr: 1e-3", "compare with")
    {'lr': 0.001}
    """
    if not text.strip():
        return {}
    try:
        found = parse_document(text)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{where}: got {one_line(text, 60)!r}, expected lines of the form field: value")
    return found


def inputs_of(config: Mapping[str, Any]) -> dict[str, str]:
    """What to write into the form for a configuration: the inverse of `config_of`.

    >>> inputs_of({"lr": 0.002, "warmup": 100})["learning rate"], inputs_of({"warmup": 100})["further fields"]
    ('0.002', 'warmup: 100')
    """
    named = by_name(config)
    form = {name: written(named[name]) if name in named else "" for name in FORM}
    return {**form, MORE: "\n".join(f"{name}: {written(named[name])}" for name in named if name not in FORM)}


def written(value: Any) -> str:
    return (
        f"{value:.10g}" if isinstance(value, float) else str(value).lower() if isinstance(value, bool) else str(value)
    )


def query_of(tab: str, inputs: Inputs) -> str:
    """The URL's query for a tab and its inputs: what differs from the first page.

    >>> query_of("forecast", {"source": "marin", "model size": "302", "level": "0.9"})
    'tab=forecast&source=marin&model+size=302'
    """
    own = {name: value for name, value in inputs.items() if OPTIONS.get(name) != value and value}
    kept = {name: value for name, value in own.items() if "." not in name or name.startswith(f"{tab}.")}
    # A pasted log is no part of an address.
    return urlencode({"tab": tab, **{name: value for name, value in kept.items() if name != "curve.observed"}})


def from_query(query: str) -> tuple[str, dict[str, str]]:
    """The tab and the inputs that a URL's query asks for; the first page's where it asks for nothing.

    Fields may also stand by themselves: `?source=marin&lr=1e-3` is enough.

    >>> tab, inputs = from_query("tab=sweep&source=marin&lr=1e-3&warmup=100")
    >>> tab, inputs["learning rate"], inputs["further fields"]
    ('sweep', '1e-3', 'warmup: 100')
    """
    asked = dict(parse_qsl(query[:20_000]))
    tab = asked.pop("tab", "")
    options = {name: asked.pop(name, value) for name, value in OPTIONS.items()}
    lines = asked.pop(MORE, "")
    # Where the page lies, more is added to addresses: themes, signatures, campaigns. Whatever else is no field is told.
    fields = {name: value for name, value in asked.items() if not name.startswith(("_", "utm_"))}
    try:
        form = inputs_of(fields or ({} if lines else next(iter(PRESETS.values()))))
    except ValueError:
        form = {**dict.fromkeys(FORM, ""), MORE: "\n".join(f"{name}: {value}" for name, value in fields.items())}
    form[MORE] = "\n".join(text for text in (lines, form[MORE]) if text)
    return (tab if tab in TABS else TABS[0]), {**form, **options}


@contextmanager
def given(files: Sequence[str] | str | None, text: str = "", name: str = "pasted text") -> Iterator[Path]:
    """An uploaded file, a folder of several, or else a pasted text as a file, under the short name that messages use.

    Raises:
        ValueError: neither is there.
    """
    paths = [Path(file) for file in ([files] if isinstance(files, str) else files or [])]
    if not paths and not text.strip():
        raise ValueError(f"{name}: missing, expected a file or a text")
    with tempfile.TemporaryDirectory() as folder:
        for uploaded in paths:
            Path(folder, uploaded.name).symlink_to(uploaded.resolve())
        path = Path(folder, paths[0].name if paths else name) if len(paths) < 2 else Path(folder)
        if not paths:
            path.write_text(text, encoding="utf-8", errors="replace")
        try:
            yield path
        except ValueError as error:
            raise ValueError(str(error).replace(f"{folder}/", "").replace(folder, "the files")) from None


def form_help(name: str) -> str:
    """What an input of the form accepts, in few words."""
    known = FIELDS[name]
    example = {"model size": ", or 302M", "data size": ", or 12B"}.get(name, "")
    return f"{known.low:g} to {known.high:g}{example}"
