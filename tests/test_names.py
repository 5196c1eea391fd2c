"""Names as people write them reach the names of the run logs, or are refused with the nearest one."""

import pytest

from fields_ncpl import check_config
from names_ncpl import OPTIMIZERS, optimizer_name
from ncpl import Forecaster

CONFIG = {"source": "marin", "model size": 300, "data size": 6, "learning rate": 4e-3, "batch size": 128}


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("adamw_torch", "adamw"), ("adamw_torch_fused", "adamw"), ("adamw_8bit", "adamw"), ("AdamW", "adamw"),
        ("torch.optim.AdamW", "adamw"), ("torch.optim.adamw.AdamW", "adamw"), ("adamw_apex_fused", "adamw"),
        ("bitsandbytes.optim.PagedAdamW8bit", "adamw"), ("apex.optimizers.FusedAdam", "adamw"),
        ("optim.SkipStepAdamWConfig", "adamw"), ("DecoupledLionW", "lion"), ("lion_8bit", "lion"), ("SOAP", "soape"),
        ("Adam-mini", "mini"), ("adam_mini", "mini"), ("psgd_kron", "kron"), ("MuonWithAuxAdam", "muon"),
        ("C-AdamW", "cautious"), ("SophiaG", "sophia"), ("mars-adamw", "mars"), ("NAdamW", "nadamw"),
        ("my.own-Optimizer", "my.own-optimizer"), ("galore_adamw", "galore_adamw"), ("StableAdamW", "stableadamw"),
    ],
)  # fmt: skip
def test_optimizers_as_frameworks_write_them(written, name):
    assert check_config({**CONFIG, "optimizer": written})["optimizer"] == name


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_run_logs_names_stay(name):
    assert optimizer_name(name) == name


@pytest.mark.parametrize(("written", "same"), [("torch.optim.Adam", "adamw"), ("NAdam", "nadamw")])
def test_adam_is_adamw_only_without_weight_decay(written, same):
    """Adam adds the decay to the gradient, where the second moment divides it away: another update."""
    assert check_config({**CONFIG, "optimizer": written, "weight decay": 0})["optimizer"] == same
    assert check_config({**CONFIG, "optimizer": written, "weight decay": 0.1})["optimizer"] == same.removesuffix("w")


@pytest.mark.parametrize(
    ("given", "nearest"),
    [("adamx", "adamw"), ("Adam", "adamw"), ("shampoo", "soape"), ("dion", "muon"), ("galore_adamw", "adamw")],
)
def test_an_unknown_optimizer_is_told_with_the_nearest(given, nearest):
    notes = Forecaster.from_pretrained().notes([check_config({**CONFIG, "optimizer": given})])
    assert any(note.startswith("optimizer: ") and note.endswith(f"the nearest is '{nearest}'") for note in notes)


def test_schedules_are_named_or_refused():
    asked = {**CONFIG, "optimizer": "adamw"}
    found = check_config({**asked, "lr_schedule": "cosine_with_min_lr", "cooldown shape": "1-sqrt"})
    assert (found["lr_schedule"], found["cooldown shape"]) == ("cosine", "sqrt")
    with pytest.raises(ValueError, match=r"lr_schedule: got 'cosin', expected one of .*did you mean 'cosine'"):
        check_config({**asked, "lr_schedule": "cosin"})
    with pytest.raises(ValueError, match="lr_schedule: got 'banana', expected one of cosine, linear"):
        check_config({**asked, "lr_schedule": "banana"})
    assert check_config({**asked, "lr_schedule": "banana"}, strict=False)["lr_schedule"] == "banana"


def test_steps_are_checked_against_tokens_of_an_unknown_source():
    mine = {**CONFIG, "source": "mine", "optimizer": "adamw", "seq len": 2048}
    assert check_config({**mine, "max step": 22888})["max step"] == 22888
    with pytest.raises(ValueError, match=r"max step: 1000 steps of 128 sequences of 2048 tokens are 0.2621 billion"):
        check_config({**mine, "max step": 1000})
