# make demo   train, prune and evaluate on the bundled digits (about a minute after set-up)
# make test   format, lint, types and tests
# make test-slow   the tests that take long: killed and resumed processes, several hosts, installation
# All set up .venv/ by themselves. PYTHON=python3.12 chooses another interpreter.

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
# One stamp for each interpreter: another PYTHON makes the environment anew.
CREATED := $(VENV)/.created-$(subst /,_,$(PYTHON))

.PHONY: demo test test-slow clean

demo: $(VENV)/.demo
	rm -rf runs/demo
	$(RUN) -m experiments.demo --workdir=runs/demo

test: $(VENV)/.test
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	$(RUN) -m pytest -n 2 --dist worksteal -m "not slow"

test-slow: $(VENV)/.test
	$(RUN) -m pytest -n 2 --dist worksteal -m slow

$(CREATED):
	@command -v $(PYTHON) >/dev/null || { echo "error: $(PYTHON) was not found: install Python 3.11 or newer, or name one with 'make PYTHON=...'."; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: $(PYTHON) is older than Python 3.11: name a newer one with 'make PYTHON=...'."; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "error: $(PYTHON) has no venv module: install it (on Debian: apt install python3-venv)."; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	@touch $@

$(VENV)/.demo: $(CREATED) pyproject.toml
	$(RUN) -m pip install --quiet --disable-pip-version-check --editable '.[demo]'
	@touch $@

$(VENV)/.test: $(CREATED) pyproject.toml
	$(RUN) -m pip install --quiet --disable-pip-version-check --editable '.[test]'
	@touch $@ $(VENV)/.demo

clean:
	rm -rf $(VENV) runs/demo .pytest_cache
