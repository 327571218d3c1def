# `make paint` and `make test` are all a fresh clone needs: each builds .venv on its first run, `make paint`
# with the base requirements alone. Once .venv matches pyproject.toml and setup.cfg nothing is installed again, so the network may be off.
PYTHON ?= python3
VENV ?= .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed
BASE := $(VENV)/.installed-base
EXTRAS := test,dev
# Processes that share the suite. Its models are too small to gain from more threads.
WORKERS ?= 2
INSTALL := $(PY) -m pip install --quiet --no-compile --disable-pip-version-check

.PHONY: paint bench test test-long dev lint format types docs clean base venv

paint: base
	$(PY) -m clipag_plug generate "a goldfish" -o goldfish.png $(ARGS)

bench: base
	$(PY) -m clipag_plug.bench $(ARGS)

test: venv
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(PY) -m pytest -n $(WORKERS) --dist worksteal $(ARGS)

# What takes long: fuzz, kills, random sequences, small trainings, other people's programs.
test-long: venv
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(PY) -m pytest -n $(WORKERS) --dist worksteal -m "long and not network" $(ARGS)

dev: venv
	$(PY) -m pre_commit install

lint: venv
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

format: venv
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

# mypy cannot follow the mapping of adapters/ in a checkout or a default editable install,
# so it reads a plain installation in a folder of its own.
types: venv
	rm -rf build
	$(INSTALL) --no-deps --no-build-isolation --target build/types .
	cd build/types && $(abspath $(PY)) -m mypy -p clipag_plug --config-file ../../pyproject.toml --cache-dir ../../.mypy_cache

docs: venv
	$(PY) -m pytest tests/test_readme.py tests/test_docs.py

clean:
	rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

# A stamp holds the files that decide what is installed: contents, not dates, so that a checkout
# or a copy with new dates does not install again. Building without isolation keeps a re-install
# possible offline as long as the requirements are already there.
# $(1): the stamp. $(2): what is installed.
define set-up
	@cat pyproject.toml setup.cfg | cmp -s - $(1) || { \
	  set -e; \
	  echo "setting up $(VENV) (the first time takes a few minutes: it downloads torch)" >&2; \
	  $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "$(PYTHON) is older than 3.11; name a newer one: make PYTHON=python3.12 ..." >&2; exit 1; }; \
	  $(PY) -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV); \
	  $(INSTALL) 'setuptools>=77'; \
	  $(INSTALL) --no-build-isolation --editable '$(2)'; \
	  cat pyproject.toml setup.cfg > $(BASE); \
	  [ $(1) = $(BASE) ] || cp $(BASE) $(1); \
	}
endef

base:
	$(call set-up,$(BASE),.)

venv:
	$(call set-up,$(STAMP),.[$(EXTRAS)])
