"""The points of a cloud on disk, sorted by the squares of a raster over the ground."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from pointcloud.io.blocks import BlockReader
from pointcloud.io.columns import Array
from pointcloud.voxels.grid import VoxelGrid, check_finite

_MOST = 1024  # squares per axis


@dataclass(frozen=True)
class Raster:
    """Squares of `cell` voxels over the first two axes of a grid, [nx, ny] in row-major order."""

    grid: VoxelGrid
    cell: int

    @property
    def shape(self) -> tuple[int, int]:
        return -(-self.grid.shape[0] // self.cell), -(-self.grid.shape[1] // self.cell)

    def squares(self, rows: Array) -> Array:
        """The square of each point [n, C], int64."""
        cells = voxels_of(self.grid, rows)
        return (cells[:, 0] // self.cell * self.shape[1] + cells[:, 1] // self.cell).numpy()


def voxels_of(grid: VoxelGrid, rows: Array) -> torch.Tensor:
    """The cell of each point [n, 3 + F], int64 [n, 3], as `voxelize` finds it."""
    cells = grid.cells(torch.from_numpy(np.ascontiguousarray(rows[:, :3])))
    return torch.stack([column.clamp(0, n - 1) for column, n in zip(cells.unbind(1), grid.shape)], 1)


def bounding_grid(source: BlockReader, voxel_size: float, block: int) -> VoxelGrid:
    """The grid that `voxelize` makes for the whole cloud. Raises ValueError for a coordinate that is not finite."""
    low = high = None
    for rows in source.blocks(block):
        xyz = torch.from_numpy(np.ascontiguousarray(rows[:, :3]))
        check_finite(xyz)
        least, most = xyz.double().aminmax(dim=0)
        low = least if low is None else torch.minimum(low, least)
        high = most if high is None else torch.maximum(high, most)
    if low is None or high is None:
        return VoxelGrid.around(torch.zeros(0, 3), voxel_size)
    return VoxelGrid.around(torch.stack([low, high]), voxel_size)


def raster_of(grid: VoxelGrid, least: int) -> Raster:
    """A raster of squares of at least so many voxels, not too many of them."""
    cell = max(least, -(-max(grid.shape[:2]) // _MOST))
    return Raster(grid, cell)


@dataclass(frozen=True)
class Spool:
    """Points sorted by square; those of one square in the order of the source.

    Attributes:
        starts: int64 [squares + 1], where each square begins.
    """

    raster: Raster
    starts: Array
    points: Path
    numbers: Path
    columns: int
    dtype: np.dtype

    def read(self, begin: int, end: int) -> tuple[Array, Array]:
        """(points [n, columns], their numbers in the source int64 [n]) of entries [begin, end)."""
        width = self.columns * self.dtype.itemsize
        n = end - begin
        rows = np.fromfile(self.points, self.dtype, n * self.columns, offset=begin * width).reshape(n, self.columns)
        return rows, np.fromfile(self.numbers, np.int64, n, offset=begin * 8)

    def rectangle(self, x: tuple[int, int], y: tuple[int, int]) -> tuple[Array, Array]:
        """The points of the squares [x0, x1) x [y0, y1), clipped to the raster."""
        nx, ny = self.raster.shape
        y0, y1 = max(y[0], 0), min(y[1], ny)
        parts = [
            self.read(int(self.starts[row * ny + y0]), int(self.starts[row * ny + y1]))
            for row in range(max(x[0], 0), min(x[1], nx))
        ]
        return np.concatenate([rows for rows, _ in parts]), np.concatenate([numbers for _, numbers in parts])


def write_spool(source: BlockReader, raster: Raster, folder: Path, block: int) -> Spool:
    """Sort a cloud in two passes over it, a block in memory at a time."""
    nx, ny = raster.shape
    counts = np.zeros(nx * ny, np.int64)
    for rows in source.blocks(block):
        counts += np.bincount(raster.squares(rows), minlength=nx * ny)
    starts = np.concatenate([[0], np.cumsum(counts)])
    if starts[-1] != source.n_points:
        raise ValueError(f"source changed while it was read: {starts[-1]} points, {source.n_points} before")
    spool = Spool(raster, starts, folder / "points.bin", folder / "numbers.bin", source.columns, source.dtype)
    filled, first = starts[:-1].copy(), 0
    width = source.columns * source.dtype.itemsize
    with open(spool.points, "wb") as points, open(spool.numbers, "wb") as numbers:
        for rows in source.blocks(block):
            squares = raster.squares(rows)
            order = np.argsort(squares, kind="stable")
            rows, squares = rows[order], squares[order]
            begins = np.flatnonzero(np.concatenate([[True], squares[1:] != squares[:-1]])[: len(rows)])
            ends = [*begins[1:], len(rows)]
            for begin, end in zip(begins, ends):
                at = int(filled[squares[begin]])
                os.pwrite(points.fileno(), rows[begin:end].tobytes(), at * width)
                os.pwrite(numbers.fileno(), (order[begin:end] + first).astype(np.int64).tobytes(), at * 8)
                filled[squares[begin]] += end - begin
            first += len(rows)
    return spool
