PYTHON ?= python3
WORKERS ?= 2
ARGS ?=
DATA ?=
EXPERIMENT ?=

BIN := .venv/bin
STAMP := .venv/.installed
STORE := sqlite:///$(CURDIR)/mlflow.db
WANTED := rmexp needs Python 3.11 or newer: install it, then name it: make setup PYTHON=python3.11

# What only uses .venv takes it as it is: a checkout newer than the stamp is no reason to install.
READY := test -e $(STAMP) || $(MAKE) --no-print-directory setup

.DEFAULT_GOAL := help
.PHONY: help setup model models demo leaderboard ui test bench gpu lint format clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-11s %s\n", $$1, $$2}' Makefile

setup: $(STAMP) ## Install everything into .venv, at the versions in constraints.txt

model: $(STAMP) ## Fetch the embedded model into the user's cache, once (92 MB)
	@$(BIN)/python -m rmexp.models.embedded

models: ## Print the catalogue of models with their published scores
	@$(READY)
	@$(BIN)/python -m rmexp.models.catalogue

demo: model ## Train the embedded model by BT and DPO, and compare them with it (some minutes)
	@$(BIN)/python train_rm.py experiment=demo
	@$(BIN)/python -m rmexp.tracking.pages '$(STORE)'
	@echo "make ui   # opens these pages: the models, side by side, are the first"

leaderboard: ## Write the evaluations of an experiment as one page (EXPERIMENT=NAME)
	@$(READY)
	@$(BIN)/python leaderboard.py $(if $(EXPERIMENT),"tracking.experiment='$(EXPERIMENT)'") $(ARGS)

ui: ## Open the MLflow UI on this machine, and print its pages
	@$(READY)
	@$(BIN)/python -m rmexp.tracking.pages '$(STORE)'
	@$(BIN)/mlflow ui --backend-store-uri '$(STORE)' --host 127.0.0.1

test: model ## Run the tests (ARGS='-k stats' selects, WORKERS=0 runs them in one process)
	@$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal $(ARGS)

bench: model ## Measure speed against the field's tools (DATA=FOLDER; ARGS='--pairs 4 --rounds 1')
	@test -n '$(DATA)' || { echo 'bench: name the folder with the data: make bench DATA=FOLDER'; exit 1; }
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[trl]'
	@$(BIN)/python tests/speed/bench.py '$(DATA)' $(ARGS)

gpu: $(STAMP) ## Measure speed on a GPU in some minutes (DATA=FOLDER; ARGS='--tokenizer FOLDER')
	@test -n '$(DATA)' || { echo 'gpu: name the folder with the data: make gpu DATA=FOLDER'; exit 1; }
	@$(BIN)/python tests/speed/gpu.py '$(DATA)' $(ARGS)

lint: $(STAMP) ## Check style, types, and that folders import downward only
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy
	@$(BIN)/lint-imports

format: $(STAMP) ## Mend what ruff can mend
	@$(BIN)/ruff check --fix
	@$(BIN)/ruff format

clean: ## Delete .venv and the tools' caches; results stay
	@rm -rf .venv build rmexp.egg-info .mypy_cache .ruff_cache .pytest_cache
	@find . -name __pycache__ -prune -exec rm -rf {} +

# The stamp comes last, so a set-up that failed or was interrupted is done again.
$(STAMP): pyproject.toml constraints.txt
	@command -v '$(PYTHON)' >/dev/null || { echo 'setup: no $(PYTHON) here; $(WANTED)'; exit 1; }
	@$(PYTHON) -c 'import sys; v = sys.version_info; \
	    v >= (3, 11) or sys.exit("setup: $(PYTHON) is %d.%d; $(WANTED)" % v[:2])'
	@echo "setup: installing into .venv (some minutes the first time)"
	@$(PYTHON) -m venv '$(or $(realpath .venv),.venv)'
	@rm -f $@
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,optuna,sweep]'
	@touch $@
