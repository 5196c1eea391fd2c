"""Options of a training's command line, or of the shell script that builds it, read and never executed."""

import re
import shlex
from typing import Any

from ncpl.assignments import read_assignments
from text_ncpl import read_number, read_scalar

_VARIABLE = re.compile(r"\s*(?:export\s+|local\s+|readonly\s+|declare\s+(?:-\w+\s+)*)?([A-Za-z_]\w*)=(.*)", re.S)
_REFERENCE = re.compile(r"\$\{([A-Za-z_]\w*)(?::?[-=]([^{}]*))?\}|\$([A-Za-z_]\w*)")
_ARITHMETIC = re.compile(r"\$\(\(([^()$]*(?:\([^()$]*\)[^()$]*)*)\)\)")
_OPTION = re.compile(r"--?([A-Za-z][\w.\-/]*)(?:=(.*))?", re.S)
_OVERRIDE = re.compile(r"\+{0,2}([A-Za-z_][\w/]*(?:\.[\w/]+)+|[a-z_][a-z0-9_]*)=(.+)", re.S)
_PAIRS = re.compile(r"[A-Za-z_]\w*=[^,=\s]+(,[A-Za-z_]\w*=[^,=\s]+)*")
_ENDS = re.compile(r"[|&;<>()]+|\d?>.*|&&|\|\|")
_PROGRAM = re.compile(r".*\.(py|sh|ya?ml|json|toml)$")


def read_command_line(text: str) -> dict[str, Any]:
    """Options `--name value`, `--name=value` and `--flag`, and overrides `section.name=value`; the last one counts.

    Variables and arithmetic of a script are filled in where their values are written there; what only the machine
    knows (`$1`, `$RANDOM`) stays as it is written.

    Raises:
        ValueError: quotes that do not close.

    >>> read_command_line("B=64\\ntorchrun train.py --lr 3e-4 --adam-betas '(0.9, 0.95)' --batch $((B * 2)) --bf16")
    {'lr': 0.0003, 'adam-betas': '(0.9, 0.95)', 'batch': 128, 'bf16': True}
    """
    words = _words(_filled(text))
    values: dict[str, Any] = {}
    assigned: dict[str, Any] = {}
    name: str | None = None
    found: list[Any] = []

    def close() -> None:
        if name is not None:
            values[name] = True if not found else found[0] if len(found) == 1 else list(found)

    for word in words:
        option = _OPTION.fullmatch(word)
        if option is not None and read_number(word) is None:
            close()
            name, found = option[1], [] if option[2] is None else [_value(option[2])]
            if option[2] is not None:
                close()
                name = None
            continue
        override = _OVERRIDE.fullmatch(word)
        a_file = _PROGRAM.fullmatch(word) is not None and (name is None or bool(found))
        if a_file or _ENDS.fullmatch(word) or word.endswith(("[@]}", "[*]}")):
            close()
            name, found = None, []
            continue
        if override is not None and (name is None or found):
            close()
            name, found = None, []
            assigned[override[1]] = _value(override[2])
        elif name is not None:
            found.append(_value(word))
    close()
    return assigned | values


def _filled(text: str) -> str:
    """The script's lines with variables and arithmetic filled in, comments and continued lines taken out."""
    known: dict[str, str] = {}
    lines = []
    for line in re.sub(r"\\[ \t]*\r?\n", " ", text).splitlines():
        if line.lstrip().startswith("#"):
            continue
        line = _REFERENCE.sub(lambda found: known.get(found[1] or found[3], found[2] or found[0]), line)
        line = _ARITHMETIC.sub(lambda found: _computed(found[1], known) or found[0], line)
        variable = _VARIABLE.fullmatch(line)
        if variable is not None and not line.lstrip().startswith("-"):
            value = re.sub(r"\s+#.*$", "", variable[2]).strip()
            if re.fullmatch(r"[^\s\"'()$`;|&]+|\"[^\"\s$`]*\"|'[^'\s]*'", value):
                # A variable is no option of the program.
                known[variable[1]] = value.strip("\"'")
                continue
        comment = re.search(r"\s#\s", line)
        if comment is not None and line[: comment.start()].count('"') % 2 == 0:
            line = line[: comment.start()]
        lines.append(line)
    # A line ends a command or an array's entry, but in a file of arguments with one word a line.
    alone = sum(len(line.split()) == 1 for line in lines) > len(lines) / 2 and not any("=" in line for line in lines)
    return ("\n" if alone else "\n;\n").join(lines)


def _computed(expression: str, known: dict[str, str]) -> str | None:
    """What `$((...))` gives where its values are known; division is of whole numbers."""
    assignments = "".join(f"{name} = {value}\n" for name, value in known.items() if read_number(value) is not None)
    try:
        value = read_assignments(f"{assignments}result_ = {expression.strip().replace('/', '//')}\n").get("result_")
    except ValueError:
        return None
    return f"{value}" if isinstance(value, int | float) else None


def _words(text: str) -> list[str]:
    """The words of a script; a quoted list of options is several words."""
    lexer = shlex.shlex(text, posix=True, punctuation_chars=False)
    lexer.whitespace_split, lexer.commenters = True, ""
    words: list[str] = []
    try:
        for word in lexer:
            if re.fullmatch(r"#.*", word):
                continue
            inner = word.partition("=")[2] if _VARIABLE.fullmatch(word) and not word.startswith("-") else word
            if re.search(r"(^|\s)--[a-zA-Z]", inner) and re.search(r"\s", inner):
                words += _words(inner)
            elif word.endswith("=(") or word in ("(", ")"):
                words.append(";")
            else:
                words += [word[:-1], ";"] if word.endswith(";") and len(word) > 1 else [word]
    except ValueError as error:
        raise ValueError(f"no command line: {str(error).lower()}") from None
    return words


def _value(text: str) -> Any:
    """One option's value; `a=1,b=2` is a mapping."""
    text = text.strip()
    if _PAIRS.fullmatch(text):
        return {name: _value(value) for name, _, value in (pair.partition("=") for pair in text.split(","))}
    return read_scalar(text)
