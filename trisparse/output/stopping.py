"""Ctrl-C and requests to end, without harm to what must be whole."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


class Stop:
    """Ctrl-C, or a request to end: at once, except in the middle of what must be whole."""

    def __init__(self) -> None:
        self._asked = False
        self._guards = 0

    def press(self, number: int, frame: FrameType | None) -> None:
        """What a signal calls."""
        self._asked = True
        if not self._guards:
            raise KeyboardInterrupt

    @contextmanager
    def later(self, again: bool = True) -> Iterator[None]:
        """The block is not interrupted; `again`: what was asked in the meantime comes after it."""
        self._guards += 1
        try:
            yield
        finally:
            self._guards -= 1
        if again and self._asked:
            raise KeyboardInterrupt


@contextmanager
def stopping() -> Iterator[Stop]:
    """SIGINT and SIGTERM raise KeyboardInterrupt where `later` lets them."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():  # no signal comes here
        yield stop
        return
    before: Any = {number: signal.signal(number, stop.press) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
