# The README's commands. Each is a thin line over pip, pytest and ruff.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-fast test-all coverage mutation lint wheels release-check clean

demo: .venv/installed
	$(BIN)/rlhf run --method grpo --reward medical_format

test: .venv/installed
	$(BIN)/pytest -n 2 --dist worksteal -m "not thorough"

test-fast: .venv/installed
	$(BIN)/pytest -n 2 --dist worksteal -m "not slow"

# With every variant of the long tests: 20 minutes
test-all: .venv/installed
	$(BIN)/pytest -n 2 --dist worksteal

# The whole suite, and the lines and branches of rlhf_core that it reaches; fails below 95 %
coverage: .venv/installed
	$(BIN)/pytest -n 2 --dist worksteal --cov --cov-report=term --cov-fail-under=95

# Small faults in one module after another, each of which must make a test fail; see CONTRIBUTING.md
mutation: .venv/installed
	$(BIN)/pip install -q mutmut==3.8.1
	$(BIN)/python -m benchmarks.mutation $(ONLY)

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

wheels: .venv/installed
	for project in . plugins/* reward_functions/*; do $(BIN)/pip wheel -q --no-deps -w dist $$project || exit 1; done

# A third faster than pip alone, which compiles on one core and installs hatchling for each of our packages
.venv/installed: requirements.txt $(wildcard pyproject.toml plugins/*/pyproject.toml reward_functions/*/pyproject.toml)
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q hatchling editables
	$(BIN)/pip install -q -r requirements.txt --no-compile --no-build-isolation
	-$(BIN)/python -m compileall -qq -j 0 -x '/tests?/|torch/testing/|/_vendor/' .venv/lib rlhf_core plugins reward_functions
	touch $@

# Before a release: the wheels, and every distribution that they need with its licence, in dist/sbom.json
release-check: wheels
	$(BIN)/python scripts/sbom.py dist/sbom.json

clean:
	rm -rf .venv dist
