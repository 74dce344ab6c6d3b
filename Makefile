# Every target sets up what it needs. ACCEL=cpu|cuda13|tpu picks the jax build.
PYTHON ?= python3
ACCEL  ?= cpu
EXTRA  := $(if $(filter-out cpu,$(ACCEL)),[$(ACCEL)])
BIN    := .venv/bin

.PHONY: quickstart test test-all test-newest test-tpu test-tpu-all bench lint clean

quickstart: .venv/.ready-$(ACCEL)  ## train two small LLaMAs, extend them 8x by every method, draw the picture
	$(BIN)/python -m experiments.quickstart

test: .venv/.ready-test  ## the tests; the first time this downloads torch (CPU) for the parity part
	$(BIN)/python -m pytest -m "not full" --durations=15 $(ARGS)

test-all: .venv/.ready-test  ## the full counts: every kill, mesh and notebook
	$(BIN)/python -m pytest --durations=15 $(ARGS)

test-newest:  ## core tests on Python 3.12 with the newest jax, without torch; says so where it cannot
	@.ci/newest

test-tpu:  ## programs compiled by the TPU's own compiler, without a TPU; says so where it cannot
	@.ci/tpu

test-tpu-all:  ## the same for every preset on a slice where it fits
	@.ci/tpu all

bench: .venv/.ready-test  ## memory and speed, side by side with PyTorch; one JSON each under results/
	for file in benchmarks/*.py; do $(BIN)/python $$file || exit 1; done

lint: .venv/.ready-test  ## style (ruff) and types (basedpyright, strict enough to find a wrong argument)
	$(BIN)/ruff format --check . && $(BIN)/ruff check . && $(BIN)/basedpyright

clean:
	rm -rf .venv

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "resonance-jax needs Python 3.11 or newer, found $$($(PYTHON) --version); try: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 2; }
	$(PYTHON) -m venv .venv

.venv/.ready-$(ACCEL): setup.cfg | .venv/bin/python
	@echo "Installing resonance-jax$(EXTRA) and its libraries into .venv (about 1 GB) ..."
	$(BIN)/pip install --quiet --disable-pip-version-check -e ".$(EXTRA)"
	@touch $@

.venv/.ready-test: setup.cfg | .venv/bin/python
	@echo "Installing the test tools into .venv: pytest, and for the parity part torch 2.13.0, transformers, peft (about 2 GB) ..."
	$(BIN)/pip install --quiet --disable-pip-version-check torch==2.13.0
	$(BIN)/pip install --quiet --disable-pip-version-check -e ".[parity,test,lint]"
	@touch $@
