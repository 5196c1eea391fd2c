"""`map=`, `eval=` and `--out`: columns that nobody could know, in units that their size tells, and the loss to take."""

import contextlib
import sys

import pandas as pd
import pytest

import ncpl_cli
from ncpl import import_runs
from ncpl.logs.importer import report_lines

MAP = {"id": "name", "tok": "data size", "np": "model size", "rate": "lr", "objective": "final_loss"}
TABLE = "id,tok,np,rate,objective\na,{tokens},{size},1e-3,3.1\nb,{tokens},{size},2e-3,3.0\n"


def write(tmp_path, **values):
    file = tmp_path / "runs.csv"
    file.write_text(TABLE.format(**values))
    return file


@pytest.mark.parametrize(("tokens", "size"), [("2e9", "85e6"), ("2", "85"), ("2B", "85M"), ("2000000000", "85000000")])
def test_a_mapped_columns_unit_is_told_by_its_size(tmp_path, tokens, size):
    runs = import_runs(write(tmp_path, tokens=tokens, size=size), map=MAP)
    row = {"model size": 85, "data size": 2, "learning rate": 1e-3, "final_loss": 3.1, "name": "a"}
    assert {name: runs.iloc[0][name] for name in row} == row
    said = "\n".join(report_lines(runs.attrs["report"]))
    assert ("a plain count" in said) == (tokens in ("2e9", "2000000000"))
    assert said.count("tok ->") == 1


def test_what_no_field_can_be_is_refused_with_its_unit(tmp_path):
    runs = import_runs(write(tmp_path, tokens="1e-7", size="85"), map=MAP)
    assert "data size" not in runs
    assert "billion tokens" in runs.attrs["report"]["left_out"]["tok"]


@pytest.mark.parametrize(
    ("given", "said"),
    [({"nope": "lr"}, "nope.*is not in the file"), ({"tok": "colour"}, "colour.*is no field")],
)
def test_a_map_to_nothing(tmp_path, given, said):
    with pytest.raises(ValueError, match=said):
        import_runs(write(tmp_path, tokens="2", size="85"), map=given)


def test_which_loss_is_taken_and_what_is_written(tmp_path, monkeypatch):
    file = tmp_path / "runs.csv"
    file.write_text("name,params_no_embed,tokens,lr,val/c4_loss,val/pile_loss\na,85e6,2e9,1e-3,3.1,2.9\n")
    assert import_runs(file)["final_loss"].tolist() == [3.1]
    out = tmp_path / "out.csv"
    monkeypatch.setattr(sys, "argv", ["ncpl", "import", str(file), "--eval", "pile", "--out", str(out)])
    with contextlib.suppress(SystemExit):
        ncpl_cli.main()
    written = pd.read_csv(out)
    assert written[["model size", "final_loss"]].to_numpy().tolist() == [[85, 2.9]]
    # What was written is read again as it is.
    again = import_runs(out)
    assert again[["name", "model size", "data size", "final_loss", "status"]].to_numpy().tolist() == [
        ["a", 85, 2, 2.9, "finished"]
    ]
    with pytest.raises(ValueError, match="no logged loss, those are"):
        import_runs(file, eval="wikitext")
