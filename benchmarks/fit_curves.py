"""Fits the law of loss curves that the embedded default carries, to every logged curve at hand.

    python -m benchmarks.fit_curves ncpl/checkpoints/ncpl-mini

The final loss that each run's curve is measured against is forecast by a configuration law that has not seen the run.
"""

import argparse
from pathlib import Path

from benchmarks.common import data_folder
from benchmarks.lab_curves import curve_run, multipowerlaw, olmo, with_forecasts, xlstm
from ncpl.curves import save_law
from ncpl.fitting.curves import fit_curves


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of the checkpoint that receives curves.safetensors")
    folder, data = parser.parse_args().folder, data_folder()
    rows = [*with_forecasts(xlstm(data)), *olmo(data), *multipowerlaw(data)]
    save_law(fit_curves([curve_run(row) for row in rows]), folder)
    print(f"{folder}: {len(rows)} curves")


if __name__ == "__main__":
    main()
