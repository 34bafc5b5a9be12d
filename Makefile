# `make demo PROMPT="..."` and `make test` work on a fresh clone; the other targets are for working on Carrara.
PYTHON ?= python3
VENV ?= .venv
# Where torch comes from beside PyPI: by default its small CPU build. CUDA: make install TORCH_INDEX_URL=https://download.pytorch.org/whl/cu130
TORCH_INDEX_URL ?= https://download.pytorch.org/whl/cpu
PROMPT ?= a large red circle above a small blue square on a white background
OUTPUT ?= demo.png

BIN := $(VENV)/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: install demo test e2e train-check bench lint types protos check clean
.DEFAULT_GOAL := install

install: $(VENV)/.installed-dev

# torch comes first and by itself, so that nothing that follows pulls in another build of it; where its index
# is out of reach, PyPI's build is taken.
$(VENV)/.installed-services: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Carrara needs Python 3.11 or later; name one with PYTHON=..." >&2; exit 1; }
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) (torch alone is about 200 MB; a few minutes the first time)"
	@$(PIP) --no-deps --retries 1 --extra-index-url $(TORCH_INDEX_URL) torch
	@$(PIP) --editable '.[services]'
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed-services
	@$(PIP) --editable '.[dev]'
	@touch $@

demo: $(VENV)/.installed-services
	@$(BIN)/carrara up -- $(BIN)/carrara generate "$(PROMPT)" --output $(OUTPUT)

test: install
	$(BIN)/pytest

# The stages in containers too: builds the images first.
e2e: install
	@docker info >/dev/null 2>&1 || { echo "make e2e needs a Docker engine that this user may use: 'docker info' fails. Without one: $(BIN)/pytest -m 'e2e and not containers' tests/e2e" >&2; exit 1; }
	$(BIN)/pytest -m e2e tests/e2e

# Trains every part from nothing, some minutes each, and holds what each has learned against a stated score.
train-check: install
	$(BIN)/python tests/bench/train_check.py

# Carrara beside diffusers in one process and behind FastAPI, shortly: prints ratios. docs/performance.md has more.
bench: install runs/peers/fastapi/.complete
	$(BIN)/python tests/bench/peers/run.py --rounds 2 --requests 16 --peer diffusers --peer fastapi \
		--carrara "fast numerics=fast engine=openvino" --carrara exact

runs/peers/%/.complete: tests/bench/peers/requirements/%.txt tests/bench/peers/requirements/pipeline.txt constraints.txt
	PYTHON=$(PYTHON) TORCH_INDEX_URL=$(TORCH_INDEX_URL) tests/bench/peers/make_env.sh $*

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: install
	$(BIN)/mypy

protos: install
	$(BIN)/python -m grpc_tools.protoc -I protos --python_out=client --pyi_out=client --grpc_python_out=client protos/carrara/v1/*.proto

check: lint types test e2e

clean:
	rm -rf $(VENV) runs .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
