# `make forecast` and `make test` need nothing but Python >= 3.11 and a package registry.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

# Real run logs, for what is fitted to them.
LOGS ?= ../shared/data

# The newest torch whose CPU build CI's machines hold; a machine without such a build gets the registry's.
LOCKED_TORCH ?= 2.13.0

.PHONY: audit release embedded forecast test test-newest test-lowest test-slow app-test hardening test-install conformance lint lock ncpl-mini curves tables docs notebooks clean

# constraints.txt is the lock: exact versions of everything, on every platform and Python, made by `make lock`.
$(BIN)/ncpl: pyproject.toml setup.py constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[plots]"
	touch $@

$(VENV)/.dev: $(BIN)/ncpl
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

# The newest and the lowest versions that pyproject.toml allows, each in an environment of its own.
RESOLUTION_newest := highest
RESOLUTION_lowest := lowest-direct
$(VENV)-%/.dev: pyproject.toml setup.py
	$(PYTHON) -m venv --clear $(VENV)-$*
	$(VENV)-$*/bin/pip install --quiet uv
	$(VENV)-$*/bin/uv pip install --quiet --python $(VENV)-$* --resolution $(RESOLUTION_$*) \
		--requirements pyproject.toml --extra dev
	$(VENV)-$*/bin/uv pip install --quiet --python $(VENV)-$* --no-deps --editable .
	touch $@

forecast: $(BIN)/ncpl
	HF_HUB_OFFLINE=1 $(BIN)/ncpl predict examples/marin-1b.yaml examples/steplaw-1b.yaml

test: $(VENV)/.dev lint
	$(BIN)/python -m pytest -m "not slow" -n 2

test-newest test-lowest: test-%: $(VENV)-%/.dev
	$(VENV)-$*/bin/python -m pytest -m "not slow" -n 2

# transformers' own tests on our classes, from its source distribution at the installed version.
conformance: $(VENV)/.dev
	$(BIN)/python -m tests.conformance
	$(BIN)/python -m pytest tests/conformance -n 2

# A zip of the repository, a copied checkpoint, a wheel and a source distribution, each in an environment of its own.
test-install: $(VENV)/.dev
	$(BIN)/python -m pytest -m slow tests/test_install.py

lock: $(VENV)/.dev
	$(BIN)/pip install --quiet uv
	echo "torch==$(LOCKED_TORCH)" | $(BIN)/uv pip compile --quiet --upgrade --universal --all-extras --no-header --no-annotate \
		--no-emit-index-url --no-emit-find-links --constraint - --output-file constraints.txt pyproject.toml

test-slow: $(VENV)/.dev
	$(BIN)/python -m pytest -m slow

# The app in a real browser: Debian's chromium, axe-core for accessibility. Screenshots go to outputs/app.
app-test: $(VENV)/.dev
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[space]" playwright
	npm install --silent --no-save --prefix outputs/app axe-core
	$(BIN)/python -m pytest -m slow tests/app

# Slow proofs that nothing is lost, silently wrong or let in. Counts go to benchmarks/results/reliability.json.
hardening: $(VENV)/.dev
	$(BIN)/python -m tests.hardening.training_kills
	NCPL_PROPERTY_CASES=10000 $(BIN)/python -m pytest -q tests/test_properties.py
	$(BIN)/python -m tests.hardening.distributed
	$(BIN)/python -m tests.hardening.doors --cases 10000
	$(BIN)/python -m tests.hardening.arguments
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[fuzz]"
	$(BIN)/python -m tests.hardening.readers --seconds 1800
	$(BIN)/python -m tests.hardening.hub_serving --seconds 600
	$(BIN)/python -m pytest -q -m "slow or not slow" tests/test_hostile_checkpoints.py tests/test_training_safety.py
	NCPL_LOG_MB=300 $(BIN)/python -m pytest -q tests/test_malformed_logs.py

# Known vulnerabilities of the locked versions; a package that cannot be looked up fails it too.
$(VENV)/.release: $(VENV)/.dev
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[release]"
	touch $@

audit: $(VENV)/.release
	$(BIN)/pip-audit --strict --requirement constraints.txt --no-deps --disable-pip --progress-spinner off

# Tests, audit, then version, changelog, archives, SBOM, commit and tag: make release VERSION=0.2.0 [DRY_RUN=1]
release: test audit
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python tools/release.py $(VERSION) $(if $(DRY_RUN),--dry-run)

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

# The law of loss curves in the embedded default, from every logged curve at hand.
curves: $(VENV)/.dev
	NCPL_DATA_DIR=$(LOGS) $(BIN)/python -m benchmarks.fit_curves $(MINI)

# The embedded checkpoints' copies of the bundle's modules, after a change of one of them.
embedded: $(BIN)/ncpl
	$(BIN)/python -m ncpl.hub.embed

# Tables of README and docs from result files, and what the pages' commands print.
tables: $(VENV)/.dev
	$(BIN)/python benchmarks/tables.py
	$(BIN)/python -m tests.pages

# The documentation as a site, in `site/`; every command in it is run by tests/test_docs.py.
docs: $(VENV)/.dev
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[docs]"
	$(BIN)/mkdocs build --strict

# The notebooks, executed in place.
notebooks: $(VENV)/.dev
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[notebooks]"
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n 0 --nbmake --overwrite notebooks

clean:
	rm -rf $(VENV) $(VENV)-newest $(VENV)-lowest build dist *.egg-info
