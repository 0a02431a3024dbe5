# Two commands: `make generation` and `make test`. Both set up what they need and cost nothing when run again.
SHELL := /bin/bash
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)

.DEFAULT_GOAL := help
.PHONY: help setup generation campaign test check airflow benchmark browser clean

help: ## Show these targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

setup: $(VENV)/.installed ## Environment in .venv, everything pinned by constraints.txt

$(VENV)/.installed: pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) is not here: install Python 3.11, or set PYTHON=..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip==26.3
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

generation: setup ## Run one whole generation on the settings of params.yaml
	$(BIN)/flywheel generation run

campaign: setup ## Eight launches in a row on simulated people (about four hours); again: goes on
	$(BIN)/flywheel campaign run

test: setup ## Run all tests
	$(BIN)/python -m pytest -n auto --maxprocesses 4

check: setup ## Lint, formatting, types, import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/yamllint -s dvc.yaml params.yaml gate_rules.yaml data_contracts safety_words launchers docker

airflow: setup ## Start Airflow on SQLite with the weekly DAG, on 127.0.0.1
	$(BIN)/flywheel airflow start

benchmark: setup ## Wall time of a generation through dvc and Airflow against the sum of its stages
	$(BIN)/python -m benchmarks.orchestration

browser: ## Install Chromium for the page tests (Debian, needs root)
	command -v chromium >/dev/null || (apt-get update -q && apt-get install -qy --no-install-recommends chromium)

# What stages write (dvc.yaml), and what they keep beside it. Not inputs/, which says what is open; not data/logs and data/labels.
MADE := $(addprefix data/,ingested validated conversations curated split annotation preferences rejection rl evaluation) \
	models metrics plots gate launch report $(addprefix .flywheel/,cache contracts forced resume tensorboard timings tmp)

clean: ## Remove the environment and what stages made; their copies in DVC's cache and remote stay, as do logs, inputs, registry
	rm -rf $(VENV) .airflow $(MADE)
	@echo "Left, with the text of users: data/logs, data/labels, data/served, inputs, .dvc/cache, .flywheel/remote; and the registry."
