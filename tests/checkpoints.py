"""Tiny checkpoints to test with, and processes in which this project is not importable."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from configuration_ncpl import NCPLConfig
from modeling_ncpl import PUBLISHED_PREFIXES, NCPLForecaster
from ncpl.training.backbone import scratch_config, train_tokenizer
from processing_ncpl import NCPLProcessor

ADAMW = {
    "source": "marin",
    "model size": 134,
    "data size": 2.7,
    "optimizer": "adamw",
    "learning rate": 2e-3,
    "batch size": 128,
}
# Prompts of different lengths, so that batches of them are padded.
CONFIGS = [
    ADAMW,
    {**ADAMW, "warmup": 500, "weight decay": 0.1, "beta1": 0.95},
    {**ADAMW, "source": "steplaw", "learning rate": 1e-3, "max_grad_norm": 1},
]

HIDE_PROJECT = """
import sys
class Hidden:
    names = {names!r}
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.names:
            raise ModuleNotFoundError(f"{{name}} is hidden", name=name)
sys.meta_path.insert(0, Hidden())
"""


def tiny_model(**fields: Any) -> NCPLForecaster:
    """Random weights, far enough from zero for every path to show in the output."""
    torch.manual_seed(0)
    model = NCPLForecaster(NCPLConfig(text_config=scratch_config(400, 32, 2, 2), prompt_version=2, **fields))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model.eval()


def tiny_processor(**fields: Any) -> NCPLProcessor:
    return NCPLProcessor(train_tokenizer(CONFIGS, vocab_size=400), **{"prompt_version": 2, **fields})


def save_tiny(folder: Path) -> tuple[NCPLForecaster, NCPLProcessor]:
    model, processor = tiny_model(), tiny_processor()
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return model, processor


def published_weights() -> dict[str, torch.Tensor]:
    """A tiny model's weights under the published names."""
    old = {new: old for old, new in PUBLISHED_PREFIXES.items()}
    renamed = {}
    for name, value in tiny_model().state_dict().items():
        prefix = next(prefix for prefix in old if name.startswith(prefix))
        renamed[old[prefix] + name.removeprefix(prefix)] = value
    return renamed


def losses_by_hand(model: NCPLForecaster, processor: NCPLProcessor, config: dict[str, Any]) -> float:
    """Prior plus the logit one position before the last token, for one configuration alone."""
    batch = processor(config)
    with torch.no_grad():
        residual = model(**batch).logits[0, -2].item()
    return float(processor.law([config])[0]) + residual


def fresh_process(code: str, *args: str | Path, home: Path, **env: str) -> Any:
    """Runs code where nothing of this project can be imported, with empty caches in `home`; its last line as JSON."""
    root = Path(__file__).parent.parent
    names = {path.stem for path in root.glob("*.py")} | {"ncpl", "datasets_scripts", "tests"}
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "OMP_NUM_THREADS") if name in os.environ}
    done = subprocess.run(
        [sys.executable, "-P", "-c", HIDE_PROJECT.format(names=names) + code, *map(str, args)],
        cwd=home,
        env=kept | {"HF_HOME": str(home), "HF_HUB_DISABLE_PROGRESS_BARS": "1", "PYTHONWARNINGS": "ignore"} | env,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])
