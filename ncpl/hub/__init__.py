"""The Hugging Face Hub: pushing, cards, and published checkpoints.

`push` sends checkpoints, adapters, data sets and the Space; `cards` writes their cards; `convert` reads the published
checkpoints.
"""

from ncpl.hub.bundle import ROOT
from ncpl.hub.push import Pushed, PushOptions, push, push_code, push_dataset, push_files, push_space

__all__ = ["ROOT", "PushOptions", "Pushed", "push", "push_code", "push_dataset", "push_files", "push_space"]
