# make demo    the main job on data that ships with scikit-learn; needs no torch
# make test    the test suite, with torch; JOBS=4 for four processes, of one thread each
# make check   formatting, lint, types, doctests
# Each creates .venv if it is missing and installs what it needs; a second run installs nothing.

PYTHON ?= python3
VENV   ?= .venv
JOBS   ?= 2
BIN    := $(VENV)/bin
unexport PYTHONPATH
export PIP_DISABLE_PIP_VERSION_CHECK := 1

# A strict editable install links single files, so the *names* of the files count, not their contents.
NAMES := $(shell find src core backends theory experiments -name '*.py' -not -path '*/__pycache__/*' | LC_ALL=C sort | cksum | cut -d' ' -f1)
STAMP  = $(VENV)/.installed-$(1)-$(NAMES)

.PHONY: demo test check install clean
.DELETE_ON_ERROR:

demo: $(call STAMP,demo)
	$(BIN)/fishertope demo

test: $(call STAMP,test)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" -n $(JOBS) --dist worksteal

check: $(call STAMP,test)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy "$$(cd / && $(abspath $(BIN))/python -c 'import fishertope; print(fishertope.__path__[0])')"
	$(BIN)/pyright
	$(BIN)/python -m pytest -q --pyargs --doctest-modules fishertope.core fishertope.backends fishertope.theory
	$(BIN)/python -m pytest -q --doctest-glob='*.md' README.md docs

install: $(call STAMP,test)

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "fishertope needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) -V 2>&1). Set PYTHON=python3.x."; exit 1; }
	$(PYTHON) -m venv $(VENV)

# The test install contains the demo's.
$(call STAMP,demo): $(BIN)/python pyproject.toml constraints.txt setup.cfg
	@test -e $(call STAMP,test) || $(BIN)/pip install -q -c constraints.txt -e '.[sklearn]'
	@rm -f $(VENV)/.installed-demo-* && touch $@

$(call STAMP,test): $(BIN)/python pyproject.toml constraints.txt setup.cfg
	$(BIN)/pip install -q -c constraints.txt -e '.[torch,hf,parquet,hdf5,sklearn,text,test]'
	@rm -f $(VENV)/.installed-* && touch $@

clean:
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
