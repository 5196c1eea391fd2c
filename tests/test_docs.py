"""Every shell command and Python block of README and docs runs and prints what the page shows."""

import json
import re
from pathlib import Path

import pytest

from benchmarks import tables
from forms_ncpl import PRIORS
from residual_ncpl import FIELD_SCALES, FIXED_SCALES, SCALES
from tests.pages import ROOT, agree, blocks, pages, run_page

PAGES = [page.relative_to(ROOT).as_posix() for page in pages()]


@pytest.mark.parametrize("name", PAGES)
def test_blocks_run_and_print_what_the_page_shows(name):
    for block, printed in run_page(ROOT / name):
        assert agree(block.printed, printed), f"run `python -m tests.pages {name}`:\n{block.code}\n{printed}"


def test_a_wrong_output_and_a_failing_command_are_seen(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("```python\nprint(1 + 1)\n```\n```text\n3\n```\n")
    [(block, printed)] = list(run_page(page))
    assert not agree(block.printed, printed)
    for line in ("ncpl predict no-such.yaml", "ncpl push --no-such-option a b", "make no-such-target", "rm -r x"):
        page.write_text(f"```sh\n{line}\n```\n")
        with pytest.raises(Exception, match=r"no.such|nothing runs"):
            list(run_page(page))


@pytest.mark.parametrize("name", PAGES)
def test_fences_are_closed_and_of_a_kind_that_is_read(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    kinds = re.findall(r"^```(\w*)$", text, re.MULTILINE)
    assert len(kinds) % 2 == 0
    assert set(kinds[::2]) <= {"sh", "python", "text", "json", "yaml"}
    assert sum(kind in ("sh", "python") for kind in kinds) == len(blocks(text))


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.name)
def test_notebooks_were_run_and_hold_no_path_of_a_machine(path):
    cells = [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert len({cell["execution_count"] for cell in cells}) == len(cells)
    assert not [output for output in outputs if output["output_type"] == "error"]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert not re.search(r"/(tmp|home|root|work)/", json.dumps(outputs))


def test_generated_tables_are_fresh():
    for path, text in tables.pages().items():
        assert Path(path).read_text(encoding="utf-8") == text, f"{path}: run `make tables`"


def test_every_coefficient_and_scale_is_defined():
    text = (ROOT / "docs" / "coefficients.md").read_text(encoding="utf-8")
    defined = set(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE))
    assert set(PRIORS) | set(SCALES) | set(FIELD_SCALES) | set(FIXED_SCALES) <= defined
