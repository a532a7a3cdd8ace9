# `make demo` and `make test` do all the set-up themselves: a virtual environment in .venv, and Ebbtide in it.
# A second call finds the stamp newer than pyproject.toml and starts at once.

VENV := .venv
RUN := $(VENV)/bin/python

# A Python that fits and can make virtual environments: the first that answers. Override with `make PYTHON=...`.
FITS := import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))
PYTHON ?= $(shell for name in python3 python3.13 python3.12 python3.11; do \
	if $$name -c "$(FITS)" >/dev/null 2>&1; then echo $$name; break; fi; done)

.PHONY: help demo test slow lint types clean

help:
	@echo "make demo    impute a real table, offline, and draw what came of it (demo/)"
	@echo "make test    run the tests; make slow runs the long ones"
	@echo "make lint    ruff;  make types  mypy --strict on the built wheel"
	@echo "make clean   remove .venv and what was built"

demo: $(VENV)/.installed
	$(VENV)/bin/ebbtide demo --overwrite

test: $(VENV)/.installed-dev
	$(RUN) -m pytest

slow: $(VENV)/.installed-dev
	$(RUN) -m pytest -m slow

lint: $(VENV)/.installed-dev
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

# On the wheel, because mypy cannot follow imports between the mapped folders of a checkout.
types: $(VENV)/.installed-dev
	RUN="$(abspath $(RUN))" sh .ci/types

$(VENV)/.installed: pyproject.toml
	$(call environment)
	$(RUN) -m pip install --editable .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml
	$(call environment)
	$(RUN) -m pip install --editable '.[dev]'
	@touch $@ $(VENV)/.installed

define environment
	@if [ -z "$(PYTHON)" ]; then \
		echo "Ebbtide needs Python 3.11, 3.12 or 3.13 with venv and pip; none was found." >&2; \
		echo "Install one (Debian, Ubuntu: apt install python3 python3-venv), or say where: make PYTHON=path" >&2; \
		exit 1; fi
	@$(PYTHON) -c "$(FITS)" 2>/dev/null || { echo "$(PYTHON) is not Python 3.11 to 3.13 with venv and pip" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
endef

clean:
	rm -rf $(VENV) build *.egg-info
