# Every target makes .venv first when it is missing: Python >= 3.11 and make are all that is needed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# torchao's import makes torch log two deprecations that only torchao can act on.
export TORCH_LOGS := -torch.utils._pytree

.PHONY: demo test test-all lint bench clean

$(STAMP): setup.cfg pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $(STAMP)

demo: $(STAMP)
	$(BIN)/python training/demo.py --output demo.png

# Tiny tensors run about 100 times slower on many threads than on one, hence OMP_NUM_THREADS=1 (the tests use two processes instead).
test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2

test-all: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 -m "slow or not slow"

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(STAMP)
	$(BIN)/python training/benchmark.py
	$(BIN)/python training/benchmark_training.py

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache
