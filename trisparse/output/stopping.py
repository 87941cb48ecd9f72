"""Ctrl-C and requests to end, without harm to what must be whole."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


class Stop:
    """Ctrl-C, or a request to end: at once, except in the middle of what must be whole.

    Args:
        at_once: raise KeyboardInterrupt when the first signal comes. Otherwise the first one only sets `asked`, and the
            second one raises.

    Attributes:
        asked: whether a signal came.
    """

    def __init__(self, at_once: bool = True) -> None:
        self.asked = False
        self._raises = at_once
        self._guards = 0
        self._pending = False

    def press(self, number: int, frame: FrameType | None) -> None:
        """What a signal calls."""
        raises, self.asked, self._raises = self._raises, True, True
        if raises and self._guards:
            self._pending = True
        elif raises:
            raise KeyboardInterrupt

    @contextmanager
    def later(self, again: bool = True) -> Iterator[None]:
        """The block is not interrupted; `again`: what was asked in the meantime comes after it."""
        self._guards += 1
        try:
            yield
        finally:
            self._guards -= 1
        if again and self._pending:
            raise KeyboardInterrupt


@contextmanager
def stopping(at_once: bool = True) -> Iterator[Stop]:
    """SIGINT and SIGTERM raise KeyboardInterrupt as `Stop` says."""
    stop = Stop(at_once)
    if threading.current_thread() is not threading.main_thread():  # no signal comes here
        yield stop
        return
    before: Any = {number: signal.signal(number, stop.press) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def stopped(done: str | None, overwrite: bool) -> str:
    """What to tell the user of a run that was stopped.

    Args:
        done: a clause on what is kept for the next run, as "3 of 9 clouds are done"; None where nothing is.
        overwrite: whether the run was to overwrite: the same command would begin anew.
    """
    if done is None:
        return "Stopped before anything was done."
    again = "the same command without --overwrite" if overwrite else "the same command again"
    return f"Stopped. Run {again} to continue ({done})."
