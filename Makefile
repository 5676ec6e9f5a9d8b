# Everything sets itself up: `make demo` and `make test` work on a fresh machine with Python >= 3.11.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export TRIPTYCH_DATA TRIPTYCH_GOLDEN

.PHONY: demo test test-all golden check format bench setup clean

demo: $(VENV)/.demo
	$(BIN)/triptych demo --out demo

test: $(VENV)/.dev
	$(BIN)/python -m pytest

test-all: $(VENV)/.dev
	$(BIN)/python -m pytest -m "slow or not slow"

golden: $(VENV)/.dev
	$(BIN)/python -m pytest tests/golden --golden $(DIR)

check: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_house.py

format: $(VENV)/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/.dev
	$(BIN)/python benchmarks/learning.py --out bench

setup: $(VENV)/.dev

$(VENV)/.demo: pyproject.toml constraints.txt setup.sh
	sh setup.sh $(PYTHON) $(VENV) search,report
	touch $@

$(VENV)/.dev: pyproject.toml constraints.txt setup.sh
	sh setup.sh $(PYTHON) $(VENV) search,report,log,dev
	touch $@ $(VENV)/.demo

clean:
	rm -rf $(VENV) demo bench
