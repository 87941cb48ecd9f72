# make demo   the main job on real input: one table, one HTML page with pictures
# make test   values (GPU kernels in Triton's interpreter), then ahead-of-time compilation
# Everything is installed into .venv from pyproject.toml at the versions of constraints.txt.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEMO_ARGS ?=
BENCH_ARGS ?=
TRAIN_ARGS ?=
PYTEST_ARGS ?=

# torch's OpenMP threads must sleep between its loops: spinning, they hold the cores that our own threads need.
export OMP_WAIT_POLICY ?= passive

.PHONY: demo test test-values test-aot lint bench gpu-check train train-video train-nlp clean

demo: $(STAMP)
	$(BIN)/trisparse demo $(DEMO_ARGS)

test: test-values test-aot

# Two processes: Triton reads TRITON_INTERPRET when a kernel is decorated, so one process cannot do both.
test-values: $(STAMP)
	TRITON_INTERPRET=1 $(BIN)/python -m pytest tests -m "not aot" $(PYTEST_ARGS)

test-aot: $(STAMP)
	$(BIN)/python -m pytest tests -m aot $(PYTEST_ARGS)

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
