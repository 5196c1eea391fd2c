"""`pipeline("scaling-forecast")` and the Auto classes on saved folders, where this project is not importable."""

import json
from collections.abc import Iterator

import pytest
import torch
from transformers import Qwen3Config, Trainer, TrainingArguments, pipeline

import pipeline_ncpl  # noqa: F401  (registers the task)
from ncpl.hub.convert import convert
from ncpl.training.backbone import scratch_config
from tests.checkpoints import (
    ADAMW,
    CONFIGS,
    fresh_process,
    losses_by_hand,
    published_weights,
    save_tiny,
    tiny_model,
    tiny_processor,
)


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def processor():
    return tiny_processor()


@pytest.fixture(scope="module")
def forecast(model, processor):
    return pipeline("scaling-forecast", model=model, processor=processor)


def test_one_configuration_gives_plain_json(forecast, model, processor):
    result = forecast(ADAMW)
    assert json.loads(json.dumps(result)) == result == {"loss": losses_by_hand(model, processor, ADAMW)}


@pytest.mark.parametrize("container", [list, tuple, iter, lambda configs: (config for config in configs)])
@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_many_configurations_give_what_each_gives_alone(forecast, container, batch_size):
    results = forecast(container(CONFIGS), batch_size=batch_size)
    assert isinstance(results, list) == (container in (list, tuple))
    alone = [forecast(config)["loss"] for config in CONFIGS]
    assert [result["loss"] for result in results] == pytest.approx(alone, abs=1e-6)


def test_a_data_set_is_read_like_a_list(forecast):
    class Configurations(torch.utils.data.Dataset):
        def __getitem__(self, i):
            return CONFIGS[i]

    results = list(forecast(Configurations(), batch_size=2))
    assert [result["loss"] for result in results] == pytest.approx([r["loss"] for r in forecast(CONFIGS)], abs=1e-6)


def test_a_left_padding_tokenizer_changes_nothing(model, processor):
    left = tiny_processor()
    left.tokenizer.padding_side = "left"
    results = pipeline("scaling-forecast", model=model, processor=left)(CONFIGS, batch_size=3)
    expected = [losses_by_hand(model, processor, config) for config in CONFIGS]
    assert [result["loss"] for result in results] == pytest.approx(expected, abs=1e-6)


def test_the_order_of_fields_does_not_matter(model):
    """Prompt version 1 takes them as they come; the pipeline puts them in the order of the training runs."""
    forecast = pipeline("scaling-forecast", model=model, processor=tiny_processor(prompt_version=1))
    assert forecast(dict(reversed(ADAMW.items()))) == forecast(ADAMW)


def test_a_stream_is_read_as_it_is_consumed(forecast):
    taken = []

    def endless() -> Iterator[dict]:
        while True:
            taken.append(ADAMW)
            yield ADAMW

    results = forecast(endless())
    next(results)
    assert len(taken) < 5


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ([], "configs: got an empty batch"),
        ("adamw", "configuration: got 'adamw', expected a mapping"),
        ([ADAMW, 3], r"configs\[1\]: configuration: got 3, expected a mapping"),
        ({**ADAMW, "learning rat": 1}, "did you mean 'learning rate'"),
        ([ADAMW, {**ADAMW, "learning rate": "fast"}], r"configs\[1\]: learning rate: got 'fast'"),
    ],
)
def test_bad_input_is_named(forecast, inputs, message):
    with pytest.raises(ValueError, match=message):
        forecast(inputs)


@pytest.mark.parametrize("level", [0, 1, 90])
def test_a_level_that_is_no_coverage_is_refused(forecast, level):
    with pytest.raises(ValueError, match=f"level: got {level}, expected a coverage between 0 and 1"):
        forecast(ADAMW, level=level)


