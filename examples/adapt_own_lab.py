"""A lab's own runs, from its training to its forecaster on the Hub: train, import, adapt, forecast, push, load.

    hf auth login
    python examples/adapt_own_lab.py OWNER

The runs are tiny language models on a made-up corpus, trained and logged by transformers' Trainer; with yours, skip the
first step. The repository is private. The last line printed is JSON: the runs, the forecast of a larger one, and the
repository that gives it too.
"""

import argparse
import json
import sys
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments, set_seed

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from ncpl import Forecaster, import_runs  # noqa: E402
from ncpl.hub import push  # noqa: E402
from ncpl.logs.importer import report_lines  # noqa: E402

VOCABULARY, LENGTH, BATCH = 64, 32, 128


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("owner", help="your name on the Hub, or an organisation's")
    parser.add_argument("--folder", type=Path, default=Path("outputs/own_lab"), help="for the runs and the forecaster")
    given = parser.parse_args()

    # 1. Train: two sizes, two lengths.
    for width in (48, 64):
        for steps in (30, 60):
            train(given.folder / "runs" / f"width{width}-steps{steps}", width, steps)

    # 2. Import what Trainer logged: its last count of tokens is the data size, which no configuration of its states.
    # Plain tokens are told by their size, and converted to the field's unit, billions.
    runs = import_runs(given.folder / "runs", map={"num_input_tokens_seen": "data size"})
    for line in report_lines(runs.attrs["report"]):
        print("note:", line)
    print(runs[["name", "model size", "data size", "learning rate", "final_loss", "status"]])

    # 3. Adapt, and forecast a larger run: 0.1 million parameters and a million tokens.
    lab = Forecaster.from_pretrained().adapt(runs, source="own-lab")
    for warning in lab.report["warnings"]:
        print("note:", warning)
    config = {"source": "own-lab", "model size": 0.1, "data size": 0.001}
    forecast = lab.predict(config).iloc[0]
    lab.save_pretrained(given.folder / "forecaster")

    # 4. Push, and load what was pushed.
    pushed = push(given.folder / "forecaster", f"{given.owner}/own-lab", private=True)
    loaded = Forecaster.from_pretrained(f"{given.owner}/own-lab", revision=pushed.commit)
    again = loaded.predict(config).iloc[0]
    result = {
        "runs": len(runs),
        "losses": runs["final_loss"].round(4).tolist(),
        "forecast": forecast[["loss", "lower", "upper"]].to_dict(),
        "repository": f"{given.owner}/own-lab",
        "loaded": again[["loss", "lower", "upper"]].to_dict(),
    }
    print(json.dumps(result))


def train(folder: Path, width: int, steps: int) -> None:
    """One run as anyone would make it: Trainer's state, its arguments and the model's configuration are its log."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=LENGTH,
    )
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=BATCH,
        per_device_eval_batch_size=BATCH,
        learning_rate=1e-2,
        warmup_steps=10,
        lr_scheduler_type="cosine",
        include_num_input_tokens_seen="all",
        logging_steps=20,
        eval_strategy="no",
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        seed=0,
    )
    set_seed(arguments.seed)  # Trainer seeds what comes after it; the model is made before
    trainer = Trainer(LlamaForCausalLM(config), arguments, train_dataset=Corpus(0), eval_dataset=Corpus(1, 256))
    trainer.train()
    trainer.evaluate()
    trainer.save_state()
    config.save_pretrained(folder)
    (folder / "training_args.json").write_text(arguments.to_json_string(), encoding="utf-8")


class Corpus(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """Sequences of a Markov chain whose next token has eight choices of unequal chance."""

    def __init__(self, seed: int, sequences: int = 60 * BATCH) -> None:
        choices = torch.randint(VOCABULARY, (VOCABULARY, 8), generator=torch.Generator().manual_seed(7))
        draw = torch.Generator().manual_seed(seed)
        chances = 0.6 ** torch.arange(8.0)
        drawn = torch.multinomial(chances, sequences * LENGTH, replacement=True, generator=draw)
        drawn = drawn.view(sequences, LENGTH)
        self.tokens = torch.randint(VOCABULARY, (sequences, LENGTH), generator=draw)
        for i in range(1, LENGTH):
            self.tokens[:, i] = choices[self.tokens[:, i - 1], drawn[:, i]]

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.tokens[i], "labels": self.tokens[i]}


if __name__ == "__main__":
    main()
