# Every target makes `.venv` itself; `make test PYTHON=python3.12` chooses the interpreter.
PYTHON ?= python3
BIN := .venv/bin

.DEFAULT_GOAL := test
.PHONY: demo test quick lint docs bench

# Stamps: an extra is installed again only when what it depends on has changed.
.venv/.installed-%: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[$*]'
	touch $@

.PRECIOUS: .venv/.installed-%

demo: .venv/.installed-demo
	$(BIN)/python examples/demo.py

test: .venv/.installed-dev
	$(BIN)/python -m pytest -m "not exhaustive"

quick: .venv/.installed-dev
	$(BIN)/python -m pytest -m "not slow and not exhaustive"

lint: .venv/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: .venv/.installed-docs
	$(BIN)/python -m mkdocs build --strict

bench: .venv/.installed-dev
	for name in chunks state dormant active telemetry scaling train_step; do \
		$(BIN)/python -m benchmarks.$$name --json benchmarks/results/local/$$name.json || exit 1; done
