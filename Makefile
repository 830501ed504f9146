PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3)
SPU_PYTHON ?= $(shell command -v python3.11)
BIN := .venv/bin
SPU_BIN := .venv-spu/bin

.PHONY: .venv install test lint faults bench operators sweep smoke report plots reference train longer accuracy data
.PHONY: .venv-spu protocols spu clean
.DELETE_ON_ERROR:

# The stamp is written last, so an interrupted or failed installation is done again.
.venv: .venv/installed
install: .venv
.venv/installed: pyproject.toml
	$(if $(PYTHON),,$(error Python 3.11 or 3.12 is needed: put python3.11 on the PATH or set PYTHON))
	$(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[bench,dev]'
	$(BIN)/python -c 'from pibench.engines.lean import compile_all; compile_all()'  # or the first run waits for it
	echo '$(CURDIR)' > $@
# A checkout that was moved or copied brings the paths of another place.
ifneq ($(shell cat .venv/installed 2>/dev/null),$(CURDIR))
.PHONY: .venv/installed
endif

# SecretFlow SPU wants numpy 1.26, Python 3.11 and Linux on x86-64. It has an environment of its own, so that
# everything else is measured, as ever, with the newest numpy on any Python that this project runs on.
.venv-spu: .venv-spu/installed
.venv-spu/installed: pyproject.toml
	$(if $(SPU_PYTHON),,$(error SPU needs Python 3.11: put python3.11 on the PATH or set SPU_PYTHON))
	$(SPU_PYTHON) -m venv --clear .venv-spu
	$(SPU_BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[bench,spu,dev]'
	$(SPU_BIN)/python -c 'from pibench.engines import ENGINES; ENGINES["spu-semi2k"].demand_installed()'
	echo '$(CURDIR)' > $@
ifneq ($(shell cat .venv-spu/installed 2>/dev/null),$(CURDIR))
.PHONY: .venv-spu/installed
endif

lint: .venv
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	rm -rf build/types && mkdir -p build/types/pibench
	ln -s $(CURDIR)/bench/* build/types/pibench/ && ln -s $(CURDIR)/models build/types/pibench/models
	$(BIN)/python -m mypy

# One file stays in one process, so that its parties are started once. pytest-benchmark has nothing to do here.
# The many processes that it starts take over what one has compiled, whatever the shell says of bytecode.
test: export PYTHONDONTWRITEBYTECODE =
test: .venv lint
	$(BIN)/python -m pytest -n auto --dist loadfile -p no:benchmark

# Does the worst to everything, more than 500 faults in under 15 minutes, and writes docs/results/faults.md.
# FAULTS="--seed 7 --kinds kill" chooses; FAULTS="--only ID" carries out one again; FAULTS=--short takes a minute.
faults: .venv
	PYTHONPATH=tests $(BIN)/python -m faults $(FAULTS)

# Every default case at full width, with a short table at the end; then pages and figures, also when a case
# failed. All of it goes to git-ignored files in results/ and plots/, beside the committed reference. What is up
# to date is not measured again, so an interrupted run goes on where it ended; BENCH=--again measures all of it.
bench: .venv
	$(BIN)/python -m pytest bench/bench_latency.py --benchmark-disable-gc $(BENCH); status=$$?; \
	$(BIN)/python -m pibench.report --quiet || status=1; \
	$(BIN)/python -m pibench.figures || status=1; exit $$status

# Six networks under five protocols: stock, lean, and SPU's SEMI2K, ABY3 and CHEETAH (an hour and a quarter,
# most of it CHEETAH's). With LINKS=1 three networks under SPU's over LAN and WAN instead (half an hour). As with
# `make bench`, what is up to date is not measured again; BENCH="--engine spu-aby3" or BENCH="-k joint" chooses.
protocols: .venv-spu
	$(SPU_BIN)/python -m pytest bench/bench_latency.py $(if $(LINKS),--protocol-links,--protocols) \
	--benchmark-disable-gc $(BENCH); status=$$?; \
	$(SPU_BIN)/python -m pibench.report --quiet || status=1; \
	$(SPU_BIN)/python -m pibench.figures || status=1; exit $$status

# The needs of SPU: its tests; one network under each of its protocols, and one by hand, at width 8.
spu: .venv-spu
	$(SPU_BIN)/python -m pytest -n auto --dist loadfile -p no:benchmark tests/test_spu*.py \
	tests/test_threat_model.py
	$(SPU_BIN)/python -m pytest bench --smoke --benchmark-disable -k spu

# Operators alone, the idle harness, the suite against a network by hand, 16 images, CrypTen's other set-ups.
operators: .venv
	$(BIN)/python -m pytest bench/bench_operators.py --benchmark-disable-gc
	$(BIN)/python -m pytest bench/bench_latency.py --extra --benchmark-disable-gc

# All variants on every link, and at the width of the trained networks (an hour), then pages and figures.
sweep: .venv
	$(BIN)/python -m pytest bench/bench_latency.py --sweep --benchmark-disable-gc $(BENCH); status=$$?; \
	$(BIN)/python -m pibench.report --quiet || status=1; \
	$(BIN)/python -m pibench.figures || status=1; exit $$status

# Every code path of the benchmarks once, untimed, at width 8; keeps nothing.
smoke: .venv
	$(BIN)/python -m pytest bench --smoke --benchmark-disable

# The short table, tables and pages of your own run, of the reference when there is none.
report: .venv
	$(BIN)/python -m pibench.report

# The figures of the same.
plots: .venv
	$(BIN)/python -m pibench.report --quiet
	$(BIN)/python -m pibench.figures

# Makes your own run the committed reference: its rows, tables, figures, docs/results/ and the README's numbers.
reference: .venv
	$(BIN)/python -m pibench.report.reference
	$(BIN)/python -m pibench.figures --results results/reference --plots plots/reference

# All networks of the accuracy figure, resumable, weights in results/weights/;
# TRAIN="--rows baseline --plan quick" chooses.
train: .venv
	$(BIN)/python -m pibench.models.training $(TRAIN)

# As many epochs as the papers have, and wider, for a CUDA device (plan `paper`, resumable): SNL on the original
# and the joint structure, the budgets where accuracy is flat; then those of width 64 in fixed point and under the
# protocol. LONGER="--epochs-scale 0.01" shortens all of it.
FLAT := senet-0.72 senet-0.54 joint joint-0.416 joint-0.312
SLOPES := snl-0.09 snl-0.052 joint-snl-0.09 joint-snl-0.052
longer: .venv
	$(BIN)/python -m pibench.models.training --plan paper --width 64 --rows $(SLOPES) $(FLAT) $(LONGER)
	$(BIN)/python -m pibench.models.training --plan paper --width 32 \
	--rows snl-0.18 joint-snl-0.18 $(SLOPES) $(LONGER)
	for weights in checkpoints/w64-s0-paper*; do \
	$(BIN)/python -m pibench.measure.accuracy --width 64 --weights $$weights || exit 1; done

# Your trained networks in fixed point and under the real protocol, added to results/accuracy.json.
accuracy: .venv
	$(BIN)/python -m pibench.measure.accuracy $(ACCURACY)

data: .venv
	$(BIN)/python -m pibench.models.data

clean:
	rm -rf .venv .venv-spu .pytest_cache .ruff_cache .benchmarks build *.egg-info
