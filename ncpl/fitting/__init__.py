"""Fits the law, its residual, its calibration and the baselines to run logs; deterministic under a seed."""

from ncpl.fitting.baselines import baseline_forecasts, fit_chinchilla, fit_kaplan
from ncpl.fitting.calibrate import calibrate, cross_validate_divergence, fit_calibration, trees_of
from ncpl.fitting.law import Fit, example_rows, fit, fit_prior, random_folds

__all__ = [
    "Fit",
    "baseline_forecasts",
    "calibrate",
    "cross_validate_divergence",
    "example_rows",
    "fit",
    "fit_calibration",
    "fit_chinchilla",
    "fit_kaplan",
    "fit_prior",
    "random_folds",
    "trees_of",
]
