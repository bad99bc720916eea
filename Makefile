# make run                            the main job: scalify run precision=fp8 model=gpt_small
# make run ARGS="model=gpt_nano"      any other
# make test | check | bench | figures
# make test-slurm                     on real SLURM clusters, whose Debian packages it installs
# make test-latest                    with the newest Python and the newest JAX there are
ARGS ?= precision=fp8 model=gpt_small
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt
NEWER := 3.15 3.14 3.13 3.12
LATEST = $(shell for v in $(NEWER); do \
	for python in python$$v "$$(pyenv prefix $$v 2>/dev/null)/bin/python$$v"; do \
	"$$python" -c "" 2>/dev/null && echo "$$python" && exit; done; done)

SUDO := $(shell test "$$(id -u)" = 0 || command -v sudo)

.PHONY: run test test-slurm test-latest check bench figures

run: .venv/installed
	$(BIN)/scalify run $(ARGS)

test: .venv/installed-test
	$(BIN)/python -m pytest

test-slurm: .venv/installed-test
	missing=$$($(BIN)/python tests/slurm/cluster.py packages); test -z "$$missing" || \
		{ $(SUDO) apt-get update -qq && $(SUDO) env DEBIAN_FRONTEND=noninteractive \
		apt-get install -qq -y --no-install-recommends $$missing; }
	for cluster in "no-accounting" "not no-accounting"; do \
		SCALIFY_TEST_SLURM=1 $(BIN)/python -m pytest -n 0 -k "$$cluster" tests/slurm & \
		running="$$running $$!"; done; \
	for one in $$running; do wait $$one || failed=1; done; exit $$failed

test-latest:
	@test -n "$(LATEST)" || { echo "nothing tested: no Python of $(NEWER) here" >&2; exit 1; }
	test -x .venv-latest/bin/pip || $(LATEST) -m venv .venv-latest
	.venv-latest/bin/pip install --quiet --disable-pip-version-check --upgrade -e ".[test]"
	.venv-latest/bin/pip list 2>/dev/null | grep -E "^(jax|optax|flax|equinox|dm-haiku) "
	.venv-latest/bin/python -m pytest tests/core tests/formats tests/precision tests/frameworks

check: .venv/installed-check
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright

bench: .venv/installed
	$(BIN)/python -m benchmarks.step_time

figures: .venv/installed-figures
	$(BIN)/python -m benchmarks.figures

.venv/installed: pyproject.toml constraints.txt
	test -x $(BIN)/pip || $(PYTHON) -m venv .venv
	$(INSTALL) -e .
	touch $@

.venv/installed-%: .venv/installed
	$(INSTALL) -e ".[$*]"
	touch $@
