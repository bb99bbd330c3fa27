# `make train` trains on the built-in digits, `make test` runs the tests. Both set up .venv first, once.
#
#   make train ARGS="--train-dir D --val-dir V"     train on your own images
#   make test TESTS=tests/test_schedules.py         run the tests of one file
#   make sanitize                                   run the tests of the C code under AddressSanitizer and UBSan
#   make check                                      run lint, types, import rule and tests, as CI does

PYTHON ?= python3
ARGS ?= --config configs/digits.yaml
BIN := .venv/bin

.PHONY: train test check lint format sanitize types imports install hooks clean

train: .venv/installed
	$(BIN)/python train.py $(ARGS)

test: install
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile $(TESTS)

check:
	bash .ci/run

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror shufflenetv2/kernels/*.[ch]

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i shufflenetv2/kernels/*.[ch]

sanitize: install
	PYTHON=$(BIN)/python bash .ci/sanitize

types: install
	$(BIN)/mypy

imports: install
	$(BIN)/lint-imports

install: .venv/installed-dev

hooks: install
	$(BIN)/pre-commit install

clean:
	rm -rf .venv

.venv/installed: requirements.txt pyproject.toml setup.py $(wildcard shufflenetv2/kernels/*.[ch])
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -r requirements.txt -e .
	touch $@

.venv/installed-dev: requirements-dev.txt .venv/installed
	$(BIN)/python -m pip install --quiet -r requirements.txt -r requirements-dev.txt
	touch $@
