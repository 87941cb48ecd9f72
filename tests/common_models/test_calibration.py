"""When a calibration's promise holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from common_models.calibration import Calibration, check_confidence, share_with_error


@dataclass(frozen=True, kw_only=True)
class Found(Calibration):
    def accelerate(self) -> Any:
        return None


def test_holds_is_one_sided_with_the_confidence() -> None:
    # The normal distribution's quantile at 0.95 is 1.6449.
    found = Found(max_drop=0.05, estimate=0.01, error=0.02, confidence=0.95)
    assert found.at_most == pytest.approx(0.01 + 1.6449 * 0.02, abs=1e-6) and found.holds
    assert not Found(max_drop=0.04, estimate=0.01, error=0.02, confidence=0.95).holds
    assert Found(max_drop=0.04, estimate=0.01, error=0.02, confidence=0.5).holds
    assert Found(max_drop=None, estimate=9.0, error=0.0).holds


def test_no_hit_is_no_certainty() -> None:
    share, error = share_with_error(0, 100)
    assert share == 0 and 0.005 < error < 0.015
    assert share_with_error(3, 10)[0] == 0.3
    assert share_with_error(0, 0) == (0.0, float("inf"))
    # More data, less doubt.
    assert share_with_error(0, 1000)[1] < error


def test_share_with_error_covers_the_truth() -> None:
    # How often the bound at 95 % lies below a true share of 2 %, over all outcomes of 300 answers, by their binomials.
    from math import comb

    missed = 0.0
    for hits in range(301):
        share, error = share_with_error(hits, 300)
        if share + 1.6449 * error < 0.02:
            missed += comb(300, hits) * 0.02**hits * 0.98 ** (300 - hits)
    assert missed < 0.08


@pytest.mark.parametrize("confidence", [0.4, 1.0, True, "high", None])
def test_confidence_out_of_range(confidence: Any) -> None:
    with pytest.raises(ValueError, match=r"confidence must lie in \[0.5, 1\)"):
        check_confidence(confidence)
    check_confidence(0.9)
