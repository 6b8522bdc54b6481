# Every target runs in one virtual environment that is made and filled on first use.
#
#   PYTHON=python3.12    the Python (3.11 or later) that makes it
#   VENV=DIR             where it lies (.venv)
#   TORCH=given          use the torch that PYTHON already has, whatever its version: a GPU machine's own build
#   JOBS=2               test processes
#   ARGS="..."           handed on to pytest, `misplace bench` or the GPU check
#
# pip's own variables work too; PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu fetches the small
# CPU-only torch.

PYTHON ?= python3
VENV ?= .venv
JOBS ?= 2
BIN := $(abspath $(VENV))/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check -q
STAMP := $(VENV)/.misplace-installed
SOURCES := pyproject.toml setup.py constraints.txt $(wildcard csrc/*.* csrc/*/*.*)
PINS := $(if $(filter given,$(TORCH)),,-c constraints.txt)
DEMO := $(shell out=runs/demo; n=1; while [ -e $$out ]; do n=$$((n+1)); out=runs/demo-$$n; done; echo $$out)

.PHONY: demo test lint bench gpu-check

demo: $(STAMP)
	$(BIN)/misplace data render
	$(BIN)/misplace pretrain moco_v3_dilemma --model nano --data poses --budget 4m --out $(DEMO)
	$(BIN)/misplace evaluate $(DEMO) --protocol knn
	$(BIN)/misplace evaluate $(DEMO) --protocol linear
	@echo "Done. Curves, k-NN before and after, and the misplaced tokens: open $(DEMO)/report.html"

test: lint
	@$(BIN)/python -m misplace.bench.build_info
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder --max-worker-restart 0 $(ARGS)

lint: $(STAMP)
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/lint-imports

bench: $(STAMP)
	$(BIN)/misplace bench --csv bench/results.csv $(ARGS)

gpu-check: $(STAMP)
	$(BIN)/python -m misplace.bench.gpu_check $(ARGS)

$(STAMP): $(SOURCES)
	@[ -x $(BIN)/pip ] || $(PYTHON) -m venv $(VENV) || \
		{ echo "misplace: $(PYTHON) cannot make a venv; on Debian: apt install python3-venv" >&2; exit 1; }
ifeq ($(TORCH),given)
	@$(PYTHON) -c "import torch, pathlib; print(pathlib.Path(torch.__file__).parents[1])" \
		> "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/given_torch.pth"
endif
	$(PIP) $(PINS) torch ninja pybind11 "setuptools>=77" wheel numpy
	$(PIP) $(PINS) --no-build-isolation -e ".[test]"
	@touch $@
