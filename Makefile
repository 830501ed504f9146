PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3)
BIN := .venv/bin

.PHONY: .venv install test lint bench operators smoke report plots data clean
.DELETE_ON_ERROR:

# The stamp is written last, so an interrupted or failed installation is done again.
.venv: .venv/installed
install: .venv
.venv/installed: pyproject.toml
	$(PYTHON) -m venv --clear .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[bench,dev]'
	touch $@

lint: .venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

test: .venv lint
	$(BIN)/pytest

# Every default case at full width, then the table and the figures. Rows are written as they finish.
bench: .venv
	$(BIN)/pytest bench/bench_latency.py --benchmark-disable-gc
	$(BIN)/python -m bench.report
	$(BIN)/python -m bench.figures

# Operators alone, the idle harness, and the suite against a network written by hand.
operators: .venv
	$(BIN)/pytest bench/bench_operators.py --benchmark-disable-gc

# Every code path of the benchmarks once, untimed, at width 8; writes nothing into results/ or plots/.
smoke: .venv
	$(BIN)/pytest bench --smoke --benchmark-disable

report: .venv
	$(BIN)/python -m bench.report

plots: .venv
	$(BIN)/python -m bench.figures

data: .venv
	$(BIN)/python -m models.data

clean:
	rm -rf .venv .pytest_cache .ruff_cache .benchmarks build *.egg-info
