# `make forecast` and `make test` need nothing but Python >= 3.11 and a package registry.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: forecast test test-slow lint cards clean

$(BIN)/ncpl: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[plots]"
	touch $@

$(VENV)/.dev: $(BIN)/ncpl
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

forecast: $(BIN)/ncpl
	HF_HUB_OFFLINE=1 $(BIN)/ncpl predict examples/marin-1b.yaml examples/steplaw-1b.yaml

test: $(VENV)/.dev lint
	$(BIN)/python -m pytest -m "not slow"

test-slow: $(VENV)/.dev
	$(BIN)/python -m pytest -m slow

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) build dist *.egg-info
