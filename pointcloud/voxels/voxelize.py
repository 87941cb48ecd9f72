"""From points to voxels and back."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from common_kernels.coordinate_table import CoordinateTable
from common_kernels.gather_rows import gather_rows
from common_kernels.kernel_map import check_key_range
from common_kernels.segment_reduce import segment_reduce
from pointcloud.coordinates import Coordinates
from pointcloud.points import PointCloud, describe
from pointcloud.tensor import SparseConvTensor
from pointcloud.voxels.grid import VoxelGrid, check_finite
from pointcloud.voxels.grouping import group_points

REDUCTIONS = ("mean", "max", "first", "sum")
MODES = ("nearest", "trilinear")
ALIGNMENTS = ("center", "corner")


class VoxelCoordinates(Coordinates):
    """Coordinates that know where in space they lie.

    Args:
        indices: int32 [M, 4], batch index first, then the columns in the order of the grid's axes.
        batch_size: number of samples.
        voxel_grid: the grid; its shape is the spatial shape.
    """

    def __init__(self, indices: Tensor, batch_size: int, voxel_grid: VoxelGrid) -> None:
        super().__init__(indices, voxel_grid.shape, batch_size)
        self.voxel_grid = voxel_grid

    def to(self, device: torch.device) -> Coordinates:
        """The same coordinates on another device, without maps; this object when they are there already."""
        if self.indices.device == device:
            return self
        return VoxelCoordinates(self.indices.to(device), self.batch_size, self.voxel_grid)


def voxelize(
    points: Tensor | PointCloud,
    voxel_size: float | Sequence[float],
    point_range: Sequence[float] | None = None,
    *,
    features: Tensor | None = None,
    reduce: str = "mean",
    batch_index: Tensor | None = None,
    batch_size: int | None = None,
    axes: str = "xyz",
) -> tuple[SparseConvTensor, Tensor]:
    """Sort points into the cells of a regular grid and reduce the features of each occupied cell.

    A point's cell is `floor((p - min) / voxel_size)`, computed in fp64, each operation rounded on its own: CPU and GPU
    find the same cells. Voxels are sorted by batch index, then by coordinates in the order of `axes`. The result's
    `.coordinates.voxel_grid` says where they lie; it goes with the coordinates through every layer that keeps them or
    comes back to them. Differentiable in the features.

    Args:
        points: floating [N, 3 + F], the first columns x, y, z in metres; or a PointCloud.
        voxel_size: edge of a voxel in metres, one number or x, y, z.
        point_range: [xmin, ymin, zmin, xmax, ymax, zmax] in metres; points outside of the half-open box are dropped.
            Without it the box is the bounding box of the points (of the whole batch).
        features: floating [N, C]; by default all columns of `points` (x, y, z included), of a PointCloud x, y, z and
            then intensity and red, green, blue (0 to 255), where it has them.
        reduce: "mean", "max", "sum", or "first": the features of the voxel's point that comes first in `points`.
        batch_index: int32 or int64 [N], the sample of each point; by default all points are one sample.
        batch_size: number of samples; by default one, or one more than the largest batch index.
        axes: "xyz" or "zyx", the order of the coordinate columns of `.indices` and of `.spatial_shape`.

    Returns:
        The tensor of M voxels, and point_to_voxel int64 [N]: the voxel of each point, -1 for a point dropped.

    Raises:
        ValueError: a coordinate that is not finite, a grid too large for 64-bit keys, an argument that does not fit.

    Example:
        >>> import torch, pointcloud
        >>> points = torch.tensor([[0.1, 0.1, 0.1], [0.3, 0.1, 0.1], [2.0, 0.1, 0.1]])  # metres
        >>> voxels, point_to_voxel = pointcloud.voxelize(points, voxel_size=0.5)
        >>> voxels.features.shape, point_to_voxel
        (torch.Size([2, 3]), tensor([0, 0, 1]))
    """
    if reduce not in REDUCTIONS:
        raise ValueError(f"reduce must be one of {', '.join(REDUCTIONS)}, got {reduce!r}")
    xyz, features = _columns(points, features)
    batch_index, batch_size = _batch(batch_index, batch_size, xyz)
    check_finite(xyz)
    if point_range is None:
        grid = VoxelGrid.around(xyz, voxel_size, axes)
        inside = None
    else:
        grid = VoxelGrid.of_range(point_range, voxel_size, axes)
        bounds = torch.tensor([float(v) for v in point_range], dtype=torch.float64, device=xyz.device)
        inside = ((xyz >= bounds[:3]) & (xyz < bounds[3:])).all(dim=1)
    check_key_range(grid.shape, batch_size)

    # A point just below the upper bound may round up to the next cell, which is outside of the grid.
    cells = [column.clamp(0, n - 1) for column, n in zip(grid.cells(xyz).unbind(1), grid.shape)]
    key = cells[0] if batch_index is None else cells[0] + batch_index * grid.shape[0]
    key = (key * grid.shape[1] + cells[1]) * grid.shape[2] + cells[2]
    group = group_points(key, math.prod(grid.shape) * batch_size, inside)

    row = group.order[group.offsets[:-1]]  # the first point of each voxel
    batch_column = row.new_zeros(row.shape) if batch_index is None else batch_index[row]
    indices = torch.stack([batch_column, *(column[row] for column in cells)], dim=1).int()
    if reduce == "first":
        reduced = gather_rows(features, row)
    else:
        reduced = segment_reduce(gather_rows(features, group.order), group.offsets, reduce)
    return SparseConvTensor.over(VoxelCoordinates(indices, batch_size, grid), reduced), group.of_point


def devoxelize(
    voxels: SparseConvTensor | Tensor,
    points: Tensor,
    mode: str = "nearest",
    *,
    grid: VoxelGrid | None = None,
    batch_index: Tensor | None = None,
    align: str = "center",
) -> Tensor:
    """Read voxel features at points, [N, C]; zeros where there is no voxel to read. Differentiable in the features.

    * `nearest`: the voxel that holds the point. With `points` = the point_to_voxel of `voxelize`, a mere gather.
    * `trilinear`: the eight voxels around the point, weighted by its distances to their centres; the weights of the
      occupied ones are scaled to the sum 1 (Liu et al., Point-Voxel CNN, 2019; Tang et al., SPVNAS, 2020).

    Args:
        voxels: sparse tensor, or only its features [M, C] where `points` is a point_to_voxel.
        points: int32 or int64 [N], the row of each point in `voxels`, -1 for none (nearest only); or floating
            [N, >= 3], x, y, z in metres in the first columns. They need not be the points that were voxelized.
        grid: where the voxels lie; by default `voxels.coordinates.voxel_grid`, which `voxelize` sets.
        batch_index: int32 or int64 [N], the sample of each point; by default all belong to sample 0.
        align: where a voxel's features sit for "trilinear": at its "center", or at its lower "corner" as in SPVNAS.

    Example:
        >>> import torch, pointcloud
        >>> points = torch.tensor([[0.1, 0.1, 0.1], [0.3, 0.1, 0.1], [2.0, 0.1, 0.1]])
        >>> voxels, point_to_voxel = pointcloud.voxelize(points, 0.5, features=torch.tensor([[1.0], [3.0], [7.0]]))
        >>> pointcloud.devoxelize(voxels, point_to_voxel).flatten()
        tensor([2., 2., 7.])
    """
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(MODES)}, got {mode!r}")
    if align not in ALIGNMENTS:
        raise ValueError(f"align must be one of {', '.join(ALIGNMENTS)}, got {align!r}")
    if not isinstance(points, Tensor):
        raise ValueError(f"points must be a tensor of coordinates or of rows, got {describe(points)}")
    if not isinstance(voxels, (SparseConvTensor, Tensor)):
        raise ValueError(f"voxels must be a SparseConvTensor or its features, got {describe(voxels)}")
    if not points.dtype.is_floating_point:
        if mode != "nearest" or grid is not None or batch_index is not None:
            raise ValueError(
                "points must be floating [N, >= 3] for mode='trilinear' or together with grid or batch_index, got "
                f"{describe(points)}"
            )
        return gather_rows(voxels if isinstance(voxels, Tensor) else voxels.features, points)
    if isinstance(voxels, Tensor):
        raise ValueError(
            "voxels must be a SparseConvTensor where points are coordinates, got a Tensor of features only"
        )
    grid = grid_of(voxels) if grid is None else grid
    if grid.shape != tuple(voxels.spatial_shape):
        raise ValueError(f"grid must have the voxels' shape {list(voxels.spatial_shape)}, got {list(grid.shape)}")
    if points.ndim != 2 or points.shape[1] < 3:
        raise ValueError(f"points must be floating [N, >= 3], got {describe(points)}")
    xyz = points[:, :3]
    check_finite(xyz)
    batch_index, _ = _batch(batch_index, voxels.batch_size, xyz)
    if mode == "nearest":
        cells = grid.cells(xyz)
        rows = _Lookup(voxels, grid).rows(cells.unbind(1), grid.inside(cells), batch_index)
        return gather_rows(voxels.features, rows)
    return _trilinear(voxels, grid, xyz, batch_index, align)


def grid_of(voxels: SparseConvTensor) -> VoxelGrid:
    """Where the voxels of `voxelize` lie, also after layers that keep their coordinates or come back to them.

    Raises ValueError for a tensor that does not come from `voxelize`, or has passed a strided layer.
    """
    if not isinstance(voxels.coordinates, VoxelCoordinates):
        raise ValueError("grid must be given: these voxels are not at the coordinates of voxelize, so it is not known")
    return voxels.coordinates.voxel_grid


def _trilinear(
    voxels: SparseConvTensor, grid: VoxelGrid, xyz: Tensor, batch_index: Tensor | None, align: str
) -> Tensor:
    # In cells, from the point that carries the features of cell 0.
    position = grid.position(xyz) - (0.5 if align == "center" else 0.0)
    lookup = _Lookup(voxels, grid)
    # Per axis and side (lower, upper): cell, whether it is in the grid, weight.
    sides = []
    for column, extent in zip(position.unbind(1), grid.shape):
        # Points far away have no corner in the grid; clamped, they also fit into int64.
        base = column.detach().floor().clamp(-2, extent + 1)
        upper = column - base
        lower_cell = base.long()
        cells = (lower_cell, lower_cell + 1)
        sides.append([(c, (c >= 0) & (c < extent), w) for c, w in zip(cells, (1 - upper, upper))])
    rows, weights = [], []
    for corner in itertools.product(*sides):
        cells, inside, factors = zip(*corner)
        found = lookup.rows(cells, inside[0] & inside[1] & inside[2], batch_index)
        rows.append(found)
        weights.append(torch.where(found >= 0, factors[0] * factors[1] * factors[2], 0.0))
    total = sum(weights[1:], weights[0])
    scale = 1 / torch.where(total > 0, total, 1.0)
    features = voxels.features
    out = features.new_zeros(xyz.shape[0], features.shape[1])
    for found, weight in zip(rows, weights):
        out = torch.addcmul(out, (weight * scale).to(features.dtype)[:, None], gather_rows(features, found))
    return out


class _Lookup:
    """The row of the voxel in a cell of the grid."""

    def __init__(self, voxels: SparseConvTensor, grid: VoxelGrid) -> None:
        self.shape = grid.shape
        batch, *cells = voxels.indices.long().unbind(1)
        self.table = CoordinateTable(self._keys(cells, batch))

    def rows(self, cells: Sequence[Tensor], inside: Tensor, batch_index: Tensor | None) -> Tensor:
        """Rows [N] int32 of cells given as one int64 [N] per axis, -1 where not inside or where there is no voxel."""
        return self.table.lookup(torch.where(inside, self._keys(cells, batch_index), -1))

    def _keys(self, cells: Sequence[Tensor], batch_index: Tensor | None) -> Tensor:
        key = cells[0] if batch_index is None else batch_index * self.shape[0] + cells[0]
        return (key * self.shape[1] + cells[1]) * self.shape[2] + cells[2]


def _columns(points: Tensor | PointCloud, features: Tensor | None) -> tuple[Tensor, Tensor]:
    """Coordinates [N, 3] and features [N, C]."""
    if isinstance(points, PointCloud):
        if features is None:
            names = ["x", "y", "z"]
            names += ["intensity"] if points.intensity is not None else []
            names += ["red", "green", "blue"] if points.rgb is not None else []
            features = points.features(*names)
        xyz = points.xyz
    else:
        if (
            not isinstance(points, Tensor)
            or not points.dtype.is_floating_point
            or points.ndim != 2
            or points.shape[1] < 3
        ):
            raise ValueError(f"points must be floating [N, >= 3] or a PointCloud, got {describe(points)}")
        features = points if features is None else features
        xyz = points[:, :3]
    if (
        not isinstance(features, Tensor)
        or features.ndim != 2
        or features.shape[0] != xyz.shape[0]
        or not features.dtype.is_floating_point
    ):
        raise ValueError(f"features must be floating [N, C] with N = {xyz.shape[0]}, got {describe(features)}")
    if features.device != xyz.device:
        raise ValueError(f"features must be on the device of points, {xyz.device}, got {features.device}")
    return xyz, features


def _batch(batch_index: Tensor | None, batch_size: int | None, xyz: Tensor) -> tuple[Tensor | None, int]:
    """Batch index as int64 [N], None where all points are of sample 0, and the number of samples."""
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    if batch_index is None:
        return None, 1 if batch_size is None else batch_size
    if batch_index.dtype not in (torch.int32, torch.int64) or batch_index.shape != xyz.shape[:1]:
        raise ValueError(f"batch_index must be int32 or int64 [N] with N = {xyz.shape[0]}, got {describe(batch_index)}")
    if batch_index.device != xyz.device:
        raise ValueError(f"batch_index must be on the device of points, {xyz.device}, got {batch_index.device}")
    low, high = (int(v) for v in batch_index.aminmax()) if batch_index.numel() else (0, 0)
    if low < 0 or (batch_size is not None and high >= batch_size):
        bound = "" if batch_size is None else f" and below batch_size {batch_size}"
        raise ValueError(f"batch_index must be at least 0{bound}, got {low} to {high}")
    return batch_index.long(), high + 1 if batch_size is None else batch_size
