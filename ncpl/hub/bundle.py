"""The Hub bundle: the modules that travel with a checkpoint, and the library versions that they were tested with."""

import re
import tomllib
from importlib.metadata import requires
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement

from ncpl.resources import root_file

ROOT = Path(__file__).parents[2]
"""Where the bundle's modules lie: the repository, or `site-packages`."""
CODE = ("*_ncpl.py", "*_nsp.py")
"""The bundle's modules, by name."""
LIBRARIES = ("numpy", "safetensors", "torch", "transformers")
"""What the bundle imports besides the standard library."""
MARKS = "<!-- compatibility -->", "<!-- /compatibility -->"
"""What stands around the tested versions in a card, so that they can be renewed."""

Model = Literal["ncpl", "nsp"]
_SIBLING = re.compile(r"^\s*from \.(\w+) import", re.MULTILINE)


def model_of(model_type: str | None) -> Model | None:
    """The model that a `config.json` names, None for one that is not ours.

    >>> model_of("nsp_ensemble"), model_of("qwen3")
    ('nsp', None)
    """
    if model_type == "ncpl":
        return "ncpl"
    return "nsp" if str(model_type).startswith("nsp") else None


def bundle_files(model: Model) -> dict[str, Path]:
    """The installed package's modules for a model: file name -> file.

    NCPL takes every `*_ncpl.py` and the endpoint's `handler.py`, NSP every `*_nsp.py`; both take the siblings that
    those import.

    >>> {"modeling_ncpl.py", "laws_ncpl.py", "handler.py"} <= bundle_files("ncpl").keys()
    True
    """
    found: dict[str, Path] = {}
    waiting = sorted(ROOT.glob(f"*_{model}.py")) + ([root_file("handler.py")] if model == "ncpl" else [])
    while waiting:
        path = waiting.pop()
        if path.name not in found:
            found[path.name] = path
            waiting += [ROOT / f"{name}.py" for name in _SIBLING.findall(path.read_text(encoding="utf-8"))]
    return dict(sorted(found.items()))


def requirements() -> str:
    """`requirements.txt` of a pushed checkpoint: the versions of `LIBRARIES` that the package's metadata allow.

    >>> [line.partition(">")[0] for line in requirements().splitlines()]
    ['numpy', 'safetensors', 'torch', 'transformers']
    """
    ranges = _tested()
    return "".join(f"{name}{','.join(ranges[name])}\n" for name in LIBRARIES)


def compatibility() -> str:
    """The tested versions as a paragraph of a card, between `MARKS`."""
    from ncpl import __version__

    ranges = _tested()
    told = ", ".join(f"{name} {' and '.join(_words(ranges[name]))}" for name in ("torch", "transformers"))
    return (
        f"{MARKS[0]}\n"
        f"The code in this repository is that of ncpl {__version__}, which was tested with {told}. Under other "
        "versions, install the package: `import ncpl` before `AutoModel.from_pretrained` lets the installed code take "
        "the place of this repository's.\n"
        f"{MARKS[1]}"
    )


def renewed(card: str) -> str:
    """A card with the tested versions of the installed package; one without `MARKS` as it is."""
    start, end = map(re.escape, MARKS)
    return re.sub(f"{start}.*?{end}", lambda _: compatibility(), card, count=1, flags=re.DOTALL)


def _tested() -> dict[str, list[str]]:
    """Library -> its bounds, the lower first: of `pyproject.toml`, or of what a wheel holds of it."""
    project = ROOT / "pyproject.toml"
    own = tomllib.loads(project.read_text(encoding="utf-8"))["project"] if project.exists() else {}
    listed = own["dependencies"] if own.get("name") == "ncpl" else requires("ncpl") or []
    named = map(Requirement, listed)
    bounds = {need.name: sorted(map(str, need.specifier), reverse=True) for need in named if need.name in LIBRARIES}
    missing = sorted(set(LIBRARIES) - bounds.keys())
    if missing:
        raise RuntimeError(f"the package's metadata name no {', '.join(missing)}; install it again")
    return bounds


def _words(bounds: list[str]) -> list[str]:
    names = {">=": "at least ", "<": "below ", "<=": "at most ", "==": "", "!=": "not "}
    return [names[bound.rstrip("0123456789.*")] + bound.lstrip("<>=!") for bound in bounds]
