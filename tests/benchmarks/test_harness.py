"""Nothing wrong is timed, competitors run in turn, and limits are shares of what was measured."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks import harness
from benchmarks.data import Unavailable
from benchmarks.harness import Competitor, Settings, Trial
from benchmarks.machine import Conditions

WHERE = Conditions("device", "cpu", "versions", "commit")
RIGHT = torch.arange(4.0)


def competitor(name: str, run: Callable[[], Any], tolerance: float = 0.0, threads: int = 1) -> Competitor:
    return Competitor(name, "fp32", threads, lambda: run, lambda out: [out], tolerance)


def trial(*competitors: Competitor, **more: Any) -> Trial:
    return Trial("case", "cloud", "shape", lambda: [RIGHT], competitors, **more)


def test_a_wrong_result_is_not_timed() -> None:
    calls = []
    wrong = competitor("wrong", lambda: calls.append(1) or RIGHT + 1)
    good, bad = harness.run(trial(competitor("good", RIGHT.clone), wrong), Settings(rounds=3), WHERE)
    assert (good.status, good.error, good.rounds) == ("ok", 0, 3)
    assert bad.status == "wrong"
    assert bad.wall_ms is None and bad.gflop_per_s is None
    assert len(calls) == 1


def test_a_result_that_goes_wrong_later_loses_its_time() -> None:
    results = iter([RIGHT] * 3)
    (row,) = harness.run(trial(competitor("flaky", lambda: next(results, RIGHT + 1))), Settings(rounds=3), WHERE)
    assert row.status == "wrong"
    assert row.wall_ms is None


def test_faults_and_missing_libraries_become_rows() -> None:
    def missing() -> Callable[[], Tensor]:
        raise Unavailable("no such library")

    def fails() -> Tensor:
        raise RuntimeError("out of\nluck")

    absent = Competitor("absent", "fp32", 1, missing, lambda out: [out])
    rows = harness.run(
        trial(absent, competitor("broken", fails), competitor("good", RIGHT.clone)), Settings(rounds=1), WHERE
    )
    assert [row.status for row in rows] == ["skipped: no such library", "failed: RuntimeError: out of luck", "ok"]


def test_competitors_run_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "_MIN_SAMPLE_SECONDS", 0)
    monkeypatch.setattr(harness.memory, "peak_of", lambda call, device: None)
    seen: list[str] = []
    a, b = (competitor(name, lambda n=name: seen.append(n) or RIGHT) for name in "ab")
    harness.run(trial(a, b), Settings(rounds=3), WHERE)
    assert seen == ["a", "a", "b", "b"] + ["a", "b"] * 3  # check and estimate each, then rounds


def test_each_competitor_has_its_threads() -> None:
    before = torch.get_num_threads()
    seen: list[int] = []
    more = competitor("more", lambda: seen.append(torch.get_num_threads()) or RIGHT, threads=before + 1)
    harness.run(trial(more), Settings(rounds=1), WHERE)
    assert set(seen) == {before + 1}
    assert torch.get_num_threads() == before


def test_limits_are_measured_beside_the_competitors() -> None:
    products = [(64, 16, 16)] * 3
    measured = trial(competitor("good", RIGHT.clone), products=products, values=4096, index_bytes=64)
    good, gemm, copy = harness.run(measured, Settings(rounds=2), WHERE)
    assert (gemm.competitor, copy.competitor) == (harness.GEMM, harness.COPY)
    assert good.wall_ms and gemm.wall_ms and copy.wall_ms
    assert good.gemm_share == pytest.approx(gemm.wall_ms / good.wall_ms)
    assert good.copy_share == pytest.approx(copy.wall_ms / good.wall_ms)
    assert good.gflop == pytest.approx(3 * 2 * 64 * 16 * 16 / 1e9)
    assert good.gb_per_s == pytest.approx((4096 * 4 + 64) / good.wall_ms * 1e3 / 1e9)
    assert good.gflop_per_s == pytest.approx(good.gflop / good.wall_ms * 1e3)


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        (RIGHT, 0.0),
        (RIGHT + 0.3, 0.1),
        (RIGHT[:2], math.inf),
        (RIGHT.clone().fill_(float("nan")), math.inf),
        (RIGHT.clone().fill_(float("inf")), math.inf),
    ],
    ids=["equal", "tenth", "shape", "nan", "inf"],
)
def test_disagreement(part: Tensor, expected: float) -> None:
    assert harness.disagreement([part], [RIGHT]) == pytest.approx(expected)


def test_disagreement_sees_each_part() -> None:
    large = torch.full((3,), 1e6)
    assert harness.disagreement([large, RIGHT * 2], [large, RIGHT]) == pytest.approx(1.0)
    assert harness.disagreement([RIGHT], [RIGHT, RIGHT]) == math.inf
    assert harness.disagreement([RIGHT[:0]], [RIGHT[:0]]) == 0


def test_peak_memory_is_that_of_the_call() -> None:
    held: list[Tensor] = [torch.ones(8 << 20)]  # 32 MiB before the call do not count
    peak = harness.memory.peak_of(lambda: torch.ones(16 << 20).sum(), "cpu")
    if peak is None:
        pytest.skip("this system does not tell the peak")
    assert 60 < peak < 90
    assert held


def test_further_columns_come_from_the_result() -> None:
    one = Competitor("one", "fp32", 1, lambda: RIGHT.clone, lambda out: [out], 0.0, lambda out: {"tokens": len(out)})
    (row,) = harness.run(trial(one), Settings(rounds=1), WHERE)
    assert (row.status, row.tokens) == ("ok", 4)


def test_a_call_whose_result_is_the_finding_runs_once() -> None:
    calls = []
    one = competitor("one", lambda: calls.append(1) or RIGHT)
    wrong = competitor("wrong", lambda: RIGHT + 1)
    row, bad = harness.run(trial(one, wrong, once=True), Settings(rounds=5), WHERE)
    assert len(calls) == row.rounds == 1
    assert row.status == "ok" and row.wall_ms is not None and row.cpu_ms is not None
    assert bad.status == "wrong" and bad.wall_ms is None


def test_a_dtype_that_torch_does_not_multiply_has_no_limit() -> None:
    small = Competitor("small", "int8", 1, lambda: RIGHT.clone, lambda out: [out])
    rows = harness.run(trial(small, products=[(2, 2, 2)], values=8), Settings(rounds=1), WHERE)
    assert [row.competitor for row in rows] == ["small"]
    assert rows[0].status == "ok"
