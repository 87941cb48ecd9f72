"""A word to the user while kernels are compiled."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

# Loading kernels that were compiled before takes less.
PATIENCE_SECONDS = 2.0


@contextmanager
def compiling(what: str = "CPU kernels", patience: float = PATIENCE_SECONDS) -> Iterator[None]:
    """Say on stderr that kernels are being compiled, if the block takes longer than `patience` seconds."""
    start = time.perf_counter()
    said = threading.Event()

    def say() -> None:
        said.set()
        print(f"compiling {what}, once per machine: ...", file=sys.stderr, flush=True)

    timer = threading.Timer(patience, say)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
    if said.is_set():
        print(f"compiling {what}: done in {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
