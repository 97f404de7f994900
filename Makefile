# Two commands: `make run` does the main job, `make test` lints and passes the tests; `make check`
# lints and passes the fast half of them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: run paper test check lint results docs soak clean

# The stamp is renewed whenever the declared dependencies change.
$(VENV)/.installed: setup.cfg pyproject.toml
	$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v < (3, 14) else "Python 3.11 to 3.13 is needed, this is %d.%d; try make PYTHON=python3.12" % v)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

run: $(VENV)/.installed
	$(BIN)/python -m replication.run

# Audit, P1 to P6, fields and a served model: make paper PAPER_FLAGS='--manual_dir=DIR --images=original'
paper: $(VENV)/.installed
	$(BIN)/python -m replication.paper $(PAPER_FLAGS)

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Three workers keep two cores busy while servers are waited for.
test: lint
	$(BIN)/python -m pytest -n 3 --dist loadfile

check: lint
	$(BIN)/python -m pytest -n 2 --dist loadfile -m 'not slow'

# Tables and figures that are made of results/*.csv, the reference of flags, the drawn cells, the first page.
results: $(VENV)/.installed
	$(BIN)/python docs/results.py
	$(BIN)/python docs/generate.py

# The site, strictly: a dead link or an unlisted page is an error. Needs no network once installed.
docs: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	$(BIN)/python docs/generate.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo build/site/index.html

clean:
	rm -rf $(VENV) runs build dist *.egg-info

# Attacks the embedded server for SOAK_SECONDS (an hour at most), then kills and resumes the commands
# SOAK_KILLS times; writes results/soak.csv and results/faults.csv.
SOAK_SECONDS ?= 480
SOAK_KILLS ?= 50
soak: $(VENV)/.installed
	$(BIN)/python benchmarks/soak.py --seconds=$(SOAK_SECONDS)
	$(BIN)/python benchmarks/faults.py --kills=$(SOAK_KILLS)
