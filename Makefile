# Two commands matter: `make demo` and `make test`. Each sets up all it needs, without root.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
INSTALL := PIP_CONSTRAINT=constraints.txt $(PIP) install -c constraints.txt

.DEFAULT_GOAL := help
.PHONY: help demo demo-network test check bench figures wheels clean lock

help: ## Show this help
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] < (3, 11))' || \
		{ echo "Privet needs Python 3.11 or newer: make PYTHON=/path/to/python3.11 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.simulation: $(BIN)/python pyproject.toml constraints.txt
	@echo "installing Privet into $(VENV) (once, a minute or two)"
	$(INSTALL) -e '.[simulation]'
	@touch $@

$(VENV)/.dev: $(VENV)/.simulation
	@echo "installing what the checks and tests need (once)"
	$(INSTALL) -e '.[dev]'
	@touch $@

demo: $(VENV)/.simulation ## Run a whole federation on real handwriting, in under a minute
	$(BIN)/privet simulate examples/digits.toml

demo-network: $(VENV)/.simulation ## Run a federation of processes over TLS: enrol, train, release, update, predict
	rm -rf runs/network
	$(BIN)/python examples/network.py runs/network

check: $(VENV)/.dev ## Lint, types, layer rule
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Two processes, for two cores, that take about as long as one another.
APART := tests/server tests/deploy tests/simulations tests/test_benchmarks.py tests/test_readme.py
TESTS := tests
APART_LOG := .pytest-apart.log

test: check ## Run every check and test that CI runs
	@$(BIN)/python -m pytest -m 'not figures' $(APART) > $(APART_LOG) 2>&1 & apart=$$!; \
	trap 'kill $$apart 2>/dev/null' INT TERM; \
	$(BIN)/python -m pytest -m 'not figures' $(TESTS) $(addprefix --ignore=,$(APART)); rest=$$?; \
	wait $$apart; apart=$$?; cat $(APART_LOG); exit $$((rest || apart))

bench: $(VENV)/.dev ## Measure speed beside the peer, as ratios
	$(BIN)/python -m benchmarks

figures: $(VENV)/.dev ## Run the full counts and show the figures that the documents quote
	$(BIN)/python -m pytest -m figures -s

wheels: $(VENV)/.dev ## Ask the index for the aarch64 wheels that docs/deployment.md names
	$(BIN)/python deploy/check_wheels.py

lock: ## Write constraints.txt anew from a fresh environment
	rm -rf $(VENV)-lock && $(PYTHON) -m venv $(VENV)-lock
	$(VENV)-lock/bin/python -m pip install --quiet -e '.[dev]'
	$(VENV)-lock/bin/python -m pip freeze --exclude-editable --exclude pip --exclude setuptools \
		| sed -E 's/\+cpu$$//; s/ @ .*//' > constraints.txt
	rm -rf $(VENV)-lock

clean: ## Remove the environment, caches and runs
	rm -rf $(APART_LOG) $(VENV) $(VENV)-lock build dist runs .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
