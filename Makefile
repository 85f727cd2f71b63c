# Each command does all its set-up: a virtual environment in .venv, the installs, the run.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# processes for the tests; each takes up to 3 GB of memory
WORKERS ?= 2

.PHONY: demo test lint clean
.DEFAULT_GOAL := help

help:
	@echo "make demo                 draw landmarks, train a small model in stages, search, write a gallery"
	@echo "make demo DATA=FOLDER     the same on photos in the layout of GLDv2"
	@echo "make test                 lint, type check, tests"

# the stamp is older than pyproject.toml where the dependencies may have changed
$(VENV)/installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@

demo: $(VENV)/installed
	$(BIN)/landmark-retrieval demo $(if $(DATA),--data '$(DATA)' --out demo/photos-of-$(notdir $(abspath $(DATA))),--out demo/drawn)

lint: $(VENV)/installed
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

test: lint
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

clean:
	rm -rf $(VENV) demo outputs build dist
