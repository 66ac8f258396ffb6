# Every target makes what it needs first: a fresh machine has only Python >= 3.11, make and a network.
PYTHON ?= python3
BIN := .venv/bin
SETUP := .venv/.made-for-this-pyproject
PYTEST := $(BIN)/python -m pytest
FAST := not engine and not wheel and not system and not gpu

.PHONY: help setup lint format test test-fast test-all environments demo bench docs wheel clean

help:  ## show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

$(SETUP): pyproject.toml requirements.lock hatch_build.py $(wildcard llmtier/score/_native*.[ch])
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check 'pip>=25.1'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c requirements.lock --group dev --editable .
	@touch $@

setup: $(SETUP)  ## make .venv with the package and the development tools

lint: $(SETUP)  ## formatting, ruff, mypy, import contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(SETUP)  ## let ruff rewrite what it can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

test-fast: $(SETUP)  ## unit tests, no engine, < 90 s
	$(PYTEST) -m "$(FAST)"

environments: $(SETUP)  # the isolated environments that the real-engine tests and the demo run in
	$(BIN)/llmtier env install engine-cpu
	$(BIN)/llmtier env install quantize
	$(BIN)/llmtier env install embed

test: environments  ## unit tests and the real vLLM on this CPU
	$(PYTEST) -m "not system and not gpu"

test-all: environments  ## all of it, with what needs Debian or npm packages, and the archived AutoAWQ
	$(BIN)/llmtier env install autoawq
	$(PYTEST) -m "not gpu"

demo: environments  ## the whole loop on the real vLLM; writes build/demo/
	$(BIN)/llmtier demo

bench: $(SETUP)  ## every benchmark; results in benchmarks/results/
	for file in benchmarks/*.py; do $(BIN)/python $$file --json benchmarks/results/$$(basename $$file .py).json || exit $$?; done

docs: $(SETUP)  ## the documentation site in site/, links checked
	$(BIN)/python scripts/write_cli_docs.py --check
	$(BIN)/mkdocs build --strict

wheel: $(SETUP)  ## the wheel in dist/
	$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir dist .

clean:  ## remove what make made
	rm -rf .venv build dist site .mypy_cache .ruff_cache .pytest_cache .hypothesis
