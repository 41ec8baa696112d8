# Confide: everything a developer runs. Needs Python 3.11 or newer, make and git; installs into .venv, runs in .confide.
# To add a target: write `name: $(DEV) ## what it does` and call the tools through $(BIN); `make help` finds it.

SHELL := /bin/sh
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PORT ?= 8080
WORKERS ?= 2
EXAMPLES ?= 200
ARGS ?=
BIN := .venv/bin

# --- The virtual environment -------------------------------------------------------------------------------------------
# A stamp is named after the lock it was made from (and the checkout's path, which the scripts in .venv hold), so that a
# changed lock or a moved checkout installs again, and anything else starts at once.
key = $(shell { pwd; cat pyproject.toml $(1); } | cksum | cut -d' ' -f1)
RUN := .venv/.run-$(call key,requirements-embedded.lock)
DEV := .venv/.dev-$(call key,requirements-dev.lock)
BENCH := .venv/.bench-$(call key,bench/peers/requirements.lock)

# The first interpreter that is new enough and can make an environment.
find_python = for p in $(PYTHON) python3 python3.14 python3.13 python3.12 python3.11; do \
	  "$$p" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo "$$p"; break; }; done

# $(call install,lock,stamp's stem): the environment, the lock, then the checkout itself, editable, with locked build tools.
define install
@if ! $(BIN)/python -c 'import pip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	  py=$$($(find_python)); \
	  if [ -z "$$py" ]; then \
	    echo 'Confide needs Python 3.11 or newer with venv and ensurepip (on Debian: python3 and python3-venv).' >&2; \
	    echo 'Install it, or name one: make PYTHON=/path/to/python3.12 ...' >&2; exit 1; fi; \
	  echo "Making .venv with $$py"; "$$py" -m venv --clear .venv; fi
@echo 'Installing $(1) into .venv (once; a later start takes seconds)'
@PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore $(BIN)/python -m pip install -q --no-input --require-hashes -r $(1)
@PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore $(BIN)/python -m pip install -q --no-input --no-deps --no-build-isolation -e .
@rm -f $(2)-* && touch $@
endef

$(RUN):
	$(call install,requirements-embedded.lock,.venv/.run)

$(DEV):
	$(call install,requirements-dev.lock,.venv/.dev)

# The benchmark's peers have an environment of their own: LangGraph's dependencies exclude versions that Confide needs.
$(BENCH): $(DEV)
	@$(BIN)/python -m venv --clear .venv/peers
	@PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore .venv/peers/bin/python -m pip install -q --no-input --require-hashes -r bench/peers/requirements.lock
	@rm -f .venv/.bench-* && touch $@

# --- What a developer runs ---------------------------------------------------------------------------------------------
.PHONY: help
help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: run
run: $(RUN) ## serve on PORT (8080) with an embedded PostgreSQL and a demo tenant; state is in .confide
	@CONFIDE_ENV="$${CONFIDE_ENV:-dev}" exec $(BIN)/confide serve --demo --port "$(PORT)"

.PHONY: test
test: $(DEV) ## run the tests on WORKERS (2) processes; ARGS adds pytest arguments: make test ARGS='tests/embedded -k kill'
	@$(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup $(ARGS)

.PHONY: fuzz
fuzz: $(DEV) ## hold the service to its OpenAPI document with EXAMPLES (200) random requests an operation
	@CONFIDE_FUZZ_EXAMPLES="$(EXAMPLES)" $(BIN)/python -m pytest -n $(WORKERS) tests/guarantees/test_openapi_truth.py $(ARGS)

.PHONY: faults
faults: $(DEV) ## every kind of fault of a key service, whatever is being done, for every provider: 240 cells (a minute and a half)
	@$(BIN)/python -m tests.programmes.fault_matrix $(ARGS)

.PHONY: bench-revocation
bench-revocation: $(DEV) ## time from withdrawing a key to the last plaintext, and back; ARGS=--quick for a few runs only
	@$(BIN)/python -m bench.revocation $(ARGS)

.PHONY: check
check: check-format check-lint check-types check-imports check-image ## all of the following; `make -k check` goes on after a failure

.PHONY: check-format
check-format: $(DEV) ## the format of the code
	$(BIN)/ruff format --check .

.PHONY: check-lint
check-lint: $(DEV) ## lint
	$(BIN)/ruff check .

.PHONY: check-types
check-types: $(DEV) ## types
	$(BIN)/mypy

.PHONY: check-imports
check-imports: $(DEV) ## imports point one way
	$(BIN)/lint-imports --no-logo

.PHONY: check-image
check-image: $(DEV) ## the Dockerfile, where its linter exists
	@if [ -x $(BIN)/hadolint ]; then $(BIN)/hadolint Dockerfile && echo 'Dockerfile: no finding'; fi

.PHONY: bench
bench: $(BENCH) ## measure against baselines and peers (minutes); ARGS='--only main' for a part: see docs/performance.md
	@$(BIN)/python -m bench $(ARGS)

.PHONY: bench-full
bench-full: $(BENCH) ## the same with 10,000 tenants and a million objects (an hour)
	@$(BIN)/python -m bench --full $(ARGS)

MINUTES ?= 60
.PHONY: soak
soak: $(DEV) ## an even load for MINUTES (60): the worker's memory must stay flat
	@$(BIN)/python -m bench.soak --minutes $(MINUTES)

.PHONY: fix
fix: $(DEV) ## format, and mend what ruff can mend
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

.PHONY: chaos
chaos: $(DEV) ## kill -9 every process of a service under load, 20 times: every answer is held against the log and the data
	@$(BIN)/python -m tests.programmes.chaos $(ARGS)

.PHONY: chaos-audit
chaos-audit: $(DEV) ## kill -9 workers, sealer and PostgreSQL under load, 50 cycles: nothing acknowledged may be missing
	@$(BIN)/python -m tests.programmes.audit_crash $(ARGS)

.PHONY: chaos-tamper
chaos-tamper: $(DEV) ## 500 changes of each of eight kinds in a stored log of 20,000 events: the offline verifier finds every one (half an hour on two cores)
	@$(BIN)/python -m tests.programmes.audit_tamper $(ARGS)

.PHONY: lock
lock: $(DEV) ## resolve the dependencies again into the four locks, the newest versions with hashes and no registry's address
	$(compile) -o requirements.lock
	$(compile) --extra embedded --group build -c requirements.lock -o requirements-embedded.lock
	$(compile) --extra embedded --extra dev --group build -c requirements-embedded.lock -o requirements-dev.lock
	$(compile_peers) -o bench/peers/requirements.lock

resolve = $(BIN)/uv pip compile -q --upgrade --universal --python-version 3.11 --generate-hashes --no-header \
	  --no-emit-index-url --no-emit-find-links
compile = $(resolve) pyproject.toml
compile_peers = $(resolve) bench/peers/requirements.in

.PHONY: clean
clean: ## remove .venv, caches and build products; .confide (data and keys) stays
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis .schemathesis
	find app tests migrations bench sdk -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
