# One verb per need; CI runs exactly these. `make` alone lists them.
.DEFAULT_GOAL := help
SHELL := bash
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
OUT ?= out/demo
# Ray starts 12 s slower where Python may not keep its bytecode.
unexport PYTHONDONTWRITEBYTECODE
unexport PYTHONPATH

# The image: any Debian or Ubuntu with Python 3.11 or newer, pip and venv below it.
IMAGE ?= registry.example.com/shardlabel
TAG ?= $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)-ray$(shell sed -n 's/^ray==//p' constraints.txt)
BASE ?= python:3.11-slim-bookworm
BUILD_IMAGE = $(if $(shell command -v buildah),buildah build --layers,docker build) --build-arg BASE=$(BASE) --file cluster/Dockerfile

.PHONY: help install demo check fmt test test-fast test-long test-python coverage test-kubernetes test-image image image-cuda image-bom lock proto cli-page wheel bundle clean

help: ## List the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

# The stamps hold the environment to the files that describe it.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("shardlabel needs Python >= 3.11, got %d.%d: make PYTHON=python3.12 ..." % sys.version_info[:2] if sys.version_info < (3, 11) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo 'Installing shardlabel and its dependencies into $(VENV) (1.2 GB); this may take some minutes.'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

# Clients of other makers, against which the endpoint is tested; their protobuf is not Ray's.
.venv-clients/.installed: tests/clients/requirements.txt
	test -x .venv-clients/bin/python || $(PYTHON) -m venv .venv-clients
	.venv-clients/bin/python -m pip install --quiet --disable-pip-version-check --requirement $< && touch $@ \
		|| echo "tritonclient.grpc and kserve could not be installed: their tests will be skipped"

# Azure's own emulator of its Blob storage.
.azurite/.installed:
	mkdir -p .azurite && npm install --silent --no-audit --no-fund --prefix .azurite azurite@3.37.0 && touch $@ \
		|| echo "azurite could not be installed: its tests will be skipped"

install: $(VENV)/.installed ## Create .venv and install the project in it, at the locked versions

demo: $(VENV)/.installed ## Label the bundled photographs with the bundled model and show the rows
	$(BIN)/shardlabel label models/samples/photos.tar --output $(OUT) --model efficientnet-lite0 --overwrite
	@$(BIN)/python -m tools.preview $(OUT)

check: $(VENV)/.installed-dev ## Lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

fmt: $(VENV)/.installed-dev ## Fix what can be fixed by machine
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test: $(VENV)/.installed-dev .venv-clients/.installed .azurite/.installed ## Every test that this machine can run, two at a time
	$(BIN)/python -m pytest --numprocesses 2 --dist worksteal --durations 20

test-fast: $(VENV)/.installed-dev ## The tests that need no Ray
	$(BIN)/python -m pytest -m 'not ray and not slow and not long'

test-long: $(VENV)/.installed-dev .azurite/.installed ## Proofs that take minutes each: memory under hostile input, the corpora in full
	$(BIN)/python -m pytest -m long

test-python: ## The tests that need no Ray, and a real run, on another Python: make test-python PYTHON=python3.12
	$(MAKE) VENV=$(patsubst python%,.venv-%,$(notdir $(PYTHON))) test-fast demo

coverage: $(VENV)/.installed-dev ## Lines and branches of each folder that the tests without Ray reach
	$(BIN)/python -m pytest -m 'not ray and not slow and not long' --cov --cov-report= tests/unit
	@for folder in models pipeline serve cluster; do printf '%-10s' $$folder; $(BIN)/python -m coverage report --include "$$folder/*" --format total; done

test-kubernetes: $(VENV)/.installed-dev ## Manifests before a real API server and KubeRay's operator (needs Go; the first run builds both)
	$(BIN)/python -m pytest tests/kubernetes --timeout 3600

test-image: $(VENV)/.installed-dev ## Build the CPU image on a base made here, and run it (root, buildah, debootstrap)
	SHARDLABEL_TEST_IMAGE=1 $(BIN)/python -m pytest tests/image

image: ## Build the image for CPUs, by buildah or docker
	$(BUILD_IMAGE) --target cpu --tag $(IMAGE):$(TAG)-cpu .

image-cuda: ## Build the image for GPUs
	$(BUILD_IMAGE) --target cuda --tag $(IMAGE):$(TAG)-cuda .

# Tools with dependencies of their own.
.venv-bom/.installed: tools/bom_requirements.txt
	test -x .venv-bom/bin/python || $(PYTHON) -m venv .venv-bom
	.venv-bom/bin/python -m pip install --quiet --disable-pip-version-check --requirement $< && touch $@

image-bom: .venv-bom/.installed ## What the built CPU image holds (CycloneDX, and Debian's packages), and what of it has known vulnerabilities
	mkdir -p out/image
	set -e; if command -v buildah > /dev/null; then box=$$(buildah from $(IMAGE):$(TAG)-cpu); run="buildah run $$box --"; \
		trap "buildah rm $$box > /dev/null" EXIT; else run="docker run --rm $(IMAGE):$(TAG)-cpu"; fi; \
		$$run dpkg-query --show > out/image/debian.txt; $$run pip freeze --exclude shardlabel > out/image/python.txt
	.venv-bom/bin/cyclonedx-py requirements out/image/python.txt --output-file out/image/python.cdx.json
	.venv-bom/bin/pip-audit --requirement out/image/python.txt --no-deps --disable-pip --strict

lock: ## Resolve constraints.txt anew (needs uv)
	uv pip compile --quiet --universal --python-version 3.11 --extra dev --no-header --no-annotate \
		--no-emit-index-url --upgrade pyproject.toml --output-file constraints.txt

proto: $(VENV)/.installed-dev ## Compile the messages of serve/oip/grpc/*.proto
	$(BIN)/python -m grpc_tools.protoc --proto_path=serve/oip/grpc \
		--descriptor_set_out=serve/oip/grpc/messages.binpb inference.proto health.proto

cli-page: $(VENV)/.installed ## Write docs/cli.md anew, from the commands' own help
	$(BIN)/python -m tools.cli_page

wheel: $(VENV)/.installed ## Build the wheel into dist/
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .

bundle: ## Rebuild the bundled model from its published weights (its own environment, 2 GB)
	test -x .venv-convert/bin/python || $(PYTHON) -m venv .venv-convert
	.venv-convert/bin/python -m pip install --quiet --requirement tools/conversion/requirements.txt
	.venv-convert/bin/python -m tools.conversion.efficientnet_lite0 --calibration $(CALIBRATION)

clean: ## Remove what the targets above made, but no model cache
	rm -rf $(VENV) .venv-3.* .azurite .kubernetes .venv-bom .venv-clients .venv-convert out .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage
