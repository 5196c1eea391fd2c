"""The forecaster against a plain-torch reading of the published model, and the conventions users rely on."""

import peft
import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, Qwen3Config, Qwen3Model

from configuration_ncpl import NCPLConfig
from modeling_ncpl import NCPLForecaster, from_published
from ncpl.training.backbone import scratch_config
from tests.checkpoints import CONFIGS, tiny_model, tiny_processor


class Published(nn.Module):
    """DESIGN's description, read literally: backbone, number MLP in place of the text embedding, linear head."""

    def __init__(self, config):
        super().__init__()
        h = config.hidden_size
        self.base = Qwen3Model(config)
        self.num_mlp = nn.Sequential(nn.Linear(1, 2 * h), nn.ReLU(), nn.Linear(2 * h, h))
        self.head = nn.Linear(h, 1)

    def forward(self, input_ids, is_number_mask, number_values_filled, attention_mask):
        embeds = self.base.embed_tokens(input_ids).clone()
        for row, col in is_number_mask.nonzero().tolist():
            embeds[row, col] = self.num_mlp(number_values_filled[row, col].reshape(1))
        hidden = self.base(inputs_embeds=embeds, attention_mask=attention_mask).last_hidden_state
        return self.head(hidden)[..., 0]


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(2, 60, (3, 12), generator=generator)
    number = torch.rand(3, 12, generator=generator) < 0.3
    lengths = torch.tensor([12, 9, 7])
    attention = (torch.arange(12) < lengths[:, None]).long()
    return {
        "input_ids": ids.masked_fill(number, 0),
        "is_number_mask": number,
        "number_values_filled": torch.where(number, 50 * torch.rand(3, 12, generator=generator), 0),
        "attention_mask": attention,
    }


def tiny_config(**fields):
    return NCPLConfig(text_config=scratch_config(60, 32, 2, 4), **fields)


def tiny(**fields):
    torch.manual_seed(0)
    return NCPLForecaster(tiny_config(**fields)).eval()


@pytest.mark.parametrize("prefix", ["", "module."])
def test_published_weights_give_the_published_outputs(batch, prefix):
    torch.manual_seed(1)
    config = tiny_config()
    published = Published(config.text_config).eval()
    for parameter in published.parameters():  # zeros and ones would hide a forgotten term
        nn.init.normal_(parameter, std=0.1)
    ours = NCPLForecaster(config).eval()
    ours.load_state_dict(from_published({prefix + k: v for k, v in published.state_dict().items()}))
    with torch.no_grad():
        expected, got = published(**batch), ours(**batch).logits
    real = batch["attention_mask"].bool()
    torch.testing.assert_close(got[real], expected[real], rtol=1e-5, atol=1e-5)


def test_published_weights_of_another_layout_are_refused():
    with pytest.raises(ValueError, match=r"'tower\.0\.weight'.*base\.\*"):
        from_published({"tower.0.weight": torch.zeros(1)})


@pytest.mark.parametrize("loss_type", ["mse", "mae", "huber"])
def test_loss_reads_the_prediction_one_position_before_the_target(batch, loss_type):
    model = tiny(loss_type=loss_type)
    labels = torch.full((3, 12), 7.0)
    mask = torch.zeros(3, 12, dtype=torch.bool)
    targets = [(0, 11, 0.3), (0, 4, -0.2), (1, 8, 0.01), (2, 6, 0.0)]
    for row, col, target in targets:
        labels[row, col], mask[row, col] = target, True
    with torch.no_grad():
        output = model(**batch, labels=labels, loss_mask=mask)
        errors = torch.tensor([float(output.logits[row, col - 1]) - target for row, col, target in targets])
        implicit = model(**batch, labels=labels.masked_fill(~mask, float("nan"))).loss
    delta = model.config.huber_delta
    expected = {
        "mse": errors**2,
        "mae": errors.abs(),
        "huber": torch.where(errors.abs() <= delta, errors**2 / 2, delta * (errors.abs() - delta / 2)),
    }[loss_type].mean()
    torch.testing.assert_close(output.loss, expected)
    torch.testing.assert_close(implicit, expected)


