"""Sparse tensors as sets of cells: union, intersection, pruning, and grids for coordinates of any sign."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from common_kernels.checks import describe
from common_kernels.coordinate_table import CoordinateTable
from common_kernels.gather_rows import gather_rows
from common_kernels.kernel_map import per_axis
from common_kernels.kernel_map.reference import unravel
from pointcloud.coordinates import Coordinates
from pointcloud.tensor import SparseConvTensor


def unite(*tensors: SparseConvTensor) -> list[SparseConvTensor]:
    """The tensors over the union of their cells, with zeros where one had no row: ready for +, * and `torch.cat`.

    All share one coordinates object, sorted by batch index and coordinates, whose maps the layers after it share.

    Raises:
        TypeError: an operand that is no SparseConvTensor.
        ValueError: no tensor; tensors of different grid, batch size or device; a cell that occurs twice in one.
    """
    keys = _keys_of(tensors, "unite")
    return _over(tensors, keys, torch.unique(torch.cat(keys)))


def intersect(*tensors: SparseConvTensor) -> list[SparseConvTensor]:
    """The tensors over the cells that all of them have: ready for +, * and `torch.cat`. Otherwise as `unite`."""
    keys = _keys_of(tensors, "intersect")
    common = torch.sort(keys[0]).values
    for other in keys[1:]:
        common = common[CoordinateTable(other).lookup(common) >= 0]
    return _over(tensors, keys, common)


def prune(x: SparseConvTensor, keep: Tensor) -> SparseConvTensor:
    """The rows that a bool mask [N] keeps, in their order, without maps and keys.

    Raises ValueError for a mask of another dtype or length.
    """
    if not isinstance(keep, Tensor) or keep.dtype != torch.bool or keep.shape != (len(x.coordinates),):
        came = describe(keep) if isinstance(keep, Tensor) else type(keep).__name__
        raise ValueError(f"keep must be a bool tensor [{len(x.coordinates)}], one for each row, got {came}")
    return x.select_by_index(keep)


@dataclass(frozen=True)
class Grid:
    """Where integer coordinates of any sign lie once they are moved into a grid that begins at zero.

    Attributes:
        indices: int32 [N, 1 + D], batch index first.
        spatial_shape: extent of the grid.
        batch_size: number of samples.
        origin: what was subtracted from the coordinates, one number per axis.
    """

    indices: Tensor
    spatial_shape: list[int]
    batch_size: int
    origin: list[int]

    def tensor(self, features: Tensor) -> SparseConvTensor:
        """Features [N, C] at these cells."""
        return SparseConvTensor(features, self.indices, self.spatial_shape, self.batch_size)

    def coordinates(self, x: SparseConvTensor, stride: int | Sequence[int] = 1) -> Tensor:
        """The coordinates int64 [M, 1 + D] of the rows of x, a tensor `stride` times coarser than this grid.

        They are in the units of the coordinates given, as MinkowskiEngine counts them.
        """
        steps = per_axis(stride, len(self.origin), "stride", 1)
        cells = x.indices.long()
        cells[:, 1:] = cells[:, 1:] * cells.new_tensor(steps) + cells.new_tensor(self.origin)
        return cells


def grid_of(coordinates: Tensor, multiple: int | Sequence[int] = 1, batch_size: int | None = None) -> Grid:
    """The smallest grid that holds coordinates of any sign.

    Args:
        coordinates: int32 or int64 [N, 1 + D], D from 1 to 4, batch index first.
        multiple: the product of the network's strides. The grid begins and ends at multiples of it, so that every layer
            groups the cells as it would group the coordinates as given.
        batch_size: number of samples; None for the largest batch index and one.

    Raises:
        ValueError: coordinates of another dtype or shape, a batch index below 0 or beyond batch_size, or a grid of
            2**31 or more cells on an axis.
    """
    if not isinstance(coordinates, Tensor) or coordinates.dtype not in (torch.int32, torch.int64):
        came = describe(coordinates) if isinstance(coordinates, Tensor) else type(coordinates).__name__
        raise ValueError(f"coordinates must be int32 or int64 [N, 1 + D], got {came}")
    if coordinates.ndim != 2 or not 2 <= coordinates.shape[1] <= 5:
        raise ValueError(f"coordinates must be [N, 1 + D] with D from 1 to 4, got {describe(coordinates)}")
    ndim = coordinates.shape[1] - 1
    steps = per_axis(multiple, ndim, "multiple", 1)
    cells = coordinates.to(torch.int64, copy=True)
    if len(cells) == 0:
        return Grid(coordinates.to(torch.int32), steps, batch_size or 1, [0] * ndim)
    least, most = cells.amin(0).tolist(), cells.amax(0).tolist()
    batches = most[0] + 1 if batch_size is None else batch_size
    if least[0] < 0 or most[0] >= batches:
        raise ValueError(f"batch indices must lie from 0 to {batches - 1}, got {least[0]} to {most[0]}")
    origin = [low // step * step for low, step in zip(least[1:], steps, strict=True)]
    shape = [-(-(high + 1 - low) // step) * step for high, low, step in zip(most[1:], origin, steps, strict=True)]
    if max(shape) >= 2**31:
        raise ValueError(f"coordinates must span fewer than 2**31 cells on each axis, got {shape}")
    cells[:, 1:] -= cells.new_tensor(origin)
    return Grid(cells.to(torch.int32), shape, batches, origin)


def _keys_of(tensors: Sequence[SparseConvTensor], name: str) -> list[Tensor]:
    """The keys of each tensor's rows; raises for what `name` cannot bring together."""
    if not tensors:
        raise ValueError(f"{name} needs at least one tensor, got none")
    first = tensors[0]
    for x in tensors:
        if not isinstance(x, SparseConvTensor):
            raise TypeError(f"{name} takes SparseConvTensors, got {type(x).__name__}")
        if (x.spatial_shape, x.batch_size, x.features.device) != (
            first.spatial_shape,
            first.batch_size,
            first.features.device,
        ):
            raise ValueError(f"{name} takes tensors of one grid, batch size and device, got {first} and {x}")
        x.coordinates.check()
    return [x.coordinates.keys() for x in tensors]


def _over(tensors: Sequence[SparseConvTensor], keys: Sequence[Tensor], cells: Tensor) -> list[SparseConvTensor]:
    first = tensors[0]
    indices = unravel(cells, first.spatial_shape).to(torch.int32)
    coordinates = Coordinates(indices, first.spatial_shape, first.batch_size)
    rows = [CoordinateTable(known).lookup(cells) for known in keys]
    return [
        SparseConvTensor.over(coordinates, gather_rows(x.features, row)) for x, row in zip(tensors, rows, strict=True)
    ]
