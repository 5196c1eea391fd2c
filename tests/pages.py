"""Runs the shell commands and Python blocks of README and docs: page by page, in order, in one folder a page.

A `text` block that follows a block is what it prints; `python -m tests.pages [PAGE ...]` writes it anew. A line `...`
in it stands for any lines. Numbers may differ by a thousandth, because processors round differently. A block before
which `<!-- not executed: REASON -->` stands is only checked: commands, options and files in it must exist.
"""

import ast
import contextlib
import io
import os
import re
import shlex
import shutil
import sys
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

import ncpl_cli
from ncpl.commands.shared import app

ROOT = Path(__file__).parent.parent
# What lies where a page's commands run, as in a clone of the repository.
CLONE = ("examples", "recipes", "datasets_scripts", "ncpl", "handler.py", "run_train.py")
# A trained model and a configuration's file that pages name without making them.
MADE = {"outputs/ncpl-mini": "ncpl/checkpoints/ncpl-mini"}
# Pages of their authors' results, without commands to repeat line by line.
LEFT_OUT = ("experiments",)
# Program -> the test that runs what the pages say of it.
ELSEWHERE = {
    "make": "tests/test_install.py",
    "pip": "tests/test_install.py",
    "git": "tests/test_install.py",
    "accelerate": "tests/test_training.py",
    "docker": "tests/test_serving.py",
    "curl": "tests/test_serving.py",
    "hf": "tests/test_hub.py",
}
COMMANDS_ELSEWHERE = {
    "push": "tests/test_hub.py",
    "merge": "tests/test_hub.py",
    "convert": "tests/test_convert.py",
    "evaluate": "tests/test_cli.py",
    "train": "tests/test_training.py",
    "app": "tests/test_views.py",
}

BLOCK = re.compile(
    r"(?:<!-- not executed: (?P<reason>[^>]+) -->\n)?^```(?P<kind>sh|python)\n(?P<code>.*?)^```\n"
    r"(?:\n?```text\n(?P<printed>.*?)^```\n)?",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    """A fenced block of a page, and what the page says that it prints (None where it says nothing)."""

    kind: str
    code: str
    printed: str | None
    reason: str | None


def pages() -> list[Path]:
    """README and every page of docs that is not a report of experiments."""
    found = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return [page for page in found if not page.name.startswith(LEFT_OUT)]


def blocks(text: str) -> list[Block]:
    """The blocks of a page that are to run.

    >>> [(block.kind, block.printed) for block in blocks("```sh\\nncpl fields\\n```\\n```text\\nfield\\n```\\n")]
    [('sh', 'field\\n')]
    """
    return [Block(m["kind"], m["code"], m["printed"], m["reason"]) for m in BLOCK.finditer(text)]


def run_page(page: Path) -> Iterator[tuple[Block, str]]:
    """Runs a page's blocks, each with what it printed. Raises where a command or a block fails."""
    names: dict[str, Any] = {"__name__": "page"}
    with clone(), contextlib.chdir(Path.cwd()):
        for block in blocks(page.read_text(encoding="utf-8")):
            if block.kind == "python":
                yield block, run_python(block, names)
            else:
                yield block, "".join(run_line(words, block) for words in lines(block.code))


@contextlib.contextmanager
def clone() -> Iterator[None]:
    """Works in a new folder that holds what a clone of the repository does."""
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        for name in CLONE:
            (Path(folder) / name).symlink_to(ROOT / name)
        for name, origin in MADE.items():
            shutil.copytree(ROOT / origin, Path(folder) / name)
        os.chdir(folder)
        try:
            yield
        finally:
            os.chdir(before)


def lines(code: str) -> list[list[str]]:
    """The commands of a shell block as words."""
    joined = code.replace("\\\n", " ")
    # A quoted text may go over lines.
    commands, part = [], ""
    for line in joined.splitlines():
        part += line + "\n"
        try:
            words = shlex.split(part, comments=True)
        except ValueError:
            continue
        part = ""
        if words:
            commands.append(words)
    assert not part, f"an open quote: {part}"
    return commands


def run_line(words: list[str], block: Block) -> str:
    """Runs a command and gives what it printed; one that another test runs is checked."""
    while re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words = words[1:]
    if words[0] == "ncpl" and block.reason is None and words[1] not in COMMANDS_ELSEWHERE:
        return run_ncpl(words[1:], fails=bool(block.printed and block.printed.startswith("error:")))
    check_line(words, block)
    return ""


def run_ncpl(words: list[str], fails: bool = False) -> str:
    """Standard output of `ncpl WORDS`; standard error where it is to fail."""
    target = None
    if ">" in words:
        words, target = words[: words.index(">")], words[words.index(">") + 1]
    out, err, argv = io.StringIO(), io.StringIO(), sys.argv
    status: Any = None
    sys.argv = ["ncpl", *words]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), warnings.catch_warnings():
            ncpl_cli.main()
    except SystemExit as end:
        status = end.code
    finally:
        sys.argv = argv
    assert status == 2 if fails else not status, f"ncpl {shlex.join(words)}: {err.getvalue()}"
    if target is not None:
        Path(target).write_text(out.getvalue(), encoding="utf-8")
        return ""
    return err.getvalue() if fails else out.getvalue()


