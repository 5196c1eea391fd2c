"""Checkpoints that an installed package brings along, by bare name: `NSPModel.from_pretrained("nsp-base")`.

A package announces them: it puts its folders into `EMBEDDED` when it is imported, and names the module that does so
in its entry points of the group `ncpl.checkpoints`. A frozen copy of this file beside a checkpoint works without any.
"""

import os
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Self

try:
    from .text_ncpl import short
except ImportError:
    from text_ncpl import short

EMBEDDED: dict[str, Path] = {}


def resolve(name: Any) -> Any:
    """The folder of an embedded checkpoint where `name` is the bare name of one; else `name` itself.

    A folder of that name in the working directory comes first.

    >>> resolve("owner/repository")
    'owner/repository'
    """
    # `Path.exists` raises where a name is longer than a file's may be.
    if not isinstance(name, str) or "/" in name or os.path.exists(name):  # noqa: PTH110
        return name
    if name not in EMBEDDED:
        for package in entry_points(group="ncpl.checkpoints"):
            EMBEDDED.update(package.load())
    return str(EMBEDDED.get(name, name))


class ByName:
    """First base of a transformers class whose `from_pretrained` also takes the bare name of an embedded checkpoint."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Self:
        """Loads a folder, a Hub repository, or an embedded checkpoint by its bare name (`"ncpl-mini"`, `"nsp-base"`).

        Args:
            pretrained_model_name_or_path: which; None beside `config` and `state_dict`, as transformers allows.
            args, kwargs: as transformers' `from_pretrained` takes them.

        Raises:
            OSError: there is no such checkpoint.
            ValueError: neither text nor a path.
        """
        name = pretrained_model_name_or_path
        given = name is None and kwargs.get("state_dict") is not None
        if not given and (not isinstance(name, str | os.PathLike) or not str(name).strip()):
            raise ValueError(f"{cls.__name__}: got {short(name)}, expected a folder, a Hub id or {', '.join(EMBEDDED)}")
        return super().from_pretrained(resolve(pretrained_model_name_or_path), *args, **kwargs)  # type: ignore[misc]
