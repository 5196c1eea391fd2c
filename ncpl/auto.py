"""Imports our model classes, which register themselves with transformers' Auto classes, once transformers is there."""

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType

# Ending of a family's modules -> those that register its classes.
_FAMILIES = {"_ncpl": ("modeling_ncpl", "processing_ncpl"), "_nsp": ("modeling_nsp", "feature_extraction_nsp")}


# Imports nothing else of its family, so that no further import tells when the family is whole.
_ENDS = ("transformers", "pipeline_ncpl")


def register(imported: str = "") -> bool:
    """Imports the classes, and says whether all are there.

    A family of which a module is being imported right now, which is what has imported transformers, has to wait.

    Args:
        imported: name of a module whose import is just ending.
    """
    ours = [name for name in sys.modules if name.endswith(tuple(_FAMILIES)) and "." not in name]
    importing = [name for name in ours if name != imported and _is_being_imported(name)]
    waiting = [family for family in _FAMILIES if any(name.endswith(family) for name in importing)]
    for family in _FAMILIES.keys() - waiting:
        for module in _FAMILIES[family]:
            import_module(module)
    return not waiting


def register_with_transformers() -> None:
    """Calls `register` now if transformers is imported, else right after it is."""
    if "transformers" in sys.modules:
        register()
    else:
        sys.meta_path.insert(0, _Finder())


def _is_being_imported(name: str) -> bool:
    return bool(getattr(sys.modules[name].__spec__, "_initializing", False))


class _Finder(MetaPathFinder):
    """Finds no module itself: sees that transformers, or more of it, is imported, and calls `register`."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname.startswith("transformers."):
            self.try_to_register()
        if fullname not in _ENDS:
            return None
        sys.meta_path.remove(self)
        spec = find_spec(fullname)
        sys.meta_path.insert(0, self)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader, self)
        return spec

    def try_to_register(self, imported: str = "") -> None:
        """Calls `register`, during which nothing is watched, and goes on watching if not all classes are there."""
        there = "transformers" in sys.modules and (imported == "transformers" or not _is_being_imported("transformers"))
        if there and self in sys.meta_path:
            sys.meta_path.remove(self)
            if not register(imported):
                sys.meta_path.insert(0, self)


class _Loader(Loader):
    """Another loader, after which `register` is called."""

    def __init__(self, loader: Loader, finder: _Finder) -> None:
        self.loader, self.finder = loader, finder

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self.loader.exec_module(module)
        self.finder.try_to_register(module.__name__)
