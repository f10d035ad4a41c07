# `make demo` and `make test` do everything on a fresh machine; `make help` lists the rest.

PYTHON ?= python3
VENV   ?= .venv
OUT    ?= build/demo
# Further arguments for pip, for instance an --extra-index-url that has CPU-only builds of torch.
PIP_ARGS ?=
# Optional extras for the tests: EXTRAS=,qnn adds Qualcomm's compiler, which has a license of its own (README.md).
EXTRAS ?=
# Processes that run the tests; 0 runs them in pytest's own.
WORKERS ?= 2

# onnxruntime and onnxruntime-genai report usage unless told not to.
export ORT_DISABLE_TELEMETRY = 1
export PIP_DISABLE_PIP_VERSION_CHECK = 1
export PIP_NO_INPUT = 1

BIN  := $(VENV)/bin
PIP  := $(BIN)/python -m pip install -qq $(PIP_ARGS)
READY := $(VENV)/.compile
READY_DEV := $(VENV)/.dev

.NOTPARALLEL:
.PHONY: help demo test lint format clean distclean

help: ## this list
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | sort

demo: $(READY) ## install, build the reference checkpoint, ask it questions, write the report
	@$(BIN)/hvlc demo -o $(OUT)

test: lint ## install, check style and types, run the tests
	@$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

lint: $(READY_DEV) ## style, formatting and types only
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: $(READY_DEV) ## rewrite the sources in the project's format
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

clean: ## remove what was built; the environment stays
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find hvlc tests examples benchmarks -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

distclean: clean ## remove the environment too
	rm -rf $(VENV)

# The environment is made once. It is installed again when pyproject.toml changes; changed sources
# count at once, because the install is editable.
$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "hvlc needs Python 3.11 or newer; name one with: make PYTHON=python3.12"; exit 1; }
	@echo "Making $(VENV)"
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

$(READY): pyproject.toml | $(BIN)/python
	@echo "Installing hvlc with torch, transformers and onnxruntime into $(VENV): minutes the first time"
	@$(PIP) -e '.[compile]'
	@touch $@

$(READY_DEV): pyproject.toml | $(BIN)/python
	@echo "Installing hvlc with torch, transformers, onnxruntime and the test tools into $(VENV): minutes the first time"
	@$(PIP) -e '.[compile,dev$(EXTRAS)]'
	@touch $(READY) $@
