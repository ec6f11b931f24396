# Every target sets up the virtual environment first (milliseconds when it is there).
SHELL := /bin/bash
BIN := .venv/bin
PYTEST := $(BIN)/python -m pytest
CODE := $(wildcard trainer launch tests benchmarks)

# A folder without tests is left out: pytest calls an empty collection a failure.
tested = $(foreach folder,$(1),$(if $(wildcard tests/$(folder)/test_*.py),tests/$(folder)))

# run-tests FOLDERS: one pytest, so that all of them share one pool of warm ranks.
define run-tests
@$(if $(call tested,$(1)),$(PYTEST) $(call tested,$(1)) $(ARGS),echo "no tests yet in: $(1)")
endef

# run-files FILES: the same for some of a folder's files.
run-files = @$(PYTEST) $(1) $(ARGS)

.DEFAULT_GOAL := help

.PHONY: help
help: ## This list
	@sed -nE 's/^([a-z]+):.*## /\1\t/p; s/^# --- ([a-z]+) -.*/\n\1/p' $(MAKEFILE_LIST) | expand -t 14

.PHONY: setup
setup: ## The virtual environment, by constraints.txt
	@.ci/setup

.PHONY: ops
ops: setup ## Build what swapping state to a disk needs (and its tests), once; minutes, libaio-dev
	$(BIN)/python -m trainer.commands.build_async_io

# --- runs ------------------------------------------------------------------------------------

.PHONY: train
train: setup ## Train: make train ARGS="model=llama_debug steps.total=50"
	$(BIN)/longhaul train $(ARGS)

.PHONY: plan
plan: setup ## The numbers of a run, nothing started: make plan EXP=name ARGS="..."
	$(BIN)/longhaul plan $(if $(EXP),+experiment=$(EXP)) $(ARGS)

.PHONY: smoke
smoke: setup ## In a minute: train on two ranks, kill -9 one, resume, finish, export, check
	$(PYTEST) tests/distributed/test_smoke.py -s $(ARGS)

.PHONY: bench
bench: setup ## Every benchmark, few rounds, or some of them: make bench ARGS="startup loader"
	@.ci/bench $(ARGS)

.PHONY: drills
drills: setup ## Break real runs in every way we know and write docs/drills.md: make drills ARGS="D12 D40a"
	$(BIN)/python -m launch.drills $(if $(ARGS),$(ARGS),--write docs/drills.md)

# --- checks ----------------------------------------------------------------------------------

.PHONY: test
test: setup ## Everything CI runs: check, then two folders side by side, then the drills alone
	@.ci/browser
	@# What fails stops nothing behind it: one run tells all that is wrong.
	@# `distributed` takes about as long as `slurm` and `machines`, which wait for schedulers most of
	@# the time; halves of `contract` fill what is left. Three at once make tests late on two cores.
	@failed=0; \
	$(MAKE) --no-print-directory -k check || failed=1; \
	$(MAKE) --no-print-directory -j2 -k distributed slurm machines early late || failed=1; \
	$(MAKE) --no-print-directory timed || failed=1; \
	exit $$failed

# Each has a network of its own, so that the two can run beside each other and beside all else.
SLURM := $(wildcard tests/cluster/test_*slurm*.py)
.PHONY: slurm machines
slurm: setup
	$(call run-files,$(SLURM))
machines: setup
	$(call run-files,$(filter-out $(SLURM),$(wildcard tests/cluster/test_*.py)))

# Halves of the contract suite, by the first letter.
EARLY := $(wildcard tests/contract/test_[a-d]*.py)
.PHONY: early late
early: setup
	$(call run-files,$(EARLY))
late: setup
	$(call run-files,$(filter-out $(EARLY),$(wildcard tests/contract/test_*.py)))

# They hold seconds against promises: nothing else runs beside them.
.PHONY: timed
timed: setup
	$(call run-tests,drills)

.PHONY: check
check: setup ## Under a minute, changes nothing: format, lint, types, architecture, unit, golden
	@# Half of the unit tests takes one core for as long as mypy and the other half take another.
	@$(MAKE) --no-print-directory -j2 -k types first second format lint arch

# Halves by the first letter, which is as good as any: move it when one takes much longer.
FIRST := $(wildcard tests/unit/test_[a-m]*.py)
.PHONY: first second
first: setup
	$(call run-files,$(FIRST) tests/golden)
second: setup
	$(call run-files,$(filter-out $(FIRST),$(wildcard tests/unit/test_*.py)))

.PHONY: fix
fix: setup ## Format and repair what ruff can repair
	$(BIN)/ruff check --fix-only $(CODE)
	$(BIN)/ruff format $(CODE)

.PHONY: format
format: setup ## Is everything formatted
	@$(BIN)/ruff format --check $(CODE)

.PHONY: lint
lint: setup ## Ruff's rules and spelling
	@$(BIN)/ruff check $(CODE)
	@$(BIN)/codespell $(CODE) docs conf slurm .ci *.md *.toml Makefile

.PHONY: types
types: setup ## mypy --strict on trainer, launch and the tests' helpers
	@$(BIN)/mypy

.PHONY: arch
arch: setup ## Who may import whom
	@$(BIN)/lint-imports --no-logo

.PHONY: unit golden contract distributed cluster
unit: setup ## Pure functions and small files, in one process; seconds
	$(call run-tests,unit)
golden: setup ## Everything rendered or resolved, as text; ARGS=--update rewrites it
	$(call run-tests,golden)
contract: setup ## The same tests for every implementation; every choice, every crash, every enemy
	$(call run-tests,contract)
distributed: setup ## Several real processes
	$(call run-tests,distributed)
cluster: setup ## Real schedulers, where they are installed
	$(call run-tests,cluster)
