"""The motion benchmark: its error is the share of clips that a network misnames."""

from __future__ import annotations

import pytest

from benchmarks import harness
from benchmarks.machine import conditions
from benchmarks.video import motion


def test_shift_is_what_tells_the_motions_apart() -> None:
    pytest.importorskip("sklearn")
    work = motion.load()
    (trial,) = motion.trials(work, harness.Settings(threads=(1,)))
    rows = {
        row.competitor: row for row in harness.run(trial, harness.Settings(threads=(1,), rounds=1), conditions("cpu"))
    }
    assert {row.status for row in rows.values()} == {"ok"}
    without = rows.pop("TSN, the same without shift")
    assert without.error is not None
    assert without.error > 0.7
    assert len(rows) == 3
    for row in rows.values():
        assert row.error is not None
        assert row.error <= 0.05
