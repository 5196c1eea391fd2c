"""The house plan, held: the direction of imports, no circles, and the size of files and functions."""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# Written by one command from the bundle, or of another time: not ours to read.
COPIES = (
    "ncpl/checkpoints/",
    "tests/frozen/",
    "tests/conformance/upstream/",
    "build/",
    "dist/",
    "outputs/",
    "notebooks/",
    ".",
)
MOST_FILE_LINES = 600
MOST_FUNCTION_LINES = 60

# What a checkpoint forecasts with where its network has no effect: numpy alone, each only what stands before it.
NUMPY_ALONE = (
    "text_ncpl",
    "names_ncpl",
    "fields_ncpl",
    "schedules_ncpl",
    "gradients_ncpl",
    "residual_ncpl",
    "upgrade_ncpl",
    "forms_ncpl",
    "published_ncpl",
    "laws_ncpl",
    "adapted_ncpl",
    "calibration_ncpl",
    "curves_ncpl",
    "observed_ncpl",
)
BUNDLE_LIBRARIES = {"torch", "transformers", "numpy", "huggingface_hub", "safetensors"}

# The rooms from the ground up: a module imports its own room and the rooms below it. `*` is whatever no other room
# names: what `Forecaster` is made of (fitting, training, nsp, adapt, plan, optimize, ...) and never imports it.
ROOMS: tuple[tuple[str, ...], ...] = (
    ("bundle",),
    ("datasets_scripts",),
    (
        "ncpl.errors",
        "ncpl.assignments",
        "ncpl.command_lines",
        "ncpl.kinds",
        "ncpl.yaml_documents",
        "ncpl.files",
        "ncpl.record",
    ),
    ("*",),
    ("ncpl.forecaster",),
    ("ncpl", "ncpl.callback", "ncpl.evaluation", "ncpl.figures", "ncpl.hub", "ncpl.live", "ncpl.tables", "ncpl.views"),
    ("ncpl.commands", "ncpl_cli", "run_train", "space", "model_cards", "benchmarks", "examples", "metrics"),
)

# (module, imported) -> why this one import may stand although the plan forbids it.
ALLOWED: dict[tuple[str, str], str] = {
    ("handler", "prometheus_client"): "only where `python handler.py` serves; the Hub's toolkit does without",
    ("handler", "uvicorn"): "only where `python handler.py` serves; the Hub's toolkit does without",
    ("handler", "uvicorn.protocols.http.h11_impl"): "only where `python handler.py` serves",
    ("datasets_scripts.sample.generate", "published_ncpl"): "the made-up runs follow the published law",
    ("ncpl.record", "ncpl"): "reads the version",
    ("ncpl.training.command", "ncpl.hub.push"): "`push: true` in a recipe",
}
# Circles that stand, as sorted modules -> why.
CIRCLES: dict[tuple[str, ...], str] = {}


def sources() -> dict[str, Path]:
    """Module name -> file, of everything that is ours; a package is named by its folder."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        relative = path.relative_to(ROOT).as_posix()
        if not relative.startswith(COPIES):
            found[relative.removesuffix(".py").removesuffix("/__init__").replace("/", ".")] = path
    return found


SOURCES = sources()
BUNDLE = {name for name in SOURCES if name.endswith(("_ncpl", "_nsp")) and "." not in name} | {"handler"}

ONLY_ELSEWHERE = ("TYPE_CHECKING", "typing.TYPE_CHECKING", "__name__ == '__main__'")


def imports(module: str) -> Iterator[str]:
    """Full names of all modules that a module imports: inside functions, by `import_module` and by `find_spec` too.

    Left out is what only type checkers read, and what only a file that is run as a script does. Of
    `from package import name`, a name that is a module is the module.
    """
    path = SOURCES[module]
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    tree = ast.parse(path.read_text(encoding="utf-8"))
    skipped = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) in ONLY_ELSEWHERE
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: package.count(".") + 2 - node.level] if package and node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            for name in node.names:
                inner = f"{base}.{name.name}"
                yield inner if inner in SOURCES else base
        elif isinstance(node, ast.Call) and ast.unparse(node.func).rsplit(".")[-1] in ("import_module", "find_spec"):
            argument = node.args[0] if node.args else None
            if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                yield argument.value
            elif isinstance(argument, ast.JoinedStr) and isinstance(argument.values[0], ast.Constant):
                # f"datasets_scripts.{source}" may be any module of the package.
                prefix = str(argument.values[0].value)
                yield from (name for name in SOURCES if name.startswith(prefix))


GRAPH = {module: set(imports(module)) for module in SOURCES}
OURS = {module: {name for name in names if name in SOURCES and name != module} for module, names in GRAPH.items()}


def room(module: str) -> int:
    """Place of a module's room in `ROOMS`."""
    if module in BUNDLE:
        return 0
    for place, names in enumerate(ROOMS):
        if any(module == name or (name != "ncpl" and module.startswith(f"{name}.")) for name in names):
            return place
    return ROOMS.index(("*",))


