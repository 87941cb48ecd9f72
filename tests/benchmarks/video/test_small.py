"""The benchmark of the smallest networks: every competitor gives the answers of the network as loaded."""

from __future__ import annotations

from types import SimpleNamespace

from benchmarks.harness import Settings, run
from benchmarks.machine import conditions
from benchmarks.video import small


def test_every_competitor_agrees() -> None:
    settings = Settings(rounds=1, threads=(1,))
    for trial in small.trials(SimpleNamespace(name="made up", summary=""), settings):
        rows = run(trial, settings, conditions("cpu"))
        assert {row.competitor for row in rows if row.status == "ok"} >= {small.LOADED, small.OURS}, trial.shape
        assert [row.status for row in rows if row.status == "wrong"] == []
