# make sweep: install and run the main job. make test: install and run the tests. Needs git, make and Python 3.11 or newer.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

.DEFAULT_GOAL := help
.PHONY: help sweep axes test test-slow test-slurm bench bench-gpu lint clean

help:  ## what can be made
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

sweep: $(INSTALLED)  ## the main job: depth, width and compound at twice the cost, on the embedded data (about 3 minutes on 2 cores)
	$(BIN)/python -m src.run -m scaling=depth,width,compound

axes: $(INSTALLED)  ## all five arms, three seeds: the side-by-side comparison (about 9 minutes on 2 cores)
	$(BIN)/python -m src.run -m +sweep=axes

test: $(INSTALLED)  ## ruff, the type checker and the default tests
	$(MAKE) --no-print-directory lint
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder -m "not slow and not gpu and not slurm"

test-slow: $(INSTALLED)  ## all tests, the slow ones too; those of the report in a browser need an installed Chromium
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev,cam,browser]'
	$(BIN)/python -m pytest

test-slurm: $(INSTALLED)  ## a real SLURM on this machine (Debian, as root): started on loopback, tested, taken down
	command -v slurmctld >/dev/null && command -v slurmd >/dev/null && command -v munged >/dev/null || { \
	  apt-get update -q && \
	  DEBIAN_FRONTEND=noninteractive apt-get install -yq --no-install-recommends slurmctld slurmd slurm-client munge; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev,slurm]'
	$(BIN)/python tests/slurm/cluster.py run $(BIN)/python -m pytest -m slurm tests/slurm

bench: $(INSTALLED)  ## all benchmarks beside their peers, in one table; BENCH="maps startup" for some; writes benchmarks/results
	$(BIN)/python benchmarks/bench.py $(BENCH)

bench-gpu: $(INSTALLED)  ## the same on a GPU: steps, arms and precisions beside a plain training loop
	$(BIN)/python benchmarks/bench.py gpu

lint: $(INSTALLED)  ## ruff and mypy
	$(BIN)/ruff format --check src tests benchmarks
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/mypy

clean:  ## remove the environment; studies in outputs/ stay
	rm -rf .venv scalestudy.egg-info

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "ScaleStudy needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1). Try: make PYTHON=python3.12 ..."; exit 2; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $(INSTALLED)
