"""The whole road over the Hub, on made-up runs: train, push, load, adapt with LoRA, push the adapter, load it.

    hf auth login
    python examples/hub_roundtrip.py OWNER

Both repositories are private. The last line printed is JSON: the repositories and what they forecast.
"""

import argparse
import json
import sys
from pathlib import Path

from transformers import AutoModel, AutoProcessor, pipeline

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import run_train  # noqa: E402
from ncpl.hub import push  # noqa: E402
from ncpl.hub.cards import EXAMPLES  # noqa: E402

QUICKSTART = str(ROOT / "recipes" / "quickstart.yaml")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("owner", help="your name on the Hub, or an organisation's")
    parser.add_argument("--folder", type=Path, default=Path("outputs/roundtrip"), help="for both trained models")
    parser.add_argument("--epochs", default="5", help="of each training (default: %(default)s)")
    given = parser.parse_args()
    config = next(iter(EXAMPLES.values()))
    base, adapter = f"{given.owner}/ncpl-roundtrip", f"{given.owner}/ncpl-roundtrip-lora"

    # 1. Train and push.
    trained = given.folder / "base"
    run_train.main([QUICKSTART, "--output_dir", str(trained), "--stages.full.epochs", given.epochs])
    pushed = push(trained, base, private=True)
    print(f"pushed {pushed}")

    # 2. Load what was pushed, at its commit.
    forecast = pipeline("scaling-forecast", model=base, revision=pushed.commit, trust_remote_code=True)(config)

    # 3. Adapt it: low-rank adapters over the repository's model, pushed by the training itself.
    run_train.main(
        [
            QUICKSTART,
            *("--output_dir", str(given.folder / "adapter"), "--push_to_hub", adapter),
            *("--model.scratch", "null", "--model.checkpoint", base),
            *("--model.prompt_version", "null", "--model.number_embedding", "null"),  # the checkpoint's own
            *("--stages.frozen", "null", "--stages.full.epochs", given.epochs, "--stages.full.lora", "{r: 4}"),
        ]
    )

    # 4. Load the adapter: transformers finds its base by itself.
    model = AutoModel.from_pretrained(adapter, trust_remote_code=True)
    processor = AutoProcessor.from_pretrained(adapter, trust_remote_code=True)
    batch = processor(config)
    adapted = processor.losses(model(**batch).logits, batch["loss_mask"], [config]).item()
    print(json.dumps({"base": base, "forecast": forecast["loss"], "adapter": adapter, "adapted": adapted}))


if __name__ == "__main__":
    main()
