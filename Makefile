# make run                            the main job: scalify run precision=fp8 model=gpt_small
# make run ARGS="model=gpt_nano"      any other
# make test | check | bench | figures
ARGS ?= precision=fp8 model=gpt_small
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: run test check bench figures

run: .venv/installed
	$(BIN)/scalify run $(ARGS)

test: .venv/installed-test
	$(BIN)/python -m pytest

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
