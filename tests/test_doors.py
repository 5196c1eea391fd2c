"""Part of `python -m tests.hardening.doors`: whatever is handed in gets an answer or one line, within two seconds."""

import re

import pytest

from ncpl import Forecaster
from ncpl.configs import read_configs
from ncpl.hub.embed import CHECKPOINTS
from ncpl.hub.push import push
from tests.hardening import arguments as values
from tests.hardening.arguments import Matrix
from tests.hardening.doors import COMPUTES, Counts, Doors, knock

NAMES = (
    *("registry", "predict", "sweep", "compare", "curve", "cost", "scores", "documents", "files", "arguments"),
    *("command line", "app", "handler", "server"),
)


@pytest.fixture(scope="module")
def doors(tmp_path_factory):
    return Doors(tmp_path_factory.mktemp("doors"))


def test_every_door_is_knocked_at(doors):
    assert {*NAMES, *COMPUTES} == set(doors.all)


@pytest.mark.parametrize("name", NAMES)
def test_answers_and_refusals(doors, name):
    counts = knock(doors, name, 30)
    assert counts.cases == 30
    assert counts.failures == {}


VALUES = (
    *(
        "None",
        repr(10**400)[:40],
        "nan",
        repr("\ud800"),
        repr("\x00"),
        "Decimal('sNaN')",
        "b'x'",
        "{1: 2}",
        "range(0, 3)",
    ),
    *("unprintable", "an unprintable key", "a list that holds itself", "np 0-d", "NA", "tensor", "empty tensor"),
    *(
        "series",
        "frame of equal columns",
        "frame of signalling NaN",
        "'model size': Decimal('sNaN')",
        "'lr points': array([[1., 0.], [0., 1.]])",
    ),
)
# Searches and what loads a model each time are left to the command.
SLOW = ("plan", "optimize", "benchmarks", "NSP load", "NSP config", "convert", "merge", "push", "report")


@pytest.fixture(scope="module")
def matrix(tmp_path_factory):
    return Matrix(tmp_path_factory.mktemp("arguments"))


def test_every_argument_with_every_kind_of_value(matrix, tmp_path, monkeypatch):
    """Part of `python -m tests.hardening.arguments`."""
    monkeypatch.chdir(tmp_path)
    counts = Counts(bound_s=60)
    for cell in matrix.cells():
        if cell[2] in VALUES and not cell[0].startswith(SLOW):
            matrix.call(counts, cell)
    assert counts.cases > 1000
    assert counts.failures == {}


@pytest.mark.parametrize(
    ("name", "argument", "value", "message"),
    [
        ("predict", "configs", "a generator without end", "configs: got more than 5000000 items"),
        ("predict", "configs", "frame of signalling NaN", "learning rate: got Decimal('sNaN'), expected"),
        ("predict", "configs", "an unprintable key", "field: got a Unprintable that cannot be printed as a name"),
        ("sweep values", "v", "tensor", "learning rate: got tensor(0.9000), expected a list of values"),
        ("adapt", "eval", "series", "eval: got "),
        ("adapt", "parent", "[None]", "parent: got|parent: "),
        ("adapt loss", "v", repr(10**400)[:40], "runs[0]: final_loss: got "),
        ("import_runs", "map", "{1: 2}", "map: got {1: 2}, expected a mapping"),
        ("benchmarks", "model", "3", "model: got 3, expected an NSPModel, a folder, a Hub id or 'nsp-base'"),
        ("comparison plot", "names", "None", "names: got None, expected two texts"),
        ("curve losses", "v", repr(10**400)[:40], "observed: expected"),
        ("ForecastCallback", "forecaster", "3", "forecaster: got 3, expected a Forecaster"),
        ("processor loss", "v", "np str", "final_loss: got "),
        ("NSP moe", "v", "Decimal('sNaN')", "moe: Decimal('sNaN'), accepted are true and false"),
        ("optimize", "config", "'lr points': array([[1., 0.], [0., 1.]])", "lr points: got [[1.0, 0.0], [0.0, 1.0]]"),
        ("plan", "optimizers", "'x'", "optimizers: got 'x', expected a list of names, such as ['muon']"),
        ("plan optimizer", "v", "None", "optimizers: got ['adamw', None], expected a list of names"),
        ("plan", "unique_tokens", "5e-324", "unique_tokens: got 4.94066e-324, expected a number of tokens, at least 1"),
        ("plan to_dict", "curves", "NA", "curves: got <NA>, expected true or false"),
        ("plan", "base", "tensor 1-d", "base: got tensor([1., 1.])"),
        ("push", "tag", "3", "tag: got 3, expected text"),
        ("push", "private", "'x'", "private: got 'x', expected true or false"),
        ("push", "folder", "None", "folder: got None (NoneType), expected the path of a checkpoint's folder"),
        ("push", "base_model", "3", "base_model: got 3, expected owner/name (text)"),
        ("merge", "adapter", "None", "adapter: got None (NoneType), expected the folder of an adapter"),
        ("convert", "curves", "NA", "curves: got <NA>, expected true or false"),
        ("follow", "every", "-1", "every: got -1, expected seconds above 0 and at most 86400"),
        ("read_log", "path", "'/dev/zero'", "/dev/zero: is a pipe or a device"),
        ("optimize", "within", "'x'", "within: got 'x', expected nats"),
    ],
)
def test_a_wrong_argument_is_named(matrix, name, argument, value, message):
    door, good, _ = matrix.calls[name]
    with pytest.raises(ValueError, match="|".join(map(re.escape, message.split("|")))):
        door(**{**good, argument: values.VALUES[value]()})


def test_a_pushs_options_are_its_own():
    """A misspelt `private` would make a repository that everybody reads."""
    with pytest.raises(ValueError, match="privat: no option of a push; did you mean 'private'"):
        push(CHECKPOINTS / "ncpl-mini", "me/x", dry_run=True, **{"privat": True})  # type: ignore[arg-type]


def test_a_merge_overwrites_nothing(matrix, tmp_path):
    (tmp_path / "kept").write_text("")
    door, good, _ = matrix.calls["merge"]
    with pytest.raises(ValueError, match="holds something already, expected a folder that is absent or empty"):
        door(**good, out=tmp_path)


def test_another_models_weights_are_not_read_as_nsps(matrix):
    """They would be random, and its scores with them."""
    forecaster = Forecaster.from_pretrained()
    for model in ("ncpl-mini", str(CHECKPOINTS / "ncpl-mini")):
        with pytest.raises(ValueError, match="a model of type 'ncpl', expected 'nsp'"):
            forecaster.benchmarks({"params": 7e9, "tokens": 2e12}, model=model)


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below", tmp_path / ("9" * 300)):
        with pytest.raises(ValueError, match=r"cannot be written \(.*\)$"):
            Forecaster.from_pretrained().save_pretrained(path)


def test_empty_arguments_are_no_folder():
    with pytest.raises(ValueError, match=r"^'': no such file"):
        read_configs(["source=marin", ""])
