"""Forecast what an LLM pretraining run will give, before it is run."""

__version__ = "0.1.0"
