# Every target works on a fresh clone: the virtual environment is created when it is missing.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: help setup quickstart results bench test test-slow docs browser lint style clean

help:
	@echo "make setup       create the virtual environment $(VENV) with pinned versions"
	@echo "make quickstart  train an RNN on Python's standard library, all five stages (5 minutes)"
	@echo "make test        run the tests"
	@echo "make test-slow   run the tests that take minutes"
	@echo "make browser     install onnxruntime-web, for the test of exported RNNs in a browser"
	@echo "make test-faults damage files, forge them, kill commands: 11,000 cases (an hour or more on one core)"
	@echo "make lint        check style, types and import layers"
	@echo "make style       reformat, and fix what can be fixed automatically"
	@echo "make results     compare SMT with BPTT, for docs/results.md (2 hours on two cores; FULL=1: days)"
	@echo "make bench       measure the tables of docs/benchmarks.md (50 minutes)"
	@echo "make docs        build the site of the documentation, in build/site"
	@echo "make clean       remove the virtual environment, caches and the pipelines' artifacts"

setup: $(VENV)/installed

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "smtkit needs Python 3.11 or newer; name one: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

quickstart: setup
	$(MAKE) --no-print-directory -C pipelines/quickstart SMTKIT=$(abspath $(BIN))/smtkit PYTHON=$(abspath $(BIN))/python

results: setup
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev,results]'
	$(MAKE) --no-print-directory -C pipelines/results PYTHON=$(abspath $(BIN))/python

# The libraries that we compare with are installed without their dependencies, into an environment that
# also sees the packages of $(VENV): otherwise they would install another version of torch.
RIVALS := build/rivals/bin

bench: setup $(RIVALS)/installed
	$(BIN)/python benchmarks/labels.py --others $(RIVALS)/python
	$(BIN)/python benchmarks/extraction.py
	$(BIN)/python benchmarks/training.py
	$(BIN)/python benchmarks/training.py --widths 64 256 512 --lengths 256 --methods smt bptt --updates 1
	$(BIN)/python benchmarks/memory.py
	$(BIN)/python benchmarks/cost.py
	$(BIN)/python benchmarks/generation.py
	$(BIN)/python benchmarks/tokenization.py

$(RIVALS)/installed: benchmarks/rivals.txt | setup
	$(PYTHON) -m venv build/rivals
	$(abspath $(BIN))/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > "$$($(RIVALS)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/smtkit.pth"
	$(RIVALS)/pip install --quiet --disable-pip-version-check --no-deps --requirement $<
	touch $@

docs: setup
	$(BIN)/mkdocs build --quiet --strict

test: setup
	$(BIN)/pytest

test-slow: setup
	$(BIN)/pytest -m slow

# For the test of the page in docs/export.md, which also needs Chromium.
browser:
	npm install --silent --no-audit --no-fund --prefix build/browser onnxruntime-web@1.30.0

test-faults: setup
	cd tests && OMP_NUM_THREADS=1 $(abspath $(BIN))/python -m faults $(FAULTS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

style: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build src/*.egg-info pipelines/*/artifacts .pytest_cache .mypy_cache .ruff_cache .hypothesis
