"""Alternatives are timed in turn; the best pass counts."""

from __future__ import annotations

import pytest

from common_models import timing


def test_the_best_of_several_passes_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(timing, "perf_counter", lambda: now[0])
    monkeypatch.setattr(timing, "thread_time", lambda: now[0])
    ran: list[str] = []
    costs = {"a": iter((5.0, 2.0, 3.0)), "b": iter((1.0, 4.0, 0.5))}

    def run(item: str) -> None:
        ran.append(item)
        now[0] += next(costs[item])

    def before(item: str) -> None:
        now[0] += 100.0  # is not counted

    assert timing.best_times(["a", "b"], run, before) == [2.0, 0.5]
    assert ran == ["a", "b"] * 3


def test_no_pass_begins_after_the_time_is_up(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(timing, "perf_counter", lambda: now[0])
    monkeypatch.setattr(timing, "thread_time", lambda: now[0])
    ran: list[int] = []

    def run(item: int) -> None:
        ran.append(item)
        now[0] += 1.0

    timing.best_times([1], run, passes=9, within=1.5)
    assert len(ran) == 2
    assert timing.best_times([], run) == []
