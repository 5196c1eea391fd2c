"""The prompt, against a second encoding written here from its description, and what a processor must keep."""

import json
from typing import Any

import numpy as np
import pytest
import torch

from datasets_scripts.runs import load_runs
from fields_ncpl import FIELDS, check_config, max_step, training_order
from laws_ncpl import PUBLISHED_CHINCHILLA
from ncpl.training.backbone import train_tokenizer
from processing_ncpl import NCPLProcessor

MARIN = {
    "source": "marin",
    "model size": 250.5,
    "data size": 8.0,
    "num layers": 20,
    "num heads": 16,
    "hidden dim": 1024,
    "ffn dim": 2752,
    "optimizer": "muon",
    "learning rate": 0.0031,
    "warmup": 700,
    "weight decay": 0.1,
    "batch size": 192,
    "max_grad_norm": 1.0,
    "min_lr_ratio": 0.05,
    "adam_lr": 0.0007,
    "beta1": 0.9,
    "block_size": 256,
    "epsilon": 1e-15,
    "nesterov": True,
}
STEPLAW = {
    "source": "steplaw",
    "model size": 310.0,
    "data size": 21.0,
    "num layers": 12,
    "num heads": 12,
    "hidden dim": 1152,
    "ffn dim": 6200,
    "optimizer": "adamw",
    "learning rate": 0.0012,
    "min_lr": 1e-05,
    "batch size": 320,
}
MOE: dict[str, Any] = {
    "source": "steplaw_moe",
    "model size": 1250.25,
    "active size": 410.5,
    "data size": 21.0,
    "num layers": 12,
    "num heads": 12,
    "hidden dim": 1152,
    "ffn dim": 3200,
    "num experts": 16,
    "top k": 3,
    "expert dim": 1600,
    "shared expert dim": 2400,
    "optimizer": "adamw",
    "learning rate": 0.0012,
    "min_lr": 1e-05,
    "batch size": 320,
}
EXPERTS = ("active size", "num experts", "top k", "expert dim", "shared expert dim")
STEPS = {"marin": int(8e9 / (192 * 4096)), "steplaw": int(21e9 / (320 * 2048))}


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([check_config(c) for c in (MARIN, STEPLAW)] * 2)


def second_encoding(tokenizer, config, steps, final=None, step=None, target=None):
    """DESIGN's prompt, version 1, written out again."""
    table = {
        "data size": ("data size", 1), "model size": ("model size", 1 / 100), "num layers": ("num layers", 1),
        "num heads": ("num heads", 1), "hidden dim": ("hidden dim", 1 / 100), "learning rate": ("learning rate", 1e4),
        "warmup": ("warmup", 1 / 100), "weight decay": ("weight decay", 100), "batch size": ("batch size", 1 / 10),
        "max_grad_norm": ("max_grad_norm", 1), "min_lr": ("minlr", 1e4), "min_lr_ratio": ("minlr ratio", 200),
        "adam_lr": ("adam_lr", 1e4), "block_size": ("block_size", 1 / 50),
    }  # fmt: skip
    ids, values, numbers = [], [], []

    def text(piece):
        tokens = tokenizer(piece, add_special_tokens=False)["input_ids"]
        for token in tokens:
            ids.append(token)
            values.append(0.0)
            numbers.append(0)

    def number(value):
        ids.append(0)
        values.append(value)
        numbers.append(1)

    for field, value in config.items():
        if field in table:
            text(table[field][0] + ": ")
            number(value * table[field][1])
            text("\n")
        else:
            text(f"{field}: {value}\n")
    text("max step: ")
    number(steps / 1000)
    if step is None:
        text("final loss: ")
    else:
        text("frac: ")
        number(step / steps)
        text("loss: ")
    number(0.0 if target is None else target)
    return ids, values, numbers


def prior(config):
    a, alpha, b, beta, c = PUBLISHED_CHINCHILLA[config["source"]]
    return a / config["model size"] ** alpha + b / config["data size"] ** beta + c


