# The two commands of the README are `make quickstart` and `make test`; both set .venv up by themselves.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Nothing here needs the network after installation.
export HF_HUB_OFFLINE := 1
export HF_HUB_DISABLE_TELEMETRY := 1
export MLFLOW_DISABLE_TELEMETRY := true
export DO_NOT_TRACK := 1

.PHONY: quickstart test coverage lint mutants upgrade-check setup nano clean

quickstart: setup
	$(BIN)/gemma-ops run quickstart
	$(BIN)/gemma-ops promote support-nano --to champion --reason "first version that passed the quickstart's gates"
	$(BIN)/gemma-ops show quickstart
	@echo; $(BIN)/gemma-ops serve support-nano@champion --set serve.port=0 \
	  --ask "Route this ticket as JSON: the travel adapter crashes every morning. Thank you, Sam Storsorberg"

# One process a core: the matrices of the tests are too small to share among threads. Byte code is kept, whatever the
# environment says: else each of the tests' child processes, and each worker that collects, compiles everything again.
# One room alone: make test ROOM=data
test: setup
	env -u PYTHONDONTWRITEBYTECODE $(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder $(addprefix tests/,$(ROOM))

# The suite with coverage counted in its own processes, not in those it starts, against a floor (pyproject.toml).
coverage: setup
	env -u PYTHONDONTWRITEBYTECODE $(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder --cov=gemma_ops --cov-report=term

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Takes every trap's fix out, one by one, and sees its tests fail (about half an hour on two cores); only those whose code,
# tests or mutant changed since the record: make mutants ONLY=--touched
mutants: setup
	$(BIN)/python -m tests.mutants $(ONLY)

# Which pins of constraints.txt have newer releases, whether our windows let them in, and which of the stack's own failures
# that the traps describe are mended in what is installed.
upgrade-check: setup
	$(BIN)/python -m tests.upgrade

# Trains the shipped CPU-size Gemma 4 again from its seed (about fifteen minutes on two cores).
nano: setup
	$(BIN)/python -m gemma_ops.nano

setup: $(VENV)/.ready

# torch goes first and by its exact version: asked for as a range, pip would take a CUDA build of several GB.
$(VENV)/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "error: $(PYTHON) is Python %d.%d, and gemma-ops needs 3.11 or newer\ntry: make PYTHON=python3.11 $(MAKECMDGOALS)" % sys.version_info[:2])'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $$(grep '^torch==' constraints.txt)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,gguf]'
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info