def test_imports_point_down():
    upward = {
        (module, name)
        for module, names in OURS.items()
        for name in names
        if not module.startswith("tests") and (name.startswith("tests") or room(name) > room(module))
    }
    assert not upward - set(ALLOWED)


@pytest.mark.parametrize("module", sorted(BUNDLE))
def test_the_bundle_stands_alone(module):
    """A checkpoint's code works where nothing of this project is installed, and its law without torch."""
    for name in GRAPH[module] - {name for by, name in ALLOWED if by == module}:
        top = name.partition(".")[0]
        if module in NUMPY_ALONE:
            below = NUMPY_ALONE[: NUMPY_ALONE.index(module)]
            assert top in {"numpy", *below} or top in sys.stdlib_module_names, f"{module} imports {name}"
        else:
            assert top in BUNDLE_LIBRARIES | BUNDLE or top in sys.stdlib_module_names, f"{module} imports {name}"


def test_the_builders_know_of_the_fields_alone():
    found = {
        (module, name)
        for module, names in OURS.items()
        if module.startswith("datasets_scripts")
        for name in names & BUNDLE - {"fields_ncpl", "text_ncpl"}
    }
    assert not found - set(ALLOWED)


def circles() -> set[tuple[str, ...]]:
    """Strongly connected groups of more than one module (Tarjan's algorithm)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found = set()

    def visit(module: str) -> None:
        index[module] = low[module] = len(index)
        stack.append(module)
        for name in OURS[module]:
            if name not in index:
                visit(name)
                low[module] = min(low[module], low[name])
            elif name in stack:
                low[module] = min(low[module], index[name])
        if low[module] == index[module]:
            group = stack[stack.index(module) :]
            del stack[-len(group) :]
            if len(group) > 1:
                found.add(tuple(sorted(group)))

    for module in OURS:
        if module not in index:
            visit(module)
    return found


def test_no_circle():
    assert not circles() - set(CIRCLES)


def test_files_and_functions_are_short():
    files, functions = {}, {}
    for path in SOURCES.values():
        relative, text = path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")
        if (lines := text.count("\n")) > MOST_FILE_LINES:
            files[relative] = lines
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > MOST_FUNCTION_LINES:
                    functions[f"{relative}::{node.name}"] = lines
    assert not files
    assert not functions


def test_no_test_reads_a_clock():
    """Speed is measured in `benchmarks/`; a test counts work (`tests/work.py`)."""
    clocks = re.compile(r"\b(process_time|thread_time|perf_counter|monotonic)(_ns)?\(\)|\btime\.time\(\)")
    read = [path.name for path in sorted((ROOT / "tests").glob("test_*.py")) if clocks.search(path.read_text("utf-8"))]
    assert not read


def test_the_import_reader_sees_what_is_hidden(tmp_path, monkeypatch):
    """Imports in functions, dynamic ones and specifications; not what stands under TYPE_CHECKING."""
    code = """
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    from ncpl import forecaster
if __name__ == "__main__":
    import ncpl.training
def f(source):
    import run_train
    import_module(f"datasets_scripts.{source}")
    return importlib.util.find_spec("ncpl_cli")
"""
    (tmp_path / "made.py").write_text(code, encoding="utf-8")
    monkeypatch.setitem(SOURCES, "made", tmp_path / "made.py")
    assert {"run_train", "datasets_scripts.marin", "ncpl_cli"} < set(imports("made"))
    assert not {"ncpl.forecaster", "ncpl.training"} & set(imports("made"))
