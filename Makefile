# Two commands: `make climb` and `make test`. Each sets up all it needs in .venv, from Python 3.11+ alone.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
WORKERS ?= 2
PEERS := $(VENV)/.peers
OLDEST := .venv-oldest

.PHONY: climb test test-all check format bench docs clean

climb: $(READY)
	$(BIN)/rung climb $(ARGS)

test: $(PEERS)
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile -m "not slow" $(ARGS)

test-all: $(PEERS) $(OLDEST)/.ready
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile $(ARGS)

# Types are checked against all that may be installed: without the extras they would be guessed.
check: $(PEERS)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/test_architecture.py

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(PEERS)
	$(BIN)/python benchmarks/models/attention.py | tee benchmarks/models/attention.txt
	$(BIN)/python benchmarks/models/grouped.py | tee benchmarks/models/grouped.txt
	$(BIN)/python benchmarks/device/precision.py | tee benchmarks/device/precision.txt
	$(BIN)/python benchmarks/generate/decode.py | tee benchmarks/generate/decode.txt
	$(BIN)/python benchmarks/device/threads.py | tee benchmarks/device/threads.txt
	$(BIN)/python benchmarks/train/overhead.py | tee benchmarks/train/overhead.txt
	$(BIN)/python benchmarks/train/train.py | tee benchmarks/train/train.txt
	$(BIN)/python benchmarks/serve/serve.py | tee benchmarks/serve/serve.txt

docs: $(READY)
	$(BIN)/python docs/update.py

clean:
	rm -rf $(VENV) $(OLDEST)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'rung needs Python 3.11 or newer: make PYTHON=python3.12')"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $(READY)

# What only tests and benchmarks need: the engines, and the tools that rung is compared with.
$(PEERS): $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,scale,spark,eval,export,lora,serve,peers]'
	touch $(PEERS)

# The oldest transformers that reads what rung writes, for the tests of that: all else it takes from $(VENV).
$(OLDEST)/.ready: $(PEERS)
	$(BIN)/python -m venv $(OLDEST)
	$(BIN)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))" > $$(echo $(OLDEST)/lib/python3*/site-packages)/newest.pth
	$(OLDEST)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps transformers==4.57.6 huggingface_hub==0.36.2 tokenizers==0.22.2
	touch $@
