# Two commands on a fresh machine:
#   make run     set up, then run the main job: the default scenario against the embedded MTA
#   make test    set up, then lint, type-check, check the import rules and run the tests
PYTHON ?= python3
VENV   ?= .venv
JOBS   ?= 2
STAMP  := $(VENV)/.installed

.PHONY: run test bytecode lint ruff mypy imports packages docs clean

run: $(STAMP) bytecode
	$(VENV)/bin/seatbelt run $(ARGS)

test: $(STAMP) packages bytecode lint
	$(VENV)/bin/pytest -n $(JOBS) --dist worksteal $(ARGS)

# Where Python may not write it (PYTHONDONTWRITEBYTECODE, as in many containers), each of the processes that a run starts
# would compile every module anew. What is up to date is left alone. The tables of the grammar of smtpd.conf go with it.
bytecode: $(STAMP)
	@$(VENV)/bin/python -m compileall -q harness mta_under_test reports scenarios
	@$(VENV)/bin/python -c "from mta_under_test.config import parser; parser.keep()"

# Side by side with `make -j2`.
lint: ruff mypy imports

ruff: $(STAMP)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

mypy: $(STAMP)
	$(VENV)/bin/mypy

imports: $(STAMP)
	$(VENV)/bin/lint-imports --no-cache

# The parts of the documents that the code writes.
docs: $(STAMP)
	$(VENV)/bin/typer harness.cli utils docs --name seatbelt --output docs/cli.md
	$(VENV)/bin/python -c 'from reports.record import schema; print(schema().decode())' > docs/record.schema.json

# Debian packages that tests use; where they cannot be had, those tests skip and say so.
packages:
	@.ci/packages

$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) runs build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
