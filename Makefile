# Everything that the README and CI call. Each target makes the environment it needs.
PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test test-gpu test-faults lint check clean

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	touch $@

demo: $(VENV)/.installed ## convert the bundled model, prove it, time it
	$(BIN)/python examples/digits/demo.py

test: $(VENV)/.installed ## the tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile

test-gpu: $(VENV)/.installed ## only the tests that need a GPU; says of each that is skipped what is missing
	$(BIN)/python -m pytest -rs -m "gpu or tensorrt"

test-faults: $(VENV)/.installed ## conversions that are disturbed at every operation of the disk, killed, and gone on with
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -s -m faults tests/faults

lint: $(VENV)/.installed ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

check: lint test demo ## what CI runs

clean:
	rm -rf $(VENV) .demo build dist *.egg-info
