"""mkdocs hooks: references that the code itself gives."""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))


def commands() -> str:
    """The help of every command."""
    ncpl = shutil.which("ncpl", path=Path(sys.executable).parent) or "ncpl"

    def helped(*names: str) -> str:
        return subprocess.run([ncpl, *names, "--help"], capture_output=True, text=True, check=True).stdout.strip()

    names = re.findall(r"^  ([a-z]+) {2,}", helped().partition("Commands:")[2], re.MULTILINE)
    sections = [f"## ncpl {name}\n\n```text\n{helped(name)}\n```\n" for name in names]
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
    """Fills the generated references, and takes links out of the site away."""
    for name, generate in (("commands", commands), ("fields", fields)):
        mark = f"<!-- build:{name} -->"
        if mark in markdown:
            markdown = markdown.replace(mark, generate())
    return re.sub(
        r"\[([^\]]+)\]\((\.\./[^)]+)\)", lambda link: _within_site(link, Path(page.file.abs_src_path)), markdown
    )


def _within_site(link: re.Match[str], page: Path) -> str:
    """A link to a file of the repository that is not part of the site, as its text."""
    target = (page.parent / link[2].partition("#")[0]).resolve()
    return link[0] if target.is_relative_to(ROOT / "docs") or not target.exists() else link[1]
