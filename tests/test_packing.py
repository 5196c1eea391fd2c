"""Packed training is plain training: the same predictions, losses and gradients, from fewer tokens."""

import json
import math
import random

import pytest
import torch
from torch.nn.attention.flex_attention import create_mask

from configuration_ncpl import NCPLConfig
from datasets_scripts import SAMPLE_DIR
from fields_ncpl import check_config, max_step
from modeling_ncpl import NCPLForecaster
from ncpl.packing import PackedCollator, PlainCollator, Run, tree_mask
from ncpl.training.backbone import scratch_config, train_tokenizer
from processing_ncpl import NCPLProcessor

ATTENTIONS = ("sdpa", "eager")


def read_configs(folder):
    """The configurations of both sources' logs."""
    configs = []
    for source in ("marin", "steplaw"):
        path = next(path for path in (folder / source, folder) if (path / f"{source}_processed_data.json").exists())
        for run in json.loads((path / f"{source}_processed_data.json").read_text()):
            conf = {**run["conf"], "source": source, "max step": run["max_step"]}
            configs.append(check_config(conf, strict=False))
    return configs


def make_run(config, points, rng, final=True):
    """A run whose curve has so many points at made-up losses."""
    steps = sorted(rng.sample(range(1, max_step(config) + 1), points))
    return Run(config, 3.0, rng.gauss(0, 0.1) if final else None, steps, [rng.gauss(0, 0.1) for _ in steps])


def make_model(processor, attention="sdpa"):
    torch.manual_seed(0)
    text_config = scratch_config(len(processor.tokenizer), 64, 2, 4)
    model = NCPLForecaster._from_config(NCPLConfig(text_config=text_config), attn_implementation=attention)
    return model.train()


