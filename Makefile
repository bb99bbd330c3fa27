# `make train` trains on the built-in digits, `make test` runs the tests. Both set up .venv first, once.
#
#   make train ARGS="--train-dir D --val-dir V"     train on your own images
#   make test TESTS=tests/test_schedules.py         run the tests of one file
#   make train CPU=1                                without CUDA: a smaller installation, where there is no NVIDIA GPU
#   make docs                                       build the documentation site into site/
#   make sanitize                                   run the tests of the C code under AddressSanitizer and UBSan
#   make fuzz SECONDS=600                          fuzz the JPEG decoder against OpenCV, if clang is installed
#   make fuzz-inputs EXAMPLES=10000                 give the program many generated command lines and files
#   make check                                      run lint, types, import rule, docs and tests, as CI does

PYTHON ?= python3
ARGS ?= --config configs/digits.yaml
EXAMPLES ?= 1000
SECONDS ?= 60
BIN := .venv/bin

# With CPU=1, PyTorch's CPU build is installed from this index in place of the one with CUDA.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
ifdef CPU
PIP_ARGS += --extra-index-url $(TORCH_INDEX)
# Without the index, pip would install the build with CUDA after all.
HAS_INDEX := $(PYTHON) -c "import sys, urllib.request as r; r.urlopen(sys.argv[1], timeout=20)" $(TORCH_INDEX)/torch/ 2>/dev/null || \
	{ echo "$(TORCH_INDEX) does not answer; give another index of PyTorch's CPU build as TORCH_INDEX=..., or leave out CPU=1"; exit 1; }
else
HAS_INDEX := true
endif

.PHONY: train test fuzz fuzz-inputs docs check lint format sanitize types imports install hooks clean

train: .venv/installed
	$(BIN)/python train.py $(ARGS)

test: install
	$(BIN)/python -m pytest -n auto --dist loadfile $(TESTS)

check:
	bash .ci/run

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror shufflenetv2/kernels/*.[ch] fuzz/*.c

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i shufflenetv2/kernels/*.[ch] fuzz/*.c

fuzz: install
	PYTHON=$(BIN)/python bash fuzz/run $(SECONDS)

fuzz-inputs: install
	FUZZ_EXAMPLES=$(EXAMPLES) $(BIN)/python -m pytest -q tests/test_fuzzed_inputs.py

sanitize: install
	PYTHON=$(BIN)/python bash .ci/sanitize

types: install
	$(BIN)/mypy

imports: install
	$(BIN)/lint-imports

docs: .venv/installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

install: .venv/installed-dev

hooks: install
	$(BIN)/pre-commit install

clean:
	rm -rf .venv

.venv/installed: requirements.txt pyproject.toml setup.py $(wildcard shufflenetv2/kernels/*.[ch])
	@echo "Installing PyTorch and other packages into .venv; this takes a few minutes."
	@if [ -z "$(CPU)" ] && [ "$$(uname)" = Linux ] && ! [ -e /dev/nvidia0 ]; then \
		echo "There is no NVIDIA GPU here: 'make CPU=1' installs 1.3 GB in place of 6 GB, without CUDA."; fi
	@$(HAS_INDEX)
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	@start=$$(date +%s); echo "pip install -r requirements.txt -e . $(PIP_ARGS)" && \
	$(BIN)/python -m pip install -r requirements.txt -e . $(PIP_ARGS) && \
	echo "Installed $$(du -sm .venv | cut -f 1) MB into .venv in $$(($$(date +%s) - start)) s."
	touch $@

.venv/installed-dev: requirements-dev.txt .venv/installed
	@echo "Installing the packages for the tests and checks into .venv."
	$(BIN)/python -m pip install -r requirements.txt -r requirements-dev.txt $(PIP_ARGS)
	touch $@

.venv/installed-docs: requirements-docs.txt .venv/installed
	$(BIN)/python -m pip install -r requirements-docs.txt
	touch $@
