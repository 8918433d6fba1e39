# make demo   from a clean clone to the main job's result
# make test   lint, types, import layers and all tests
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# For a package index of your own, or PyTorch's index of CPU wheels: make demo PIP_ARGS="--extra-index-url ..."
PIP_ARGS ?=

.PHONY: demo test test-serve test-gpu lint setup clean
.DEFAULT_GOAL := help

help:
	@grep -E '^# make' Makefile | cut -c3-

# torch goes first: with it in place no other package can pull in another build of it. torchfcn's networks, which the
# tests export, need nothing but torch; what it declares beside that is for training.
$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "fcnopt needs Python 3.11 or newer; set PYTHON=")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -c constraints.txt -e '.[export,slim,cpu,rtx,bench,logs,rerun,dev]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -c constraints.txt --no-deps torchfcn
	touch $@

setup: $(VENV)/installed

demo: setup
	$(BIN)/fcnopt demo

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: lint test-serve
	$(BIN)/pytest -m "not gpu" --numprocesses auto --maxprocesses 4 --dist worksteal

# make test-serve   what serves, in an environment without torch
.venv-serve/installed: pyproject.toml constraints-serve.txt
	$(PYTHON) -m venv .venv-serve
	.venv-serve/bin/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -c constraints-serve.txt -e '.[serve]' pytest
	touch $@

test-serve: .venv-serve/installed
	.venv-serve/bin/python -m pytest tests/serving tests/deployment/test_triton_server.py

# make test-gpu   what needs an NVIDIA GPU with its runtimes
test-gpu: setup
	$(BIN)/pytest -m gpu

clean:
	rm -rf $(VENV) .venv-serve demo-out
