"""Step Law's grid: dense AdamW runs over learning rate x batch size x model size x data size (arXiv 2503.04715)."""

from datasets_scripts.runs import RunsBuilder, main


class StepLaw(RunsBuilder):
    """The dense Step Law runs: sequences of 2048 tokens, loss is the smoothed training loss.

    >>> from datasets_scripts import SAMPLE_DIR
    >>> StepLaw(data_dir=SAMPLE_DIR).config.name
    'final'
    """

    SOURCE = "steplaw"
    CURVE_KEYS = ("smoothed_loss_steps", "smoothed_loss")
    HOMEPAGE = "https://github.com/step-law/steplaw"
    DESCRIPTION = (
        "Dense pretraining runs of Step Law (github.com/step-law/steplaw, arXiv 2503.04715), as read by NCPL (arXiv "
        "2602.10300): a grid of learning rates and batch sizes (sequences of 2048 tokens) for each model and data "
        "size; the loss is the smoothed training loss. Constant in all runs: AdamW with betas 0.9 and 0.95, epsilon "
        "1e-8, weight decay 0.1, clipping at 1.0, 2000 warmup steps, cosine to `min_lr`."
    )


if __name__ == "__main__":
    main("steplaw")