@pytest.mark.parametrize("config", [MARIN, STEPLAW], ids=["marin", "steplaw"])
def test_version_1_is_the_published_prompt_field_by_field(tokenizer, config):
    steps = STEPS[config["source"]]
    batch = NCPLProcessor(tokenizer)(config, final_loss=3.1, steps=[500, steps], curve=[4.2, 3.1])
    wanted = [
        second_encoding(tokenizer, config, steps, target=3.1 - prior(config)),
        second_encoding(tokenizer, config, steps, step=500, target=4.2 - prior(config)),
        second_encoding(tokenizer, config, steps, step=steps, target=3.1 - prior(config)),
    ]
    assert len(batch["input_ids"]) == 3
    for row, (ids, values, numbers) in enumerate(wanted):
        n = len(ids)
        assert batch["input_ids"][row, :n].tolist() == ids
        assert batch["is_number_mask"][row].int().tolist() == numbers + [0] * (batch["input_ids"].shape[1] - n)
        np.testing.assert_allclose(batch["number_values_filled"][row, :n], values, rtol=1e-6, atol=1e-9)
        assert batch["attention_mask"][row].tolist() == [1] * n + [0] * (batch["input_ids"].shape[1] - n)
        assert batch["loss_mask"][row].nonzero().flatten().tolist() == [n - 1]
        assert batch["labels"][row, n - 1] == pytest.approx(values[-1], abs=1e-6)


def test_version_1_on_real_runs(tokenizer, real_data_dir):
    processor = NCPLProcessor(tokenizer)
    for source in ("marin", "steplaw"):
        rows = json.loads((real_data_dir / source / f"{source}_processed_data.json").read_text())
        rows += json.loads((real_data_dir / source / f"{source}_unstable_runs.json").read_text())
        for row in rows:
            config = check_config({**row["conf"], "max step": row["max_step"]})
            assert list(config)[:-1] == list(row["conf"])
            encoded = processor.prefix(config) + processor.branch(config)
            ids, values, numbers = second_encoding(tokenizer, row["conf"], row["max_step"])
            assert (encoded.ids, encoded.is_number) == (ids, [bool(n) for n in numbers])
            np.testing.assert_allclose(encoded.values, values, rtol=1e-12)


def test_version_1_writes_experts_as_text(tokenizer):
    """The published table has no number for them, so they come in as every other field outside of it."""
    encoded = NCPLProcessor(tokenizer).prefix(check_config(MOE))
    ids, values, numbers = second_encoding(tokenizer, MOE, STEPS["steplaw"])
    end = len(encoded)
    assert (encoded.ids, encoded.is_number) == (ids[:end], [bool(n) for n in numbers[:end]])
    np.testing.assert_allclose(encoded.values, values[:end], rtol=1e-12)
    assert "active size: 410.5\n" in tokenizer.decode(ids)
    assert "num experts: 16\ntop k: 3\nexpert dim: 1600\nshared expert dim: 2400\n" in tokenizer.decode(ids)


def test_version_2_gives_experts_number_tokens(tokenizer):
    processor = NCPLProcessor(tokenizer, 2)
    batch = processor([MOE, *({**MOE, name: MOE[name] - 1} for name in EXPERTS)])
    changed = batch["number_values_filled"] != batch["number_values_filled"][0]
    # One number each, in its own place, and the text around is the same.
    assert changed.sum(1).tolist() == [0] + [1] * len(EXPERTS)
    assert len({row.nonzero().item() for row in changed[1:]}) == len(EXPERTS)
    assert (batch["input_ids"] == batch["input_ids"][0]).all()
    assert batch["is_number_mask"][changed].all()
    text = processor.decode(batch)
    assert all(f"{name}: {MOE[name]:g}" in text for name in EXPERTS)


