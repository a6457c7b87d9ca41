# Two commands on a fresh machine: `make serve` and `make test`. Everything is installed into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
COTERIE := $(BIN)/coterie
PORT ?= 8000
# Python changes need no install: it is editable. These do.
NATIVE := pyproject.toml CMakeLists.txt $(wildcard csrc/*.* csrc/kernels/*.* csrc/clock/*.*)

.PHONY: serve demo check test test-long sanitize bench setup setup-dev clean

serve: setup
	$(COTERIE) serve demo --port $(PORT)

demo: setup
	$(COTERIE) run demo "What is 47 plus 85?" "What day of the week was 4 July 1976?" "Write 149 in Roman numerals"

setup: $(VENV)/.base
setup-dev: $(VENV)/.dev

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.base: $(BIN)/python $(NATIVE)
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/.dev: $(BIN)/python $(NATIVE)
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $@ $(VENV)/.base

check: setup-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: setup-dev
	$(BIN)/python -m pytest -m "not long"

test-long: setup-dev
	$(BIN)/python -m pytest

# The native tests under ThreadSanitizer, then under AddressSanitizer and UBSan.
sanitize:
	cmake -S . -B build/tsan -DCOTERIE_PYTHON=OFF -DCOTERIE_TESTS=ON -DCOTERIE_SANITIZE=thread
	cmake --build build/tsan --target native_tests --parallel
	build/tsan/native_tests
	cmake -S . -B build/asan -DCOTERIE_PYTHON=OFF -DCOTERIE_TESTS=ON -DCOTERIE_SANITIZE=address,undefined
	cmake --build build/asan --target native_tests --parallel
	build/asan/native_tests

bench: setup
	$(COTERIE) bench

clean:
	rm -rf build $(VENV)
