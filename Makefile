# make demo: compress the embedded model and look at the report.   make test: the tests.
# Both set up .venv first, from the pinned versions in constraints.txt.   make peers: .venv-peers, for experiments/peers.
PYTHON ?= python3
BIN := .venv/bin
export OMP_WAIT_POLICY ?= PASSIVE
export TOKENIZERS_PARALLELISM ?= false

.PHONY: demo test check gpu peers clean

demo: .venv/installed
	$(BIN)/nxmiformer experiment=demo overwrite=true

test: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist worksteal

gpu: .venv/installed  # the tests that need one, and the demo there and on the CPU; -rP prints its scores
	$(BIN)/python -m pytest -q -m cuda -rPs

check: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

peers: .venv-peers/installed

.venv/installed: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[test,dev]'
	touch $@

.venv-peers/installed: setup.cfg pyproject.toml constraints.txt tests/peers/requirements.txt experiments/peers/requirements.txt
	$(PYTHON) -m venv .venv-peers
	.venv-peers/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt \
		--requirement experiments/peers/requirements.txt --editable '.[test]'
	touch $@

clean:
	rm -rf .venv .venv-peers build dist *.egg-info outputs multirun
