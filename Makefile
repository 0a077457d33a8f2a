# A fresh machine needs Python 3.11 or later and make. Everything else is installed into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
unexport PYTHONDONTWRITEBYTECODE # otherwise, each process compiles torch and Ray again
STAMP := $(VENV)/.installed

.PHONY: install demo test suite test-newest fuzz check bench gpu chaos docs constraints dist release-check smoke clean

install: $(STAMP)-dev

SAY := "Installing torch, Ray and other packages into $(VENV). The first time takes some minutes."
INSTALL := .ci/install.sh $(BIN)/python

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# Repeated only if the requirements change. The demo needs no development tools, other targets do.
$(STAMP): pyproject.toml | $(BIN)/python
	@echo $(SAY)
	$(INSTALL) --editable ".[study]"
	touch $@

$(STAMP)-dev: pyproject.toml | $(BIN)/python
	@echo $(SAY)
	$(INSTALL) --editable ".[study,cluster]" --group dev
	touch $(STAMP) $@

# Smaller than the default study, so that installation and study take five minutes. The plan is shown first.
# benchmarks/demo.py runs the same study with other seeds.
DEMO := --study demo --dataset charts --trials 10 --top 1 --set data.shots=8 --set search.val_per_class=40 --set confirm.seeds=1 --seed 1 --final-seeds "101 102 103 104 105 106 107 108"
demo: $(STAMP)
	@$(BIN)/python tune/search.py $(DEMO) --plan
	@$(BIN)/python tune/search.py $(DEMO)

check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyrefly check
	$(BIN)/deptry . --no-ansi
	$(BIN)/codespell
	$(BIN)/proselint check --config .ci/proselint.json *.md clusters/*.md docs/*.md
	$(BIN)/check-jsonschema --quiet --builtin-schema vendor.github-workflows .github/workflows/*.yml

test: check suite

# Each suite runs in its own process. Three run concurrently on two cores, because tests that start clusters
# mostly wait. So this order mixes them with the others (contracts, fast, tools). Each suite has one thread,
# because threads that share a core wait for each other.
SUITES := contracts studies ray cluster fast tools
SYNC := $(if $(filter output-sync,$(.FEATURES)),--output-sync)
suite: install
	@$(BIN)/python -c "import tune.study, tune.execution.worker, ray.data" # compile once, not in three concurrent processes
	@$(MAKE) --no-print-directory --keep-going --jobs 3 $(SYNC) $(addprefix test-,$(SUITES))

test-%: install
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(addprefix tests/,$(or $(FOLDERS),$*))

# Unit tests and recorded trajectories, without Ray.
test-fast: FOLDERS := unit parity
test-tools: FOLDERS := tools fuzz

# The newest versions of all packages, without the constraints of pip's configuration.
test-newest:
	rm -rf out/newest
	PIP_CONSTRAINT=/dev/null $(MAKE) suite check VENV=out/newest/.venv

# Randomly changed files and values, different in each run. Takes hours.
FUZZ_EXAMPLES ?= 3000
fuzz: install
	FUZZ_EXAMPLES=$(FUZZ_EXAMPLES) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q --timeout 0 tests/fuzz

# Timings, one script per claim. QUICK=--quick only checks that they work. DATA_ROOT contains dtd/.
SCRIPTS := step stream trial_start sampler study
DATA_ROOT ?=
QUICK ?=
bench: install
	mkdir -p out/bench
	set -e; for script in $(SCRIPTS); do echo "== $$script"; \
	  more=; if test $$script = step; then more="--classes 24 100 500 --dtypes fp32 bf16"; fi; \
	  if test $$script = stream && test -n "$(DATA_ROOT)"; then more="--data-root $(DATA_ROOT)"; fi; \
	  $(BIN)/python benchmarks/$$script.py $(QUICK) $$more --json out/bench/$$script.json; done

# Measurements on a GPU, at most nine minutes per call. A later call adds what is missing. Status 2 without a GPU.
# Where Ray and Optuna are missing, run benchmarks/gpu.py directly: torch and the core of the package suffice.
MINUTES ?= 9
gpu: install
	$(BIN)/python benchmarks/gpu.py --minutes $(MINUTES) --docs docs/performance.md

# Interrupt studies at random (docs/reliability.md). Fails if a finished result was lost.
chaos: install
	mkdir -p out/bench
	$(BIN)/python benchmarks/chaos.py $(QUICK) --real 2 --json out/bench/chaos.json

# Site of the guides, the API and the examples in out/site. A broken link fails.
docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

# After the tests have passed: the installed versions, and the licenses of direct dependencies.
constraints: install
	$(BIN)/python .ci/dependencies.py

# Source archive, and the wheel that is built from it.
dist: install
	rm -rf out/dist
	$(BIN)/python -m build --outdir out/dist

# Checks before a release: version, changelog, tag, contents and metadata of the wheel.
release-check: dist
	$(BIN)/python .ci/release.py out/dist
	$(BIN)/twine check --strict out/dist/*

# The wheel in new environments. Without extras, a run trains and its prompts load. With [study], a study runs.
smoke: dist
	rm -rf out/smoke
	$(PYTHON) -m venv out/smoke
	.ci/install.sh out/smoke/bin/python $$(ls out/dist/*.whl)
	cd out/smoke && PYTHONPATH= bin/python $(CURDIR)/.ci/smoke.py
	.ci/install.sh out/smoke/bin/python "$$(ls out/dist/*.whl)[study]"
	cd out/smoke && PYTHONPATH= bin/prometar search --trials 2 --epochs 1 --top 0 --final-seeds "1 2" --set data.shots=1

clean:
	rm -rf .venv out
