PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help optimize test lint docs clean

help:
	@echo "make optimize   set up .venv and run velollm optimize on this machine"
	@echo "make test       set up .venv and run ruff, mypy --strict and pytest"
	@echo "make docs       write the generated parts of docs/ again"

# The stamp lies inside .venv: a half-made environment is made again.
$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Error: Python 3.11 or newer is needed, this is %d.%d\nHint: make PYTHON=python3.12 ..." % sys.version_info[:2])'
	@echo "setting up $(VENV) from requirements.lock (once)"
	@$(PYTHON) -m venv --clear $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

optimize: $(STAMP)
	@$(BIN)/velollm optimize $(ARGS) || [ $$? -eq 3 ] # 3: changes are advised

test: $(STAMP)
	@$(BIN)/ruff check src tests
	@$(BIN)/ruff format --check src tests
	@$(BIN)/mypy
	@$(BIN)/python -m pytest --numprocesses 2 --dist loadfile

docs: $(STAMP)
	@$(BIN)/python -m velollm.cli.docs docs

clean:
	rm -rf $(VENV) dist build
