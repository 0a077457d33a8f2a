# A fresh machine needs Python 3.11 or later and make; everything else comes into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: install demo test suite test-fast test-newest fuzz check bench gpu chaos docs constraints dist clean

install: $(STAMP)-dev

PIP := $(BIN)/python -m pip install --quiet --quiet
SAY := "installing torch, Ray and all else into $(VENV): some minutes, the first time"

# An older pip, as Python brings it, takes longer.
$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
	$(PIP) --upgrade pip

# Again only when the requirements change. The demo installs what it runs, all else the developers' tools too.
$(STAMP): pyproject.toml | $(BIN)/python
	@echo $(SAY)
	$(PIP) --editable .
	touch $@

$(STAMP)-dev: pyproject.toml | $(BIN)/python
	@echo $(SAY)
	$(PIP) --editable ".[dev]"
	touch $(STAMP) $@

demo: $(STAMP)
	$(BIN)/python tune/search.py

check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

test: check suite

# What tests load is compiled once, beside the check of types, and not by three processes at a time.
COMPILED := $(VENV)/.compiled
$(COMPILED): $(STAMP)-dev
	$(BIN)/python -m pytest --collect-only --quiet >/dev/null 2>&1 || true
	touch $@

# Three files at a time, since tests that start clusters mostly wait; a thread each, since threads that share
# a core wait for each other, and take up to sixteen times as long.
suite: install $(COMPILED)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

# A unit a package, and recorded trajectories: no table is gone through whole, and no Ray started.
test-fast: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile tests/unit tests/parity

# As whoever installs today: the newest version of everything, whatever constraints pip is configured with.
test-newest:
	rm -rf out/newest
	PIP_CONSTRAINT=/dev/null $(MAKE) suite check VENV=out/newest/.venv

# Changed files and odd values, other ones each time, for hours; counts in out/fuzz.json.
FUZZ_EXAMPLES ?= 3000
fuzz: install
	FUZZ_SEED=$${FUZZ_SEED:-$$(date +%s)} FUZZ_EXAMPLES=$(FUZZ_EXAMPLES) OMP_NUM_THREADS=1 \
	  $(BIN)/python -m pytest -q --timeout 0 tests/fuzz

# Timings, a script a claim, about 50 minutes; QUICK=--quick only sees that they work. DATA_ROOT holds dtd/.
SCRIPTS := step stream trial_start sampler study
DATA_ROOT ?=
QUICK ?=
bench: install
	mkdir -p out/bench
	set -e; for script in $(SCRIPTS); do echo "== $$script"; \
	  more=; if test $$script = step; then more="--classes 24 100 500 --dtypes fp32 bf16"; fi; \
	  if test $$script = stream && test -n "$(DATA_ROOT)"; then more="--data-root $(DATA_ROOT)"; fi; \
	  $(BIN)/python benchmarks/$$script.py $(QUICK) $$more --json out/bench/$$script.json; done

# What only a GPU can decide, at most 30 minutes; goes on where it was interrupted, status 2 without a GPU.
gpu: install
	$(BIN)/python benchmarks/gpu.py --docs docs/performance.md

# Studies whose processes are killed, docs/reliability.md; half an hour. Fails if anything finished was lost.
chaos: install
	mkdir -p out/bench
	$(BIN)/python benchmarks/chaos.py $(QUICK) --real 2 --json out/bench/chaos.json

# The guides, what Python offers and the examples as one site in out/site; a link that leads nowhere fails.
docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

# After the tests have passed with what is installed: its versions, and the licences of what is needed directly.
constraints: install
	$(BIN)/python .ci/dependencies.py

# The source archive, and the wheel that is built from it.
dist: install
	rm -rf out/dist
	$(BIN)/python -m build --outdir out/dist

clean:
	rm -rf .venv out
