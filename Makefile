PYTHON ?= python3
VENV := .venv
INSTALLED := $(VENV)/.installed
SOURCES := pyproject.toml constraints.txt CMakeLists.txt \
	$(shell find fastsurf configs -type f -not -name '*.py[co]' -not -name '*.so' -not -name '.*')

.PHONY: demo test check clean

demo: $(INSTALLED)          # photographs of a known solid are made, reconstructed, scored and previewed in demo/
	$(VENV)/bin/fastsurf demo --force

test check: $(INSTALLED)    # lint, types and the whole test suite
	PATH="$(CURDIR)/$(VENV)/bin:$$PATH" tools/check.sh

clean:                      # the environment and what the tools leave behind; not your meshes and runs
	rm -rf $(VENV) build .pytest_cache .mypy_cache .ruff_cache

$(INSTALLED): $(SOURCES)
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet -c constraints.txt '.[dev]'
	touch $@
