# make setup | test | lint | demo [DATA=path/to/dataset.yaml] | jetson-image [JETPACK=6|7] | clean
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.setup-done
SHELL_SCRIPTS := .ci/run scripts/flash-jetson.sh $(wildcard deploy/*/*.sh)
SOURCES := edge_runtime calibration distill tests demo benchmarks scripts ros2_ws/src

.PHONY: help setup lint format test demo jetson-image clean

help:
	@echo "make setup   create $(VENV) and install everything the project needs"
	@echo "make test    lint, types, import rules and tests"
	@echo "make demo    from unlabelled images to ROS 2 detections; DATA=path/to/dataset.yaml for your own"
	@echo "make jetson-image JETPACK=6   container image for a Jetson with JetPack 6 or 7; see docs/jetson.md"
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
	$(BIN)/basedpyright
	$(BIN)/lint-imports
	if [ -x $(BIN)/hadolint ]; then $(BIN)/hadolint Dockerfile.jetson; fi
	$(BIN)/shellcheck -x $(SHELL_SCRIPTS)

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test: lint
	$(BIN)/python -m pytest -m 'not slow and not gpu' -q

demo: setup
	$(BIN)/python demo/run.py $(if $(DATA),--data $(DATA))

JETPACK ?= 6
IMAGE ?= fieldsight:jetpack$(JETPACK)
# On an x86-64 machine docker emulates arm64: docker run --privileged tonistiigi/binfmt --install arm64
jetson-image:
	case "$(JETPACK)" in 6|7) ;; *) echo "error: JETPACK is '$(JETPACK)', expected 6 or 7" >&2; exit 2;; esac
	docker buildx version > /dev/null || { echo "error: docker buildx is absent; install docker-buildx" >&2; exit 2; }
	docker buildx build --platform linux/arm64 --load --file Dockerfile.jetson \
		--build-arg JETPACK=$(JETPACK) $(if $(TENSORRT),--build-arg TENSORRT=$(TENSORRT)) \
		--build-arg REVISION=$(shell git rev-parse --short HEAD 2>/dev/null || echo unknown) \
		--tag $(IMAGE) .
	@echo "next: scripts/flash-jetson.sh HOST NAME.bundle --image $(IMAGE)"

clean:
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
	rm -rf ros2_ws/build ros2_ws/install ros2_ws/log
	find $(wildcard $(SOURCES)) -name __pycache__ -type d -prune -exec rm -rf {} +
