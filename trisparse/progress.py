"""A word to the user while kernels are compiled."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# A kernel or two are not worth a word.
PATIENCE_SECONDS = 2.0


class _Notice:
    """What is printed on stderr once compiling has taken `patience` seconds, in one go or in several."""

    def __init__(self, what: str, patience: float) -> None:
        self.what = what
        self.left = patience
        self.spent = 0.0
        self._said = False
        self._since: float | None = None
        self._timer: threading.Timer | None = None

    def start(self) -> None:
        """Compiling begins."""
        self._since = time.perf_counter()
        if not self._said:
            self._timer = threading.Timer(max(self.left - self.spent, 0), self._say)
            self._timer.daemon = True
            self._timer.start()

    def pause(self) -> None:
        """Compiling ends, perhaps to begin again."""
        if self._timer is not None:
            self._timer.cancel()
        if self._since is not None:
            self.spent += time.perf_counter() - self._since
            self._since = None

    def close(self) -> None:
        """The last word, where there was a first one."""
        self.pause()
        if self._said:
            print(f"compiling {self.what}: done in {self.spent:.0f} s", file=sys.stderr, flush=True)

    def _say(self) -> None:
        self._said = True
        print(f"compiling {self.what}, once per machine: ...", file=sys.stderr, flush=True)


@contextmanager
def compiling(what: str = "CPU kernels", patience: float = PATIENCE_SECONDS) -> Iterator[None]:
    """Say on stderr that Numba compiles kernels, if it does so for longer than `patience` seconds within the block.

    Kernels that are loaded from the disk, and work that takes long, are not compiled: nothing is said of them.
    """
    from numba.core import event

    notice = _Notice(what, patience)

    class Compilations(event.Listener):
        """Numba compiles one kernel at a time, and within it those that it calls."""

        depth = 0

        def on_start(self, event: Any) -> None:
            self.depth += 1
            if self.depth == 1:
                notice.start()

        def on_end(self, event: Any) -> None:
            self.depth -= 1
            if self.depth == 0:
                notice.pause()

    try:
        with event.install_listener("numba:compile", Compilations()):
            yield
    finally:
        notice.close()


@contextmanager
def compiled_elsewhere(what: str, patience: float = PATIENCE_SECONDS) -> Iterator[None]:
    """Say on stderr that kernels are being compiled, if the block, which waits for them, takes longer than that."""
    notice = _Notice(what, patience)
    notice.start()
    try:
        yield
    finally:
        notice.close()
