"""Marin's optimizer sweep: 12 optimizers x hyper-parameter ablations x model size x data size."""

from datasets_scripts.builder import RunsBuilder
from datasets_scripts.public import PublicFiles


class Marin(RunsBuilder):
    """The Marin runs: Llama models on the DCLM mix, context 4096, loss on C4-en.

    >>> from datasets_scripts import SAMPLE_DIR
    >>> Marin(data_dir=SAMPLE_DIR, config_name="intermediate").config.name
    'intermediate'
    """

    SOURCE = "marin"
    PUBLIC = PublicFiles(
        "zhqwqwq/Configuration-to-Performance-Scaling-Law",
        "4f6e64b0144ec0fa8070a4398e3aebe33a8b11b1",
        {
            "runs": ("processed_data/marin_processed_data.json", "76f470b36688e18973d9726bc8eba4a6be752530"),
            "splits": ("processed_data/keys/marin_keys_model_split.json", "93d516aa2e63de8ddd366f451ed05042d241dfdf"),
        },
    )
    CURVE_KEYS = ("c4en_steps", "c4en_losses")
    HOMEPAGE = "https://github.com/WhenWen/marin"
    DESCRIPTION = (
        "Pretraining runs of Marin's optimizer study (github.com/WhenWen/marin), as read by NCPL (arXiv 2602.10300): "
        "32-layer Llama models on the DCLM mix, sequences of 4096 tokens; the loss is the evaluation loss on C4-en."
    )


if __name__ == "__main__":
    from datasets_scripts.runs import main

    main("marin")
