# One verb per habit. Needs only Python 3.11 or newer, git and make; uses uv where it is installed.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin
UV := $(shell command -v uv 2>/dev/null)
INSTALL := $(if $(UV),$(UV) pip install --python $(RUN)/python,$(RUN)/python -m pip install)
# A worker for each core. Each begins with files of its own, whose tests share releases and servers; who is done takes
# tests from the end of another's list, so that none waits for the longest file.
PYTEST := HF_HUB_OFFLINE=1 $(RUN)/python -m pytest --numprocesses logical --maxprocesses 4 --dist worksteal
MAKE_VENV := $(if $(UV),$(UV) venv --python "$(PYTHON)",$(PYTHON) -m venv)

.PHONY: help demo test test-slow quality style docs site structure lock release publish screenshots pictures

help:  ## list the verbs
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' Makefile

demo: $(VENV)/.installed  ## start the demo on http://127.0.0.1:7860 (the first call installs into .venv)
	$(RUN)/python app.py

test: $(VENV)/.installed-test  ## run the offline tests
	$(PYTEST)

test-slow: $(VENV)/.installed-test  ## run the slow tests, offline too
	$(PYTEST) -m slow

quality: $(VENV)/.installed-test  ## lint, formatting, types, packages' order, density and names, dependencies, workflows
	$(RUN)/ruff check .
	$(RUN)/ruff format --check .
	@find src -name '*.pyi' -delete  # Gradio's stubs would be checked in place of our components
	$(RUN)/mypy
	PYTHONPATH=src $(RUN)/lint-imports
	$(RUN)/python tools/structure.py --check
	$(RUN)/deptry .
	$(RUN)/zizmor --offline --quiet .github
	@if command -v actionlint; then actionlint; else echo "actionlint is not installed: the workflows' syntax is unchecked"; fi

style: $(VENV)/.installed-test  ## fix what the linter and the formatter can fix
	$(RUN)/ruff check --fix .
	$(RUN)/ruff format .

docs: $(VENV)/.installed-test  ## render the cards, the benchmark, and the tables of the README and of docs/
	$(RUN)/python research/external.py
	$(RUN)/leukoscope release card $(wildcard model_card/*/)
	$(RUN)/python research/leak_measurements.py
	$(RUN)/python research/readme_tables.py
	$(RUN)/python research/benchmark.py

site: $(VENV)/.installed-test  ## build the documentation site into build/site; any warning is an error
	$(RUN)/python tools/site.py

structure: $(VENV)/.installed-test  ## print how densely the source is written
	@$(RUN)/python tools/structure.py

# Universal: for every system and Python that pyproject.toml allows. No index is named: pip and uv take the user's.
lock: $(VENV)/.installed-test  ## pin in requirements.lock what is installed here, with which the tests were run; needs uv
	uv pip freeze --python $(RUN)/python | sed -n 's/+cpu$$//; /^[^@]*==/p' > build/installed.txt
	uv pip compile pyproject.toml --extra test --universal --python-version 3.11.5 --constraint build/installed.txt \
		--no-annotate --upgrade --custom-compile-command "make lock" --output-file requirements.lock

release:  ## check that tree, changelog and version agree, and print the steps of a release
	@$(PYTHON) tools/release.py

publish: $(VENV)/.installed  ## publish all: make publish OWNER=name [SPACE=1] [DRY_RUN=1]; REPOSITORY=https://… is written down
	$(RUN)/python tools/publish.py $(or $(OWNER),$(if $(REPOSITORY),,$(error give the account to publish to: \
		make publish OWNER=name))) $(if $(SPACE),--space) $(if $(DRY_RUN),--dry-run) \
		$(if $(REPOSITORY),--repository $(REPOSITORY))

screenshots: $(VENV)/.installed-test  ## take the README's pictures of the demo anew; needs Chromium
	LEUKOSCOPE_SCREENSHOTS=docs LEUKOSCOPE_BROWSER=required $(RUN)/python -m pytest -m slow tests/browser/test_screenshots.py

pictures: $(VENV)/.installed-test  ## picture every state of the demo at six widths into runs/pictures; needs Chromium
	LEUKOSCOPE_PICTURES=runs/pictures LEUKOSCOPE_BROWSER=required $(RUN)/python -m pytest -m slow tests/browser/test_states.py

# Stamps: a second call installs nothing until one of the two files changes. Editable, so that `leukoscope` runs this
# very source.
$(VENV)/.installed: requirements.txt pyproject.toml | $(RUN)/python
	$(INSTALL) -e ".[all]"
	@touch $@

$(VENV)/.installed-test: requirements.txt pyproject.toml | $(RUN)/python
	$(INSTALL) -e ".[test]"
	@touch $@ $(VENV)/.installed

# A half-made environment is removed, or the next call would take it for a whole one.
$(RUN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "error: $(PYTHON) is '$$($(PYTHON) --version 2>&1)'; Leukoscope needs Python 3.11 or newer:" \
			"install one and name it, e.g. make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@rm -rf $(VENV)
	$(MAKE_VENV) $(VENV) || { rm -rf $(VENV); exit 1; }
