# Two commands do all on a fresh clone with Python 3.11 or later and nothing else:
#   make sweep      environment, packages, then the sweep   (SPACE=tt_dims, ARGS="--trials 8")
#   make test       environment, packages, then every test that needs no GPU and is not slow
PYTHON ?= python3
SPACE ?= tt_dims
ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
TRITON := $(VENV)/triton
# Many images of containers set it; every process would then compile all sources anew
unexport PYTHONDONTWRITEBYTECODE

.PHONY: sweep distill compress test test-slow test-faults test-gpu test-interpreted lint types bench pictures clean

sweep: $(READY)
	$(BIN)/python sweeps/run.py --space $(SPACE) $(ARGS)

# A teacher, unless it is there, then students with it and without
distill: $(READY)
	test -d teachers/digits_wrn_16_4 || $(BIN)/python sweeps/teacher.py --network wrn_16_4 --epochs 20 --name digits_wrn_16_4
	$(BIN)/python sweeps/run.py --space distill $(ARGS)

# A trained network, unless it is there, then smaller forms of it
compress: $(READY)
	test -d teachers/digits_resnet9 || $(BIN)/python sweeps/teacher.py --network resnet9 --width 0.25 --epochs 20 --name digits_resnet9
	$(BIN)/python sweeps/run.py --space compress $(ARGS)

test: $(READY)
	$(BIN)/python -m pytest -n 2 --dist loadscope --no-loadscope-reorder

# Trainings, servers and studies of 20 seconds to some minutes each
test-slow: $(READY)
	$(BIN)/python -m pytest -m "slow and not gpu"

# Every test in which a study is killed, out of disk, cut off or damaged, the slow ones too
test-faults: $(READY)
	$(BIN)/python -m pytest -m faults

# Every test that needs a GPU, in four processes, because most of the time they compile; a skipped one is a failure
test-gpu: $(READY)
	@$(BIN)/python -c 'import sys, torch; sys.exit(None if torch.cuda.is_available() else "make test-gpu needs an NVIDIA GPU, but torch finds none")'
	$(BIN)/python -m pytest -m gpu -n 4 --no-skips

# The kernels on a CPU, in Triton's interpreter. Triton lies apart: torch.compile would use one that it finds
test-interpreted: $(READY) $(TRITON)/.ready
	PYTHONPATH=$(TRITON) TRITON_INTERPRET=1 $(BIN)/python -m pytest --no-skips tests/lowrank/gpu/test_kernels.py

# 3.7.1: the interpreter of 3.9.0 refuses the kernels' masks
$(TRITON)/.ready: Makefile
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade --target $(TRITON) triton==3.7.1
	@touch $@

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	PYTHONPATH=. $(BIN)/lint-imports --no-logo

types: $(READY)
	$(BIN)/mypy lowrank sweeps analysis

bench: $(READY)
	$(BIN)/python -m benchmarks

# Every picture of the pages, from kept records; those of MLflow's pages from a study, trained unless it is there
pictures: $(READY)
	test -d studies/tt_dims || $(BIN)/python sweeps/run.py --space tt_dims
	$(BIN)/python docs/make_pictures.py --study studies/tt_dims

# Repeated, this installs nothing: the stamp is newer than the pins
$(READY): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version.split()[0]; sys.exit(None if sys.version_info >= (3, 11) else f"Python 3.11 or later is needed, but $(PYTHON) is {v}; set PYTHON=...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $(READY)

clean:
	rm -rf $(VENV)
