# A fresh machine needs Python 3.11 or later and make; everything else comes into .venv.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: install demo test check bench clean

install: $(STAMP)

# Again only when the requirements change.
$(STAMP): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $(STAMP)

demo: install
	$(BIN)/python tune/search.py

check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

test: check
	$(BIN)/python -m pytest

# Timings, a script a claim, about 50 minutes; QUICK=--quick only sees that they work. DATA_ROOT holds dtd/.
SCRIPTS := step shares text_tower teacher evaluation stream trial_start sampler study lockstep
DATA_ROOT ?=
QUICK ?=
bench: install
	mkdir -p out/bench
	set -e; for script in $(SCRIPTS); do echo "== $$script"; \
	  more=; if test $$script = step; then more="--classes 24 100 500 --dtypes fp32 bf16"; fi; \
	  if test $$script = stream && test -n "$(DATA_ROOT)"; then more="--data-root $(DATA_ROOT)"; fi; \
	  $(BIN)/python benchmarks/$$script.py $(QUICK) $$more --json out/bench/$$script.json; done

clean:
	rm -rf .venv out
