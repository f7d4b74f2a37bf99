# Set-up: `make demo` and `make test` each make the environment if it is not there.
PYTHON ?= python3
BIN := .venv/bin
EXTRAS := train,simulation,export,edge,parquet,report,metrics,tensorboard,mlflow,telemetry,bench,docs,dev

.PHONY: env demo demo-fleet test test-all chaos check format proto bench bench-env docs pictures edge-env images clean

env: .venv/.installed

.venv/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make env PYTHON=python3.11")'
	@echo "making .venv: two or three minutes, 2.6 GB"
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$(EXTRAS)]'
	@touch $@

demo: env
	$(BIN)/wildflower simulate examples/mnist-cnn.toml

# A server and four devices as processes of this machine, with TLS and a key for each.
demo-fleet: env
	examples/demo-fleet.sh

# In two processes, each with whole files; those that take long, or the time, are left to test-all.
test: check edge-env
	$(BIN)/pytest -m "not slow" -n 2 --dist loadfile

test-all: check edge-env
	$(BIN)/pytest

# Kills runs at random moments and resumes them, half a minute each: make chaos RUNS=30
RUNS ?= 30

chaos: env
	$(BIN)/pytest tests/test_chaos.py --chaos-runs $(RUNS) -rP

check: env
	$(BIN)/ruff format --check --quiet
	$(BIN)/ruff check --quiet
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

format: env
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

# The wire between a ClientApp and its warm trainer.
proto: env
	$(BIN)/python -m grpc_tools.protoc -I. --python_out=. --pyi_out=. clients/warm/trainer.proto

# Peers whose pins clash with ours live in an environment of their own.
bench-env: env .venv-pfl/.installed

.venv-pfl/.installed: benchmarks/pfl-requirements.txt
	$(PYTHON) -m venv .venv-pfl
	.venv-pfl/bin/pip install --quiet --disable-pip-version-check -r benchmarks/pfl-requirements.txt
	@touch $@

# tflite-runtime, on which every TFLite file is run too, has no wheel for Python 3.12 and newer.
OLD_PYTHON ?= python3.11

edge-env: .venv-tflite/.installed

.venv-tflite/.installed: deploy/edge/tflite-requirements.txt
	@$(OLD_PYTHON) -m venv .venv-tflite && \
	.venv-tflite/bin/pip install --quiet --disable-pip-version-check -r $< && touch $@ || \
	{ rm -rf .venv-tflite; \
	echo "NO TFLITE-RUNTIME: its tests are skipped; with Python 3.11: make edge-env OLD_PYTHON=python3.11" >&2; }

# All systems side by side, about an hour on two idle cores: make bench BENCH="--workloads W2 --repeat 1"
bench: bench-env
	$(BIN)/python -m benchmarks.compare $(BENCH)

# The site, from docs/ and from the code, into build/site: a link to nowhere is an error.
docs: env
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -W ignore -m mkdocs build --strict
	@echo "build/site/index.html"

# What the README shows of a real run: two minutes, and a browser.
pictures: env
	$(BIN)/python docs/pictures.py

# The images of k8s/, a few minutes each: make images ENGINE=podman PLATFORM=linux/arm64
# With BASE, or with an index of your own: make images IMAGE_OPTIONS="--build-arg BASE=..."
# Without CUDA on amd64: IMAGE_OPTIONS="--build-arg TORCH=torch==2.13.0+cpu ...", see k8s/README.md
# The server on a GPU: make image-server CUDA=1, with the index of the CUDA wheels in IMAGE_OPTIONS
ENGINE ?= docker
IMAGE_PREFIX ?=
IMAGE_OPTIONS ?=
VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
EXTRAS_simulation := train,simulation,cluster

images: image-server image-client image-simulation

image-%:
	$(ENGINE) build --file k8s/images/Dockerfile --target $* $(if $(PLATFORM),--platform $(PLATFORM)) \
	--build-arg EXTRAS=$(or $(EXTRAS_$*),train,metrics,telemetry) --build-arg VERSION=$(VERSION) \
	--build-arg REVISION=$(shell git rev-parse HEAD 2>/dev/null || echo unknown) \
	--tag $(IMAGE_PREFIX)wildflower-$*$(if $(CUDA),-cuda):$(VERSION) $(IMAGE_OPTIONS) .

clean:
	rm -rf .venv .venv-pfl .venv-tflite build dist *.egg-info *.fab .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
