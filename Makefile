# make demo      the main job on real input: one table, one HTML page with pictures
# make test      values (GPU kernels in Triton's interpreter) and, at the same time, ahead-of-time compilation
# make test-all  the same with the long sweeps
# make fuzz      the properties on many more made-up inputs
# Everything is installed into .venv from pyproject.toml at the versions of constraints.txt.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEMO_ARGS ?=
BENCH_ARGS ?=
TRAIN_ARGS ?=
PYTEST_ARGS ?=
WORKERS ?= 2

# torch's OpenMP threads must sleep between its loops: spinning, they hold the cores that our own threads need.
export OMP_WAIT_POLICY ?= passive

.PHONY: demo test test-all test-values test-aot fuzz coverage lint bench gpu-check train train-video train-nlp clean

demo: $(STAMP)
	$(BIN)/trisparse demo $(DEMO_ARGS)

# Processes of their own: Triton reads TRITON_INTERPRET when a kernel is decorated, so one process cannot do both.
PYTEST := $(BIN)/python -m pytest tests
VALUES = TRITON_INTERPRET=1 $(PYTEST) -n $(WORKERS) --dist worksteal -q $(PYTEST_ARGS) -m
AOT = $(PYTEST) -q $(PYTEST_ARGS) -m aot

# Compilation writes to a file while the values are tested, and is shown after them; either failing fails the target.
define BOTH
$(AOT) > $(VENV)/aot.log 2>&1 & aot=$$!; trap "kill $$aot 2> /dev/null" EXIT; \
trap "kill $$aot 2> /dev/null; exit 130" INT TERM; \
$(VALUES) $(1); values=$$?; \
wait $$aot; compiled=$$?; cat $(VENV)/aot.log; \
test $$values -eq 0 && test $$compiled -eq 0
endef

test: $(STAMP)
	$(call BOTH,"not aot and not slow")

test-all: $(STAMP)
	$(call BOTH,"not aot")

test-values: $(STAMP)
	$(VALUES) "not aot and not slow"

test-aot: $(STAMP)
	$(AOT)

fuzz: $(STAMP)
	TRISPARSE_FUZZ=40 TRITON_INTERPRET=1 $(PYTEST) -n $(WORKERS) -q -k properties $(PYTEST_ARGS)

coverage: $(STAMP)
	$(VALUES) "not aot" --cov=common_kernels --cov=common_models --cov=pointcloud --cov=video --cov=nlp --cov=trisparse

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(STAMP)
	$(BIN)/python -m benchmarks pointcloud $(BENCH_ARGS)
	$(BIN)/python -m benchmarks video $(BENCH_ARGS)
	$(BIN)/python -m benchmarks nlp $(BENCH_ARGS)

# The demonstration networks again, from nothing, with their held-out measurements: simulated sweeps, moving digits,
# Python's documentation.
train: $(STAMP)
	$(BIN)/python -m pointcloud.training -o pointcloud/weights/minkunet14-streets.safetensors $(TRAIN_ARGS)

train-video: $(STAMP)
	$(BIN)/python -m video.training -o video/weights/tsm-motion-digits.safetensors $(TRAIN_ARGS)

train-nlp: $(STAMP)
	$(BIN)/python -m nlp.training -o nlp/weights/llama-python-docs.safetensors $(TRAIN_ARGS)

# No install and no network: the system Python brings torch, triton, numba, numpy and pytest.
gpu-check:
	PYTHONPATH=. $(PYTHON) -m benchmarks.gpu_check

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[pointcloud,video,nlp,onnx,train,clips,texts,bench,dev]' --constraint constraints.txt
	touch $@
