"""Published checkpoints, made here in the published key layout, to folders every door opens on."""

import pickle

import pytest
import torch
from transformers import AutoModel, AutoProcessor, Qwen3Config, Qwen3ForCausalLM, pipeline

from fields_ncpl import check_config
from ncpl.errors import CheckpointError
from ncpl.hub.convert import PROBES, convert
from ncpl.training.backbone import scratch_config, train_tokenizer
from tests.checkpoints import losses_by_hand, published_weights, tiny_model


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    """A folder with a Qwen3 language model's configuration and tokenizer, as the Hub has them, and no weights."""
    folder = tmp_path_factory.mktemp("backbone")
    tokenizer = train_tokenizer([check_config(probe) for probe in PROBES], prompt_version=1, vocab_size=400)
    tokenizer.save_pretrained(folder)
    Qwen3Config(**scratch_config(400, 32, 2, 2)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def weights():
    return published_weights()


def publish(folder, content):
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(content, folder / "pytorch_model.bin")
    return folder


def behind_module(state):
    return {f"module.{key}": value for key, value in state.items()}


@pytest.mark.parametrize(
    "layout",
    [
        lambda state: {"model_state_dict": state, "epoch": 3},
        lambda state: {"model": behind_module(state), "optimizer": {"step": 1}},
        lambda state: behind_module(state),
    ],
    ids=["model_state_dict", "model, module.", "bare, module."],
)
def test_every_published_layout_converts(tmp_path, backbone, weights, layout):
    source = publish(tmp_path / "published", layout(weights))
    out = convert(source, tmp_path / "out", backbone)
    model, processor = AutoModel.from_pretrained(out), AutoProcessor.from_pretrained(out)
    renamed = dict(zip(tiny_model().state_dict(), weights.values(), strict=True))
    assert model.state_dict().keys() == renamed.keys()
    assert all(torch.equal(value, renamed[key]) for key, value in model.state_dict().items())
    assert (processor.prompt_version, model.config.prompt_version) == (1, 1)
    forecast = pipeline("scaling-forecast", model=str(out), trust_remote_code=True)
    assert forecast(PROBES[0])["loss"] == losses_by_hand(model, processor, PROBES[0])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "published"], "no scratch folder is left"


def test_half_precision_and_the_file_itself(tmp_path, backbone, weights):
    half = {key: value.bfloat16() for key, value in weights.items()}
    file = publish(tmp_path / "published", {"model_state_dict": half}) / "pytorch_model.bin"
    model = AutoModel.from_pretrained(convert(file, tmp_path / "out", backbone))
    assert (model.model.embed_tokens.weight.dtype, model.head.weight.dtype) == (torch.bfloat16, torch.float32)


def without(state, key):
    return {name: value for name, value in state.items() if name != key}


@pytest.mark.parametrize(
    ("spoil", "messages"),
    [
        (lambda s: without(s, "head.bias"), ["missing keys: head.bias (1)"]),
        (lambda s: {**s, "tower.weight": torch.zeros(1)}, ["unexpected keys: tower.weight (1)"]),
        (
            lambda s: {**without(s, "base.norm.weight"), "base.layers.2.mlp.up_proj.weight": torch.zeros(1)},
            ["missing keys: base.norm.weight (1)", "unexpected keys: base.layers.2.mlp.up_proj.weight (1)"],
        ),
        (lambda s: {**s, "head.weight": torch.zeros(1, 7)}, ["head.weight (1, 7), expected (1, 32)"]),
        (lambda s: {"base.embed_tokens.weight": s["base.embed_tokens.weight"]}, ["and 9 more (29)"]),
        (lambda s: {**s, "head.bias": torch.tensor([float("nan")])}, ["weights that are not finite: head.bias (1)"]),
        (lambda s: {}, ["expected weights under 'model_state_dict' or 'model'"]),
    ],
)
def test_weights_that_do_not_fit_are_refused(tmp_path, backbone, weights, spoil, messages):
    source = publish(tmp_path / "published", {"model_state_dict": spoil(weights)})
    with pytest.raises(CheckpointError) as refusal:
        convert(source, tmp_path / "out", backbone)
    assert all(message in str(refusal.value) for message in messages), str(refusal.value)
    assert [path.name for path in tmp_path.iterdir()] == ["published"], "nothing is written"


class Malicious:
    def __reduce__(self):
        return (exec, ("raise SystemExit('code in the checkpoint was executed')",))


@pytest.mark.parametrize("kind", ["malicious", "pickle", "truncated", "empty", "text"])
def test_files_that_are_not_weights_alone_are_refused(tmp_path, backbone, weights, kind):
    file = publish(tmp_path / "published", {"model": weights}) / "pytorch_model.bin"
    if kind == "malicious":
        torch.save({"model": weights, "extra": Malicious()}, file)
    else:
        whole = file.read_bytes()
        content = {"truncated": whole[: len(whole) // 2], "empty": b"", "text": b"weights\n"}
        file.write_bytes(content[kind] if kind in content else pickle.dumps(Malicious()))
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin: cannot be read as a file of weights alone: .+"):
        convert(file, tmp_path / "out", backbone)
    assert not (tmp_path / "out").exists()


def test_a_folder_without_weights_and_a_name_that_is_nothing(tmp_path, backbone):
    with pytest.raises(CheckpointError, match=r"no pytorch_model\.bin in this folder, found .*tokenizer\.json"):
        convert(backbone, tmp_path / "out", backbone)
    with pytest.raises(CheckpointError, match="nobody/nothing: no such folder or file"):
        convert("nobody/nothing", tmp_path / "out", backbone)


def test_a_folder_in_use_is_left_alone(tmp_path, backbone, weights):
    source = publish(tmp_path / "published", {"model": weights})
    with pytest.raises(ValueError, match="holds something already"):
        convert(source, source, backbone)
    assert [path.name for path in source.iterdir()] == ["pytorch_model.bin"]


def test_a_tokenizer_of_another_vocabulary_is_refused(tmp_path, backbone, weights):
    """The same dimensions with a tokenizer that knows more tokens than the model embeds."""
    tokenizer = train_tokenizer([check_config(probe) for probe in PROBES], prompt_version=1, vocab_size=400)
    tokenizer.add_tokens(["marin"] + [f"<{i}>" for i in range(400)])
    tokenizer.save_pretrained(tmp_path / "other")
    Qwen3Config(**scratch_config(400, 32, 2, 2)).save_pretrained(tmp_path / "other")
    with pytest.raises(CheckpointError, match="the tokenizer gives ids up to"):
        convert(publish(tmp_path / "published", {"model": weights}), tmp_path / "out", tmp_path / "other")


def test_the_backbones_own_weights_are_not_touched(tmp_path, backbone, weights):
    """A backbone folder with weights is as good as one without: they are neither read nor copied."""
    Qwen3ForCausalLM(Qwen3Config(**scratch_config(400, 32, 2, 2))).save_pretrained(tmp_path / "whole")
    for file in backbone.glob("tokenizer*"):
        (tmp_path / "whole" / file.name).write_bytes(file.read_bytes())
    out = convert(publish(tmp_path / "published", {"model": weights}), tmp_path / "out", tmp_path / "whole")
    assert torch.equal(AutoModel.from_pretrained(out).model.embed_tokens.weight, weights["base.embed_tokens.weight"])
