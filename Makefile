PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip --disable-pip-version-check

.PHONY: help install demo test unit fuzz abuse check format eval chaos soak clean

help:  ## Show this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install: $(VENV)/installed  ## Create .venv with the dragqueue command and everything it needs

$(VENV)/installed: pyproject.toml client/pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Dragqueue needs Python 3.11 or newer")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --editable ./client --editable '.[c2pa,engine,eval,local,dev]' --constraint constraints.txt
	touch $@

demo: install  ## Run two real edits through the whole service, pictures in demo-out/
	$(BIN)/dragqueue demo --out demo-out

test: install  ## Run every test, with real PostgreSQL, Valkey and S3 servers
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile --ignore tests/services --ignore tests/abuse
	$(BIN)/python -m pytest tests/services tests/abuse

unit: install  ## Run the quick tests: no server, no trained model
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile --ignore tests/services --ignore tests/abuse --ignore tests/test_demo_checkpoint.py

fuzz: install  ## Read 2,000 mutated checkpoints and 500 hostile ones; hold the running API against its contract at length
	DRAGQUEUE_FUZZ_EXAMPLES=2000 DRAGQUEUE_CONTRACT_EXAMPLES=50 $(BIN)/python -m pytest tests/engine/checkpoints/test_fuzz.py tests/services/test_contract.py

abuse: install  ## Attack the whole service in every known way beside a tenant that must not notice, figures in runs/abuse: twenty minutes
	DRAGQUEUE_ABUSE_SECONDS=2 $(BIN)/python -m pytest tests/abuse --verbose --tb=short --log-cli-level=INFO --log-cli-format='%(message)s'

check: install  ## Format, lint, types, import rules, container files: what CI runs
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/hadolint Dockerfile
	$(BIN)/check-jsonschema --builtin-schema vendor.compose-spec docker-compose.yml

format: install  ## Format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

eval: install  ## Measure the demo checkpoint's edits against where things truly are, 20 pairs
	$(BIN)/dragqueue eval landmarks --pairs 20 --comparisons 5 --out runs/eval

chaos: install  ## Kill and unplug things at random while 300 jobs run, then check every one: ten minutes
	$(BIN)/python -m benchmarks.chaos --out runs/chaos

soak: install  ## Load the whole service for an hour and see whether anything leaks
	$(BIN)/python -m benchmarks.soak --minutes 60 --out runs/soak

clean:  ## Remove the environment and what programs left
	rm -rf $(VENV) demo-out build client/build *.egg-info client/*.egg-info .mypy_cache .ruff_cache .pytest_cache
