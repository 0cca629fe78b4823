# Every goal first sets up what it needs in .venv; a second call finds it ready.
#   make train ARGS="--config.epochs=2"       make test ARGS=tests/ops/test_conv.py
#   make test PYTHON=/path/to/python3.12      (PYTHON counts when .venv is made)

PYTHON ?=
ARGS ?=
# Processes of `make test`; 0 runs everything in one.
WORKERS ?= 2

PY := .venv/bin/python
# Memory in huge pages, on Linux: a training step on CPUs is a fifth faster.
HUGE_PAGES := GLIBC_TUNABLES=$${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}
PIP := PIP_DISABLE_PIP_VERSION_CHECK=1 $(PY) -m pip install --quiet

.DEFAULT_GOAL := help
.PHONY: help train test lint types docs clean
.DELETE_ON_ERROR:

help:
	@echo "make train   train QuantNet on the bundled images (ARGS: flags of train.py)"
	@echo "make test    run all tests (ARGS: options of pytest, WORKERS: processes)"
	@echo "make lint    check format, lint and types"
	@echo "make types   check types alone"
	@echo "make docs    write the API reference, the tables and the plots of the pages"
	@echo "make clean   remove .venv, builds and caches; runs/ stays"

train: .venv/ready-train
	$(HUGE_PAGES) $(PY) train.py $(ARGS)

test: .venv/ready
	$(PY) -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(ARGS)

lint: .venv/ready-dev
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m pyright --pythonpath $(PY)

types: .venv/ready-dev
	$(PY) -m pyright --pythonpath $(PY)

docs: .venv/ready-dev
	$(PY) -m tools.reference
	$(PY) -m tools.tables
	$(PY) -m tools.plots

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .ruff_cache
	find . -type d -name __pycache__ -not -path './.git/*' -prune -exec rm -rf {} +

# A stamp is written last, so that an interrupted set-up is taken up again.
.venv/created:
	@for python in $(if $(PYTHON),"$(PYTHON)",python3 python3.13 python3.12 python3.11); do \
	  if "$$python" -c 'import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then \
	    echo "Making .venv with $$("$$python" --version)"; \
	    "$$python" -m venv --clear .venv && touch $@; \
	    exit $$?; \
	  fi; \
	done; \
	echo "error: $(if $(PYTHON),PYTHON=$(PYTHON) is not a,found no) Python 3.11, 3.12 or 3.13 with its venv and ensurepip modules; install one or name it: make PYTHON=/path/to/python3.12" >&2; \
	exit 1

.venv/ready-train: pyproject.toml | .venv/created
	@echo "Installing the package with its extra 'train' into .venv"
	@$(PIP) -e ".[train]"
	@touch $@

.venv/ready: requirements.txt | .venv/created
	@echo "Installing requirements.txt into .venv (the first time takes a few minutes)"
	@$(PIP) -r requirements.txt
	@touch $@

.venv/ready-dev: requirements-dev.txt .venv/ready
	@echo "Installing requirements-dev.txt into .venv"
	@$(PIP) -r requirements-dev.txt
	@touch $@
