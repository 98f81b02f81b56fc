# `make run` shows the system at work; `make test` runs the tests. Both install what they need into $(VENV).

PYTHON ?= $(firstword $(shell command -v python3.11 python3))
VENV ?= .venv
BIN := $(VENV)/bin
# Most of their time tests wait for processes, so two keep two cores busy.
TESTS_AT_ONCE ?= 2
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --editable

.DEFAULT_GOAL := help
.PHONY: help run demo-vllm test test-pythons test-vllm test-ray fidelity check format page docs protos bench bench-vllm chaos clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /: /'

run: $(VENV)/.runtime ## start a fleet of simulated GPUs, send it a minute of mixed requests, print the report and the same minute without QLM
	$(BIN)/qlm demo

demo-vllm: $(VENV)/.runtime ## the same with agents on a real vLLM, on the CPU (2 GB of disk)
	$(BIN)/python deploy/vllm-cpu/demo.py

test: $(VENV)/.dev ## run the tests, two files at a time
	$(BIN)/pytest --numprocesses $(TESTS_AT_ONCE) --dist loadfile

test-pythons: $(VENV)/.dev ## run the tests without processes, and the client's, on every Python from 3.11 to 3.14 that is here
	$(BIN)/nox

test-vllm: $(VENV)/.dev ## run the tests that need a real vLLM, on the CPU (2 GB of disk)
	$(BIN)/python deploy/vllm-cpu/prepare.py
	$(BIN)/pytest -m vllm

test-ray: $(VENV)/.dev $(VENV)-ray/.installed ## run the tests of agents on a real Ray, on this machine (800 MB of disk)
	QLM_RAY=$(VENV)-ray/bin/python $(BIN)/pytest tests/processes/test_ray.py

fidelity: $(VENV)/.dev ## compare a real vLLM's answers with the same through QLM, field by field
	$(BIN)/python deploy/vllm-cpu/prepare.py
	$(BIN)/python -m benchmarks.fidelity

bench-vllm: $(VENV)/.dev ## measure priorities, evictions and lost work on a real vLLM, on the CPU
	$(BIN)/python deploy/vllm-cpu/prepare.py
	$(BIN)/python -m benchmarks.vllm_mixed

check: $(VENV)/.dev ## check style, types, layers and generated code
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/buf lint
	$(BIN)/python -m protos.generate --check
	$(BIN)/python client/generate.py --check

format: $(VENV)/.dev ## put the code into its standard form
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

page: ## build the page at /ui from its sources, with node
	cd gateway/page/source && npm ci --no-audit --no-fund && npm run check && npm run build

docs: $(VENV)/.docs ## build the documentation as a site, in site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

protos: $(VENV)/.dev ## generate the protocol's code again
	$(BIN)/python -m protos.generate
	$(BIN)/python client/generate.py

bench: $(VENV)/.dev ## measure the data plane and the core
	$(BIN)/qlm bench dataplane
	$(BIN)/qlm bench core

chaos: $(VENV)/.dev ## kill, freeze, cut and fill a real fleet under load, and account for every request (`ARGS=--quick`: five minutes)
	$(BIN)/python -m benchmarks.chaos $(ARGS)

$(BIN)/python:
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or later is needed: make PYTHON=/path/to/python3.11"; exit 2; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.runtime: pyproject.toml | $(BIN)/python
	$(PIP) '.[gurobi]'
	$(BIN)/python -m solver.backends.warm_up
	@touch $@

$(VENV)/.dev: pyproject.toml | $(BIN)/python
	$(PIP) '.[dev]'
	$(BIN)/python -m solver.backends.warm_up
	@touch $@ $(VENV)/.runtime

$(VENV)-ray/.installed: pyproject.toml | $(BIN)/python
	$(PYTHON) -m venv $(VENV)-ray
	$(VENV)-ray/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[ray]'
	@touch $@

$(VENV)/.docs: pyproject.toml | $(BIN)/python
	$(PIP) '.[docs]'
	@touch $@

clean: ## remove what the other targets made
	rm -rf $(VENV) $(VENV)-ray build dist site *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
