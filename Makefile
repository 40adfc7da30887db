# Two commands do all on a fresh clone with Python 3.11 or later and nothing else:
#   make sweep      environment, packages, then the sweep   (SPACE=tt_dims, ARGS="--trials 8")
#   make test       environment, packages, then every test
PYTHON ?= python3
SPACE ?= tt_dims
ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: sweep distill test test-slow lint types bench clean

sweep: $(READY)
	$(BIN)/python sweeps/run.py --space $(SPACE) $(ARGS)

# A teacher, unless it is there, then students with it and without
distill: $(READY)
	test -d teachers/digits_wrn_16_4 || $(BIN)/python sweeps/teacher.py --network wrn_16_4 --epochs 20 --name digits_wrn_16_4
	$(BIN)/python sweeps/run.py --space distill $(ARGS)

test: $(READY)
	$(BIN)/python -m pytest -n 2 --no-loadscope-reorder

# Real trainings and servers, minutes each
test-slow: $(READY)
	$(BIN)/python -m pytest -m slow

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	PYTHONPATH=. $(BIN)/lint-imports --no-logo

types: $(READY)
	$(BIN)/mypy lowrank sweeps analysis

bench: $(READY)
	$(BIN)/python -m benchmarks

# Repeated, this installs nothing: the stamp is newer than the pins
$(READY): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version.split()[0]; sys.exit(None if sys.version_info >= (3, 11) else f"Python 3.11 or later is needed, but $(PYTHON) is {v}; set PYTHON=...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $(READY)

clean:
	rm -rf $(VENV)