def train_step(model, batch):
    """Loss and gradients of one batch."""
    model.zero_grad()
    dtype = model.head.weight.dtype
    loss = model(
        **{name: value.to(dtype) if value.is_floating_point() else value for name, value in batch.items()}
    ).loss
    loss.backward()
    return loss.item(), {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def assert_same_step(model, processor, runs, attention="sdpa", pack_length=256):
    """In double precision where attention takes it: gradients that nearly cancel are compared to the same bound."""
    if attention != "flex_attention":
        model = model.double()
    loss, gradients = train_step(model, PlainCollator(processor)(runs))
    batch = PackedCollator(processor, attention, pack_length)(runs)
    packed_loss, packed_gradients = train_step(model, batch)
    assert packed_loss == pytest.approx(loss, rel=1e-6)
    for name, gradient in gradients.items():
        assert (packed_gradients[name] - gradient).norm() <= 1e-5 * gradient.norm(), name
        assert gradient.norm() > 0, name
    return batch


def prompts_read(batch):
    """What each prediction of a packed batch can see, as a prompt with its positions, and its target."""
    rows = []
    for pack, label_at in batch["loss_mask"].nonzero().tolist():
        seen = batch["attention_mask"][pack, 0, label_at - 1]
        columns = [batch[name][pack, seen] for name in ("input_ids", "number_values_filled", "is_number_mask")]
        assert batch["position_ids"][pack, seen].tolist() == list(range(int(seen.sum())))
        rows.append((*(tuple(column.tolist()) for column in columns), batch["labels"][pack, label_at].item()))
    return sorted(rows)


def plain_prompts(batch):
    rows = []
    for row, label_at in batch["loss_mask"].nonzero().tolist():
        columns = [batch[name][row, :label_at] for name in ("input_ids", "number_values_filled", "is_number_mask")]
        rows.append((*(tuple(column.tolist()) for column in columns), batch["labels"][row, label_at].item()))
    return sorted(rows)


@pytest.fixture(scope="module")
def configs():
    return read_configs(SAMPLE_DIR)


@pytest.fixture(scope="module", params=[1, 2], ids=["prompt1", "prompt2"])
def processor(request, configs):
    return NCPLProcessor(train_tokenizer(configs, request.param), prompt_version=request.param)


@pytest.fixture
def ragged_runs(configs):
    """Final loss with many points, few or none, points alone, and the same run twice."""
    rng = random.Random(0)
    chosen = rng.sample(configs, 9)
    runs = [make_run(config, points, rng) for config, points in zip(chosen, (15, 0, 3, 15, 1, 0, 8), strict=False)]
    runs += [make_run(config, 4, rng, final=False) for config in chosen[7:]]
    return [*runs, runs[2], Run(runs[4].config, 3.0, 0.7)]


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("pack_length", [64, 256, 2048])
def test_loss_and_gradients_are_those_of_plain_training(processor, ragged_runs, attention, pack_length):
    model = make_model(processor, attention)
    batch = assert_same_step(model, processor, ragged_runs, attention, pack_length)
    assert (len(batch["input_ids"]) == 1) == (pack_length == 2048)


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("points", [[15], [15] * 6, [15, 1, 0, 7, 12, 3]], ids=["one run", "several runs", "ragged"])
def test_fp32_training_on_real_configurations_agrees(real_data_dir, attention, points):
    configs = read_configs(real_data_dir)
    processor = NCPLProcessor(train_tokenizer(configs[::20]), prompt_version=2)
    rng = random.Random(0)
    runs = [make_run(config, n, rng) for config, n in zip(rng.sample(configs, len(points)), points, strict=True)]
    assert_same_step(make_model(processor, attention), processor, runs, attention)


@pytest.mark.parametrize("pack_length", [1, 50, 100, 256, 2048])
def test_every_prediction_sees_its_own_prompt_and_nothing_else(processor, ragged_runs, pack_length):
    plain = PlainCollator(processor)(ragged_runs)
    packed = PackedCollator(processor, pack_length=pack_length)(ragged_runs)
    assert prompts_read(packed) == plain_prompts(plain)
    longest = max(len(ids) for ids, *_ in plain_prompts(plain))
    assert packed["input_ids"].shape[1] <= max(pack_length, longest + 1)


def test_a_pack_holds_every_distinct_beginning_once(processor, ragged_runs):
    distinct = {
        tuple(zip(ids[: n + 1], values[: n + 1], strict=True))
        for ids, values, *_ in plain_prompts(PlainCollator(processor)(ragged_runs[:-2]))
        for n in range(len(ids))
    }
    packed = PackedCollator(processor, pack_length=4096)(ragged_runs[:-2])
    assert packed["input_ids"].shape == (1, len(distinct) + 1)


def test_packs_are_as_even_as_their_number_allows(processor, configs):
    runs = [make_run(config, 15, random.Random(0)) for config in configs[:12]]
    batch = PackedCollator(processor)(runs)
    padding = 1 - (batch["position_ids"] > 0).float().mean()
    assert len(batch["input_ids"]) > 2
    assert padding < 0.12


def test_order_of_runs_does_not_matter(processor, ragged_runs):
    shuffled = random.Random(1).sample(ragged_runs, len(ragged_runs))
    batch, again = PackedCollator(processor)(ragged_runs), PackedCollator(processor)(shuffled)
    assert prompts_read(batch) == prompts_read(again)


def test_padding_changes_nothing(processor, ragged_runs):
    """Poisoned padding: were it read anywhere, the loss would not be finite."""
    batch = PackedCollator(processor, pack_length=100)(ragged_runs)
    loss, _ = train_step(make_model(processor), batch)
    seen = batch["attention_mask"][:, 0]
    padding = (seen.sum(-1) == 1) & (seen.sum(-2) == 1)
    assert padding.any()
    batch["number_values_filled"][padding], batch["is_number_mask"][padding] = math.pi * 1e6, True
    assert train_step(make_model(processor), batch)[0] == loss


def test_flex_sees_what_sdpa_sees():
    ends = torch.tensor([[5, 3, 3, 5, 5, 6], [2, 2, 6, 6, 6, 6]])
    dense = tree_mask(ends, "sdpa")
    block = tree_mask(ends, "flex_attention")
    assert torch.equal(create_mask(block.mask_mod, *dense.shape, device="cpu"), dense)
    assert torch.equal(tree_mask(ends, "eager") == 0, dense)


@pytest.mark.slow
def test_flex_forward_agrees(processor, ragged_runs):
    """Forward alone, as flex attention has no backward pass on a CPU."""
    model = make_model(processor).eval()
    with torch.no_grad():
        loss = model(**PlainCollator(processor)(ragged_runs)).loss
        model.set_attn_implementation("flex_attention")
        packed = model(**PackedCollator(processor, "flex_attention")(ragged_runs)).loss
    assert packed.item() == pytest.approx(loss.item(), rel=1e-6)


def test_an_attention_without_tree_masks_is_named():
    with pytest.raises(ValueError, match="attention: 'flash_attention_2' takes no tree mask, accepted: sdpa, eager"):
        tree_mask(torch.ones(1, 1), "flash_attention_2")
