# make setup | test | lint | demo [DATA=path/to/dataset.yaml] | clean
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.setup-done
SOURCES := edge_runtime calibration distill tests demo benchmarks scripts ros2_ws/src

.PHONY: help setup lint format test demo clean

help:
	@echo "make setup   create $(VENV) and install everything the project needs"
	@echo "make test    lint, types, import rules and tests"
	@echo "make demo    from unlabelled images to ROS 2 detections; DATA=path/to/dataset.yaml for your own"
	@echo "make format  let ruff rewrite the sources"
	@echo "make clean   remove caches and build products; keeps $(VENV) and out/"

setup: $(STAMP)

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(STAMP): pyproject.toml constraints.txt $(wildcard scripts/build_underlay.py) $(shell find ros2_ws/underlay -type f 2>/dev/null) | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[workstation,ros,demo,dev]'
	if [ -f scripts/build_underlay.py ]; then $(BIN)/python scripts/build_underlay.py; fi
	touch $@

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test: lint
	$(BIN)/python -m pytest -m 'not slow and not gpu' -q

demo: setup
	$(BIN)/python demo/run.py $(if $(DATA),--data $(DATA))

clean:
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
	rm -rf ros2_ws/build ros2_ws/install ros2_ws/log
	find $(wildcard $(SOURCES)) -name __pycache__ -type d -prune -exec rm -rf {} +
