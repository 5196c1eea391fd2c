"""mkdocs hooks: references that the code itself gives."""

import contextlib
import io
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))


def commands() -> str:
    """The help of every command."""
    import typer

    import ncpl_cli

    command = typer.main.get_command(ncpl_cli.app)
    sections = []
    for name in command.commands:  # type: ignore[attr-defined]
        out = io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
            ncpl_cli.app([name, "--help"], prog_name="ncpl")
        sections.append(f"## ncpl {name}\n\n```text\n{out.getvalue().strip()}\n```\n")
    return "\n".join(sections)


def fields() -> str:
    """The table of a configuration's fields."""
    from fields_ncpl import FIELDS, REQUIRED

    lines = ["| field | accepted | aliases |", "|---|---|---|"]
    for field in FIELDS.values():
        required = ", **required**" if field.name in REQUIRED else ""
        lines.append(f"| `{field.name}` | {field.accepted}{required} | {', '.join(field.aliases)} |")
    return "\n".join(lines)


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Fills the generated references."""
    for name, generate in (("commands", commands), ("fields", fields)):
        mark = f"<!-- build:{name} -->"
        if mark in markdown:
            markdown = markdown.replace(mark, generate())
    return markdown
