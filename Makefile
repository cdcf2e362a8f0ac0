# Every target does its own set-up: a machine with Python 3.11+, make and a C compiler is enough.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
JOBS ?= 2

.PHONY: help setup demo test fuzz lint proto proto-check lock bench gpu-check e2e images manifests clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(VENV)/.ready: locks/dev.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { echo "Tessera needs Python 3.11 or newer as '$(PYTHON)' (say PYTHON=python3.12 for another one)." >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "Python's venv module is missing (Debian: apt-get install python3-venv)." >&2; exit 1; }
	@command -v cc >/dev/null || { echo "A C compiler is missing: the fake NVML library is C (Debian: apt-get install gcc libc6-dev)." >&2; exit 1; }
	@echo "setting up $(VENV) from locks/dev.txt (once, about a minute)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r locks/dev.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

setup: $(VENV)/.ready ## make the virtual environment

demo: $(VENV)/.ready ## the whole system on this machine: no GPU, no cluster
	@$(BIN)/tessera demo $(ARGS)

test: $(VENV)/.ready ## every test
	@$(BIN)/python -m pytest -n $(JOBS) --dist loadscope $(ARGS)

fuzz: $(VENV)/.ready ## admission against hostile input; ARGS='--seconds 600' or '--inputs 1000000'
	@$(BIN)/python tests/fuzz/run.py $(ARGS)

lint: $(VENV)/.ready ## ruff, mypy, import-linter
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

proto: $(VENV)/.ready ## regenerate deviceplugin/_proto from proto/
	@$(BIN)/python -m grpc_tools.protoc -Ideviceplugin/_proto=proto --python_out=. --pyi_out=. --grpc_python_out=. \
		deviceplugin/_proto/deviceplugin_v1beta1.proto deviceplugin/_proto/podresources_v1.proto

proto-check: proto ## generated code is what is committed
	@git diff --exit-code --stat -- deviceplugin/_proto || { echo "deviceplugin/_proto is stale: run 'make proto' and commit it." >&2; exit 1; }

bench: $(VENV)/.ready ## speed and memory, as percentiles
	@$(BIN)/python -m bench

gpu-check: $(VENV)/.ready ## the real NVML path, on a machine with an NVIDIA GPU
	@$(BIN)/python -m deviceplugin.gpucheck

e2e: $(VENV)/.ready ## on a real cluster of this machine (root); KEEP=1 leaves it up, then ARGS=--down stops it
	@$(BIN)/python tests/e2e/run.py $(if $(KEEP),--keep) $(ARGS)

images: $(VENV)/.ready ## both container images, without an engine (root); ARGS="--import SOCKET" gives them to containerd
	@$(BIN)/python -m images $(ARGS)

manifests: $(VENV)/.ready ## make again what of manifests/ depends on the config
	@$(BIN)/tessera generate -o manifests --config $(if $(CONFIG),$(CONFIG),manifests/components/second-scheduler/config.yaml)

# uv resolves; what is written is plain pip input with hashes and no registry's name.
lock: $(VENV)/.ready ## refresh locks/*.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	@$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-emit-index-url --no-emit-package tessera-gpu --all-extras pyproject.toml -o locks/dev.txt
	@echo hatchling | $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-emit-index-url -c locks/dev.txt - -o locks/build.txt
	@for part in webhook node cli; do \
		$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-emit-index-url -c locks/dev.txt --extra $$part pyproject.toml -o locks/$$part.txt; done

clean: ## remove what the targets made
	@rm -rf $(VENV) out build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
