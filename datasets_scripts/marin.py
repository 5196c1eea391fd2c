"""Marin's optimizer sweep: 12 optimizers x hyper-parameter ablations x model size x data size."""

from datasets_scripts.runs import RunsBuilder, main


class Marin(RunsBuilder):
    """The Marin runs: Llama models on the DCLM mix, context 4096, loss on C4-en.

    >>> from datasets_scripts import SAMPLE_DIR
    >>> Marin(data_dir=SAMPLE_DIR, config_name="intermediate").config.name
    'intermediate'
    """

    SOURCE = "marin"
    CURVE_KEYS = ("c4en_steps", "c4en_losses")
    HOMEPAGE = "https://github.com/WhenWen/marin"
    DESCRIPTION = (
        "Pretraining runs of Marin's optimizer study (github.com/WhenWen/marin), as read by NCPL (arXiv 2602.10300): "
        "32-layer Llama models on the DCLM mix, sequences of 4096 tokens; the loss is the evaluation loss on C4-en."
    )


if __name__ == "__main__":
    main("marin")
