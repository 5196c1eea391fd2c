"""Step Law's grid: dense AdamW runs over learning rate x batch size x model size x data size (arXiv 2503.04715)."""

from datasets_scripts.builder import RunsBuilder
from datasets_scripts.public import PublicFiles


class StepLaw(RunsBuilder):
    """The dense Step Law runs: sequences of 2048 tokens, loss is the smoothed training loss.

    >>> from datasets_scripts import SAMPLE_DIR
    >>> StepLaw(data_dir=SAMPLE_DIR).config.name
    'final'
    """

    SOURCE = "steplaw"
    PUBLIC = PublicFiles(
        "zhqwqwq/Configuration-to-Performance-Scaling-Law",
        "4f6e64b0144ec0fa8070a4398e3aebe33a8b11b1",
        {
            "runs": ("processed_data/steplaw_processed_data.json", "9efa8d0e9a2012bd5676bafa2de8e6184e1c4334"),
            "splits": ("processed_data/keys/steplaw_keys_model_split.json", "64da361fe7ecbae913fbb61159dd9c4b6cd9cdf7"),
        },
    )
    CURVE_KEYS = ("smoothed_loss_steps", "smoothed_loss")
    HOMEPAGE = "https://github.com/step-law/steplaw"
    DESCRIPTION = (
        "Dense pretraining runs of Step Law (github.com/step-law/steplaw, arXiv 2503.04715), as read by NCPL (arXiv "
        "2602.10300): a grid of learning rates and batch sizes (sequences of 2048 tokens) for each model and data "
        "size; the loss is the smoothed training loss. Constant in all runs: AdamW with betas 0.9 and 0.95, epsilon "
        "1e-8, weight decay 0.1, clipping at 1.0, 2000 warmup steps, cosine to `min_lr`."
    )


if __name__ == "__main__":
    from datasets_scripts.runs import main

    main("steplaw")
