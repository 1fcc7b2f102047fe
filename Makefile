# Everything a fresh machine with Python 3.11 (or newer) needs. The first target that runs sets up .venv.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed
export OMP_WAIT_POLICY ?= PASSIVE
export GOMP_SPINCOUNT ?= 0

.PHONY: demo test test-all lint format train bench clean help
.DEFAULT_GOAL := help

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

demo: $(STAMP)  ## verify the digit classifier in examples/ and show the certificates
	$(PY) examples/verify_digits.py

test: $(STAMP)  ## run the tests, except those marked slow
	$(PY) -m pytest -q -n auto --maxprocesses 8 --dist worksteal -m "not slow"

test-all: $(STAMP)  ## run every test
	$(PY) -m pytest -q -n auto --maxprocesses 8 --dist worksteal

lint: $(STAMP)  ## ruff and mypy, with the project's own versions
	$(PY) -m ruff check .
	$(PY) -m mypy

format: $(STAMP)  ## let ruff sort imports and fix what it can
	$(PY) -m ruff check --fix .

train: $(STAMP)  ## train the example network again (writes examples/digits/)
	$(PY) examples/train_digits.py

bench: $(STAMP)  ## the speed table (see benchmarks/)
	$(PY) -m benchmarks.speed

$(STAMP): setup.py pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed")'
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet -c constraints.txt -e ".[test]"
	@touch $@

clean:  ## remove the environment and every cache
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
