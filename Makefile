# make demo: the main job on this machine.  make test: the tests.  Both set everything up first.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo test test-process interop redteam test-kernel test-all fuzz mutants setup peers lint types contracts check bench dist lock clean

demo: $(VENV)/ready
	$(BIN)/privsep-ike demo

# as many at once as there are processors; the tests of one file stay together
PARALLEL = -n auto --dist loadfile

# what starts no whole daemon: minutes
test: $(VENV)/ready
	$(BIN)/pytest $(PARALLEL) -m "not (process or redteam or interop or kernel)"

# the tiers (markers, by directory) that do
test-process: $(VENV)/ready
	$(BIN)/pytest $(PARALLEL) tests/process

# against other IKE daemons
interop: $(VENV)/ready
	.ci/system peers
	$(BIN)/pytest $(PARALLEL) tests/interop

# attacks from inside captured processes, with a table of what stopped each; one at a time: some measure time
redteam: $(VENV)/ready
	$(BIN)/pytest tests/redteam

test-all: test test-process interop redteam test-kernel

setup: $(VENV)/ready

# what builds is locked too, and nothing is fetched besides: python-prctl comes as source
HASHED = $(BIN)/pip install --quiet --require-hashes
$(VENV)/ready: requirements-build.lock requirements-dev.lock pyproject.toml .ci/packages
	.ci/system base
	$(PYTHON) -m venv $(VENV)
	$(HASHED) -r requirements-build.lock
	$(HASHED) --use-pep517 --no-build-isolation -r requirements-dev.lock
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

# sdist and wheel of HEAD in dist/, the same octets each time
dist: $(VENV)/ready
	$(BIN)/python .ci/dist

# other IKE daemons, for the interoperability tests and the benchmark
peers: $(VENV)/ready
	.ci/system peers

# the daemon on a kernel that has ESP: Debian's, in an emulated machine; a table tells what passed. What would begin after
# KERNEL_SECONDS is left out and named: a machine several times slower ends in time all the same
KERNEL ?= tests/kernel tests/monitor/xfrm/test_pairs.py
KERNEL_SECONDS ?= 1200
# AGAIN=1: what failed runs once more in the same machine
ONCE_MORE = $(if $(AGAIN),|| $(IN_KERNEL) --last-failed $(KERNEL))
IN_KERNEL = $(BIN)/pytest -v --color=no -o cache_dir=/tmp/kernel-tests --tb=short --durations=10
test-kernel: $(VENV)/ready
	.ci/system kernel
	.ci/system peers
	$(BIN)/python -m compileall -q privsep monitor worker keyd tests
	tests/kernel/boot env KERNEL_SECONDS=$(KERNEL_SECONDS) sh -c '$(IN_KERNEL) $(KERNEL) $(ONCE_MORE)'

# requests of no honest worker to both dispatchers, for hours: make fuzz SECONDS=3600
SECONDS ?= 60
fuzz: $(VENV)/ready
	$(BIN)/python tests/redteam/fuzz.py --seconds $(SECONDS)

# one check removed at a time: does a test notice? Hours
mutants: $(VENV)/ready
	$(BIN)/python tests/redteam/mutate.py $(FILES)

lint: $(VENV)/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/ready
	$(BIN)/mypy

contracts: $(VENV)/ready
	$(BIN)/lint-imports

check: lint types contracts

# handshakes, then throughput; the kernel's ESP in the virtual machine, where this machine's has none
bench: $(VENV)/ready
	.ci/system peers
	.ci/system kernel || true
	$(BIN)/python tests/bench/bench.py
	$(BIN)/python tests/bench/throughput.py

# the lock files, from pyproject.toml's ranges
COMPILE = $(BIN)/uv pip compile --quiet --universal --generate-hashes --python-version 3.11
lock: $(VENV)/ready
	$(BIN)/pip install --quiet uv
	$(COMPILE) pyproject.toml -o requirements.lock
	$(COMPILE) --extra dev pyproject.toml -o requirements-dev.lock
	$(BIN)/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["build-system"]["requires"])' \
	    | $(COMPILE) --custom-compile-command "make lock" - -o requirements-build.lock

clean:
	rm -rf $(VENV) build dist *.egg-info
