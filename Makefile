# For a fresh clone: `make scenes` trains and evaluates, `make test` checks the code, `make docs` builds the documentation.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
RUN ?= outputs/scenes

.PHONY: docs scenes test

scenes: $(VENV)/installed
	$(BIN)/accelerate launch examples/train.py examples/configs/scenes.yaml --output_dir $(RUN)
	$(BIN)/python examples/explain.py $(RUN) scenes:2 --output $(RUN).png

test: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pytest -n auto --dist worksteal

# Into site/; a link that leads nowhere is an error. The variable spares a notice of the theme's makers.
docs: $(VENV)/installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

$(VENV)/installed: setup.cfg constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[test]"
	touch $@
