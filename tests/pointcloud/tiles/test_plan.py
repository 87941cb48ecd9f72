"""How the ground is divided."""

from __future__ import annotations

import numpy as np
import pytest

from pointcloud.tiles.plan import split


@pytest.mark.parametrize("halo", [(0, 0), (1, 2), (3, 3)])
def test_every_point_is_in_one_tile_and_tiles_hold_few(halo: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    counts = rng.integers(0, 50, (23, 40)) * (rng.random((23, 40)) < 0.6)
    counts[:, 10:20] = 0
    covered = np.zeros_like(counts)
    for x0, x1, y0, y1 in split(counts, halo, 2000):
        covered[x0:x1, y0:y1] += 1
        read = counts[max(x0 - halo[0], 0) : x1 + halo[0], max(y0 - halo[1], 0) : y1 + halo[1]].sum()
        assert read <= 2000 or (x1 - x0 <= max(halo[0], 1) and y1 - y0 <= max(halo[1], 1))
    assert covered.max() == 1 and (covered[counts > 0] == 1).all()


def test_one_tile_where_all_fits_and_none_without_points() -> None:
    assert split(np.ones((3, 4), np.int64), (1, 1), 12) == [(0, 3, 0, 4)]
    assert split(np.zeros((3, 4), np.int64), (1, 1), 12) == []
    assert split(np.full((1, 1), 99), (0, 0), 12) == [(0, 1, 0, 1)]
