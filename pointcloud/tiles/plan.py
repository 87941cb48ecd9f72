"""Which rectangles of the ground are run one after another."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from pointcloud.io.columns import Array


class Tile(NamedTuple):
    """Squares [x0, x1) x [y0, y1) of a raster."""

    x0: int
    x1: int
    y0: int
    y1: int


def split(counts: Array, halo: tuple[int, int], most: int) -> list[Tile]:
    """Tiles that cover every square that holds points, each with at most so many points in it and its halo.

    A tile is halved along its longer side until that holds; one that is no wider than its halo is left, as its parts
    would hold hardly fewer points.

    Args:
        counts: points of each square, [nx, ny].
        halo: squares that are read around a tile, along each axis.
    """
    sums = np.zeros((counts.shape[0] + 1, counts.shape[1] + 1), np.int64)
    sums[1:, 1:] = counts.cumsum(0).cumsum(1)

    def held(x0: int, x1: int, y0: int, y1: int) -> int:
        x0, y0, x1, y1 = max(x0, 0), max(y0, 0), min(x1, counts.shape[0]), min(y1, counts.shape[1])
        return int(sums[x1, y1] - sums[x0, y1] - sums[x1, y0] + sums[x0, y0])

    tiles: list[Tile] = []
    waiting = [Tile(0, counts.shape[0], 0, counts.shape[1])]
    while waiting:
        x0, x1, y0, y1 = waiting.pop()
        if not held(x0, x1, y0, y1):
            continue
        wide, high = x1 - x0, y1 - y0
        read = held(x0 - halo[0], x1 + halo[0], y0 - halo[1], y1 + halo[1])
        along_x = wide - halo[0] >= high - halo[1]
        if read <= most or (wide <= max(halo[0], 1) and high <= max(halo[1], 1)):
            tiles.append(Tile(x0, x1, y0, y1))
        elif (along_x and wide > 1) or high == 1:
            middle = (x0 + x1) // 2
            waiting += [Tile(middle, x1, y0, y1), Tile(x0, middle, y0, y1)]
        else:
            middle = (y0 + y1) // 2
            waiting += [Tile(x0, x1, middle, y1), Tile(x0, x1, y0, middle)]
    return tiles
