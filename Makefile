# `make forecast` and `make test` need nothing but Python >= 3.11 and a package registry.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

# Real run logs, for what is fitted to them.
LOGS ?= ../shared/data

.PHONY: forecast test test-slow lint ncpl-mini tables clean

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
	$(BIN)/python -m pytest -m "not slow" -n 2

test-slow: $(VENV)/.dev
	$(BIN)/python -m pytest -m slow

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The embedded default, from its recipe: trained, evaluated, with its card.
MINI := ncpl/checkpoints/ncpl-mini
ncpl-mini: $(VENV)/.dev
	$(BIN)/accelerate launch run_train.py recipes/ncpl-mini.yaml --data.data_dir $(LOGS) --output_dir outputs/ncpl-mini
	cp outputs/ncpl-mini/*.json outputs/ncpl-mini/*.safetensors outputs/ncpl-mini/recipe.yaml $(MINI)/
	$(BIN)/ncpl evaluate --data-dir $(LOGS) --output $(MINI)/evaluation.json --figure docs/figures/accuracy.png \
		--calibration $(MINI)/calibration.png
	rm -f $(MINI)/widget.json
	$(BIN)/ncpl card $(MINI) ncpl-mini

tables: $(VENV)/.dev
	$(BIN)/python benchmarks/tables.py

clean:
	rm -rf $(VENV) build dist *.egg-info
