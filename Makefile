# Everything needs only python3 (3.11 or later, with venv) and make; `make help` lists the targets.

PYTHON ?= python3
VENV ?= .venv
# What pytest gets besides the suite's own settings, such as PYTEST_ARGS='-k lora'
PYTEST_ARGS ?=
# How much of the suite runs: all, most (without the groups below) or fast (without the slow ones too); on the second
# Python also none
SUITE ?= most
SECOND_SUITE ?= fast
# Tests that take minutes, by the mark `group`: .ci/run takes one after `make test`, in turn
GROUPS_IN_TURN := kills long notebooks commands examples fuzzing
GROUP ?= $(firstword $(GROUPS_IN_TURN))
CHOICE = $(if $(filter fast,$(SUITE)),-m 'not slow and not group')$(if $(filter most,$(SUITE)),-m 'not group')
# The second Python: the first python3.12 that really starts, for a pyenv shim may not
SECOND_PYTHON ?= $(shell \
	for python in python3.12 "$${PYENV_ROOT:-$$HOME/.pyenv}"/versions/3.12*/bin/python3.12; do \
		if "$$python" -c 'import ensurepip, venv' >/dev/null 2>&1 </dev/null; then \
			command -v "$$python"; break; \
		fi; \
	done)

# A few threads are fastest for small tensors, and leave the machine usable
export OMP_NUM_THREADS ?= 2
export MKL_NUM_THREADS ?= $(OMP_NUM_THREADS)
export MPLBACKEND ?= Agg
export PIP_DISABLE_PIP_VERSION_CHECK = 1
export PIP_NO_INPUT = 1

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
PYTEST = $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal
.PHONY: help demo test test-all test-group group-due pytest coverage lint format docs test-lowest test-newest wheel \
	constraints audit clean

BIN := $(VENV)/bin
LOWEST := .venv-lowest

# $(call install,what): install into $(VENV), showing only the large downloads and the outcome
define install
@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
	f"explora_geo needs Python 3.11 or later, {sys.executable} is {sys.version.split()[0]}: make PYTHON=...")'
@echo "Installing explora_geo into $(VENV) (PyTorch is large: minutes the first time)"
@$(BIN)/python -c '' 2>/dev/null || $(PYTHON) -m venv --clear $(VENV)
@$(BIN)/python -m pip install --progress-bar off --editable $(1) | while IFS= read -r line; do \
	case "$$line" in \
		*Downloading*[0-9][0-9].[0-9]' MB'*|*'Using cached'*[0-9][0-9].[0-9]' MB'*|Installing*) \
			echo "$${line:0:100}";; \
	esac; \
done
@$(BIN)/python -W ignore -c 'import torchvision, torchgeo' || { \
	echo "torchvision or torchgeo does not import beside the installed torch: torch and torchvision" \
		"must come from the same place. Remove $(VENV) and try again." >&2; exit 1; }
endef

$(BIN)/.installed: pyproject.toml setup.py
	$(call install,.)
	@touch $@

$(BIN)/.installed-tests: pyproject.toml setup.py
	$(call install,'.[tests]')
	@touch $(BIN)/.installed $@

help: ## List the targets
	@sed -nE 's/^([a-z-]+):.* ## (.*)/\1|\2/p' $(MAKEFILE_LIST) | \
		while IFS='|' read -r name what; do printf '  make %-12s %s\n' "$$name" "$$what"; done

# What the demonstration adapts; make demo WEIGHTS=timm/vit_small_patch14_dinov2.lvd142m takes the whole network
DEPTH6 := ViTSmall14_Weights.LVD142M_DINOV2_DEPTH6
WEIGHTS ?= $(DEPTH6)
# An adapter of these weights that was made beforehand, scored beside the short run
BESIDE ?= $(if $(filter $(DEPTH6),$(WEIGHTS)),explora_geo/models/files/vit_small_patch14_dinov2_depth6_eurosat.safetensors)
# Its scores in full with those of rivals that cost nothing; the file says by which command
QUOTED ?= benchmarks/results/depth6_eurosat.json
demo: $(BIN)/.installed ## Install into .venv once, then adapt a model to the shipped tiles and report (5 minutes)
	@$(BIN)/explora-geo adapt tests/data/eurosat_rgb/train --labels tests/data/eurosat_rgb/test --steps 24 \
		--weights $(WEIGHTS) $(if $(BESIDE),--beside $(BESIDE) --quoted $(QUOTED)) --quick --strength 1 --out runs/demo