def test_without_numbers_it_is_the_plain_backbone(batch):
    model = tiny()
    with torch.no_grad():
        hidden = model.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        torch.testing.assert_close(logits, model.head(hidden)[..., 0])


def test_padding_and_company_do_not_change_a_row(batch):
    model = tiny(number_embedding="log")
    with torch.no_grad():
        together = model(**batch).logits
        for row, length in enumerate([12, 9, 7]):
            alone = model(**{name: value[row : row + 1, :length] for name, value in batch.items()}).logits
            torch.testing.assert_close(together[row, :length], alone[0], rtol=1e-4, atol=1e-6)


def test_a_prediction_never_sees_its_own_target(batch):
    model = tiny()
    other = dict(batch, number_values_filled=batch["number_values_filled"].clone())
    other["number_values_filled"][:, 6] += 100.0
    other["is_number_mask"] = batch["is_number_mask"].clone().index_fill(1, torch.tensor([6]), True)
    same = dict(other, number_values_filled=batch["number_values_filled"])
    with torch.no_grad():
        assert torch.equal(model(**other).logits[:, :6], model(**same).logits[:, :6])
        assert not torch.equal(model(**other).logits[:, 6:], model(**same).logits[:, 6:])


# flex compiles its kernel first, which takes a minute on a CPU.
@pytest.mark.parametrize("name", ["sdpa", pytest.param("flex_attention", marks=pytest.mark.slow)])
def test_attention_implementations_agree(batch, name):
    model = tiny()
    logits = {}
    for implementation in ("eager", name):
        model.set_attn_implementation(implementation)
        assert model.model.config._attn_implementation == implementation
        with torch.no_grad():
            logits[implementation] = model(**batch).logits
    real = batch["attention_mask"].bool()
    torch.testing.assert_close(logits["eager"][real], logits[name][real], rtol=1e-4, atol=1e-6)


def test_activation_checkpointing_gives_the_same_gradients(batch):
    gradients = []
    for on in (False, True):
        model = tiny(number_embedding="log").train()
        if on:
            model.activation_checkpointing_enable()
        mask = torch.zeros(3, 12, dtype=torch.bool).index_fill(1, torch.tensor([5]), True)
        model(**batch, labels=torch.zeros(3, 12), loss_mask=mask).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    assert all(grad is not None for name, grad in gradients[0].items())
    for name, grad in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], grad)


def test_saved_and_reloaded_weights_are_the_same_bit_for_bit(batch, tmp_path):
    model = tiny(number_embedding="log", loss_type="huber", prompt_version=2)
    model.save_pretrained(tmp_path)
    again, info = NCPLForecaster.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    for field in ("number_embedding", "loss_type", "prompt_version", "huber_delta"):
        assert getattr(again.config, field) == getattr(model.config, field)
    with torch.no_grad():
        assert torch.equal(model(**batch).logits, again.eval()(**batch).logits)


def test_bf16_keeps_numbers_and_head_in_fp32(batch, tmp_path):
    tiny().save_pretrained(tmp_path)
    model = NCPLForecaster.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert model.model.layers[0].mlp.up_proj.weight.dtype == torch.bfloat16
    assert {p.dtype for part in (model.numbers, model.head) for p in part.parameters()} == {torch.float32}
    with torch.no_grad():
        logits, expected = model(**batch).logits, tiny()(**batch).logits
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, expected, rtol=0.1, atol=0.02)


@pytest.mark.parametrize(("dtype", "kept"), [(torch.bfloat16, torch.float32), (torch.float64, torch.float64)])
def test_numbers_and_head_are_built_in_at_least_fp32(batch, dtype, kept):
    model = NCPLForecaster._from_config(tiny().config, dtype=dtype)
    assert model.model.layers[0].mlp.up_proj.weight.dtype == dtype
    assert {p.dtype for part in (model.numbers, model.head) for p in part.parameters()} == {kept}
    with torch.no_grad():
        assert model(**batch).logits.dtype == kept


