"""The demonstration's kernels, compiled by processes of their own while its first part already works.

Numba compiles in one thread at a time, but keeps what it compiled on disk: what another process has compiled by the
time it is needed is loaded from there. A process that fails costs nothing else: the kernels are then compiled on use.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import IO

from trisparse.progress import compiled_elsewhere

# Processes beside the main one; more would only import torch once more.
MOST_WORKERS = 2
# A wait that never ended would be worse than a kernel compiled twice.
PATIENCE_SECONDS = 240.0
COMMAND = "import sys; from trisparse.demo.kernels import main; sys.exit(not main(sys.argv[1:]))"


class Compilation:
    """Groups of kernels that other processes are compiling."""

    def __init__(self, groups: Sequence[str]) -> None:
        self._done = {group: threading.Event() for group in groups}
        self._workers: list[subprocess.Popen[str]] = []
        count = min(MOST_WORKERS, _n_cores() - 1, len(groups))
        for i in range(count):
            self._start(list(groups[i::count]))
        if not self._workers:
            for event in self._done.values():
                event.set()

    def wait(self, group: str) -> None:
        """Return when the group's kernels are on disk, or when it is clear that nobody else compiles them."""
        with compiled_elsewhere("the kernels of this part"):
            self._done[group].wait(PATIENCE_SECONDS)

    def stop(self) -> None:
        """End the processes."""
        for worker in self._workers:
            worker.kill()
            worker.wait()

    def _start(self, groups: list[str]) -> None:
        worker = subprocess.Popen(
            [sys.executable, "-c", COMMAND, *groups], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        assert worker.stdout is not None
        self._workers.append(worker)
        threading.Thread(target=self._listen, args=(worker.stdout, groups), daemon=True).start()

    def _listen(self, lines: IO[str], groups: list[str]) -> None:
        with lines:
            for line in lines:
                if line.strip() in groups:
                    self._done[line.strip()].set()
        for group in groups:
            self._done[group].set()


@contextmanager
def compiled_aside(groups: Sequence[str]) -> Iterator[Compilation]:
    """Processes that compile these groups of GROUPS in turn, ended with the block."""
    compilation = Compilation(groups)
    try:
        yield compilation
    finally:
        compilation.stop()


def _n_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _products() -> None:
    """What labelling a sweep needs last, while the main process is busy with what it needs first."""
    import torch

    from common_kernels.gather_gemm import gather_gemm
    from common_kernels.kernel_map import KernelMap

    found = KernelMap(torch.arange(64, dtype=torch.int32)[None], 64, torch.zeros(64, 4, dtype=torch.int32), (1, 1, 1))
    for dtype in (torch.float32, torch.bfloat16):
        gather_gemm(torch.ones(64, 16, dtype=dtype), found, torch.ones(1, 16, 16, dtype=dtype))


def _rays() -> None:
    from pointcloud.simulate import Sensor, simulate_sweep

    simulate_sweep(0, Sensor("small", (-8.0, 2.0), 8, 1.8, 60.0, 1.0, 0.02, 0.0, 200.0, 0.3))


def _video() -> None:
    from trisparse.demo.videos import warm_up

    warm_up()


def _texts() -> None:
    from trisparse.demo.language import warm_up

    warm_up()


GROUPS: dict[str, Callable[[], None]] = {"products": _products, "rays": _rays, "video": _video, "texts": _texts}


def main(groups: Sequence[str]) -> bool:
    """Compile the groups in turn and print the name of each that is done; whether all went well."""
    import torch

    torch.set_num_threads(1)
    well = True
    for group in groups:
        try:
            GROUPS[group]()
        except Exception:  # the groups after it are wanted all the same
            traceback.print_exc()
            well = False
        print(group, flush=True)
    return well
