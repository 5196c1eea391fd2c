"""The release command's checks. The whole of it is `make release VERSION=... DRY_RUN=1`."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tools import release

CHANGELOG = "# Changelog\n\n## [Unreleased]\n### Added\n- A thing.\n\n## [0.1.0] - 2026-01-01\n- Before.\n"
PROJECT = '[project]\nname = "ncpl"\nversion = "0.1.0"\n'


def test_the_unreleased_changes_are_moved():
    text = release.moved(CHANGELOG, "0.2.0", "2026-02-01")
    assert text.index("## [Unreleased]") < text.index("## [0.2.0] - 2026-02-01") < text.index("- A thing.")
    assert text.endswith("## [0.1.0] - 2026-01-01\n- Before.\n")
    with pytest.raises(ValueError, match="holds no changes"):
        release.moved(text, "0.3.0", "2026-03-01")
    with pytest.raises(ValueError, match="section"):
        release.moved(CHANGELOG, "0.1.0", "2026-03-01")


@pytest.mark.parametrize("version", ["0.0.9", "v0.2.0", "two", "0.02.0", ""])
def test_versions_that_are_none_or_lower(version):
    with pytest.raises(ValueError, match="version: got"):
        release.numbered(PROJECT, version)


@pytest.fixture
def repository(tmp_path, monkeypatch):
    (tmp_path / "pyproject.toml").write_text(PROJECT)
    (tmp_path / "CHANGELOG.md").write_text(CHANGELOG)
    for command in ("init -q", "add .", "-c user.name=a -c user.email=a@b commit -qm one"):
        subprocess.run(["git", *command.split()], cwd=tmp_path, check=True)
    monkeypatch.setattr(release, "ROOT", tmp_path)
    return tmp_path


def test_a_tree_with_changes_and_a_tag_that_is_there_are_refused(repository):
    release.check_tree("0.2.0")
    (repository / "new.txt").write_text("x")
    with pytest.raises(ValueError, match=r"1 files are not committed, the first new.txt"):
        release.check_tree("0.2.0")
    (repository / "new.txt").unlink()
    subprocess.run(["git", "tag", "v0.2.0"], cwd=repository, check=True)
    with pytest.raises(ValueError, match=r"the tag v0\.2\.0 is there already"):
        release.check_tree("0.2.0")


def everything(folder):
    """Every file of a repository with its bytes, and where every branch and tag is. Looking renews git's index."""
    references = subprocess.run(["git", "show-ref", "--head"], cwd=folder, check=True, capture_output=True, text=True)
    files = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != "index"}
    return files, references.stdout


@pytest.mark.parametrize("version", ["nonsense", "0.0.1", "0.2.0"])
def test_a_fault_is_one_line_and_changes_nothing(repository, version):
    """The script itself in a repository of its own: no version, a lower one, a tree that is not committed."""
    (repository / "tools").mkdir()
    script = Path(shutil.copy(release.__file__, repository / "tools" / "release.py"))
    before = everything(repository)
    done = subprocess.run([sys.executable, script, version], capture_output=True, text=True, cwd=repository)
    assert done.returncode == 1
    assert len(done.stderr.strip().splitlines()) == 1
    assert everything(repository) == before