def test_a_level_where_there_are_no_intervals_is_refused(forecast):
    assert forecast.processor.calibrator is None
    with pytest.raises(ValueError, match=r"level: got 0\.5, but this checkpoint has no calibration"):
        forecast(ADAMW, level=0.5)
    assert forecast(ADAMW).keys() == {"loss"}


EVERY_DOOR = """
import json, os
from transformers import AutoConfig, AutoModel, AutoProcessor, pipeline
configs, *folders = [json.loads(sys.argv[1]), *sys.argv[2:]]
out = {}
for folder in folders:
    pipe = pipeline("scaling-forecast", model=folder, trust_remote_code=True)
    model, info = AutoModel.from_pretrained(folder, trust_remote_code=True, output_loading_info=True)
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    batch = processor(configs[0])
    logits = model(**batch).logits
    refused = []
    for load in (AutoConfig.from_pretrained, AutoModel.from_pretrained, AutoProcessor.from_pretrained,
                 lambda f, **k: pipeline("scaling-forecast", model=f, **k)):
        try:
            load(folder, trust_remote_code=False)
        except ValueError as error:
            refused.append("trust_remote_code" in str(error))
    out[folder] = {
        "config": AutoConfig.from_pretrained(folder, trust_remote_code=True).model_type,
        "loading": [sorted(info[key]) for key in ("missing_keys", "unexpected_keys", "mismatched_keys")],
        "pipe": [pipe(config) for config in configs],
        "by hand": float(processor.losses(logits, batch["loss_mask"], configs[:1])[0]),
        "refused": refused,
    }
    again = folder + "-again"
    if not folder.endswith("-again"):
        model.save_pretrained(again)
        pipe.model.save_pretrained(again)
        processor.save_pretrained(again)
        folders.append(again)
print(json.dumps(out))
"""


@pytest.fixture(scope="module")
def folders(tmp_path_factory, model, processor, forecast):
    """Through every door: `save_pretrained` of model and processor, of the pipeline, a Trainer's, a conversion."""
    root = tmp_path_factory.mktemp("doors")
    save_tiny(root / "pretrained")
    forecast.save_pretrained(root / "pipeline")
    rows = processor(ADAMW, final_loss=3.0)
    arguments = TrainingArguments(
        output_dir=str(root / "trainer"), max_steps=1, save_steps=1, learning_rate=0.0, use_cpu=True, disable_tqdm=True
    )
    dataset = [{name: values[0] for name, values in rows.items()}]
    Trainer(tiny_model(), arguments, train_dataset=dataset, processing_class=processor).train()
    torch.save({"model": published_weights()}, root / "published.bin")
    processor.tokenizer.save_pretrained(root / "backbone")
    Qwen3Config(**scratch_config(400, 32, 2, 2)).save_pretrained(root / "backbone")
    convert(root / "published.bin", root / "converted", root / "backbone")
    return [root / "pretrained", root / "pipeline", root / "trainer" / "checkpoint-1", root / "converted"]


def test_every_saved_folder_is_whole(folders, forecast, tmp_path):
    """Saved by us, and saved again by the loaded copies: all load in a fresh process and give the same bits."""
    loaded = fresh_process(EVERY_DOOR, json.dumps(CONFIGS), *folders, home=tmp_path, HF_HUB_OFFLINE="1")
    assert len(loaded) == 2 * len(folders)
    for folder, got in loaded.items():
        saved = folder.removesuffix("-again")
        expected = [pipeline("scaling-forecast", model=saved, trust_remote_code=True)(config) for config in CONFIGS]
        assert (expected == [forecast(config) for config in CONFIGS]) != saved.endswith("converted"), folder
        assert got["config"] == "ncpl", folder
        assert got["loading"] == [[], [], []], folder
        assert got["pipe"] == expected, folder
        assert got["by hand"] == expected[0]["loss"], folder
        assert got["refused"] == [True] * 4, folder


def test_a_model_in_memory_is_left_as_it_is(model, processor):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    pipeline("scaling-forecast", model=model, processor=processor)(CONFIGS)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
