# Two commands do all set-up from a bare clone: `make run` and `make test`.
VENV   ?= .venv
PYTHON ?= python3
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
ONLY   ?=
ARGS   ?=

.DEFAULT_GOAL := help
.PHONY: help setup run test check bench results

help:            ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

# torch and torchvision are named with exact releases: any other pair that fits pyproject.toml works too.
$(READY): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check torch==2.14.1 torchvision==0.29.1
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

setup: $(READY)  ## create the virtual environment (the other targets do it when it is absent)

run: $(READY)    ## the main job: train VAR on real images, sample, leave runs/var/report.html (ARGS="--data DIR")
	$(BIN)/paperworks run var $(ARGS)

test: $(READY)   ## the whole test suite, on two processes of one thread each
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadgroup $(ARGS)

check: $(READY)  ## style, types, and that rooms depend downwards only
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/ruff format --check src tests benchmarks
	$(BIN)/lint-imports
	$(BIN)/mypy

bench: $(READY)  ## ours against a peer in one process (ONLY=inceptionnext)
	$(BIN)/python -m benchmarks $(ONLY)

results: $(READY)  ## write RESULTS.md anew from results/
	$(BIN)/paperworks results