def check_line(words: list[str], block: Block) -> None:
    """A command that is not run here: its program, its options and the repository's files in it exist."""
    program = words[0]
    if program == "ncpl":
        # A parse without a call: unknown options raise.
        command: Any = typer.main.get_command(app)
        command.commands[words[1]].make_context(words[1], words[2:])
    elif program == "make":
        targets = re.findall(r"^([\w-]+(?: [\w-]+)*):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
        assert all(word in " ".join(targets).split() for word in words[1:]), f"no such target: {words}"
    elif program == "python":
        assert Path(words[1]).exists() or words[1] == "-m", f"no such file: {words}"
    else:
        assert program in ELSEWHERE or block.reason, f"nothing runs {shlex.join(words)}"
    for word in words[1:]:
        if word.startswith(("recipes/", "examples/")):
            assert Path(word).exists(), f"no such file: {word}"


def run_python(block: Block, names: dict[str, Any]) -> str:
    """Runs a Python block in its page's names. The value of a last line that is an expression is printed."""
    tree = ast.parse(block.code)
    if block.reason is not None:
        return ""
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    out = io.StringIO()
    with contextlib.redirect_stdout(out), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        exec(compile(tree, "page", "exec"), names)
        if isinstance(last, ast.Expr):
            value = eval(compile(ast.Expression(last.value), "page", "eval"), names)
            if value is not None:
                print(value)
    return out.getvalue()


def tidy(text: str) -> str:
    """What a page shows of a printed text: no blank lines at its ends, no spaces at its lines' ends."""
    return "\n".join(line.rstrip() for line in text.splitlines()).strip("\n") + "\n"


def agree(shown: str | None, printed: str) -> bool:
    """Whether a page shows what was printed; one that shows nothing agrees.

    >>> agree("loss 2.8892\\n...\\nend\\n", "loss 2.8893\\na\\nb\\nend\\n"), agree("loss 2.9\\n", "loss 2.8\\n")
    (True, False)
    """
    if shown is None:
        return True
    parts = [part.split() for part in re.split(r"^\.\.\.$", tidy(shown), flags=re.MULTILINE)]
    words = tidy(printed).split()
    if len(parts) == 1:
        return len(parts[0]) == len(words) and _alike(parts[0], words)
    head, tail = parts[0], parts[-1]
    return _alike(head, words[: len(head)]) and _alike(tail, words[len(words) - len(tail) :])


def _alike(shown: list[str], printed: list[str]) -> bool:
    return len(shown) == len(printed) and all(map(_same, shown, printed))


def _same(a: str, b: str) -> bool:
    # Rules of tables are as wide as their columns, which a rounded number can widen.
    if a == b or (set(a) == set(b) == {"─"}):
        return True
    numbers = [re.findall(r"[-+]?\d[\d,]*\.?\d*(?:e[-+]?\d+)?", word) for word in (a, b)]
    texts = [re.sub(r"[-+]?\d[\d,]*\.?\d*(?:e[-+]?\d+)?", "#", word) for word in (a, b)]
    if texts[0] != texts[1]:
        return False
    values = [[float(number.replace(",", "")) for number in found] for found in numbers]
    return all(abs(x - y) <= 1e-3 * max(abs(x), abs(y), 1.0) for x, y in zip(*values, strict=True))


def rewrite(page: Path) -> None:
    """Writes what each block of a page prints below it, where the page shows it."""
    printed = iter([found for _, found in run_page(page)])

    def renew(match: re.Match[str]) -> str:
        found, shown = next(printed), match["printed"]
        if shown is None:
            return match[0]
        new = tidy(found)
        if "\n...\n" in f"\n{shown}":
            head, tail = (part.strip("\n").splitlines() for part in re.split(r"^\.\.\.$", shown, flags=re.MULTILINE))
            kept = new.splitlines()
            new = "\n".join([*kept[: len(head)], "...", *(kept[-len(tail) :] if tail else [])]) + "\n"
        start, end = match.start("printed") - match.start(), match.end("printed") - match.start()
        return match[0][:start] + new + match[0][end:]

    page.write_text(BLOCK.sub(renew, page.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    for path in [Path(name).resolve() for name in sys.argv[1:]] or pages():
        rewrite(path)
        print(path.relative_to(ROOT))
