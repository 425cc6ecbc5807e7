# Two graphs that never meet: `figures` reads committed results and trains no agent; `results` trains.
# Targets live under ignored folders (.venv, build): a fresh clone's timestamps say nothing.

PROFILE ?= laptop
# make results: only these experiments (ONLY="fig9 tableC"), and who runs them: joblib (this machine) or ray (a cluster)
ONLY ?=
EXECUTOR ?= joblib
# make results: whose processor's code MKL takes (intel; other), where not this processor's own: intel is quicker on AMD
ROUNDED_AS ?=
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
READY := $(VENV)/ready
# one thread a process unless told otherwise: the small models are too small for more, and grids run in parallel
export OMP_NUM_THREADS ?= 1
export MKL_NUM_THREADS ?= 1
export TOKENIZERS_PARALLELISM = false

.DEFAULT_GOAL := help
.PHONY: help setup figures lab results smoke test lint check bench doctor lock clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(READY) ## build .venv from requirements.lock and find an OpenGL back end

$(READY): requirements.lock genreward/bootstrap.py
	@command -v $(PYTHON) >/dev/null || { echo "error: no $(PYTHON) here; install Python 3.11 or newer, or name it: make setup PYTHON=python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: $$($(PYTHON) --version 2>&1) is too old: Python 3.11 or newer is needed; name it: make setup PYTHON=python3.11" >&2; exit 1; }
	@$(PYTHON) -I genreward/bootstrap.py
	@touch $@

figures: $(READY) ## run every notebook on committed results (PROFILE=laptop): figures/<profile>/
	@$(PY) -m genreward.book figures --profile $(PROFILE)

lab: $(READY) ## open the notebooks in JupyterLab
	@$(PY) -m jupyterlab notebooks/00_start_here.ipynb

results: GRID = $(PY) -m genreward.experiments run --profile $(PROFILE) --executor $(EXECUTOR) \
	$(if $(ONLY),--only $(ONLY)) $(if $(ROUNDED_AS),--rounded-as $(ROUNDED_AS))
results: $(READY) ## make what is missing for PROFILE, resumable (ONLY=fig9 EXECUTOR=ray ROUNDED_AS=intel)
	@$(GRID) --check
	@$(PY) -m genreward.pipeline --profile $(PROFILE) --before agents
	@$(GRID)
	@$(PY) -m genreward.behaviour --profile $(PROFILE) $(if $(ONLY),--only $(ONLY))
	@$(PY) -m genreward.would_pay --profile $(PROFILE) $(if $(ONLY),--only $(ONLY))

smoke: $(READY) ## everything at smoke size from nothing: results, then figures
	@rm -rf build/smoke results/smoke figures/smoke
	@$(PY) -m genreward.pipeline --profile smoke
	@$(PY) -m genreward.book figures --profile smoke

test: lint ## lint, unit tests, and every notebook at smoke size
	@$(PY) -m pytest -q --book

lint: $(READY) ## ruff, notebooks included
	@$(PY) -m ruff check .

check: $(READY) ## train both agents on tasks with a known answer (hours)
	@$(PY) -m genreward.agents.check

bench: $(READY) ## time rendering, rewards, F and B, agents and scoring, in pairs: results/bench/
	@for script in benchmarks/*.py; do echo "== $$script"; $(PY) "$$script" || exit; done

doctor: $(READY) ## versions, OpenGL back end, render speed, disk, GPU
	@$(PY) -m genreward.doctor

lock: ## resolve requirements.in into requirements.lock again (needs uv)
	@uv pip compile --quiet --universal --no-emit-index-url --no-emit-find-links --python-version 3.11 \
	  --custom-compile-command "make lock" requirements.in --output-file requirements.lock

clean: ## remove what was made under build/ and the smoke profile's products (keeps .venv)
	@rm -rf build results/smoke figures/smoke .pytest_cache .ruff_cache
