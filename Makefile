# One command for each thing; every target sets up what it needs in .venv and is cheap when repeated.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint .ci/constraints.txt
NATIVE := CMakeLists.txt setup.py pyproject.toml $(shell find csrc tests/native -name '*.[ch]*')

.PHONY: help setup demo test lint format wheel clean

help:
	@echo 'make demo    measure d90 of the digits task: a table and a figure in runs/digits, 5 minutes'
	@echo 'make test    build everything and run all tests'
	@echo 'make setup   .venv with the built package and every extra'
	@echo 'make lint    ruff and clang-format, as they would be accepted'
	@echo 'make format  let both rewrite the sources'
	@echo 'make wheel   one wheel for this platform, in dist'

setup: .venv/ready

.venv/packages: .ci/constraints.txt pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) torch setuptools cmake ninja pybind11 ruff clang-format
	touch $@

.venv/ready: .venv/packages $(NATIVE)
	FASTFOOD_TESTS=1 $(PIP) --no-build-isolation --editable '.[all]'
	touch $@

demo: setup
	$(BIN)/fastfood d90 --out runs/digits

test: setup
	$(BIN)/python -m pytest

CXX_FILES = $(shell git ls-files '*.h' '*.cpp' '*.cu' '*.cuh')

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(CXX_FILES)

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_FILES)

wheel: setup
	$(BIN)/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist .

clean:
	rm -rf .venv build dist fastfood/lib tests/native/*.so *.egg-info
