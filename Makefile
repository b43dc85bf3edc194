# limiterd: everything is one `make` word away. `make help` lists them.
#
# The first target that needs Python makes .venv from constraints.txt; on Debian and Ubuntu a missing python3-venv or
# iproute2 is installed when make runs as root, else the one command that does it is named. Recipes use relative paths
# only (a checkout's path may hold spaces) and a umask of 022 for .venv (root may make it for everybody).

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.ONESHELL:
.DEFAULT_GOAL := help
MAKEFLAGS += --no-builtin-rules --no-print-directory

PYTHON ?= python3
CONFIG ?= config/limiterd.yaml
PYTEST_ARGS ?=
DEMO_ARGS ?=
RUN ?=
VENV := .venv
PY := $(VENV)/bin/python
# Isolated from the user's site and the locale; what else the tests' environment holds is set by tests/environment.py.
PYTEST := $(PY) -I -X utf8 -m pytest
# Workers of pytest-xdist: most tests wait. Tests marked `serial` have the machine for themselves.
WORKERS ?= 4
PARALLEL := -n $(WORKERS) --dist worksteal
# Nothing of the caller's decides what the programs below are and do.
$(foreach name,$(filter BASH_ENV CDPATH PYTEST_% PYTHON%,$(.VARIABLES)),$(eval unexport $(name)))
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_ROOT_USER_ACTION := ignore

# $(call need,COMMAND THAT TELLS IT IS THERE,DEBIAN PACKAGE,WHAT FOR)
define need
if ! { $(1); } >/dev/null 2>&1; then
  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "installing $(2) ($(3))"
    DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends $(2) >/dev/null || {
      apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends $(2) >/dev/null; }
  else
    echo "$(3) needs $(2); install it with: sudo apt-get install $(2)" >&2; exit 1
  fi
fi
endef

# $(call ours): .venv can be changed by whoever runs this
define ours
[ ! -e $(VENV) ] || [ -w $(VENV) ] || { echo '.venv belongs to another user and is out of date: sudo make venv' >&2; exit 1; }
endef

help: ## this list
	@sed -n 's/^\([a-z][a-z-]*\):.*## /\1\t/p' Makefile | while IFS=$$'\t' read -r word does; do
	  printf '  make %-13s %s\n' "$$word" "$$does"
	done

# .ready: what the daemon needs. .tools: what tests, lint and builds need besides.
$(VENV)/.ready: pyproject.toml constraints.txt
	@umask 022
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
	  { echo "limiterd needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) -V). Name another: make PYTHON=python3.12 …" >&2; exit 1; }
	$(call need,$(PYTHON) -c 'import ensurepip',python3-venv,the virtual environment)
	$(call ours)
	echo "setting up $(VENV)"
	$(PY) -c 'import pip' 2>/dev/null || $(PYTHON) -m venv --clear $(VENV)
	$(PY) -m pip install --quiet --constraint constraints.txt --editable .
	chmod -R a+rX $(VENV)
	touch $@

$(VENV)/.tools: $(VENV)/.ready
	@umask 022
	$(call ours)
	$(PY) -m pip install --quiet --constraint constraints.txt --editable '.[test,lint,build,plot]'
	chmod -R a+rX $(VENV)
	touch $@

venv: $(VENV)/.tools ## the virtual environment alone

run: $(VENV)/.ready ## the daemon in the foreground with config/limiterd.yaml (root; CONFIG=FILE for another)
	@[ "$$(id -u)" = 0 ] || { echo 'shaping needs root here: sudo make run' >&2; exit 77; }
	install -d -m 755 /run/limiterd
	install -d -m 750 /var/lib/limiterd
	[ '$(CONFIG)' != config/limiterd.yaml ] || chmod go-w '$(CONFIG)' # its mode is the umask's of the checkout
	exec $(PY) -P -m limiterd.daemon --config '$(CONFIG)'

demo: $(VENV)/.ready ## the policy at work on real traffic in private namespaces, about 30 s (DEMO_ARGS=--fast)
	@exec $(PY) -P -m limiterd.cli demo $(DEMO_ARGS)

test: $(VENV)/.tools ## the tests; as root with namespaces and real traffic (PYTEST_ARGS=…)
	@$(call need,PATH="$$PATH:/usr/sbin:/sbin" tc -V,iproute2,comparing with tc)
	$(call need,command -v ping,iputils-ping,the tests that measure latency)
	$(PYTEST) $(PARALLEL) $(PYTEST_ARGS)

