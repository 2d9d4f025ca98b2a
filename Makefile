# Every target sets up what it needs; a second call does nothing twice.
#   make demo   races seven bundled candidates for one task, into out/demo
#   make figures   draws every figure of docs/REPRODUCTION.md from committed tables, into out/figures
#   make test   runs the tests; make test-x64 runs them in float64
#   make fuzz   compares the kernels of 20,000 random programs with dense ones, in float64: hours;
#               FUZZ_FIRST=5000 continues after 5,000 of them
#   make soak   kills runs 200 times at random moments, and reads 100,000 mutated files per reader: hours;
#               resumes the kills, and draws other files with FUZZ_FIRST=100000
#   make lint types torch-parity published notebooks browser docs ray wheel   what else .ci/run checks
#   make smoke PYTHON=python3.13   a few fast tests on another Python
#   make lock   regenerates requirements*.txt from setup.cfg

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
PYTEST := $(BIN)/python -m pytest -n auto --dist worksteal

DEMO := zoo/cerebras-s,zoo/gpt2-m,zoo/gpt2-s,zoo/gpt2-xs,zoo/opt-m,zoo/opt-s,zoo/opt-xs

.PHONY: demo figures test test-x64 fuzz soak lint types torch-parity published notebooks browser docs ray wheel smoke lock

demo: .venv/runs
	$(BIN)/python -m experiments.select_model --candidates=$(DEMO) --task=pydoc \
	  --target_size=6400 --learning_rate=1e-3 --output_dir=out/demo

figures: .venv/runs
	$(BIN)/python -m experiments.paper_figures --output_dir=out/figures

# Compiling is most of what the tests do: here with few optimisations (JAX's own setting for
# tests), in test-x64 and torch-parity as users do.
test: .venv/tests
	JAX_DISABLE_MOST_OPTIMIZATIONS=1 $(PYTEST) -m "not torch and not float64 and not browser and not ray and not wheel and not published"

FUZZ_FIRST := 0
FUZZ_PROGRAMS := 20000
FUZZ_FILES := 100000

fuzz: .venv/tests
	JAX_DISABLE_MOST_OPTIMIZATIONS=1 FUZZ_FIRST=$(FUZZ_FIRST) FUZZ_PROGRAMS=$(FUZZ_PROGRAMS) FUZZ_FILES=$(FUZZ_FILES) \
	  $(BIN)/python -m pytest -v tests/ntk/test_families.py tests/ntk/test_fuzz.py tests/checkpoints/test_mutations.py

SOAK_KILLS := 200

soak: .venv/tests
	JAX_DISABLE_MOST_OPTIMIZATIONS=1 $(BIN)/python -m tests.soak $(SOAK_KILLS) out/soak
	JAX_DISABLE_MOST_OPTIMIZATIONS=1 FUZZ_FIRST=$(FUZZ_FIRST) FUZZ_FILES=$(FUZZ_FILES) \
	  $(BIN)/python -m pytest -v tests/test_readers.py

# The examples in docstrings print float32: they are tests of the default mode alone, and so are
# tests that choose float64 themselves (tests/conftest.py).
test-x64: .venv/tests
	JAX_ENABLE_X64=1 $(PYTEST) -m "not torch and not slow" tests/ntk tests/scaling tests/selection \
	  tests/models tests/theory tests/test_linalg.py tests/test_metrics.py

lint: .venv/tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/tests
	$(BIN)/mypy

torch-parity: .venv-torch/tests
	.venv-torch/bin/python -m pytest -n auto --dist worksteal -m torch tests/models tests/checkpoints tests/measurement

# The smallest of the published weights; PUBLISHED=all for every one (800 MB).
published: .venv-torch/tests
	.venv-torch/bin/python -m pytest -m published tests/published

notebooks: .venv/tests
	$(BIN)/python tools/run_notebooks.py

browser: .venv-browser/tests
	.venv-browser/bin/python -m pytest -m browser tests/report

docs: .venv-docs/builds
	PYTHONPATH=. .venv-docs/bin/python -m sphinx -E -W -q -b html docs out/docs

wheel: .venv/tests
	JAX_DISABLE_MOST_OPTIMIZATIONS=1 $(BIN)/python -m pytest -m wheel tests/test_wheel.py

smoke: .venv-smoke/tests
	JAX_DISABLE_MOST_OPTIMIZATIONS=1 .venv-smoke/bin/python -m pytest -n auto --dist worksteal \
	  -m "not torch and not float64" tests/test_linalg.py tests/test_public_names.py \
	  tests/models/test_goldens.py tests/ntk/structured tests/ntk/test_neural_tangents.py \
	  tests/scaling tests/finetune/test_fine_tune.py

ray: .venv-ray/tests
	.venv-ray/bin/python -m pytest -m ray tests/runs

lock: .venv/runs
	PYTHON=$(BIN)/python tools/lock.sh

.venv/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: Python must be 3.11 or newer, got $$($(PYTHON) --version 2>&1): make PYTHON=/path/to/python" >&2; exit 2; }
	$(PYTHON) -m venv .venv
	touch $@

.venv/runs: .venv/python requirements.txt setup.cfg pyproject.toml
	$(PIP) --no-deps -r requirements.txt -e .
	touch $@

.venv/tests: .venv/runs requirements-dev.txt
	$(PIP) --no-deps -r requirements-dev.txt
	touch $@

# An environment of its own for what nothing else here needs; it borrows everything else from
# .venv.  $(1): its folder, $(2): its packages, as pip takes them.
SITE := -c 'import sysconfig; print(sysconfig.get_path("purelib"))'
define borrowing
	$(BIN)/python -m venv $(1)
	$(1)/bin/python -m pip install --quiet --disable-pip-version-check $(2)
	$(BIN)/python $(SITE) > "$$($(1)/bin/python $(SITE))/borrowed.pth"
	touch $@
endef

.venv-smoke/tests: requirements.txt requirements-dev.txt setup.cfg pyproject.toml
	$(PYTHON) -m venv .venv-smoke
	.venv-smoke/bin/python -m pip install --quiet --disable-pip-version-check --no-deps \
	  -r requirements.txt -r requirements-dev.txt -e .
	touch $@

# PyTorch is an oracle of the tests alone, as are the libraries of Hugging Face that need it.
.venv-torch/tests: .venv/tests
	$(call borrowing,.venv-torch,torch==2.13.0 psutil==7.2.2 && \
	  .venv-torch/bin/python -m pip install --quiet --disable-pip-version-check --no-deps \
	  accelerate==1.15.0 peft==0.21.2)

# Debian's Chromium and its driver are installed where that is allowed.
.venv-browser/tests: .venv/tests requirements-browser.txt
	command -v chromedriver >/dev/null || { [ "$$(id -u)" = 0 ] && apt-get update -qq && \
	  apt-get install -y -qq --no-install-recommends chromium chromium-driver fonts-dejavu-core; } || \
	  { echo "error: chromium and chromedriver must be on PATH: install both" >&2; exit 2; }
	$(call borrowing,.venv-browser,--no-deps -r requirements-browser.txt)

.venv-docs/builds: .venv/runs requirements-docs.txt
	$(call borrowing,.venv-docs,--no-deps -r requirements-docs.txt)

.venv-ray/tests: .venv/tests
	$(call borrowing,.venv-ray,ray==2.60.0)
