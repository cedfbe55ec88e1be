# Two commands: `make demo` and `make test`. Both set up everything they need, and are quick the second time.
SHELL := /bin/bash
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# A plain `torch` requirement takes CUDA builds of several GB; on machines without a GPU this one is enough.
TORCH ?= $(shell command -v nvidia-smi >/dev/null 2>&1 && echo 'torch>=2.11' || echo 'torch==2.13.0')
WORKSPACE ?= workspace
PORT ?= 8050
SERVE ?= 1
# Workers of one thread use cores better than threads do; the third works while others wait for a browser or a child.
# tests/conftest.py says what comes first, which xdist would order by the number of tests.
PYTEST_ARGS ?= -n 3 --dist loadfile --no-loadscope-reorder
# Python compiles what is imported, when it is, and keeps it, also where the environment says not to: to compile all 24,000
# files takes one core about a hundred seconds, and every worker and child would compile anew what it imports.
export PYTHONDONTWRITEBYTECODE :=
PIP_INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile
EDITABLE = $(PIP_INSTALL) --no-build-isolation --config-settings editable_mode=strict
# What a strict editable install depends on: the names of the Python files.
FILES = git ls-files -co --exclude-standard '*.py' | sort | sha256sum
SOURCES = $(shell git ls-files '*.py' 2>/dev/null || find . -name '*.py' -not -path './$(VENV)/*')

.PHONY: demo test lint check-types unit notebooks all-tests browser install clean docs
.DEFAULT_GOAL := help

help:
	@echo "make demo            install, run the whole job on the embedded models, open http://127.0.0.1:$(PORT)"
	@echo "make demo SERVE=0    the same, without the server"
	@echo "make test            install, lint, type-check, run all tests and notebooks"
	@echo "make docs            write docs/workspace.md and docs/glossary.md anew from the code"

$(VENV)/.torch:
	$(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) '$(TORCH)'
	@touch $@

# Dependencies change with pyproject.toml alone.
$(VENV)/.dependencies: pyproject.toml $(VENV)/.torch
	$(PIP_INSTALL) 'setuptools>=77'
	$(EDITABLE) -e '.[test]' && $(FILES) > $(VENV)/.files
	@touch $@

# The strict editable install links files one by one (type checkers follow it), so new files need it again.
$(VENV)/.installed: $(VENV)/.dependencies $(SOURCES)
	@if [ "$$($(FILES))" != "$$(cat $(VENV)/.files 2>/dev/null)" ]; then \
	  $(EDITABLE) --no-deps -e . && $(FILES) > $(VENV)/.files; fi
	@touch $@

install: $(VENV)/.installed

demo: install
	$(BIN)/attlas demo --workspace $(WORKSPACE) --port $(PORT) $(if $(filter 0,$(SERVE)),--no-serve,)

# Chromium for the browser tests, where the system has none and apt can install it.
browser:
	@command -v chromium >/dev/null 2>&1 || command -v chromium-browser >/dev/null 2>&1 || \
	  command -v google-chrome >/dev/null 2>&1 || \
	  { command -v apt-get >/dev/null 2>&1 && [ "$$(id -u)" = 0 ] && \
	    apt-get update -q >/dev/null && DEBIAN_FRONTEND=noninteractive apt-get install -y -q chromium >/dev/null; } || \
	  echo "no Chromium here and no right to install one: browser tests will be skipped"

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# From the installed tree: in the checkout's root mypy would see the folder attlas/ alone, and pass over the other rooms.
check-types: install
	cd build/__editable__.attlas-* && $(abspath $(BIN))/mypy --config-file $(CURDIR)/pyproject.toml \
	  --cache-dir $(CURDIR)/.mypy_cache -p attlas

unit: install browser
	OMP_NUM_THREADS=1 $(BIN)/pytest $(PYTEST_ARGS)

# Every notebook, executed from top to bottom.
NBMAKE = --nbmake --nbmake-timeout=600 --timeout=900
notebooks: install
	OMP_NUM_THREADS=1 $(BIN)/pytest $(NBMAKE) $(PYTEST_ARGS) notebooks

# `unit` and `notebooks` by one call, so that no worker ends long before the others.
all-tests: install browser
	@$(BIN)/python -W ignore -c 'import dash, lm_eval, sae_lens, transformer_lens' # compiled once, not by each worker
	OMP_NUM_THREADS=1 $(BIN)/pytest $(NBMAKE) $(PYTEST_ARGS) notebooks tests

# Chromium is installed beside the packages, and types are checked, on one core, while tests run.
test:
	$(MAKE) --no-print-directory -j 2 lint check-types all-tests

docs: install
	$(BIN)/python -m attlas.analyses.table_docs docs/workspace.md
	$(BIN)/python -m attlas.data.glossary docs/glossary.md

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
