"""The forecast while a Trainer trains: the same losses to the bit, the log, and refusals."""

import pytest
import torch
from torch.utils.data import Dataset
from transformers import Qwen3Config, Qwen3ForCausalLM, Trainer, TrainerState, TrainingArguments

from ncpl import ForecastCallback, Forecaster

CONFIG = {
    "source": "mine", "model size": 1.0, "data size": 0.01, "optimizer": "adamw", "learning rate": 1e-3,
    "batch size": 4, "seq len": 64, "max step": 40000, "warmup": 5,
}  # fmt: skip
STEPS = 30


class Tokens(Dataset):
    def __len__(self):
        return 400

    def __getitem__(self, index):
        tokens = (torch.arange(64) * (index % 7 + 1)) % 50
        return {"input_ids": tokens, "labels": tokens}


def train(folder, callbacks):
    torch.manual_seed(0)
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = Qwen3ForCausalLM(Qwen3Config(vocab_size=64, num_key_value_heads=2, head_dim=16, **size))
    arguments = TrainingArguments(
        str(folder), max_steps=STEPS, per_device_train_batch_size=4, logging_steps=5, report_to=[], seed=0,
        use_cpu=True, save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    trainer = Trainer(model, arguments, train_dataset=Tokens(), callbacks=callbacks)
    trainer.train()
    return [row for row in trainer.state.log_history if "loss" in row]


@pytest.mark.filterwarnings("ignore")
def test_losses_are_equal_to_the_bit_and_the_log_holds_the_forecast(tmp_path):
    plain = train(tmp_path, [])
    callback = ForecastCallback(CONFIG)
    watched = train(tmp_path, [callback])
    assert [row["loss"] for row in plain] == [row["loss"] for row in watched]
    assert callback.steps == [row["step"] for row in watched]
    assert {"forecast_loss", "forecast_lower", "forecast_upper"} <= watched[-1].keys()
    assert watched[-1]["forecast_lower"] < watched[-1]["forecast_loss"] < watched[-1]["forecast_upper"]


class Clock:
    """Seconds that pass when somebody says so."""

    now = 0.0

    def perf_counter(self):
        return self.now


class Slow(Forecaster):
    """A forecaster of whose forecasts each takes two seconds of a clock."""

    clock: Clock

    def curve(self, *args, **kwargs):
        self.clock.now += 2
        return super().curve(*args, **kwargs)


@pytest.mark.filterwarnings("ignore")
def test_forecasts_take_at_most_half_a_percent_of_the_time(monkeypatch):
    clock = Clock()
    monkeypatch.setattr("ncpl.callback.time", clock)
    slow = Slow.from_pretrained()
    slow.clock = clock
    callback = ForecastCallback(CONFIG, slow)
    state = TrainerState(max_steps=3000)
    callback.on_train_begin(None, state, None)
    seen = []
    for state.global_step in range(1, 2001):
        clock.now += 1
        before = clock.now
        callback.on_log(None, state, None, {"loss": 4.0 - state.global_step / 1e4})
        seen += [before] if clock.now > before else []
    # The first log is forecast at once, and no other before the seconds of those before are half a percent.
    assert seen == [1, 400, 800, 1200, 1600, 2000]
    assert callback.steps == list(range(1, 2001))


def test_a_run_that_is_resumed_is_forecast_from_all_of_its_log():
    curve = Forecaster.from_pretrained().curve(CONFIG, 400)
    rows = [{"step": int(s), "loss": y} for s, y in zip(curve["step"][:60], curve["loss"][:60], strict=True)]
    found = []
    for before in ([], rows[:40]):
        callback = ForecastCallback(CONFIG)
        state = TrainerState(max_steps=3000, logging_steps=100, log_history=[*before, {"step": 1, "eval_loss": 9.0}])
        callback.on_train_begin(None, state, None)
        for row in rows[len(before) :]:
            state.global_step = row["step"]
            callback._spent = 0.0
            callback.on_log(None, state, None, {"loss": row["loss"]})
        found.append(callback.latest)
    assert found[0] == found[1]


def test_a_run_longer_than_its_configuration_is_refused(tmp_path):
    with pytest.raises(ValueError, match="max step: the configuration ends at 20, but the Trainer runs 30 steps"):
        train(tmp_path, [ForecastCallback({**CONFIG, "batch size": 8000, "max step": 20})])


def test_a_configuration_is_checked_before_anything_trains():
    with pytest.raises(ValueError, match="learning rate"):
        ForecastCallback({**CONFIG, "learning rate": "fast"})