def test_numbers_keep_their_digits_under_autocast(batch):
    """The number embedding and the head compute in float32, whatever autocast does to the backbone."""
    model = tiny(number_embedding="log")
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        embedded = model.numbers(batch["number_values_filled"])
        assert model(**batch).logits.dtype == torch.float32
    with torch.no_grad():
        assert torch.equal(embedded, model.numbers(batch["number_values_filled"]))


@pytest.mark.filterwarnings("ignore")
def test_dynamic_quantization(batch):
    quantized = torch.ao.quantization.quantize_dynamic(tiny(), {torch.nn.Linear})
    with torch.no_grad():
        logits, expected = quantized(**batch).logits, tiny()(**batch).logits
    torch.testing.assert_close(logits, expected, rtol=0.1, atol=0.05)


# peft below 0.22 asks transformers by a name that goes away.
@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")
def test_lora_without_target_modules(batch):
    """peft finds the backbone's own default, also when it is imported after the model was built."""
    adapted = peft.get_peft_model(tiny(), peft.LoraConfig(modules_to_save=["numbers", "head"]))
    targets = {name.split(".")[-4] for name, _ in adapted.named_parameters() if "lora_A" in name}
    assert targets == {"q_proj", "v_proj"}
    with torch.no_grad():
        torch.testing.assert_close(adapted(**batch).logits, tiny()(**batch).logits)


def test_a_causal_lm_checkpoint_loads_straight_in(tmp_path):
    backbone = AutoModelForCausalLM.from_config(Qwen3Config(**scratch_config(60, 32, 2, 4)))
    backbone.save_pretrained(tmp_path)
    model, info = NCPLForecaster.from_pretrained(tmp_path, output_loading_info=True)
    assert {key.split(".")[0] for key in info["missing_keys"]} == {"numbers", "head"}
    assert not info["unexpected_keys"]
    for name, weight in backbone.model.state_dict().items():
        assert torch.equal(weight, model.model.state_dict()[name])
    other = NCPLForecaster.from_backbone(str(tmp_path), config={"loss_type": "mae"})
    assert other.config.loss_type == "mae"
    assert other.config.text_config.hidden_size == 32


def test_default_dimensions_are_those_of_qwen3_1_7b():
    with torch.device("meta"):
        backbone = NCPLForecaster(NCPLConfig()).model
    # 1.7 billion parameters, 1.4 without the (tied) embedding, as Qwen3-1.7B's card says.
    assert sum(p.numel() for p in backbone.parameters()) == 1_720_574_976
    assert sum(p.numel() for p in backbone.layers.parameters()) == 1_409_408_000


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"loss_type": "rmse"}, "loss_type"),
        ({"number_embedding": "sin"}, "number_embedding"),
        ({"prompt_version": 3}, "prompt_version"),
        ({"huber_delta": "small"}, "huber_delta"),
    ],
)
def test_config_refuses_what_it_does_not_know(fields, message):
    with pytest.raises(Exception, match=message):
        NCPLConfig(**fields)


def test_missing_inputs_are_named():
    with pytest.raises(ValueError, match="input_ids"):
        tiny()()
    with pytest.raises(ValueError, match="number_values_filled"):
        tiny()(input_ids=torch.ones(1, 2, dtype=torch.long), is_number_mask=torch.ones(1, 2, dtype=torch.bool))


@pytest.mark.skipif(
    not hasattr(torch.compiler, "is_exporting"), reason="transformers itself compiles from torch 2.7 on"
)
def test_a_compiled_model_and_its_training_step_are_the_plain_ones():
    """By torch.compile's tracing alone, which needs no compiler; kernels of a GPU are not measured here."""
    batch = tiny_processor()(CONFIGS, final_loss=[3.0, 3.1, 3.2])
    losses, gradients = [], []
    for compiled in (False, True):
        model = tiny_model()
        run = torch.compile(model, backend="aot_eager") if compiled else model
        output = run(**batch)
        output.loss.backward()
        losses.append(output.logits)
        gradients.append({name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None})
    torch.testing.assert_close(*losses, rtol=1e-5, atol=1e-6)
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-4, atol=1e-6)
