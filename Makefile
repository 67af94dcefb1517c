# Two commands for a bare machine with Python 3.11 and pip: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
EXTRAS := train fast cpu openvino quantize rtx data video ray track dev
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps
UPGRADE ?=
LOCK := $(BIN)/uv --quiet pip compile --generate-hashes --python-version 3.11 --python-platform linux \
	--custom-compile-command 'make lock' $(UPGRADE)

.PHONY: demo test lint lock clean

demo: $(STAMP)
	@PATH="$(CURDIR)/$(BIN):$$PATH" sh benchmarks/demo.sh

# Two processes of one thread each: they do not fight for cores, as processes of two threads would.
test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Installed again only when what is to be installed has changed. Every file that pip fetches must have a hash that
# the locks name; what builds the few source distributions and edgeda comes first, from the same kind of lock.
$(STAMP): pyproject.toml requirements.lock requirements-build.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || \
		{ echo "error: the pinned versions are for Python 3.11; use make PYTHON=python3.11" >&2; exit 2; }
	@echo "creating $(VENV) with the pinned versions of requirements.lock (some minutes, once)"
	$(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) --require-hashes --requirement requirements-build.lock
	$(PIP_INSTALL) --require-hashes --no-build-isolation --requirement requirements.lock
	$(PIP_INSTALL) --no-build-isolation --editable .
	@touch $(STAMP)

# Both locks again, and the licence table. Versions stay where pyproject.toml allows; `make lock UPGRADE=--upgrade`
# takes the newest, `make lock UPGRADE='--upgrade-package NAME'` the newest of one.
lock: $(STAMP)
	$(LOCK) $(EXTRAS:%=--extra %) --output-file requirements.lock pyproject.toml
	printf '%s\n' editables 'hatchling>=1.28' setuptools | \
		$(LOCK) --no-annotate --constraint requirements.lock --output-file requirements-build.lock -
	$(MAKE) $(STAMP)
	$(BIN)/python -m tests.supply.licences

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache
