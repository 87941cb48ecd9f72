"""Ctrl-C and requests to end come at once, but not in the middle of what must be whole."""

from __future__ import annotations

import signal
import threading

import pytest

from trisparse.output.stopping import stopped, stopping


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_at_once_or_later(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    done = []
    with stopping() as stop:
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
            done.append("unreachable")
    assert done == [] and signal.getsignal(number) is before
    with stopping() as stop:
        with pytest.raises(KeyboardInterrupt):
            with stop.later():
                signal.raise_signal(number)
                done.append("whole")
            done.append("unreachable")
        with stop.later(again=False):
            done.append("again")
    assert done == ["whole", "again"]


def test_nothing_asked() -> None:
    with stopping() as stop:
        with stop.later():
            pass


def test_other_threads_hear_no_signals() -> None:
    found: list[BaseException] = []

    def run() -> None:
        try:
            with stopping() as stop, stop.later():
                pass
        except BaseException as error:
            found.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert found == []


def test_the_first_signal_may_only_ask() -> None:
    with stopping(at_once=False) as stop:
        assert not stop.asked
        signal.raise_signal(signal.SIGTERM)
        assert stop.asked
        with pytest.raises(KeyboardInterrupt):
            with stop.later():
                signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_what_a_stopped_run_says() -> None:
    assert stopped(None, False) == "Stopped before anything was done."
    assert stopped("3 of 9 clouds are done", False) == (
        "Stopped. Run the same command again to continue (3 of 9 clouds are done)."
    )
    assert "Run the same command without --overwrite to continue" in stopped("3 rows are in x", True)
