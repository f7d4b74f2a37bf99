# Set-up: `make demo` and `make test` each make the environment if it is not there.
PYTHON ?= python3
BIN := .venv/bin
EXTRAS := train,simulation,export,edge,dev

.PHONY: env demo test test-all check format clean

env: .venv/.installed

.venv/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make env PYTHON=python3.11")'
	@echo "making .venv: two or three minutes, 2.6 GB"
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$(EXTRAS)]'
	@touch $@

demo: env
	$(BIN)/wildflower simulate examples/mnist-cnn.toml

test: check
	$(BIN)/pytest -m "not slow"

test-all: check
	$(BIN)/pytest

check: env
	$(BIN)/ruff format --check --quiet
	$(BIN)/ruff check --quiet
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

format: env
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

clean:
	rm -rf .venv build dist *.egg-info *.fab .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
