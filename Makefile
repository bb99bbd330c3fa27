# Two commands: `make train` and `make test`. Each sets up .venv first, once.
#
#   make train                                      trains on the built-in digits
#   make train ARGS="--train-dir D --val-dir V"     trains on your own images

PYTHON ?= python3
ARGS ?= --config configs/digits.yaml

.PHONY: train test lint types clean

train: .venv/installed
	.venv/bin/python train.py $(ARGS)

test: .venv/installed-dev
	.venv/bin/python -m pytest -n auto --maxprocesses 4 --dist loadfile $(TESTS)

lint: .venv/installed-dev
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/lint-imports

types: .venv/installed-dev
	.venv/bin/mypy

.venv/installed: requirements.txt pyproject.toml setup.py $(wildcard shufflenetv2/kernels/*.[ch])
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --upgrade pip
	.venv/bin/python -m pip install --quiet -r requirements.txt -e .
	touch $@

.venv/installed-dev: requirements-dev.txt .venv/installed
	.venv/bin/python -m pip install --quiet -r requirements.txt -r requirements-dev.txt
	touch $@

clean:
	rm -rf .venv
