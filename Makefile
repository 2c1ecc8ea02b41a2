# Every target builds .venv by itself, once; a second run reinstalls nothing.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
RIVALS := .venv-bench
# One torch thread per process: on a shared machine two can be many times slower than one.
export OMP_NUM_THREADS ?= 1
export MKL_NUM_THREADS ?= 1

.PHONY: demo test test-slow soak lint types bench bench-fisher wheel format clean

demo: $(STAMP)
	$(BIN)/expunge demo

test: $(STAMP)
	$(BIN)/python -m pytest -n 2 -m "not slow and not soak" --doctest-modules src tests

test-slow: $(STAMP)
	$(BIN)/python -m pytest -n 2 -m slow tests

# Kills processes at random moments, cuts the power below the ledger, a thousand times each; prints where the kills fell.
soak: $(STAMP)
	$(BIN)/python -m pytest -s -m soak tests

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy

bench: $(STAMP)
	$(BIN)/python benchmarks/fisher.py

# Beside its rivals, in an environment of their own; ARGS="--rows mlp-1024 --repeats 3" for a part of it.
bench-fisher: $(RIVALS)/.installed
	$(RIVALS)/bin/python benchmarks/fisher.py $(ARGS)

wheel: $(STAMP)
	$(BIN)/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist .

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) $(RIVALS) dist expunge-demo

$(STAMP): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "Expected Python 3.11 as '$(PYTHON)', found none: install it or run make PYTHON=/path/to/python3.11." >&2; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

$(RIVALS)/.installed: pyproject.toml constraints.txt benchmarks/rivals.txt
	test -x $(RIVALS)/bin/python || $(PYTHON) -m venv $(RIVALS)
	$(RIVALS)/bin/python -m pip install --quiet --constraint constraints.txt --editable ".[hf]"
	$(RIVALS)/bin/python -m pip install --quiet --no-deps --requirement benchmarks/rivals.txt
	touch $@