test: lint ## Style, types and tests on python3, then the fast ones on python3.12 if there is one
	@second='$(SECOND_PYTHON)'; \
	first=$$($(BIN)/python -c 'import sys; print("%d.%d" % sys.version_info[:2])'); \
	if [ '$(SECOND_SUITE)' = none ] || [ "$$first" = 3.12 ]; then second=; \
	elif [ -z "$$second" ]; then echo "No working python3.12 found: testing on Python $$first only"; fi; \
	echo "Testing on Python $$first"; \
	$(MAKE) pytest; \
	if [ -n "$$second" ]; then \
		echo "Testing on Python 3.12 ($$second)"; \
		$(MAKE) pytest VENV=.venv-3.12 PYTHON="$$second" SUITE='$(SECOND_SUITE)'; \
	fi

test-all: ## The same, with the six groups of tests that take minutes
	@$(MAKE) test SUITE=all

# A process for each processor, of one thread each: most tests are too small for more
pytest test-group: export OMP_NUM_THREADS = 1
pytest: $(BIN)/.installed-tests ## The suite on python3 only, as much as SUITE says
	@$(PYTEST) $(CHOICE) $(PYTEST_ARGS)

test-group: $(BIN)/.installed-tests ## One group of tests that take minutes: GROUP=kills
	@$(PYTEST) -m "group(name='$(GROUP)')" $(PYTEST_ARGS)

# Commits choose the group; a shallow copy and one without git know no number of them, there it is the day
group-due: ## Name the group whose turn it is
	@if [ "$$(git rev-parse --is-shallow-repository 2>/dev/null)" = false ]; then number=$$(git rev-list --count HEAD); \
	else number=$$(date +%-j); fi; \
	names=($(GROUPS_IN_TURN)); echo "$${names[$$((number % $${#names[@]}))]}"

# Python 3.12 tells of lines at almost no cost; older ones ignore the wish
coverage: SUITE = all
coverage: $(BIN)/.installed-tests ## Lines that the whole suite runs, 95 % or more, and those it does not
	@$(BIN)/python -m coverage erase
	@COVERAGE_CORE=sysmon $(BIN)/python -m coverage run -m pytest $(CHOICE) $(PYTEST_ARGS)
	@$(BIN)/python -m coverage combine --quiet
	@$(BIN)/python -m coverage report

lint: $(BIN)/.installed-tests ## Check style (ruff) and types (mypy)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: $(BIN)/.installed-tests ## Rewrite the code in the house style
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

docs: $(BIN)/.installed-tests ## Write the reference pages under docs/ from the code
	@$(BIN)/python docs/generate.py

# In an empty environment each time: uv keeps what is installed already, be it the lowest or not
$(LOWEST)/bin/.installed: pyproject.toml setup.py constraints/oldest.txt
	@echo "Installing the lowest versions pyproject.toml allows into $(LOWEST)"
	@$(PYTHON) -m venv --clear $(LOWEST)
	@$(LOWEST)/bin/python -m pip install --quiet uv
	@$(LOWEST)/bin/uv pip install --quiet --python $(LOWEST)/bin/python \
		--resolution lowest-direct --constraint constraints/oldest.txt --requirements pyproject.toml --extra tests
	@$(LOWEST)/bin/uv pip install --quiet --python $(LOWEST)/bin/python --no-deps --editable .
	@touch $@

test-lowest: $(LOWEST)/bin/.installed ## The fast tests on the lowest versions of every dependency
	@EXPLORA_GEO_LOWEST=1 $(LOWEST)/bin/python -m pytest -m 'not slow and not group' $(PYTEST_ARGS)

test-newest: $(BIN)/.installed-tests ## The fast tests on the newest TorchGeo, timm and Lightning
	@$(BIN)/python -m pip install --quiet --upgrade torchgeo timm lightning
	@$(PYTEST) -m 'not slow and not group' $(PYTEST_ARGS)

wheel: $(BIN)/.installed-tests ## Build the wheel into dist/ and check that it holds what it must
	@$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .
	@$(BIN)/python -m pytest -q tests/test_packaging.py $(PYTEST_ARGS)

constraints: ## Resolve the lowest versions anew into constraints/oldest.txt
	@$(PYTHON) -m venv --clear .venv-tools
	@.venv-tools/bin/python -m pip install --quiet uv
	@rm -f constraints/oldest.txt
	@.venv-tools/bin/uv pip compile --quiet --python-version 3.11 --resolution lowest-direct --extra tests \
		--no-annotate --no-header --output-file constraints/oldest.txt pyproject.toml

audit: $(BIN)/.installed-tests ## Licences and known vulnerabilities of what is installed
	@$(PYTHON) -m venv .venv-tools
	@.venv-tools/bin/python -m pip install --quiet pip-licenses pip-audit
	@.venv-tools/bin/python docs/audit.py $(BIN)/python

clean: ## Remove environments, caches and build output
	@rm -rf .venv* build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
