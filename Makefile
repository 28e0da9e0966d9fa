# Every target makes .venv first when it is missing: Python >= 3.11 and make are all that is needed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# torchao makes torch log deprecations at every start: only the tests see it, the demo and the README's examples do not.
INT8 := $(VENV)/int8

.PHONY: demo test test-all lint bench clean

$(STAMP): setup.cfg pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	$(BIN)/python -m pip install --quiet --upgrade --no-deps --target $(INT8) torchao
	touch $(STAMP)

demo: $(STAMP)
	$(BIN)/python training/demo.py --output demo.png

# Tiny tensors run about 100 times slower on many threads than on one, hence OMP_NUM_THREADS=1 (the tests use two processes instead).
test: $(STAMP)
	OMP_NUM_THREADS=1 PYTHONPATH=$(INT8) $(BIN)/python -m pytest -q -n 2

test-all: $(STAMP)
	OMP_NUM_THREADS=1 PYTHONPATH=$(INT8) $(BIN)/python -m pytest -q -n 2 -m "slow or not slow"

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(STAMP)
	$(BIN)/python training/benchmark.py
	$(BIN)/python training/benchmark_training.py

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache
