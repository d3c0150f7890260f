# make demo   set up, then train and test a small protected model and show what came out
# make test   set up, then all tests (STACK=openmmlab for the other mmseg stack)
# make flaky  the tests in N random orders (10), to see that their outcome hangs on nothing else
# make gpu-check  what protection costs on a GPU, and whether it is right there, in ten minutes; on a CPU, that it runs
# make fuzz   read changed inputs of every format, a minute's worth; ARGS='--inputs 1000000', or --coverage with atheris
# make kill   kill every command that writes at 1,000 random moments, and look at what is left; ARGS='--kills 100'
# make lint   style and types
# make docs   the pages as a site, in build/docs; a warning is an error
# make bench  speed, memory, sealing and locking, on this machine
# make coverage  the tests of the core, and which of its branches they take
# make dist   wheel and sdist, built twice and compared, in dist/
# make wheel-check  the wheel alone, in a clean environment of each of PYTHONS that is there: the demo, and the core's tests
PYTHON ?= python3
# onedl: the maintained fork, nothing to compile. openmmlab: mmcv compiles its ops, 20 minutes or more, unless pip finds
# a built wheel in WHEELS.
STACK ?= onedl
VENV ?= .venv-$(STACK)
WHEELS ?= $(wildcard ../shared/wheels)
OUT ?= demo_out
OUT_GPU ?= gpu_out
N ?= 10

BIN = $(VENV)/bin
PIP = $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt
# mmcv builds against the torch that is installed, so torch goes first and the build sees it
FIND = $(if $(WHEELS),--find-links $(WHEELS))
ISOLATION = $(if $(filter openmmlab,$(STACK)),--no-build-isolation)

.PHONY: setup demo test flaky gpu-check fuzz kill lint docs bench coverage dist wheel-check clean

setup: $(VENV)/installed

$(VENV)/installed: setup.py constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) setuptools wheel
	$(PIP) torch==2.13.0
	$(PIP) $(FIND) $(ISOLATION) -e '.[$(STACK),dev]'
	touch $@

demo: setup
	$(BIN)/keyseg demo --out $(OUT) --overwrite

# one thread a process: two processes with all threads each only get in each other's way; files in their own order, since
# those of few tests, which would come last, are the longest
TEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder
test: setup
	$(TEST) $(ARGS)

# a line for each order, and what failed in it; the tests set their seeds themselves
flaky: setup
	@failed=0; for seed in $$(seq $(N)); do \
		said=$$($(TEST) -p randomly --randomly-seed=$$seed --randomly-dont-reset-seed $(ARGS) 2>&1) || failed=1; \
		echo "order $$seed: $$(echo "$$said" | tail -n 1)"; \
		echo "$$said" | grep -E '^(FAILED|ERROR) ' || true; \
	done; exit $$failed

gpu-check: setup
	$(BIN)/python benchmarks/gpu.py --out $(OUT_GPU) $(ARGS)

fuzz: setup
	$(BIN)/python benchmarks/fuzz.py $(ARGS)

kill: setup
	$(BIN)/python -m tests.support.kills --out kills_out $(ARGS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m mypy

docs: setup
	$(BIN)/python -m sphinx -q -W --keep-going -b html docs build/docs

bench: setup
	for name in overhead sealing locktime images; do $(BIN)/python benchmarks/$$name.py || exit 1; done

# what is deselected bounds its own time, and cannot keep that while its branches are counted
CORE = keys maps stamp bind seal locking runtime checkpoint
coverage: setup
	$(TEST) --cov-branch $(foreach room,$(CORE),--cov=keyseg_mm.$(room)) --cov-report=term:skip-covered \
		$(wildcard $(foreach room,$(CORE),tests/$(room) tests/test_$(room).py)) tests/test_envelope.py tests/cli tests/tracing \
		$(foreach name,images patches blockwise,tests/baselines/test_$(name).py) tests/mm/test_strangers.py \
		tests/deploy/test_loading.py --deselect \
		'tests/checkpoint/test_hostile.py::test_a_clear_error_in_little_time_and_memory[too many tensors.pth]' $(ARGS)

dist: setup
	PYTHON=$(BIN)/python .ci/dist

PYTHONS ?= python3.10 python3.11 python3.12 python3.13
wheel-check:
	STACK=$(STACK) .ci/wheel $(PYTHONS)

clean:
	rm -rf .venv-onedl .venv-openmmlab build dist *.egg-info
