# Two commands for a fresh clone: `make scenes` trains and evaluates, `make test` checks everything.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
RUN ?= outputs/scenes

.PHONY: scenes test

scenes: $(VENV)/installed
	$(BIN)/accelerate launch examples/train.py examples/configs/scenes.yaml --output_dir $(RUN)
	$(BIN)/python examples/explain.py $(RUN) scenes:2 --output $(RUN).png

test: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pytest -n auto

$(VENV)/installed: setup.cfg constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[test]"
	touch $@