faults: $(VENV)/.tools ## every test of the fault catalogue, and their results into docs/reliability.md
	@results=$$(mktemp)
	trap 'rm -f "$$results"' EXIT
	cases=$$($(PY) -c 'from tests.faults.catalogue import tests; print(*tests())')
	code=0
	export LIMITERD_LONG=1
	$(PYTEST) $(PARALLEL) -q --junitxml="$$results" $(PYTEST_ARGS) $$cases || code=$$?
	$(PY) docs/build_reliability.py --results "$$results"
	exit $$code

faults-long: $(VENV)/.tools ## the fault tests that chance decides, for long: 600 random SIGKILLs, 30 000 steps of the stateful machine
	@export LIMITERD_KILLS=600 LIMITERD_MACHINE_EXAMPLES=600
	$(PYTEST) -q -s --timeout=3600 tests/faults/test_kill.py tests/core/test_machine.py

explore: $(VENV)/.tools ## every property test with examples of chance, for MINUTES (10); what fails is written to explored/
	@exec $(PY) -I -X utf8 tests/explore.py $(or $(MINUTES),10) $(SEED)

mutate: $(VENV)/.tools ## mutation tests: are 500 changes of the core, always the same, noticed by the tests? (COUNT=N for another number)
	@$(PY) -c 'import mutmut' 2>/dev/null || $(PY) -m pip install --quiet --constraint constraints.txt --editable '.[mutate]'
	exec $(PY) -I -X utf8 tests/mutate.py $(or $(COUNT),500)

mutate-all: $(VENV)/.tools ## mutation tests of all of it, for hours
	@$(MAKE) mutate COUNT=all

soak: $(VENV)/.tools ## a real daemon under everything at once for MINUTES (3), into docs/soak.csv and docs/soak.png
	@exec $(PY) bench/soak.py $(or $(MINUTES),3)

test-long: export LIMITERD_LONG := 1
test-long: test ## the test suite with every case of its long lists

coverage: $(VENV)/.tools ## the tests of the core and of its rules alone: every branch of limiterd/core taken
	@$(PY) -m coverage run -m pytest -q tests/core tests/test_config.py tests/test_check.py tests/test_config_docs.py tests/test_overrides.py $(PYTEST_ARGS)
	$(PY) -m coverage report

lint: $(VENV)/.tools ## ruff: rules and format
	@$(PY) -m ruff check .
	$(PY) -m ruff format --check .

format: $(VENV)/.tools ## ruff puts right what it can
	@$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

types: $(VENV)/.tools ## mypy, strict
	@$(PY) -m mypy

bench: $(VENV)/.tools ## the benchmarks (BENCH=NAME for one; half an hour): bench/RESULTS.md
	@$(call need,command -v cc,gcc libc6-dev,the C program to compare with)
	$(PY) -c 'import matplotlib' 2>/dev/null || $(PY) -m pip install --quiet '.[plot]'
	PATH="$$PATH:/usr/sbin:/sbin" $(PY) bench/run_all.py $(BENCH)

bench-guard: $(VENV)/.tools ## key ratios against the recorded ones, in less than a minute
	@$(call need,command -v cc,gcc libc6-dev,the C program to compare with)
	PATH="$$PATH:/usr/sbin:/sbin" $(PY) bench/guard.py

wheel: $(VENV)/.tools ## wheel and sdist in dist/
	@$(PY) -m build --outdir dist

deb: ## the Debian package in dist/, from the distribution's own libraries
	@debian/build

deb-test: $(VENV)/.tools ## installs dist/*.deb in a clean root made by debootstrap and uses it there (root)
	@tests/deb/run

vm-test: ## checks inside a machine with systemd: make vm-test RUN="ssh root@host"
	@RUN='$(RUN)' tests/vm/run

docs: $(VENV)/.tools ## rewrites the parts of docs/ that are made from the code
	@$(PY) docs/generate.py

constraints: ## renews constraints.txt with the newest versions
	@umask 022
	fresh=$$(mktemp -d)
	trap 'rm -rf "$$fresh"' EXIT
	$(PYTHON) -m venv "$$fresh"
	"$$fresh/bin/python" -m pip install --quiet --upgrade setuptools wheel '.[test,lint,build,plot,mutate]'
	{ sed -n '/^#/p' constraints.txt
	  "$$fresh/bin/python" -m pip freeze --all --exclude pip --exclude limiterd; } >constraints.new
	mv constraints.new constraints.txt

clean: ## removes what make made (not dist/)
	@rm -rf $(VENV) build .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage ./*.egg-info debian/.build
	find . -name __pycache__ -not -path './.git/*' -prune -exec rm -rf {} +

.PHONY: help venv run demo test test-long faults faults-long explore mutate mutate-all soak coverage lint format types bench bench-guard wheel deb deb-test vm-test docs constraints clean
