# `make` alone lists the targets.
PYTHON ?= python3.11
VENV   := .venv
BIN    := $(VENV)/bin
CONFIG ?= configs/tiny.yaml
RUN    ?= runs/demo
SET    ?=
SWEEP  ?= configs/sweeps/ezhoi_text.yaml
RUNS   ?= $(wildcard runs/*)
OUT    ?= compare.html
export HF_HUB_OFFLINE := 1

.DEFAULT_GOAL := help
.PHONY: help setup demo test lab doctor run sweep compare params runs report bench bench-gpu lint format clean-notebooks tiny-weights

help:            ## list the targets
	@grep -E '^[a-z-]+: .*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/' | expand -t 18

setup: $(VENV)/.installed ## create .venv and install the workbench

$(VENV)/.installed: pyproject.toml constraints.txt
	$(shell command -v $(PYTHON) || command -v python3) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]' --constraint constraints.txt
	@touch $@

demo: setup     ## run the whole pipeline, notebooks 00-06, on the embedded world (RUN=runs/demo)
	$(BIN)/python -m lib.engine.batch run configs/tiny.yaml --run $(RUN) $(SET)
	$(BIN)/python -m lib.analysis.report $(RUN)

test: setup     ## run the tests, a process a core
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 8 --dist loadfile

lab: setup      ## open JupyterLab on the notebooks
	$(BIN)/jupyter lab notebooks

doctor: setup   ## is everything there that CONFIG needs? data, weights, memory, disk, run folder; seconds, writes nothing
	$(BIN)/python -m lib.stages.doctor $(CONFIG) --run $(RUN) $(SET)

run: setup      ## run notebooks headlessly: CONFIG=configs/x.yaml RUN=runs/x SET="ezhoi.epochs=3 --notebooks 02-04"
	$(BIN)/python -m lib.engine.batch run $(CONFIG) --run $(RUN) $(SET)

sweep: setup    ## many runs, one table, figure and page: SWEEP=configs/sweeps/ezhoi_text.yaml SET="--jobs 2 --on ray"
	$(BIN)/python -m lib.stages.sweep $(SWEEP) $(SET)

compare: setup  ## one page that compares runs: RUNS="runs/a runs/b" OUT=compare.html
	$(BIN)/python -m lib.analysis.compare $(RUNS) --out $(OUT)

params: setup   ## print every parameter and setting with type, default and help (SET=word: those about it)
	$(BIN)/python -m lib.engine.batch params $(SET)

runs: setup     ## print the table of all runs
	$(BIN)/python -m lib.runs

report: setup   ## write RUN/report.html and print its results
	$(BIN)/python -m lib.analysis.report $(RUN)

bench: setup    ## measure against what people run today, on the CPU: under 15 minutes, writes benchmarks/results
	$(BIN)/python -m benchmarks.run --run $(RUN)

bench-gpu: setup ## the same with CUDA
	$(BIN)/python -m benchmarks.run --gpu --run $(RUN)

lint: setup     ## check code and notebooks
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

format: setup   ## format code and notebooks
	$(BIN)/ruff check --fix . ; $(BIN)/ruff format .

clean-notebooks: setup ## remove outputs and counts from the notebooks
	$(BIN)/jupyter nbconvert --clear-output --inplace notebooks/*.ipynb

tiny-weights: setup ## train the tiny CLIP and DETR again (slow) and write configs/tiny_clip, configs/tiny_detr
	$(BIN)/python -m lib.stages.tiny_models
