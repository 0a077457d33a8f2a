# A fresh machine needs Python 3.11 or later and make. Everything else is installed into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Compiled modules are kept. Otherwise, each process compiles torch and Ray again.
unexport PYTHONDONTWRITEBYTECODE
STAMP := $(VENV)/.installed

.PHONY: install demo test suite test-newest fuzz check bench gpu chaos docs constraints dist release-check smoke clean

install: $(STAMP)-dev

SAY := "Installing torch, Ray and other packages into $(VENV). The first time takes some minutes."
INSTALL := .ci/install.sh $(BIN)/python

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# Installation is repeated only if the requirements change. The demo needs no development tools, but all other
# targets do.
$(STAMP): pyproject.toml | $(BIN)/python
	@echo $(SAY)
	$(INSTALL) --editable ".[study]"
	touch $@

$(STAMP)-dev: pyproject.toml | $(BIN)/python
	@echo $(SAY)
	$(INSTALL) --editable ".[study,cluster]" --group dev
	touch $(STAMP) $@

# This study is smaller than the default study, so that installation and study take five minutes.
# benchmarks/demo.py reads these options, and runs the same study with other seeds.
DEMO := --study demo --dataset charts --trials 10 --top 1 --seed 1 \
  --set data.shots=8 --set search.val_per_class=40 --set confirm.seeds=1 \
  --final-seeds "101 102 103 104 105 106 107 108"

demo: $(STAMP)
	@$(BIN)/python tune/search.py $(DEMO)
	@echo "Before you run commands of prometar in this terminal: source $(BIN)/activate"

check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyrefly check
	$(BIN)/deptry . --no-ansi
	$(BIN)/codespell
	$(BIN)/proselint check --config .ci/proselint.json *.md clusters/*.md docs/*.md
	$(BIN)/check-jsonschema --quiet --builtin-schema vendor.github-workflows .github/workflows/*.yml

test: check suite

# Each suite runs in its own process. Three suites run concurrently on two cores, because tests that start
# clusters mostly wait. The order mixes these suites (studies, ray, cluster) with the ones that compute.
SUITES := contracts studies ray cluster fast tools
# If this make can, it prints the output of each suite as a whole.
SYNC := $(if $(filter output-sync,$(.FEATURES)),--output-sync)

# The imports compile all modules once, instead of in three concurrent processes.
suite: install
	@$(BIN)/python -c "import tune.study, tune.execution.worker, ray.data"
	@$(MAKE) --no-print-directory --keep-going --jobs 3 $(SYNC) $(addprefix test-,$(SUITES))

# test-NAME runs the tests of the folder tests/NAME, or of the folders in FOLDERS.
# It has one thread, because threads that share a core wait for each other.
test-%: install
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(addprefix tests/,$(or $(FOLDERS),$*))

# The unit tests and the recorded trajectories need no Ray.
test-fast: FOLDERS := unit parity
test-tools: FOLDERS := tools fuzz

# Tests with the newest versions of all packages, without the constraints of pip's configuration.
test-newest:
	rm -rf out/newest
	PIP_CONSTRAINT=/dev/null $(MAKE) suite check VENV=out/newest/.venv

# Tests with randomly changed files and values, which differ in each run. They take hours.
FUZZ_EXAMPLES ?= 3000
fuzz: install
	FUZZ_EXAMPLES=$(FUZZ_EXAMPLES) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q --timeout 0 tests/fuzz

# Timings, and a comparison of samplers (docs/performance.md). QUICK=--quick only checks that the scripts work.
# DATA_ROOT is a folder that contains dtd/. Without it, the script `stream` generates its images.
SCRIPTS := step dispatch stream trial_start sampler study
DATA_ROOT ?=
QUICK ?=
bench: install
	mkdir -p out/bench
	set -e; \
	for script in $(SCRIPTS); do \
	  echo "== $$script"; \
	  case $$script in \
	    step) options="--classes 24 100 500 --dtypes fp32 bf16" ;; \
	    stream) options="$(if $(DATA_ROOT),--data-root $(DATA_ROOT))" ;; \
	    *) options= ;; \
	  esac; \
	  $(BIN)/python benchmarks/$$script.py $(QUICK) $$options --json out/bench/$$script.json; \
	done

# Measurements on a GPU, at most nine minutes per call. A later call adds what is missing. Without a GPU, the
# exit status is 2. Where Ray and Optuna are not installed, run benchmarks/gpu.py directly. Most of its parts
# need neither.
MINUTES ?= 9
gpu: install
	$(BIN)/python benchmarks/gpu.py --minutes $(MINUTES) --docs docs/performance.md

# Studies that are interrupted at random (docs/reliability.md). The target fails if a finished result was lost.
chaos: install
	mkdir -p out/bench
	$(BIN)/python benchmarks/chaos.py $(QUICK) --real 2 --json out/bench/chaos.json

# Site of the guides, the API and the examples, in out/site. A broken link fails the build.
docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

# Record the installed versions and the licenses of direct dependencies. Run this after the tests have passed.
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

# Install the wheel in a new environment. Without extras, a run trains and its prompts load. With the extra
# `study`, a study runs. The empty PYTHONPATH hides the sources of this folder.
smoke: dist
	rm -rf out/smoke
	$(PYTHON) -m venv out/smoke
	.ci/install.sh out/smoke/bin/python $$(ls out/dist/*.whl)
	cd out/smoke && PYTHONPATH= bin/python $(CURDIR)/.ci/smoke.py
	.ci/install.sh out/smoke/bin/python "$$(ls out/dist/*.whl)[study]"
	cd out/smoke && PYTHONPATH= bin/prometar search --trials 2 --epochs 1 --top 0 --final-seeds "1 2" --set data.shots=1

clean:
	rm -rf .venv out
