# Every target makes .venv first when it is missing: Python >= 3.11 and make are all that is needed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# torchao makes torch log deprecations at every start: only the tests see it, the demo and the README's examples do not.
INT8 := $(VENV)/int8
# Gradio wants an older Pillow than the rest of .venv has: the page's tests see its packages first, then those of .venv.
APP := $(VENV)/app
APP_STAMP := $(APP)/.installed

.PHONY: demo test test-all test-notebooks test-browser docs lint bench torture torture-kill notebooks clean

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
	OMP_NUM_THREADS=1 PYTHONPATH=$(INT8) $(BIN)/python -m pytest -q -n 2 -m "not notebooks and not browser"

# Whole, with the figures that are committed; those of another kind of processor may differ.
test-notebooks: $(STAMP)
	OMP_NUM_THREADS=1 PYTHONPATH=$(INT8) $(BIN)/python -m pytest -q -m notebooks tests/test_notebooks.py

$(APP_STAMP): $(STAMP)
	$(BIN)/python -m venv $(APP)
	$(BIN)/python -c "import sysconfig; print('import site; site.addsitedir(%r)' % sysconfig.get_path('purelib'))" \
		> $$($(APP)/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/base.pth
	$(APP)/bin/python -m pip install --quiet --upgrade pip setuptools
	$(APP)/bin/python -m pip install --quiet --editable ".[browser-test]"
	touch $(APP_STAMP)

# Where there is no Chromium and apt cannot install one, the tests skip and say so.
test-browser: $(APP_STAMP)
	command -v chromium || { apt-get update -qq && apt-get install -y -qq chromium; } || echo "no Chromium: apt failed"
	OMP_NUM_THREADS=1 $(APP)/bin/python -m pytest -q -rs -m browser tests/browser

# Into site/, without network; opens from disk (search needs a server: python -m http.server -d site).
docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(STAMP)
	$(BIN)/python -m benchmarks.speed
	$(BIN)/python -m benchmarks.speed.training

# Bad and odd input to everything public, by seeded numbers; `make torture CASES=500` takes half a minute.
CASES ?= 10000
torture: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.torture --cases $(CASES)

# Kill -9, full disks, read-only folders and deleted data under every training script and save; Linux.
KILLS ?= 100
torture-kill: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.torture_kill --kills $(KILLS)

# Runs all notebooks and saves them with their outputs, whole: two of them train models.
notebooks: $(STAMP)
	$(BIN)/python notebooks/run.py

clean:
	rm -rf $(VENV) site .pytest_cache .ruff_cache .mypy_cache