def test_prompts_of_real_mixtures(tokenizer, real_data_dir):
    processor = NCPLProcessor(tokenizer)
    for row in load_runs("steplaw_moe", real_data_dir)["train"]:
        config = check_config({**row["conf"], "max step": row["max_step"]})
        encoded = processor.prefix(config) + processor.branch(config)
        ids, values, numbers = second_encoding(tokenizer, row["conf"], row["max_step"])
        assert (encoded.ids, encoded.is_number) == (ids, [bool(n) for n in numbers])
        np.testing.assert_allclose(encoded.values, values, rtol=1e-12)
        assert list(training_order(config))[:-1] == list(row["conf"])


def test_training_order_is_the_order_of_the_logs(real_data_dir):
    for source in ("marin", "steplaw"):
        for row in json.loads((real_data_dir / source / f"{source}_processed_data.json").read_text()):
            assert list(training_order(row["conf"])) == list(row["conf"])


def test_version_1_keeps_the_order_given_and_version_2_has_one_order(tokenizer):
    turned = dict(reversed(MARIN.items()))
    first, second = NCPLProcessor(tokenizer, 1), NCPLProcessor(tokenizer, 2)
    assert first.decode(first(turned)).startswith("nesterov: True\nepsilon: 1e-15\n")
    assert torch.equal(second(turned)["number_values_filled"], second(MARIN)["number_values_filled"])
    assert torch.equal(second(turned)["input_ids"], second(MARIN)["input_ids"])


def test_version_2_puts_what_is_swept_behind_everything_else(tokenizer):
    processor = NCPLProcessor(tokenizer, 2)
    batch = processor([MARIN, {**MARIN, "learning rate": 0.01}, {**MARIN, "batch size": 64}])
    differs = (batch["number_values_filled"] != batch["number_values_filled"][0]).any(0)
    assert torch.equal(batch["input_ids"][0], batch["input_ids"][1])
    assert differs.nonzero()[0] > 0.75 * len(differs)
    # Every number is a number token: no digit is left in the text.
    text = processor.tokenizer.decode(batch["input_ids"][0][~batch["is_number_mask"][0]])
    assert not any(char.isdigit() for char in text.replace("beta1", ""))


def test_numbers_written_differently_give_one_encoding(tokenizer):
    processor = NCPLProcessor(tokenizer)
    usual = processor(STEPLAW)
    for spelling in ("1.2e-3", "0.00120", np.float64(0.0012), np.float32(0.0012)):
        batch = processor({**STEPLAW, "learning rate": spelling})
        torch.testing.assert_close(batch["number_values_filled"], usual["number_values_filled"])
    renamed = {name.replace(" ", "_").upper(): value for name, value in STEPLAW.items()}
    assert torch.equal(processor(renamed)["input_ids"], usual["input_ids"])
    alias = {("lr" if name == "learning rate" else name): value for name, value in STEPLAW.items()}
    assert torch.equal(processor(alias)["input_ids"], usual["input_ids"])


@pytest.mark.parametrize("version", [1, 2])
def test_decoding_gives_the_configuration_back(tokenizer, version):
    processor = NCPLProcessor(tokenizer, version)
    text = processor.decode(processor([STEPLAW, MARIN], final_loss=[2.5, 3.0]), row=1)
    for name, value in MARIN.items():
        shown = f"{value:.6g}" if isinstance(value, float | int) and not isinstance(value, bool) else str(value)
        assert f"{FIELDS[name].prompt_label}: {shown}" in text or f"{name}: {value}" in text
    assert f"max step: {STEPS['marin']}" in text
    assert text.endswith(f"final loss: {3.0 - prior(MARIN):.6g}")


def test_a_batch_is_its_rows(tokenizer):
    processor = NCPLProcessor(tokenizer)
    batch = processor([MARIN, STEPLAW], final_loss=[3.0, 2.5])
    for row, (config, loss) in enumerate([(MARIN, 3.0), (STEPLAW, 2.5)]):
        alone = processor(config, final_loss=loss)
        n = alone["input_ids"].shape[1]
        for name, value in alone.items():
            assert torch.equal(batch[name][row, :n], value[0])


