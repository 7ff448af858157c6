# Everything is installed into .venv and node_modules; nothing outside this folder is touched.
# ARGS is passed on: make test ARGS="tests/unit -x", make run ARGS="--port 9000".

VENV := .venv
BIN := $(VENV)/bin
NODE_TOOLS := clients/javascript tests/asyncapi
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
LOCK = $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	--custom-compile-command "make lock" $(ARGS)
# editables is what hatchling asks for in addition when it installs a folder as it stands.
BUILD_REQUIRES = import tomllib; \
	print(*tomllib.load(open("pyproject.toml", "rb"))["build-system"]["requires"], "editables", sep="\n")
# The first of these that is 3.11 or newer; make setup PYTHON=... names another.
PYTHON ?= $(firstword $(foreach each,python3 python3.14 python3.13 python3.12 python3.11,$(shell \
	$(each) -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && echo $(each))))

.DEFAULT_GOAL := help
.PHONY: help setup run test faults lint audit bench lock clean

help: ## list these targets
	@sed -n 's/^\([a-z]*\):.*## /  make \1	/p' $(firstword $(MAKEFILE_LIST))

setup: $(VENV)/.runtime ## make .venv with the service in it (run and test do this by themselves)

run: setup ## serve on http://127.0.0.1:8000 with four workers; Ctrl-C stops
	@exec $(BIN)/tocsin serve --workers 4 $(ARGS)

# Node's tools are installed where Node is; elsewhere their tests are skipped.
test: setup $(VENV)/.dev $(if $(shell command -v npm 2>/dev/null),$(NODE_TOOLS:=/node_modules/.stamp)) ## all tests, on a real Redis and real workers
	$(BIN)/pytest --numprocesses 4 --dist loadfile --no-loadscope-reorder $(ARGS)

faults: setup $(VENV)/.dev ## the table of faults, long and over several seeds (ARGS="--seeds 2 --only power")
	$(BIN)/python -m tests.faults $(ARGS)

lint: setup $(VENV)/.dev ## ruff, mypy and the layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

audit: setup $(VENV)/.dev ## whether a vulnerability is known in requirements.lock; asks a database on the net
	$(BIN)/python -m tests.audit $(ARGS)

bench: setup ## measure this service beside others; the tables go to bench/results
	$(BIN)/python -m bench $(ARGS)

lock: setup $(VENV)/.dev ## renew the locks from pyproject.toml (ARGS=--upgrade takes the newest versions)
	$(LOCK) pyproject.toml --output-file requirements.lock
	$(BIN)/python -c '$(BUILD_REQUIRES)' | $(LOCK) - --constraint requirements.lock \
		--output-file requirements-build.lock
	$(LOCK) --group dev --constraint requirements.lock --constraint requirements-build.lock \
		--output-file requirements-dev.lock

clean: ## remove .venv and everything that tools left
	rm -rf $(VENV) $(NODE_TOOLS:=/node_modules) build dist .hypothesis .mypy_cache .ruff_cache .import_linter_cache
	find . -name __pycache__ -not -path './bench/.work/*' -prune -exec rm -rf {} +

$(BIN)/pip:
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed; make setup PYTHON=... names one." >&2; exit 1; }
	@$(PYTHON) -m venv --clear $(VENV) || { rm -rf $(VENV); \
		echo "No virtual environment: on Debian and Ubuntu, apt-get install python3-venv brings what is missing." >&2; \
		exit 1; }

# The stamps: a set-up is repeated when what it was made from has changed.
$(VENV)/.runtime: pyproject.toml requirements.lock requirements-build.lock | $(BIN)/pip
	@echo "Installing the service into $(VENV)"
	@$(PIP) install --require-hashes --requirement requirements.lock --requirement requirements-build.lock
	@$(PIP) install --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/.dev: requirements-dev.lock $(VENV)/.runtime
	@echo "Installing the tools of development into $(VENV)"
	@$(PIP) install --require-hashes --requirement requirements-dev.lock
	@touch $@

%/node_modules/.stamp: %/package.json %/package-lock.json
	@echo "Installing the tools of $* into $*/node_modules"
	@cd $* && npm ci --ignore-scripts --no-audit --no-fund --loglevel=error
	@touch $@
