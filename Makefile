# Everything a fresh clone needs: each target makes the virtual environment when it is missing.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: help setup quickstart results bench test test-slow lint style clean

help:
	@echo "make setup       a virtual environment in $(VENV), with exact versions"
	@echo "make quickstart  text to a trained RNN, all five stages, in minutes"
	@echo "make results     SMT against BPTT: CORE=1 in two hours on two cores, FULL=1 in days"
	@echo "make bench       the tables of docs/benchmarks.md: ratios to named rivals, in three quarters of an hour"
	@echo "make test        the tests; test-slow: the long ones"
	@echo "make lint        check style, types and layers; style: rewrite what can be"
	@echo "make clean       remove what was built, also the pipelines' artifacts"

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

# The rivals get an environment of their own, which sees the packages of ours: their own list of
# dependencies would bring another torch.
RIVALS := build/rivals/bin

bench: setup $(RIVALS)/installed
	$(BIN)/python benchmarks/labels.py --others $(RIVALS)/python
	$(BIN)/python benchmarks/extraction.py
	$(BIN)/python benchmarks/training.py
	$(BIN)/python benchmarks/training.py --widths 64 256 512 --lengths 256 --methods smt bptt --updates 1
	$(BIN)/python benchmarks/bill.py
	$(BIN)/python benchmarks/generation.py
	$(BIN)/python benchmarks/tokenization.py

$(RIVALS)/installed: benchmarks/rivals.txt | setup
	$(PYTHON) -m venv build/rivals
	$(abspath $(BIN))/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > "$$($(RIVALS)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/smtkit.pth"
	$(RIVALS)/pip install --quiet --disable-pip-version-check --no-deps --requirement $<
	touch $@

test: setup
	$(BIN)/pytest

test-slow: setup
	$(BIN)/pytest -m slow

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
