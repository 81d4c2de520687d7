# Two commands: `make climb` and `make test`. Each sets up all it needs in .venv, from Python 3.11+ alone.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
WORKERS ?= 2
PEERS := $(VENV)/.peers
OLDEST := .venv-oldest

OUTPUTS := $(patsubst %.py,%.txt,$(sort $(wildcard benchmarks/*/*.py)))
# What benchmarks read, to be named on the command line: `make bench TEXT=novels SHAKESPEARE=shakespeare.txt`.
# TEXT is a folder with .txt in train/ and validation/, the standard library's source by default; SHAKESPEARE is a
# file; WIKITEXT are two files, of training and validation rows of WikiText-2, from the Hub by default.
TEXT ?= $(VENV)/text
SHAKESPEARE ?=
WIKITEXT ?=
READ_TEXT := $(patsubst %,benchmarks/%.txt,models/induction models/engines models/ngram models/text_to_ngrams models/orders data/tokenizing device/gpu evaluation/compress recipe/small_data)

.PHONY: climb test test-all check format bench docs clean $(OUTPUTS)
.NOTPARALLEL:

climb: $(READY)
	$(BIN)/rung climb $(ARGS)

# Rewritten for pytest, a module is kept beside it as compiled, also where the environment says
# not to: the processes of the tests would each do it anew.
test test-all check: export PYTHONDONTWRITEBYTECODE :=

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

# All measurements, one after another. One alone: make benchmarks/models/attention.txt. Where there
# is no GPU, `make -k bench` goes on behind the one that needs it.
bench: $(OUTPUTS)

# What each says stands in the .txt beside it; one that fails leaves that as it was.
$(OUTPUTS): %.txt: %.py $(PEERS)
	$(BIN)/python $< $(GIVEN) | tee $@.new && mv $@.new $@
$(OUTPUTS): SHELL := bash
$(OUTPUTS): .SHELLFLAGS := -o pipefail -c

benchmarks/evaluation/chapter.txt: GIVEN = $(WIKITEXT)
benchmarks/models/induction.txt: GIVEN = python-docs $(SHAKESPEARE) $(TEXT)
benchmarks/models/engines.txt benchmarks/models/orders.txt benchmarks/models/text_to_ngrams.txt: GIVEN = $(TEXT)/train
benchmarks/models/ngram.txt: GIVEN = $(TEXT)/train $(TEXT)/validation
benchmarks/data/tokenizing.txt benchmarks/evaluation/compress.txt: GIVEN = $(TEXT)
benchmarks/recipe/small_data.txt: GIVEN = $(SHAKESPEARE:%=%@8,10) $(TEXT:%=%/train@32,40)
benchmarks/training/adapters.txt: GIVEN = $(SHAKESPEARE)
benchmarks/device/gpu.txt: GIVEN = $(TEXT)/train
benchmarks/training/train.txt: GIVEN = $(SHAKESPEARE:%=--shakespeare %)
$(READ_TEXT): | $(TEXT)

$(VENV)/text: $(READY)
	rm -rf $@.new
	$(BIN)/python tools/benchmark_text.py $@.new
	rm -rf $@ && mv $@.new $@

docs: $(READY)
	$(BIN)/python tools/update.py

clean:
	rm -rf $(VENV) $(OLDEST)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'rung needs Python 3.11 or newer: make PYTHON=python3.12')"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $(READY)

# What only tests and benchmarks need: the engines, and the tools that rung is compared with.
$(PEERS): $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,scale,spark,eval,compress,export,lora,serve,peers]'
	touch $(PEERS)

# The oldest transformers that reads what rung writes, for the tests of that: all else it takes from $(VENV).
$(OLDEST)/.ready: $(PEERS)
	$(BIN)/python -m venv $(OLDEST)
	$(BIN)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))" > $$(echo $(OLDEST)/lib/python3*/site-packages)/newest.pth
	$(OLDEST)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps transformers==4.57.6 huggingface_hub==0.36.2 tokenizers==0.22.2
	touch $@
