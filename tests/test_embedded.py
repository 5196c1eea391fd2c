"""The models that come with the package: whole, small, and loaded where nothing of ours is installed."""

import json
from pathlib import Path

import numpy as np
import pytest

from ncpl import (
    Forecaster,
    NCPLConfig,
    NCPLForecaster,
    NCPLProcessor,
    NSPConfig,
    NSPFeatureExtractor,
    NSPModel,
)
from tests.checkpoints import ADAMW, fresh_process

FROZEN = Path(__file__).parent / "frozen"
CHECKPOINTS = Path(__file__).parent.parent / "ncpl" / "checkpoints"


@pytest.mark.parametrize(("name", "limit"), [("ncpl-mini", 8e6), ("nsp-base", 4e6)])
def test_folders_are_whole_and_small(name, limit):
    folder = CHECKPOINTS / name
    assert sum(path.stat().st_size for path in folder.iterdir()) < limit
    for code in folder.glob("*.py"):
        assert code.read_bytes() == (folder.parents[2] / code.name).read_bytes(), "run: make embedded"


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (NCPLConfig, "ncpl-mini"),
        (NCPLForecaster, "ncpl-mini"),
        (NCPLProcessor, "ncpl-mini"),
        (NSPConfig, "nsp-base"),
        (NSPModel, "nsp-base"),
        (NSPFeatureExtractor, "nsp-base"),
    ],
)
def test_each_class_loads_an_embedded_checkpoint_by_its_name(kind, name):
    assert isinstance(kind.from_pretrained(name), kind)


def test_the_default_forecasts_alike_through_every_door(tmp_path):
    code = """
import json, sys
from transformers import AutoModel, pipeline
forecast = pipeline("scaling-forecast", model=sys.argv[1], trust_remote_code=True)(json.loads(sys.argv[2]))
AutoModel.from_pretrained(sys.argv[3], trust_remote_code=True)
print(json.dumps(forecast))
"""

    found = fresh_process(
        code, CHECKPOINTS / "ncpl-mini", json.dumps(ADAMW), CHECKPOINTS / "nsp-base", home=tmp_path, HF_HUB_OFFLINE="1"
    )
    ours = Forecaster.from_pretrained().predict(ADAMW).iloc[0].to_dict()
    assert found == pytest.approx(ours, abs=1e-6)
    assert ours["lower"] < ours["loss"] < ours["upper"]
    assert 0 <= ours["divergence"] <= 1
    # Half the lowest rate that this optimizer was run at.
    assert ours["extrapolation"] == pytest.approx(np.log(2), abs=0.01)


def test_a_frozen_checkpoint_loads_with_its_own_code_and_with_ours(tmp_path):
    """`tests/frozen` was saved by an older commit, its code included, as repositories on the Hub were."""
    code = """
import json, sys
from transformers import AutoModel, AutoProcessor, pipeline
model = AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True)
processor = AutoProcessor.from_pretrained(sys.argv[1], trust_remote_code=True)
configs = json.loads(sys.argv[2])
by_hand = processor.losses(model(**processor(configs)).logits, processor(configs)["loss_mask"], configs).tolist()
forecasts = pipeline("scaling-forecast", model=sys.argv[1], trust_remote_code=True)(configs)
print(json.dumps([by_hand, [forecast["loss"] for forecast in forecasts]]))
"""
    expected = json.loads((FROZEN / "expected.json").read_text())
    losses = [forecast["loss"] for forecast in expected["forecasts"]]
    found = fresh_process(code, FROZEN, json.dumps(expected["configs"]), home=tmp_path, HF_HUB_OFFLINE="1")
    assert found == [pytest.approx(losses, abs=1e-5)] * 2
    ours = Forecaster.from_pretrained(FROZEN).predict(expected["configs"])["loss"]
    assert ours.tolist() == pytest.approx(losses, abs=1e-5)


def test_the_default_knows_what_it_was_never_shown():
    forecaster = Forecaster.from_pretrained()
    near, far = forecaster.predict([ADAMW, {**ADAMW, "model size": 3000, "data size": 60}]).to_dict("records")
    assert far["extrapolation"] > near["extrapolation"]
    assert far["upper"] - far["lower"] > near["upper"] - near["lower"]
    with pytest.warns(UserWarning, match="not among the fitted"):
        forecaster.predict({**ADAMW, "optimizer": "an optimizer nobody used"})


def test_an_interval_holds_what_its_level_reaches():
    """`Calibration.level` and `Calibration.interval` are inverse to each other."""
    forecaster = Forecaster.from_pretrained()
    assert forecaster.calibration is not None
    configs = [{**ADAMW, "learning rate": rate} for rate in (1e-3, 4e-3, 8e-3)]
    loss = forecaster.predict(configs)["loss"].to_numpy()
    observed = loss + np.array([0.004, -0.01, 0.02])
    for config, centre, value, reached in zip(
        configs, loss, observed, forecaster.calibration.level(configs, loss, observed), strict=True
    ):
        for level, inside in ((reached + 0.01, True), (reached - 0.01, False)):
            lower, upper = forecaster.calibration.interval([config], np.array([centre]), level)
            assert bool(lower[0] <= value <= upper[0]) == inside
