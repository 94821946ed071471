# One command for each task. Every target sets up what it needs in .venv, and is cheap to repeat.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint .ci/constraints.txt
NATIVE := CMakeLists.txt setup.py pyproject.toml $(shell find csrc tests/native -name '*.[ch]*')

.PHONY: help setup demo test lint types format hooks bench wheel matrix sanitize soak fuzz examples docs gpu clean

help:
	@echo 'make demo    measure d90 of the digits task: a table and a figure in runs/digits, 5 minutes'
	@echo 'make test    build everything and run all tests'
	@echo 'make fuzz    try wrong and damaged inputs of every kind, and count the faults'
	@echo 'make examples run every guide at its small setting'
	@echo 'make docs    build the API reference and the pages of the guides in build/docs'
	@echo 'make sanitize build the native code with sanitizers and run its tests, 11 minutes'
	@echo 'make soak    repeat each kind of work 10,000 times: does memory grow? 4 minutes'
	@echo 'make setup   make .venv with the built package and every extra'
	@echo 'make lint    check what ruff and clang-format would change'
	@echo 'make types   run mypy on the package and on a script that uses it'
	@echo 'make format  let ruff and clang-format rewrite the sources'
	@echo 'make hooks   make git run lint and types on the files of each commit'
	@echo 'make bench   print the tables of speed, on an idle machine; with peers if you name them:'
	@echo '             FFHT=libffht.so AUTHORS=compacter/seq2seq/projections/intrinsic.py'
	@echo 'make gpu     run tests, sanitizers and benchmarks on the GPU, with an installed wheel, 10 minutes:'
	@echo '             results in build/gpu; PYTHON=python3 has the wheel, DRY=1 only prints the steps,'
	@echo '             OUT= MINUTES= PARTS=tests,sanitizer,fwht,projection,step,overhead'
	@echo 'make wheel   build and check a wheel for this platform in dist (FASTFOOD_CUDA=0: CPU alone)'
	@echo 'make matrix  test the operators of that wheel under many Pythons and torches, hours'

setup: .venv/ready

.venv/packages: .ci/constraints.txt pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) torch setuptools cmake ninja pybind11
	touch $@

.venv/ready: .venv/packages $(NATIVE)
	FASTFOOD_TESTS=1 $(PIP) --no-build-isolation --editable '.[all]'
	touch $@

demo: setup
	$(BIN)/fastfood d90 --out runs/digits

test: setup
	$(BIN)/python -m pytest

fuzz: setup
	HYPOTHESIS_PROFILE=fuzz $(BIN)/python -m pytest tests/fuzz/fuzz_*.py tests/fuzz/test_*_machine.py

examples: setup
	$(BIN)/python -m fastfood.guides

docs: setup
	$(BIN)/python .ci/docs.py

sanitize: setup
	$(BIN)/python tests/tools/sanitize.py

soak: setup
	$(BIN)/python tests/tools/soak.py

lint: setup
	SKIP=types,types-user $(BIN)/pre-commit run --all-files

types: setup
	$(BIN)/pre-commit run types --all-files
	$(BIN)/pre-commit run types-user --all-files

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(shell git ls-files '*.h' '*.cpp' '*.cu' '*.cuh')

bench: setup
	$(BIN)/python benchmarks/fwht.py $(if $(FFHT),--ffht $(FFHT))
	$(BIN)/python benchmarks/projection.py $(if $(AUTHORS),--authors $(AUTHORS))
	$(BIN)/python benchmarks/step.py $(if $(AUTHORS),--authors $(AUTHORS))
	$(BIN)/python benchmarks/study.py
	$(BIN)/python benchmarks/report.py

# This target needs no setup, because a machine with a GPU may have the wheel and nothing else.
gpu:
	$(if $(filter file,$(origin PYTHON)),$(firstword $(wildcard $(BIN)/python) $(PYTHON)),$(PYTHON)) \
	    tests/tools/gpu.py --out $(or $(OUT),build/gpu) $(if $(MINUTES),--minutes $(MINUTES)) \
	    $(if $(PARTS),--parts $(PARTS)) $(if $(DRY),--dry-run)

hooks: setup
	$(BIN)/pre-commit install

wheel: setup
	rm -rf build/wheel dist/*.whl
	$(BIN)/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir build/wheel .
	PATH=$(BIN):$$PATH $(BIN)/auditwheel repair --exclude 'libtorch_*' --wheel-dir dist build/wheel/*.whl
	$(BIN)/python .ci/check_wheel.py $(if $(filter 0,$(FASTFOOD_CUDA)),--cpu) dist/*.whl

matrix: wheel
	$(BIN)/python tests/tools/matrix.py dist/fastfood_torch-*.whl
	$(BIN)/python tests/tools/matrix.py dist/fastfood_torch-*.whl --python 3.12 --torch 2.11,2.12,2.13,2.14

clean:
	rm -rf .venv build dist fastfood/lib tests/native/*.so tests/native/fastfood_compare* *.egg-info
