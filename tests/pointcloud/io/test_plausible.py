"""What can be coordinates, and what cannot."""

from __future__ import annotations

import numpy as np
import pytest

from pointcloud.io.plausible import implausible

POINTS = np.random.default_rng(0).normal(0, 20, (3, 4000)).astype(np.float32)


def test_clouds() -> None:
    assert implausible(list(POINTS)) is None
    assert implausible(list(POINTS[:, :0])) is None
    assert implausible(list(POINTS[:, :1])) is None
    holes = POINTS.copy()
    holes[:, ::3] = np.nan
    assert implausible(list(holes)) is None
    stray = POINTS.copy()
    stray[0, :20], stray[1, 20:40] = 1e30, 1e-30
    assert implausible(list(stray)) is None


@pytest.mark.parametrize(
    ("points", "reason"),
    [
        (POINTS * np.float32(1e-38), "absurdly small"),
        (POINTS * np.float32(1e10), "absurdly large"),
        (POINTS * np.float32(1e-6), "within a millimetre"),
        (np.full_like(POINTS, np.nan), "no coordinate is a finite number"),
        (np.repeat(POINTS[:1], 3, axis=0), "are equal in 100%"),
        (np.repeat(POINTS[:, :1], 4000, axis=1), "in one place"),
        (np.exp2(POINTS * np.float32(0.45)), "many powers of ten"),
    ],
    ids=["small", "large", "millimetre", "nan", "equal", "place", "spread"],
)
def test_no_clouds(points: np.ndarray, reason: str) -> None:
    found = implausible(list(points.astype(np.float32)))
    assert found is not None and reason in found
