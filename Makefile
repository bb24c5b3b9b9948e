# What a contributor runs; `make help` lists it. Every target first sees to the environment.

PYTHON ?= python3
PYTEST_ARGS ?=

VENV := .venv
RUN := $(VENV)/bin/python
STAMP := $(VENV)/.installed
EXTRAS := test,lint,docs,plots,progress

# Sound: its Python starts and finds the package, which pip installs last, in this very checkout.
SOUND := $(shell $(RUN) -I -c 'import importlib.util as u, os; \
	os.path.samefile(u.find_spec("featprop_sklearn").origin, "featprop_sklearn/__init__.py") \
	and print("yes")' 2>/dev/null)
ifneq ($(SOUND),yes)
.PHONY: $(STAMP)
endif

.DEFAULT_GOAL := help
.PHONY: help setup quickstart test lint format docs

help:  ## List the targets
	@sed -n 's/^\([a-z]*\):.*## /  \1\t/p' $(MAKEFILE_LIST) | expand -t 16

setup: $(STAMP)  ## Create .venv, or bring it up to date

quickstart: setup  ## Run examples/quickstart.py
	$(RUN) examples/quickstart.py

test: lint docs  ## Lint, build the docs, then run the tests (PYTEST_ARGS="tests/inversion -x" narrows them)
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n 2 --dist worksteal $(PYTEST_ARGS)

lint: setup  ## Check style, types, import direction and docstrings
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy
	$(VENV)/bin/lint-imports --no-logo
	$(RUN) -m numpydoc lint $$(find featprop_sklearn -name '*.py')

format: setup  ## Rewrite the files in the project's style
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

docs: setup  ## Build docs/_build/html; warnings are errors (DOCS_RUN_GALLERY=1 runs the examples)
	$(RUN) -m sphinx -W --keep-going -b html docs docs/_build/html

# torch goes first and alone: the constraint then picks the CPU build before anything asks for another.
$(STAMP): pyproject.toml constraints.txt featprop_sklearn/version.py
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else \
	"Python >= 3.11 is needed, $(PYTHON) is " + sys.version.split()[0] + ": make PYTHON=/path/to/python3.11")'
ifneq ($(SOUND),yes)
	$(PYTHON) -m venv --clear $(VENV)
endif
	$(RUN) -m pip install -c constraints.txt torch
	$(RUN) -m pip install -c constraints.txt -e '.[$(EXTRAS)]'
	@touch $@
