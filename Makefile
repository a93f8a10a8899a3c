# make demo   a virtual environment, the installation, and recipes/quickstart.yaml
# make test   what the tests need, and the tests (PYTEST="tests/losses -x" chooses)
# make unit   the fast ones
# make lint   ruff and mypy
#
# PYTHON=python3.12       the interpreter, 3.11 to 3.13; found by itself otherwise
# TORCH_INDEX=URL         one more package index, for example PyTorch's own with CPU wheels (not used where a GPU is)
# VENV=DIR                where the virtual environment goes
# WORKERS=N               processes that share the tests; 2

VENV ?= .venv
TORCH_INDEX ?=
PYTEST ?=
RUN_OPTIONS ?=
WORKERS ?= 2

BIN := $(VENV)/bin
SOURCES := mmcompress tests $(wildcard benchmarks)
GPU := $(shell command -v nvidia-smi 2>/dev/null)
# Where an index offers a wheel "2.13.0+cpu", pip prefers it to "2.13.0" for the constraint torch==2.13.0.
INDEX := $(if $(GPU),,$(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)))
# Modules are compiled when they are first imported: compiling all of torch takes longer than most uses of it.
INSTALL = $(BIN)/python -m pip install --quiet --quiet --disable-pip-version-check --no-compile $(INDEX) --constraint constraints.txt

.PHONY: demo test unit lint clean
.DELETE_ON_ERROR:

demo: $(VENV)/.installed
	$(BIN)/mmcompress run recipes/quickstart.yaml $(RUN_OPTIONS)

test: $(VENV)/.installed-test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup $(PYTEST)

unit: $(VENV)/.installed-test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup -m "unit and not slow and not gpu" $(PYTEST)

lint: $(VENV)/.installed-test
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache

$(BIN)/python:
	@python=""; \
	for candidate in $(or $(PYTHON),python3 python3.13 python3.12 python3.11 python); do \
	  if "$$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then \
	    python="$$candidate"; break; \
	  fi; \
	done; \
	if [ -z "$$python" ]; then \
	  echo "no Python 3.11 to 3.13 found$(if $(PYTHON), as PYTHON=$(PYTHON)). Install one, or name it: make PYTHON=/path/to/python3.12" >&2; \
	  exit 2; \
	fi; \
	echo "making $(VENV) with $$("$$python" --version)"; \
	"$$python" -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing mmcompress with torch and onnxruntime into $(VENV) ($(if $(GPU),an NVIDIA GPU is here,no NVIDIA GPU is here)); this takes a minute or two"
	@$(INSTALL) --editable '.[compress,cpu]'
	@if [ -z "$(GPU)" ] && ls -d $(VENV)/lib/python*/site-packages/nvidia >/dev/null 2>&1; then \
	  echo "this torch brought CUDA, and no NVIDIA GPU is here; TORCH_INDEX names an index with CPU wheels (CONTRIBUTING.md)"; \
	fi
	@touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	@echo "installing what tests and checks need into $(VENV)"
	@$(INSTALL) --editable '.[compress,cpu,openvino,tensorrt-rtx,audio,tracking,lora,data,test,lint]'
	@touch $@
