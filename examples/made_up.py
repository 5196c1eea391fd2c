"""Write this folder's made-up logs, of which no run happened: `python examples/made_up.py`.

`acme-runs.csv` is a lab's table of finished runs, `marin-1b-so-far.csv` the first third of the log of
`marin-1b.yaml`. The losses are those of the law at its prior means, in a lab of its own, with Gaussian noise.
"""

import csv
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np

from laws_ncpl import ConfigurationLaw
from ncpl import Forecaster
from ncpl.configs import read_configs

FOLDER = Path(__file__).parent
SEQ_LEN = 2048
NOISE = 0.004
# Million non-embedding parameters, layers, width.
SHAPES = ((85.0, 12, 768), (151.0, 12, 1024), (302.0, 24, 1024))


def acme_runs() -> Iterable[list[object]]:
    """Name, shape, tokens, batch, learning rate and final loss of a lab's runs."""
    random = np.random.default_rng(1)
    law = ConfigurationLaw.example()
    law = replace(law, common={**law.common, "E": 1.75, "logA": -0.5, "beta": 0.36, "lr": -0.2})
    yield [
        "name",
        "n_layers",
        "d_model",
        "params_no_embed",
        "tokens",
        "seq_len",
        "global_batch_size",
        "optimizer",
        "lr",
    ]
    for millions, layers, width in SHAPES:
        for tokens in (2.0, 6.0):
            for rate in (5e-4, 1e-3, 2e-3, 4e-3):
                config = {
                    "source": "acme",
                    "model size": millions,
                    "data size": tokens,
                    "optimizer": "adamw",
                    "learning rate": rate,
                    "batch size": 256,
                    "seq len": SEQ_LEN,
                    "hidden dim": width,
                }
                loss = law.closed_form([config])[0] + random.normal(0, NOISE)
                name = f"{millions:.0f}m-{tokens:.0f}b-lr{rate:g}"
                yield [
                    name,
                    layers,
                    width,
                    int(millions * 1e6),
                    int(tokens * 1e9),
                    SEQ_LEN,
                    256,
                    "adamw",
                    rate,
                    f"{loss:.4f}",
                ]


def run_so_far() -> Iterable[list[object]]:
    """Steps and losses of the first third of a run, a little worse than its forecast."""
    random = np.random.default_rng(2)
    config = read_configs([str(FOLDER / "marin-1b.yaml")])[0][0]
    curve = Forecaster.from_pretrained().curve(config, points=200)
    yield ["step", "loss"]
    for step, loss in curve[["step", "loss"]].to_numpy()[: len(curve) // 3]:
        yield [int(step), f"{loss + 0.02 + random.normal(0, NOISE):.4f}"]


def write(name: str, rows: Iterable[list[object]]) -> None:
    with (FOLDER / name).open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)


if __name__ == "__main__":
    head, *rows = acme_runs()
    write("acme-runs.csv", [[*head, "val_loss"], *rows])
    write("marin-1b-so-far.csv", run_so_far())
