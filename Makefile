# make, or make help, lists what there is. Every target but wheel sets up its environment first, with the versions in
# constraints.txt.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable
DENSE := train.threads=1 train.batch_size=128 train.group_by_length=false train.max_length=64 model=pretrained \
	model.finetuned=true model.path=outputs/demo/dense
RUNS := $(BIN)/nxmiformer -m resume=true hydra/launcher=joblib hydra.launcher.n_jobs=2 $(DENSE) \
	recipe.phases.admm.steps=40 recipe.phases.finish.steps=80
export TOKENIZERS_PARALLELISM ?= false

.DEFAULT_GOAL := help
.PHONY: help demo test check docs notebooks wheel gpu peers clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: .venv/installed  ## compress the embedded model, in some minutes; then open outputs/demo/report.html
	$(BIN)/nxmiformer experiment=demo overwrite=true

test: .venv/installed  ## all tests, on two processes
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest -q -n 2 --dist worksteal

check: .venv/installed  ## style and types: ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: .venv/docs  ## the documentation, into docs/built/index.html; a warning is an error
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/built

notebooks: .venv/notebooks outputs/demo/report.json outputs/search/plan.json  ## the runs that the notebooks read, in some minutes, and the notebooks
	$(RUNS) plan=int4,2of4_int4,1of4_int4,1of4_int8 seed=0,1 name='$${plan.name}-$${seed}' hydra.sweep.dir=multirun/plans
	$(RUNS) budget.ratio=0.06,0.08,0.1 name='searched-$${budget.ratio}' hydra.sweep.dir=multirun/budgets/searched
	$(RUNS) plan=1of4_int4,2of4_int4,int4 name='$${plan.name}' hydra.sweep.dir=multirun/budgets/uniform
	OMP_WAIT_POLICY=PASSIVE $(BIN)/jupyter execute --inplace notebooks/*.ipynb

notebook-%: .venv/notebooks  # one of them, by its number: make notebook-01; those after the first read runs of make notebooks
	OMP_WAIT_POLICY=PASSIVE $(BIN)/jupyter execute --inplace notebooks/$*_*.ipynb

outputs/demo/report.json:
	$(MAKE) demo

outputs/search/plan.json: .venv/installed outputs/demo/report.json
	$(BIN)/nxmiformer job=search name=search overwrite=true budget.ratio=0.1 search.frontier=6 search.interactions=6 $(DENSE)

wheel:  ## dist/nxmiformer-*.whl; needs pip alone
	$(PYTHON) -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir dist .

gpu: .venv/installed  ## the tests that need a GPU with CUDA, and the demo there and on the CPU
	$(BIN)/python -m pytest -q -m cuda -rPs

peers: .venv-peers/installed  ## an environment with ModelOpt and torchao, for tests/peers and experiments/peers

clean:  ## remove what was made: environments, builds, runs
	rm -rf .venv .venv-peers build dist *.egg-info outputs multirun docs/built docs/made

.venv/installed: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(PIP) '.[test,dev]'
	touch $@

.venv/docs: .venv/installed
	$(PIP) '.[docs]'
	touch $@

.venv/notebooks: .venv/installed
	$(PIP) '.[notebooks]'
	touch $@

.venv-peers/installed: setup.cfg pyproject.toml constraints.txt tests/peers/requirements.txt experiments/peers/requirements.txt
	$(PYTHON) -m venv .venv-peers
	.venv-peers/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt \
		--requirement experiments/peers/requirements.txt --editable '.[test]'
	touch $@
