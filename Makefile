# make demo, make test: each does all the set-up on a fresh machine.
PYTHON ?= python3
BIN := .venv/bin
# On a machine without an NVIDIA GPU, a plain `pip install torch` on Linux downloads several GB of
# CUDA. The CPU build is taken instead: from the indexes pip is set up with, else from PyTorch's own.
TORCH := $(shell sed -n 's/^torch==//p' constraints.txt)
CPU_INDEX := https://download.pytorch.org/whl/cpu

.PHONY: demo test check types setup clean

setup: .venv/ready

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "iclora needs Python 3.11 or newer; try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info >= (3, 15))' \
		|| echo "note: torch and numpy of constraints.txt have wheels for Python 3.11 to 3.14, not for this one"
	$(PYTHON) -m venv .venv
	if [ "$$(uname -s)" = Linux ] && ! command -v nvidia-smi >/dev/null; then \
		$(BIN)/pip install -q "torch==$(TORCH)+cpu" \
		|| $(BIN)/pip install -q "torch==$(TORCH)+cpu" --index-url $(CPU_INDEX); \
	fi
	$(BIN)/pip install -q -c constraints.txt -e '.[dev]'
	touch $@

demo: setup
	rm -rf demo
	$(BIN)/iclora demo --out demo

# With bytecode, also where the machine's settings keep Python from writing it: dozens of processes
# would compile the same modules.
test: setup
	PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n 2 --dist worksteal

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	@$(MAKE) --no-print-directory types
	PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -rs -m machine

# The page's JavaScript is checked against its comments' types. Nothing that runs needs npm.
TYPES := typescript@7.0.2 preact@11.2.0 htm@3.1.1 @preact/signals@2.11.4
TSC := .venv/tsc/node_modules/.bin/tsc
types:
	@if [ -x $(TSC) ] || { command -v npm >/dev/null && npm install --silent --no-audit --no-fund \
			--ignore-scripts --prefix .venv/tsc $(TYPES) >/dev/null 2>&1; }; then \
		$(TSC) -p tests/serve/studio/tsconfig.json; \
	else echo "note: the page's types are not checked: npm is missing, or cannot reach its registry"; fi

clean:
	rm -rf .venv demo
