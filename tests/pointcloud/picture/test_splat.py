"""Painted points against a loop over points and pixels."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pointcloud.picture.splat import packed, splat

RED, GREEN = (255, 0, 0), (0, 255, 0)


def unpacked(raster: np.ndarray) -> np.ndarray:
    return raster.view(np.uint8).reshape(*raster.shape, 4)[..., :3]


def painted_one_by_one(
    width: int, height: int, columns: np.ndarray, rows: np.ndarray, colors: np.ndarray, size: tuple[int, int]
) -> np.ndarray:
    image = np.zeros((height, width, 3), dtype=np.uint8)
    for x, y, color in zip(columns, rows, colors):
        left, top = math.floor(x - (size[0] - 1) / 2), math.floor(y - (size[1] - 1) / 2)
        for dy in range(size[1]):
            for dx in range(size[0]):
                corner = dx in (0, size[0] - 1) and dy in (0, size[1] - 1)
                if corner and min(size) >= 3:
                    continue
                if 0 <= left + dx < width and 0 <= top + dy < height:
                    image[top + dy, left + dx] = color
    return image


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (5, 4), (1, 7)])
@pytest.mark.parametrize("n", [0, 1, 40, 3000])
def test_like_a_loop_over_points(n: int, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pointcloud.picture.splat._PIXELS_PER_STEP", 100)
    random = np.random.default_rng(n)
    columns, rows = random.uniform(-8, 31, n), random.uniform(-8, 25, n)
    colors = random.integers(0, 256, (n, 3)).astype(np.uint8)
    raster = np.full((17, 23), packed(np.zeros(3, dtype=np.uint8)), dtype=np.uint32)
    splat(raster, columns, rows, colors, size)
    assert np.array_equal(unpacked(raster), painted_one_by_one(23, 17, columns, rows, colors, size))
    assert (raster.view(np.uint8).reshape(17, 23, 4)[..., 3] == 255).all()


def test_far_outside_and_where_nothing_is_painted() -> None:
    ground = packed(np.array([1, 2, 3], dtype=np.uint8))
    raster = np.full((8, 10), ground, dtype=np.uint32)
    places = np.array([-50.0, 1e300, -1e300, 5, 5])
    splat(raster, places, places[::-1], np.array([RED] * 5, dtype=np.uint8), (2, 2))
    assert (raster == ground).all()


def test_many_points_cost_no_more_memory_than_their_places() -> None:
    """Points that hide each other are dropped before they are painted."""
    n = 2_000_000
    columns = np.full(n, 3.0)
    colors = np.zeros((n, 3), dtype=np.uint8)
    colors[-1] = GREEN
    raster = np.zeros((8, 10), dtype=np.uint32)
    splat(raster, columns, columns, colors, (4, 4))
    assert (unpacked(raster)[3, 3] == GREEN).all() and int((unpacked(raster)[..., 1] == 255).sum()) == 12
