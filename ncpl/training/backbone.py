"""A small backbone from scratch: its tokenizer, trained on the prompts, and its dimensions."""

from collections.abc import Iterable, Mapping
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from fields_ncpl import FIELDS
from processing_ncpl import branch_pieces, prefix_pieces


def train_tokenizer(
    configs: Iterable[Mapping[str, Any]], prompt_version: int = 2, vocab_size: int = 1024
) -> PreTrainedTokenizerFast:
    """Byte-level BPE over the prompts' text pieces: a frequent piece becomes one token, and any text has an encoding.

    Args:
        configs: checked configurations (`fields_ncpl.check_config`).
        prompt_version: of the prompts to come.
        vocab_size: upper bound on the number of tokens.

    >>> config = {"source": "marin", "max step": 100}
    >>> train_tokenizer([config] * 2).tokenize("source: marin\\n")
    ['source:ĠmarinĊ']
    """
    tokenizer = Tokenizer(models.BPE())
    # No regular expression: a piece such as "learning rate: " may become a single token.
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        # The number token has id 0, as in the published prompt.
        special_tokens=["<number>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(configs, prompt_version), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", model_max_length=1024)


def _texts(configs: Iterable[Mapping[str, Any]], prompt_version: int) -> Iterable[str]:
    labels = [f"{field.prompt_label}: " for field in FIELDS.values()]
    questions = [
        piece for step in (None, 1) for piece in branch_pieces({"max step": 1}, step) if isinstance(piece, str)
    ]
    # Twice, the trainer's minimum: labels that no training run uses are still one token.
    yield from 2 * (labels + questions)
    for config in configs:
        yield from (piece for piece in prefix_pieces(config, prompt_version) if isinstance(piece, str))


def scratch_config(vocab_size: int, hidden_size: int, num_layers: int, num_heads: int) -> dict[str, Any]:
    """A `text_config` in Qwen3's shape for a backbone trained from scratch: feed-forward three times the width.

    >>> scratch_config(512, 64, 2, 4)["intermediate_size"]
    192
    """
    return {
        "model_type": "qwen3",
        "vocab_size": vocab_size,
        "hidden_size": hidden_size,
        "intermediate_size": 3 * hidden_size,
        "num_hidden_layers": num_layers,
        "num_attention_heads": num_heads,
        "num_key_value_heads": max(1, num_heads // 2),
        "head_dim": hidden_size // num_heads,
        "max_position_embeddings": 1024,
        "tie_word_embeddings": True,
        "pad_token_id": 1,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    }
