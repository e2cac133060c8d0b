# `make study` and `make test` set up all they need on a fresh machine (Debian 12, Python 3.11).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STUDY ?= studies/digits.yaml

.PHONY: study test fast-test slow-test check install clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,gpu]'
	touch $@

study: install
	$(BIN)/lrsearch run-study $(STUDY)

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

fast-test: install
	$(BIN)/pytest

slow-test: install
	$(BIN)/pytest -m slow

test: check fast-test

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
