"""Part of `python -m tests.hardening.doors`: whatever is handed in gets an answer or one line, within two seconds."""

import pytest

from tests.hardening.doors import COMPUTES, Doors, knock

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