def test_residuals_turn_back_into_losses(tokenizer):
    processor = NCPLProcessor(tokenizer)
    batch = processor([MARIN, STEPLAW], final_loss=[3.0, 2.5])
    logits = torch.zeros(batch["input_ids"].shape)
    logits[:, :-1] = batch["labels"][:, 1:]
    np.testing.assert_allclose(processor.losses(logits, batch["loss_mask"], [MARIN, STEPLAW]), [3.0, 2.5], rtol=1e-6)


def test_max_step_is_derived_when_absent(real_data_dir):
    for source, tolerance in (("marin", 0), ("steplaw", 0.02)):
        for row in json.loads((real_data_dir / source / f"{source}_processed_data.json").read_text()):
            assert max_step(row["conf"]) == pytest.approx(row["max_step"], rel=tolerance)
    assert max_step(MOE) == STEPS["steplaw"]
    assert max_step({**STEPLAW, "source": "mine", "seq len": 4096}) == int(21e9 / (320 * 4096))
    with pytest.raises(ValueError, match=r"seq len: missing.*'mine'"):
        max_step({**STEPLAW, "source": "mine"})


def test_unknown_fields_are_kept_as_text_when_not_strict(tokenizer):
    lenient = NCPLProcessor(tokenizer, strict=False)
    assert "rotary base: 10000\n" in lenient.decode(lenient({**STEPLAW, "rotary base": 10000}))
    with pytest.raises(ValueError, match="rotary base: not a known field"):
        NCPLProcessor(tokenizer)({**STEPLAW, "rotary base": 10000})


def test_saved_processors_are_the_same(tokenizer, tmp_path):
    processor = NCPLProcessor(tokenizer, 2, prior={"law": "chinchilla", "coefficients": {"mine": [1, 0.2, 1, 0.3, 2]}})
    processor.save_pretrained(tmp_path)
    again = NCPLProcessor.from_pretrained(tmp_path)
    assert again.prompt_version == 2
    config = {**STEPLAW, "source": "mine", "seq len": 2048}
    for name, value in processor(config, final_loss=2.0).items():
        assert torch.equal(again(config, final_loss=2.0)[name], value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"configs": []}, "configs: got an empty batch"),
        ({"configs": [STEPLAW], "final_loss": [1.0, 2.0]}, "final_loss: got 2 for 1 configurations"),
        ({"configs": STEPLAW, "final_loss": float("nan")}, "final_loss: got nan, expected a finite loss"),
        ({"configs": [STEPLAW, MARIN], "final_loss": 3.0}, "final_loss: got 3.0 for 2 configurations"),
        ({"configs": STEPLAW, "curve": [3.0]}, "curve: needs steps"),
        ({"configs": STEPLAW, "steps": [10, 20], "curve": [3.0]}, "curve: got 1 losses for 2 steps"),
        ({"configs": STEPLAW, "steps": [0]}, "steps: got 0, expected more than 0"),
        ({"configs": STEPLAW, "steps": [10**9]}, "steps: got 1000000000, expected more than 0 and at most"),
        ({"configs": [STEPLAW, MARIN], "final_loss": [None, 3.0]}, "some rows have a target and some have none"),
        ({"configs": "adamw"}, "configs: got 'adamw', expected a configuration or a list"),
        ({"configs": [STEPLAW, {**MARIN, "lr": 1}]}, r"configs\[1\]: learning rate: given twice"),
        ({"configs": {**STEPLAW, "source": "mine", "seq len": 2048}, "final_loss": 2.0}, "'mine'.*known: .*marin"),
    ],
)
def test_bad_calls(tokenizer, arguments, message):
    with pytest.raises(ValueError, match=message):
        NCPLProcessor(tokenizer)(**arguments)
