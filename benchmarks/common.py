"""What all benchmarks share: prompts and models to measure with, alternation, ratios, and the result file."""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from configuration_ncpl import NCPLConfig
from datasets_scripts import SAMPLE_DIR
from fields_ncpl import check_config
from modeling_ncpl import NCPLForecaster
from ncpl.files import write_json
from ncpl.recipe import load_recipe
from ncpl.record import provenance
from ncpl.training.backbone import scratch_config, train_tokenizer
from processing_ncpl import NCPLProcessor

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results"
SOURCES = ("marin", "steplaw")


def parser(description: str, name: str) -> argparse.ArgumentParser:
    """Command line of a benchmark, with the options that all have."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    made.add_argument("--output", type=Path, default=RESULTS / f"{name}.json", help="JSON file for the result")
    made.add_argument("--seed", type=int, default=0, help="of weights and choices")
    return made


def data_folder() -> Path:
    """Where real run logs are: `NCPL_DATA_DIR`, else beside the repository."""
    return Path(os.environ.get("NCPL_DATA_DIR", ROOT.parent / "shared" / "data"))


def read_configs() -> tuple[list[dict[str, Any]], str]:
    """Checked configurations of logged runs, and where they come from: real logs if they are at hand."""
    folder = data_folder()
    real = (folder / "marin").is_dir()
    configs = []
    for source in SOURCES:
        path = (folder / source if real else SAMPLE_DIR) / f"{source}_processed_data.json"
        for run in json.loads(path.read_text(encoding="utf-8")):
            configs.append(check_config({**run["conf"], "source": source, "max step": run["max_step"]}, strict=False))
    return configs, "real run logs of Marin and StepLaw" if real else "made-up sample runs"


def build(device: str, configs: Sequence[dict[str, Any]], seed: int) -> tuple[NCPLForecaster, NCPLProcessor, str]:
    """A model with random weights, on which speed does not depend, in fp32: as `recipes/ncpl-mini.yaml` on a CPU, of
    Qwen3-1.7B's size on a GPU; its processor with prompt version 2; and the model's name."""
    processor = NCPLProcessor(train_tokenizer(configs), prompt_version=2)
    torch.manual_seed(seed)
    if device == "cuda":
        return NCPLForecaster(NCPLConfig(prompt_version=2)).to(device), processor, "Qwen3-1.7B's size, random weights"
    block = load_recipe(ROOT / "recipes" / "ncpl-mini.yaml").model
    size = block.scratch
    assert size is not None
    text_config = scratch_config(len(processor.tokenizer), size.hidden_size, size.num_layers, size.num_heads)
    name = f"ncpl-mini's size ({size.num_layers} layers, hidden {size.hidden_size}), random weights"
    return NCPLForecaster(NCPLConfig(text_config=text_config, **block.config)), processor, name


def seconds(work: Callable[[], Any]) -> float:
    """Wall time, with everything the work started on a GPU."""
    start = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, least and greatest."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def ratio(plain: Sequence[float], ours: Sequence[float]) -> dict[str, float]:
    """Ours over plain from times taken alternately, pair by pair: higher is better."""
    return spread([a / b for a, b in zip(plain, ours, strict=True)])


def report(output: Path, seeds: Sequence[int], rows: Sequence[dict[str, Any]], **figures: Any) -> None:
    """Writes and prints a result.

    Args:
        output: JSON file.
        seeds: of the run.
        rows: the result's table: `figure` (what, with its unit), and `plain`, `ours`, `ratio`, `target` as they apply.
        figures: everything else.
    """
    origin = provenance()
    result = {
        **origin,
        "hardware": {**origin["hardware"], "threads": torch.get_num_threads()},
        "seeds": list(seeds),
        "date": time.strftime("%Y-%m-%d"),
        "rows": list(rows),
        **figures,
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    write_json(output, result)
    print(json.dumps({"rows": result["rows"], **figures}, indent=2))
    print(f"written to {output}")
