# make demo     set up, and run ten jobs on this machine
# make test     set up, then lint, mypy and all tests
# make quick    all tests but the slow ones
# make check    lint, mypy, and the agent against Python 3.6
# make bench    speed beside xargs and GNU parallel
# make chaos    kill runs that launch machines at random steps, SEEDS=1000 times, and look for what is left
# make demo-ec2 a local EC2, to try --provider=ec2 without an account (as root)
# make man      the manual pages, into build/man
# make clean    remove what was built, but not .venv

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.SUFFIXES:
MAKEFLAGS += --no-builtin-rules --no-print-directory

PYTHON ?= python3
PY := .venv/bin/python
PIP := $(PY) -m pip install -qq --disable-pip-version-check --root-user-action=ignore
BASE := .venv/.installed
TEST := .venv/.installed-test
DEMO := build/demo
SEEDS ?= 1000
STRICT = $(if $(CI)$(CLOUDTASK_TEST_REQUIRE),-p tests.no_skips)
HEADERS = $(shell $(PYTHON) -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h

.PHONY: help demo demo-ec2 test quick check bench chaos man clean needs-headers needs-test needs-bench

help:
	@sed -n 's/^# \(make .*\)/\1/p' Makefile

# --- set-up: each step leaves a stamp, so that a second time costs nothing and needs no network ----------------------

$(PY):
	@command -v $(PYTHON) >/dev/null || { echo "error: no $(PYTHON) here: apt-get install python3 python3-venv, or make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "error: $$($(PYTHON) --version) is too old: CloudTask needs 3.11 or newer; make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "error: $(PYTHON) cannot make a venv: apt-get install python3-venv" >&2; exit 1; }
	@echo "making .venv with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv .venv

$(BASE): setup.cfg pyproject.toml | $(PY)
	@echo "installing cloudtask into .venv"
	@$(PIP) --editable .
	@touch $@

# The binding of libvirt is built, so its headers have to be there; without them its tests are skipped.
$(TEST): setup.cfg pyproject.toml $(BASE) | needs-headers
	@echo "installing what the tests need into .venv"
	@$(PIP) --editable '.[test]'
	@if pkg-config --exists libvirt 2>/dev/null && [ -e "$(HEADERS)" ]; then $(PIP) --editable '.[libvirt]'; fi
	@touch $@

# $(call need,COMMANDS,PACKAGES): the commands are there, or are installed, or it is said what is missing.
define need
	@export PATH="$$PATH:/usr/sbin:/sbin"; missing=(); \
	for command in $(1); do command -v "$$command" >/dev/null || missing+=("$$command"); done; \
	if [ $${#missing[@]} -gt 0 ]; then \
	  if [ "$$(id -u)" -eq 0 ] && command -v apt-get >/dev/null; then \
	    echo "installing $(2)"; \
	    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends $(2) >/dev/null; \
	  else \
	    echo "error: not found: $${missing[*]}; as root: apt-get install $(2)" >&2; exit 1; \
	  fi; \
	fi
endef

# As root what the tests use is installed; else the tests of what is missing are skipped, with the reason.
needs-headers:
ifeq ($(shell id -u),0)
	$(call need,pkg-config gcc,pkg-config gcc)
	@[ -e "$(HEADERS)" ] || { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends python3-dev >/dev/null; }
	@pkg-config --exists libvirt || { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends libvirt-dev >/dev/null; }
endif

needs-test:
	$(call need,sshd ssh ssh-keygen rsync,openssh-server openssh-client rsync)
ifeq ($(shell id -u),0)
	$(call need,busybox unshare useradd,busybox-static util-linux passwd)
	$(call need,ip iptables,iproute2 iptables)
	$(call need,dockerd docker debootstrap,docker.io debootstrap)
	$(call need,libvirtd virsh qemu-img,libvirt-daemon-system libvirt-daemon-driver-lxc libvirt-clients qemu-utils)
	@mkdir -p -m 0755 /run/sshd
endif

needs-bench: needs-test
	$(call need,parallel xargs,parallel findutils)

# --- what people run -------------------------------------------------------------------------------------------------

demo: $(BASE)
	@mkdir -p $(DEMO)
	@echo "\$$ ls cloudtask/*.py | head -n 10 | .venv/bin/cloudtask --sessions=$(DEMO) --keep-order wc -l"
	@ls cloudtask/*.py | head -n 10 | .venv/bin/cloudtask --sessions=$(DEMO) --keep-order wc -l
	@session=$(DEMO)/$$(ls $(DEMO) | sort -n | tail -n 1); \
	echo; echo "The session is $$session:"; ls "$$session" "$$session/workers"; \
	echo; echo "Its log ends with:"; tail -n 3 "$$session/log"; \
	echo; echo "Next: seq 10 | .venv/bin/cloudtask --workers='HOST1 HOST2' echo hello"

test: needs-test check man
	@$(PY) -m pytest $(STRICT) || { status=$$?; [ $$status -eq 1 ] || exit $$status; \
	  echo "those that failed, once more and by themselves: real processes on a machine that others use may be late"; \
	  $(PY) -m pytest $(STRICT) --last-failed --last-failed-no-failures none; }

quick: $(TEST) needs-test
	@$(PY) -m pytest -m 'not slow'

check: $(TEST)
	@$(PY) -m ruff check cloudtask tests templates
	@$(PY) -m mypy
	@.venv/bin/vermin cloudtask/agent

bench: $(BASE) needs-bench
	@$(PY) -m tests.bench

chaos: $(TEST) needs-test
	@$(PY) -m tests.chaos --seeds $(SEEDS)

demo-ec2: $(TEST) needs-test
	@$(PY) -m tests.stage.demo_ec2

man: $(patsubst docs/man/%.rst,build/man/%,$(wildcard docs/man/*.rst))

build/man/%: docs/man/%.rst $(TEST)
	@mkdir -p $(@D)
	@$(PY) -m docutils --writer=manpage --report=info --halt=info $< $@
	@echo "built $@"

clean:
	@rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	@find cloudtask tests -name __pycache__ -prune -exec rm -rf {} +
