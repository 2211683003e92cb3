# One verb per need; CI runs exactly these. `make` alone lists them.
.DEFAULT_GOAL := help
SHELL := bash
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
OUT ?= out/demo
# Ray starts 12 s slower if Python cannot cache its bytecode.
unexport PYTHONDONTWRITEBYTECODE
unexport PYTHONPATH

# The image. BASE may be any Debian or Ubuntu with Python 3.11 or newer, pip and venv.
IMAGE ?= registry.example.com/shardlabel
TAG ?= $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)-ray$(shell sed -n 's/^ray==//p' constraints.txt)
BASE ?= python:3.11-slim-bookworm
BUILD_IMAGE = $(if $(shell command -v buildah),buildah build --layers,docker build) --build-arg BASE=$(BASE) --file cluster/Dockerfile

.PHONY: help install demo check fmt test test-fast test-long test-python coverage test-kubernetes test-image image image-cuda image-bom lock proto cli-page wheel bundle clean

help: ## List the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

# Stamp files: the environment is updated when a file that describes it changes.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("shardlabel needs Python >= 3.11, got %d.%d: make PYTHON=python3.12 ..." % sys.version_info[:2] if sys.version_info < (3, 11) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo 'Installing shardlabel and its dependencies into $(VENV) (1.2 GB); this may take some minutes.'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

# Third-party clients for tests of the endpoint. They need another version of protobuf than Ray.
.venv-clients/.installed: tests/clients/requirements.txt
	test -x .venv-clients/bin/python || $(PYTHON) -m venv .venv-clients
	.venv-clients/bin/python -m pip install --quiet --disable-pip-version-check --requirement $< && touch $@ \
		|| echo "tritonclient.grpc and kserve could not be installed: their tests will be skipped"

# Azure's emulator of its Blob storage.
.azurite/.installed:
	mkdir -p .azurite && npm install --silent --no-audit --no-fund --prefix .azurite azurite@3.37.0 && touch $@ \
		|| echo "azurite could not be installed: its tests will be skipped"

install: $(VENV)/.installed ## Create .venv and install the project with locked versions

demo: $(VENV)/.installed ## Label the bundled photographs with the bundled model and show the rows
	$(BIN)/shardlabel label models/samples/photos.tar --output $(OUT) --model efficientnet-lite0 --overwrite
	@$(BIN)/python -m tools.preview $(OUT)

check: $(VENV)/.installed-dev ## Check lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

fmt: $(VENV)/.installed-dev ## Apply automatic fixes and format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test: $(VENV)/.installed-dev .venv-clients/.installed .azurite/.installed ## Run every test that this machine can run, two at a time
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder --durations 20

test-fast: $(VENV)/.installed-dev ## Run the tests that need no Ray
	$(BIN)/python -m pytest -m 'not ray and not slow and not long'

test-long: $(VENV)/.installed-dev .azurite/.installed ## Run the tests that take minutes each: memory under hostile input, the full corpora
	$(BIN)/python -m pytest -m long

test-python: ## Run test-fast and demo on another Python: make test-python PYTHON=python3.12
	$(MAKE) VENV=$(patsubst python%,.venv-%,$(notdir $(PYTHON))) test-fast demo

coverage: $(VENV)/.installed-dev ## Measure line and branch coverage of each folder, by the tests without Ray
	$(BIN)/python -m pytest -m 'not ray and not slow and not long' --cov --cov-report= tests/unit
	@for folder in models pipeline serve cluster; do printf '%-10s' $$folder; $(BIN)/python -m coverage report --include "$$folder/*" --format total; done

test-kubernetes: $(VENV)/.installed-dev ## Test manifests on a real API server and KubeRay's operator (needs Go; the first run builds both)
	$(BIN)/python -m pytest tests/kubernetes --timeout 3600

test-image: $(VENV)/.installed-dev ## Build the CPU image on a local base, and test it (needs root, buildah, debootstrap)
	SHARDLABEL_TEST_IMAGE=1 $(BIN)/python -m pytest tests/image

image: ## Build the CPU image, with buildah or docker
	$(BUILD_IMAGE) --target cpu --tag $(IMAGE):$(TAG)-cpu .

image-cuda: ## Build the GPU image
	$(BUILD_IMAGE) --target cuda --tag $(IMAGE):$(TAG)-cuda .

# Tools with their own environment.
.venv-bom/.installed: tools/bom_requirements.txt
	test -x .venv-bom/bin/python || $(PYTHON) -m venv .venv-bom
	.venv-bom/bin/python -m pip install --quiet --disable-pip-version-check --requirement $< && touch $@

image-bom: .venv-bom/.installed ## List the packages of the built CPU image (CycloneDX and Debian's), and their known vulnerabilities
	mkdir -p out/image
	set -e; if command -v buildah > /dev/null; then box=$$(buildah from $(IMAGE):$(TAG)-cpu); run="buildah run $$box --"; \
		trap "buildah rm $$box > /dev/null" EXIT; else run="docker run --rm $(IMAGE):$(TAG)-cpu"; fi; \
		$$run dpkg-query --show > out/image/debian.txt; $$run pip freeze --exclude shardlabel > out/image/python.txt
	.venv-bom/bin/cyclonedx-py requirements out/image/python.txt --output-file out/image/python.cdx.json
	.venv-bom/bin/pip-audit --requirement out/image/python.txt --no-deps --disable-pip --strict

lock: ## Update constraints.txt to the latest versions (needs uv)
	uv pip compile --quiet --universal --python-version 3.11 --extra dev --no-header --no-annotate \
		--no-emit-index-url --upgrade pyproject.toml --output-file constraints.txt

proto: $(VENV)/.installed-dev ## Compile the messages of serve/oip/grpc/*.proto
	$(BIN)/python -m grpc_tools.protoc --proto_path=serve/oip/grpc \
		--descriptor_set_out=serve/oip/grpc/messages.binpb inference.proto health.proto

cli-page: $(VENV)/.installed ## Regenerate docs/cli.md from the commands' help
	$(BIN)/python -m tools.cli_page

wheel: ## Build the wheel into dist/ (needs only Python and a package index)
	$(PYTHON) -m pip wheel --quiet --no-deps --wheel-dir dist .

bundle: ## Rebuild the bundled model from its published weights (its own environment, 2 GB)
	test -x .venv-convert/bin/python || $(PYTHON) -m venv .venv-convert
	.venv-convert/bin/python -m pip install --quiet --requirement tools/conversion/requirements.txt
	.venv-convert/bin/python -m tools.conversion.efficientnet_lite0 --calibration $(CALIBRATION)

clean: ## Remove what the targets above made, except the model cache
	rm -rf $(VENV) .venv-3.* .azurite .kubernetes .venv-bom .venv-clients .venv-convert out .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage
