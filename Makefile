# Every target sets itself up: it needs Python 3.11 or newer, make, and a package index that pip can reach.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/ready

.DEFAULT_GOAL := help
.PHONY: help setup demo test conformance fuzz fuzz-requests contract check format bench serve release test-wheel test-pythons \
        container-test lock clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY) ## make the virtual environment .venv, from the pinned and hashed lock

$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "vmmd needs Python 3.11 or newer, and '$(PYTHON)' is $$($(PYTHON) --version 2>&1). Name another: make setup PYTHON=python3.12" >&2; exit 1; }
	@echo "setting up $(VENV) ..."
	@$(PYTHON) -m venv --clear $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --requirement requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

demo: $(READY) ## replay a recorded QEMU boot's memory map updates under four vCPUs, plain and atomic
	$(BIN)/python -m vmmd_client.demo

test: $(READY) ## run all tests
	$(BIN)/python -m pytest $(ARGS)

conformance: $(READY) ## ask this machine's /dev/kvm and vmmd the same 2,000 random sequences, and shrink what differs
	$(BIN)/python -m tests.conformance $(ARGS)

fuzz: $(READY) ## run random programs on vmmd's engines and on Unicorn, 1,000,000 instructions, and shrink what differs
	$(BIN)/python -m tests.differential $(ARGS)

fuzz-requests: $(READY) ## ask a live daemon 100,000 requests made of the contract's schemas, most of them broken
	$(BIN)/python -m tests.requests_fuzz $(ARGS)

contract: $(READY) ## make the checked-in copies anew: OpenRPC, the synchronous client, the documents' reference and screens
	$(BIN)/python -m vmmd.api.openrpc >docs/openrpc.json.new && mv docs/openrpc.json.new docs/openrpc.json
	$(BIN)/python -m tests.client.twin
	$(BIN)/python -m tests.cli.screens
	$(BIN)/python -m tests.docs.reference
	$(BIN)/python -m tests.docs

check: $(READY) ## format, lint, types and the layers of the house
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(READY) ## rewrite the sources in the house's format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(READY) ## measure: ratios within one run
	$(BIN)/python -m tests.benchmarks $(ARGS)

serve: $(READY) ## run the daemon with the documented default configuration
	$(BIN)/vmmd serve --config config/vmmd.toml

release: $(READY) ## build what would be published into dist, check it, and use it in an empty environment
	$(BIN)/python -m tests.release release

test-wheel: $(READY) ## run the tests against the installed wheel, away from the tree
	$(BIN)/python -m tests.release wheel -- $(ARGS)

test-pythons: $(READY) ## run a share of the tests against the wheel, with each Python from 3.11 to 3.13 that is there
	$(BIN)/python -m tests.release pythons -- $(ARGS)

container-test: $(READY) ## build the image and try compose.yaml on this machine's engine
	$(BIN)/python -m tests.container

PIP_COMPILE := pip-compile --quiet --generate-hashes --no-emit-index-url --no-emit-find-links --no-emit-trusted-host \
               --no-emit-options --strip-extras --allow-unsafe

lock: $(READY) ## pin the dependencies anew (needs pip-tools on the PATH)
	$(PIP_COMPILE) --extra dev --extra test --output-file requirements.lock pyproject.toml
	grep -o '^[a-z0-9-]*==[^ ]*' requirements.lock > .pins
	$(PIP_COMPILE) --no-header --no-annotate --constraint .pins --output-file runtime.lock pyproject.toml
	$(PIP_COMPILE) --no-header --no-annotate --constraint .pins --only-build-deps --all-build-deps \
	  --output-file build.lock pyproject.toml
	sed -i '1i # Made by `make lock`: what the wheel needs, a part of requirements.lock.' runtime.lock
	sed -i '1i # Made by `make lock`: what builds the wheel, a part of requirements.lock.' build.lock
	rm .pins

clean: ## remove the virtual environment and every cache in the tree
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
