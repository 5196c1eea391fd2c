"""A release, from the committed tree alone: version and changelog, archives and their checks, SBOM, commit and tag.

    python tools/release.py 0.2.0 --dry-run

Everything is made and checked in a fresh clone; only then is the tree here changed, committed and tagged. What is made
lies in `dist/`. Nothing is pushed and nothing uploaded: the last lines say how. `make release VERSION=0.2.0` runs the
tests and the audit first.
"""

import argparse
import datetime
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

from packaging.version import InvalidVersion, Version

ROOT = Path(__file__).parent.parent
PROJECT, CHANGELOG = "pyproject.toml", "CHANGELOG.md"
UNRELEASED = "## [Unreleased]"


def run(*command: str, folder: Path | None = None) -> str:
    """What a command prints, run in a folder; the project's when absent.

    Raises:
        ValueError: it fails; with the last line that it has said.
    """
    done = subprocess.run(command, cwd=folder or ROOT, capture_output=True, text=True)
    if done.returncode:
        said = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        raise ValueError(f"{' '.join(command)}: exit status {done.returncode} ({said[-1].strip() if said else ''})")
    return done.stdout


def numbered(project: str, version: str) -> str:
    """`pyproject.toml` with another version.

    Raises:
        ValueError: a version that is none by PEP 440, or is lower than the one before.

    >>> numbered('[project]\\nversion = "0.1.0"\\n', "0.2.0")
    '[project]\\nversion = "0.2.0"\\n'
    """
    before = tomllib.loads(project)["project"]["version"]
    try:
        later = Version(version) >= Version(before)
    except InvalidVersion:
        raise ValueError(f"version: got {version!r}, expected one such as 0.2.0 or 1.0.0rc1") from None
    if not later or str(Version(version)) != version:
        raise ValueError(f"version: got {version}, expected at least {before}, written in full")
    return project.replace(f'version = "{before}"', f'version = "{version}"', 1)


def moved(changelog: str, version: str, date: str) -> str:
    """The changelog with its unreleased changes under the version, and no unreleased ones.

    Raises:
        ValueError: there are none, or the version is there already.

    >>> moved("## [Unreleased]\\n- A.\\n", "0.2.0", "2026-02-01").splitlines()
    ['## [Unreleased]', '', '## [0.2.0] - 2026-02-01', '- A.']
    """
    if f"## [{version}]" in changelog:
        raise ValueError(f"{CHANGELOG}: has a section {version} already")
    head, found, rest = changelog.partition(f"{UNRELEASED}\n")
    if not found or not re.match(r"\s*(###[^\n]*\n\s*)?- ", rest):
        raise ValueError(f"{CHANGELOG}: holds no changes under {UNRELEASED}")
    return f"{head}{UNRELEASED}\n\n## [{version}] - {date}\n{rest.lstrip()}"


def check_tree(version: str) -> None:
    """Refuses a tree with changes, and a version that has a tag."""
    changed = run("git", "status", "--porcelain")
    if changed:
        raise ValueError(f"tree: {len(changed.splitlines())} files are not committed, the first {changed.split()[1]}")
    if run("git", "tag", "--list", f"v{version}"):
        raise ValueError(f"version: the tag v{version} is there already")


def write_sbom(clone: Path, version: str) -> Path:
    """What the package needs to run, in the locked versions, as a CycloneDX bill of materials."""
    needed = clone / "dist" / "needed.txt"
    lock = ("--constraint", "constraints.txt", PROJECT, "--output-file", str(needed))
    run("uv", "pip", "compile", "--quiet", "--universal", "--no-header", "--no-annotate", *lock, folder=clone)
    sbom = clone / "dist" / f"ncpl-{version}.cdx.json"
    about = ("--pyproject", PROJECT, "--output-reproducible", "--output-file", str(sbom))
    run("cyclonedx-py", "requirements", str(needed), *about, folder=clone)
    needed.unlink()
    return sbom


def build(clone: Path, version: str) -> list[Path]:
    """Source distribution, wheel and SBOM of a tree, checked."""
    run(sys.executable, "-m", "build", "--outdir", "dist", ".", folder=clone)
    archives = [clone / "dist" / f"ncpl-{version}.tar.gz", clone / "dist" / f"ncpl-{version}-py3-none-any.whl"]
    for archive in archives:
        if not archive.is_file():
            raise ValueError(f"build: made no {archive.name}")
    run(sys.executable, "-m", "twine", "check", "--strict", *map(str, archives), folder=clone)
    return [*archives, write_sbom(clone, version)]


def release(version: str, dry_run: bool) -> None:
    """Makes a release; a dry run leaves only `dist/`.

    Raises:
        ValueError: what stands in its way; the tree is as it was.
    """
    check_tree(version)
    changed = {PROJECT: numbered((ROOT / PROJECT).read_text(encoding="utf-8"), version)}
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    changed[CHANGELOG] = moved((ROOT / CHANGELOG).read_text(encoding="utf-8"), version, today)
    with tempfile.TemporaryDirectory() as folder:
        clone = Path(folder) / "ncpl"
        run("git", "clone", "--quiet", "--no-hardlinks", str(ROOT), str(clone))
        for name, text in changed.items():
            (clone / name).write_text(text, encoding="utf-8")
        made = build(clone, version)
        (ROOT / "dist").mkdir(exist_ok=True)
        for path in made:
            shutil.copy2(path, ROOT / "dist" / path.name)
            print(f"dist/{path.name}")
    if dry_run:
        print(f"dry run: nothing is committed or tagged; v{version} can be released")
        return
    for name, text in changed.items():
        (ROOT / name).write_text(text, encoding="utf-8")
    run("git", "commit", "--quiet", "--message", f"Release {version}", PROJECT, CHANGELOG)
    run("git", "tag", "--annotate", f"v{version}", "--message", f"ncpl {version}")
    print(f"committed and tagged v{version}; then: git push --follow-tags && twine upload dist/ncpl-{version}*[lz]")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("version", help="such as 0.2.0")
    parser.add_argument("--dry-run", action="store_true", help="make and check everything, change nothing")
    given = parser.parse_args()
    try:
        release(given.version, given.dry_run)
    except ValueError as error:
        sys.exit(f"release.py: {error}")


if __name__ == "__main__":
    main()
