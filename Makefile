# Two commands on a fresh machine: `make serve` and `make test`. Everything is installed into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
COTERIE := $(BIN)/coterie
PORT ?= 8000
# Processes of tests: some wait for a socket or a clock while others compute.
WORKERS ?= 3
# Python changes need no install: it is editable. These do.
NATIVE := pyproject.toml CMakeLists.txt src/coterie/core/built.py $(wildcard csrc/*.* csrc/kernels/*.* csrc/clock/*.*)

.PHONY: serve demo check test test-long sanitize sanitize-tsan sanitize-asan bench simulate gpu setup setup-dev clean

serve: setup
	$(COTERIE) serve demo --port $(PORT)

demo: setup
	$(COTERIE) run demo "What is 47 plus 85?" "What day of the week was 4 July 1976?" "Write 149 in Roman numerals"

setup: $(VENV)/.base
setup-dev: $(VENV)/.dev

# By pip, which comes last: where Debian's python3-venv is missing, a python is left there.
$(BIN)/pip:
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and '$(PYTHON) is Python ' + sys.version.split()[0] \
		+ ', and Coterie needs 3.11 or later: make serve PYTHON=python3.12, say')"
	$(PYTHON) -m venv $(VENV)

$(VENV)/.base: $(BIN)/pip $(NATIVE)
	@echo "compiles the kernels, once: this takes minutes"
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/.dev: $(BIN)/pip $(NATIVE)
	@echo "compiles the kernels, once: this takes minutes"
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $@ $(VENV)/.base

check: setup-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Who has run out of tests takes half of what is left of another one.
test: setup-dev
	$(BIN)/python -m pytest -m "not long" -n $(WORKERS) --dist worksteal

test-long: setup-dev
	$(BIN)/python -m pytest

# The native tests, then what runs on threads from Python, under ThreadSanitizer, and under AddressSanitizer and UBSan. GCC's.
# Without the CUDA device: the OpenMP threads of torch are not instrumented.
SANITIZED := $(addprefix tests/device/test_, kernels_team.py cpu_device.py cpu_fetch.py fetch.py contract.py)
LIBRARIES = $$(c++ -print-file-name=lib$*.so) $$(c++ -print-file-name=libstdc++.so)
SANITIZED_PYTHON = env LD_PRELOAD="$(LIBRARIES)" ASAN_OPTIONS=detect_leaks=0 COTERIE_SANITIZED=build/$* $(BIN)/python

sanitize: sanitize-tsan sanitize-asan
sanitize-tsan: CHECKS := thread
sanitize-asan: CHECKS := address,undefined
sanitize-tsan sanitize-asan: sanitize-%: setup-dev
	cmake -S . -B build/$* -DCOTERIE_TESTS=ON -DCOTERIE_SANITIZE=$(CHECKS) -DPython_EXECUTABLE=$(abspath $(BIN)/python)
	cmake --build build/$* --parallel
	build/$*/native_tests
	$(SANITIZED_PYTHON) -m pytest -p tests.sanitized -m "not long" -k "not cuda and not gpu" $(SANITIZED)

bench: setup
	$(COTERIE) bench

# A long simulation, by a compiled copy of the engine: make simulate WORDS="samba-coe-150 --machine sn40l-node --rate 20"
simulate: setup-dev
	$(BIN)/python -m benchmarks.compiled simulate $(WORDS)

# A first session on a GPU: correctness, then every bench, in 13 minutes.
gpu: setup-dev
	$(BIN)/python -m benchmarks.first_gpu --out gpu-results

clean:
	rm -rf build $(VENV)
