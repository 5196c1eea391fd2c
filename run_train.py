"""Trains a forecaster by a recipe: `accelerate launch run_train.py recipes/NAME.yaml`; `--help` lists its keys."""

from ncpl.training.command import main

__all__ = ["main"]

if __name__ == "__main__":
    main()
