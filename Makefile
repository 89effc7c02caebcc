# Everything a developer or CI runs. Each target makes .venv first if it is missing or out of date.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

KERNELS := setup.py $(wildcard src/evenflow/execution/kernels/native/build.py src/evenflow/execution/kernels/native/source/*)
BENCHMARKS := $(wildcard benchmarks/[a-z]*.py)

# Tests run beside each other, a file at a time: one thread for each of them, and those who wait for
# others sleep soon instead of holding a core.
PYTEST := $(BIN)/pytest --numprocesses auto --maxprocesses 4 --dist loadfile
test check: export OMP_NUM_THREADS ?= 1
test check: export GOMP_SPINCOUNT ?= 1000

.PHONY: help setup demo test lint check bench docs format clean
.DEFAULT_GOAL := help

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

setup: $(INSTALLED) ## create .venv and install evenflow with all it needs for development

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("evenflow needs Python 3.11 or newer, and $(PYTHON) is " + sys.version.split()[0] + ": use make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)

$(INSTALLED): pyproject.toml constraints.txt $(KERNELS) | $(BIN)/python
	@echo "Installing into $(VENV) (the first time takes some minutes)"
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $@

demo: setup ## eight chats at once through a small real model
	@$(BIN)/python examples/demo.py

test: setup ## all tests
	$(PYTEST)

lint: setup ## format, lint, types, imports, spelling, generated docs
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/deptry src
	$(BIN)/typos
	$(BIN)/python docs/generate.py --check

check: lint ## all that `lint` does, and the fast tests
	$(PYTEST) -m "not slow and not model and not browser and not prometheus"

bench: setup ## every benchmark, in its short form
	@set -e; for benchmark in $(BENCHMARKS); do $(BIN)/python $$benchmark --quick; done

docs: setup ## rewrite the generated parts of docs/
	$(BIN)/python docs/generate.py

format: setup ## format the code and apply safe fixes
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean: ## remove .venv and all caches
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find src tests docs benchmarks examples -name __pycache__ -prune -exec rm -rf {} +
