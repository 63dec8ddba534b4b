PYTHON ?= python3
BIN := .venv/bin
PYTEST := $(BIN)/python -m pytest --numprocesses auto --maxprocesses 8 --dist worksteal

.PHONY: demo check check-latest test lint bench reliability docs clean

demo: .venv/installed  ## the whole method on synthetic speech: a table, a picture and a report in exp/demo
	$(BIN)/python -m mifuse_cli.demo --out exp/demo

check: lint  ## lint and the tests that are not slow
	$(PYTEST) -m "not slow"

check-latest: check  ## also with the newest versions, on every Python that is installed, and their known vulnerabilities
	.ci/check-latest

test: .venv/installed  ## all tests
	$(PYTEST)

lint: .venv/installed  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: .venv/installed  ## benchmarks, as ratios
	$(BIN)/python benchmarks/run.py

reliability: .venv/installed  ## kills, faults of files, damaged input and hostile servers, as a table; under 30 minutes
	$(BIN)/python -m tests.reliability --out docs/reliability.md

docs: .venv/installed  ## the documentation as a site, exp/site/docs/index.html
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[docs]'
	$(BIN)/python -m sphinx -q -W --keep-going -c docs . exp/site

clean:  ## remove what make made
	rm -rf .venv .venv-latest exp/demo exp/site docs/commands build *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[demo,dev]'
	touch $@
