# One way to do each thing. Every target sets up .venv first, with the versions of constraints.txt.
#   make demo | test | lint | format | bench | coverage | quality | clean          PYTHON=python3.12 make test  chooses the interpreter

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
WORKERS ?= 2

.DEFAULT_GOAL := help
.PHONY: help demo test lint format bench coverage quality clean

help:
	@sed -n '1,2s/^# *//p' Makefile

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "fxfuse needs Python 3.10 or newer: set PYTHON=... to one." >&2; exit 1; }
	@echo "Setting up $(VENV): torch and onnxruntime are large, the first time takes some minutes ..."
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e ".[dev]" || \
	  { echo "The installation failed: the same pip command without -qq says more." >&2; exit 1; }
	@touch $@

demo: $(STAMP)
	@$(BIN)/python -m models.run_demo

# One thread a worker: more would have the workers fight for the cores.
test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# An hour on two quiet cores; with DEVICE=cuda on a GPU.
DEVICE ?= cpu
bench: $(STAMP)
	@$(BIN)/python tools/bench.py --device $(DEVICE)
	@$(BIN)/python -m tools.performance

# Every family in every form: some minutes.
coverage: $(STAMP)
	@OMP_NUM_THREADS=1 $(BIN)/python -m tools.coverage_table --workers $(WORKERS)

# What fusing costs on the trained models and what is won back: an hour.
quality: $(STAMP)
	@$(BIN)/python -m tools.quality_table
	@$(BIN)/python -m tools.whole_way

# The virtual environment stays: rm -rf .venv for a fresh one.
clean:
	rm -rf build dist out *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find fxfuse passes models tools tests -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
