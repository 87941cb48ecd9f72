"""Voxels with a limited number of points each, in the calling conventions of spconv."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from common_kernels.kernel_map import check_key_range
from pointcloud.voxels.grid import check_finite
from pointcloud.voxels.grouping import group_points


class PointToVoxel:
    """Copy points into voxels of at most P points, as detectors with hard voxelisation expect them.

    Same arguments, results and order as spconv's class of this name: voxels in the order of their first point, points
    of a voxel in their own order, cells found in fp32 arithmetic. Where it differs: it also takes fp64, fp16 and bf16
    points, refuses coordinates that are not finite, says what `max_num_voxels` cut off, and its `empty_mean` is the
    mean of the voxel's own points (in spconv 2.3.8 on the CPU the mean of one voxel is added to the next).

    Args:
        vsize_xyz: size of a voxel, D numbers x, y, z in metres; D from 1 to 4.
        coors_range_xyz: D lower, then D upper bounds; the number of cells is rounded to the nearest.
        num_point_features: C, columns of the points, the coordinates included.
        max_num_voxels: voxels that appear after so many are dropped with their points; a warning says so once.
        max_num_points_per_voxel: P; further points of a voxel are not copied, though they belong to it.
        device: device of the points.

    Attributes:
        n_voxels_dropped: how many occupied voxels the last call dropped for `max_num_voxels`.
        n_points_dropped: how many points within the range the last call did not copy, for either limit.
    """

    def __init__(
        self,
        vsize_xyz: Sequence[float],
        coors_range_xyz: Sequence[float],
        num_point_features: int,
        max_num_voxels: int,
        max_num_points_per_voxel: int,
        device: torch.device | str = "cpu",
    ) -> None:
        ndim = len(vsize_xyz)
        if not 1 <= ndim <= 4 or not all(v > 0 and math.isfinite(v) for v in vsize_xyz):
            raise ValueError(f"vsize_xyz must be 1 to 4 positive numbers, got {vsize_xyz!r}")
        if len(coors_range_xyz) != 2 * ndim or not all(math.isfinite(v) for v in coors_range_xyz):
            raise ValueError(f"coors_range_xyz must be {2 * ndim} finite numbers, got {coors_range_xyz!r}")
        for name, value, least in (
            ("num_point_features", num_point_features, ndim),
            ("max_num_voxels", max_num_voxels, 1),
            ("max_num_points_per_voxel", max_num_points_per_voxel, 1),
        ):
            if not hasattr(value, "__index__"):
                raise ValueError(f"{name} must be an integer, got {value!r}")
            if value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        self.ndim = ndim
        self.device = torch.device(device)
        self.num_point_features = num_point_features
        self.max_num_voxels = max_num_voxels
        self.max_num_points_per_voxel = max_num_points_per_voxel
        # Kept in the order z, y, x of the indices, as spconv's attributes of these names.
        low, high = list(coors_range_xyz[:ndim])[::-1], list(coors_range_xyz[ndim:])[::-1]
        self.vsize = [float(v) for v in vsize_xyz][::-1]
        self.coors_range = [float(v) for v in (*low, *high)]
        self.grid_size = [math.floor((b - a) / s + 0.5) for a, b, s in zip(low, high, self.vsize)]
        if min(self.grid_size) < 1:
            raise ValueError(
                f"coors_range_xyz {list(coors_range_xyz)} must hold at least one voxel of vsize_xyz {list(vsize_xyz)} "
                f"on each axis, got {self.grid_size[::-1]}"
            )
        check_key_range(self.grid_size, batch_size=1)
        self.n_voxels_dropped = 0
        self.n_points_dropped = 0
        self._warned = False

    def __call__(
        self, pc: Tensor, clear_voxels: bool = True, empty_mean: bool = False
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(voxels, indices, num_per_voxel) of `generate_voxel_with_id`."""
        voxels, indices, num_per_voxel, _ = self.generate_voxel_with_id(pc, clear_voxels, empty_mean)
        return voxels, indices, num_per_voxel

    @torch.no_grad()
    def generate_voxel_with_id(
        self, pc: Tensor, clear_voxels: bool = True, empty_mean: bool = False
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Gather the points of each voxel.

        Args:
            pc: floating [N, C], the first columns x, y, z in metres.
            clear_voxels: False allows any content in slots without a point; they are zero here either way.
            empty_mean: fill slots without a point with the mean of the voxel's points.

        Returns:
            voxels [M, P, C] in the dtype of pc, indices int32 [M, D] in the order z, y, x without a batch index,
            num_per_voxel int32 [M], and the voxel of each point int64 [N], -1 for a point dropped.

        Raises:
            TypeError: points that are no tensor.
            ValueError: wrong dtype, shape or device, or a coordinate that is not finite.
        """
        c, limit = self.num_point_features, self.max_num_points_per_voxel
        if not isinstance(pc, Tensor):
            raise TypeError(f"pc must be a floating tensor [N, {c}], got {type(pc).__name__}")
        if not pc.dtype.is_floating_point or pc.ndim != 2 or pc.shape[1] != c:
            raise ValueError(
                f"pc must be floating [N, {c}], got {str(pc.dtype).removeprefix('torch.')} {list(pc.shape)}"
            )
        if pc.device.type != self.device.type:
            raise ValueError(f"pc must be on {self.device}, got {pc.device}")
        check_finite(pc[:, : self.ndim])
        cells, inside = self._cells(pc[:, : self.ndim])
        key = torch.zeros_like(cells[:, 0])
        for axis, extent in enumerate(self.grid_size):
            key = key * extent + cells[:, axis]
        group = group_points(key, math.prod(self.grid_size), inside)

        first = group.order[group.offsets[:-1]]
        by_first = first.argsort()
        n_found = first.shape[0]
        n_voxels = min(n_found, self.max_num_voxels)
        # The voxel of each group, and of each point; groups beyond the limit have none.
        voxel = torch.full_like(first, -1)
        voxel[by_first[:n_voxels]] = torch.arange(n_voxels, device=pc.device)
        of_group = torch.repeat_interleave(voxel, group.offsets.diff(), output_size=group.order.shape[0])
        rank = torch.arange(group.order.shape[0], device=pc.device) - torch.repeat_interleave(
            group.offsets[:-1], group.offsets.diff(), output_size=group.order.shape[0]
        )
        copied = (of_group >= 0) & (rank < limit)
        target, slot, source = of_group[copied], rank[copied], group.order[copied]
        voxels = pc.new_zeros(n_voxels, limit, c)
        voxels[target, slot] = pc[source]
        counts = group.offsets.diff()[by_first[:n_voxels]].clamp(max=limit)
        if empty_mean:
            mean = voxels.sum(1, dtype=torch.promote_types(pc.dtype, torch.float32)) / counts[:, None]
            empty = torch.arange(limit, device=pc.device) >= counts[:, None]
            voxels = torch.where(empty[:, :, None], mean.to(pc.dtype)[:, None], voxels)
        of_point = torch.full_like(key, -1)
        of_point[group.order] = of_group
        self._report(n_found - n_voxels, group.order.shape[0] - source.shape[0])
        return voxels, cells[first[by_first[:n_voxels]]].int(), counts.int(), of_point

    def _cells(self, xyz: Tensor) -> tuple[Tensor, Tensor]:
        """Cells int64 [N, D] in the order z, y, x, and whether each lies in the grid."""
        dtype, device = torch.float32, xyz.device
        origin = torch.tensor(self.coors_range[: self.ndim], dtype=dtype, device=device)
        size = torch.tensor(self.vsize, dtype=dtype, device=device)
        extent = torch.tensor(self.grid_size, device=device)
        # Compared as floats: a cell far away does not fit an integer.
        cell = ((xyz.flip(1).to(dtype) - origin) / size).floor_()
        inside = ((cell >= 0) & (cell < extent)).all(dim=1)
        return torch.where(inside[:, None], cell, 0).long(), inside

    def _report(self, n_voxels: int, n_points: int) -> None:
        self.n_voxels_dropped, self.n_points_dropped = n_voxels, n_points
        if n_voxels and not self._warned:
            self._warned = True
            warnings.warn(
                f"max_num_voxels={self.max_num_voxels} dropped {n_voxels} of {n_voxels + self.max_num_voxels} voxels; "
                "further calls count them in n_voxels_dropped without a warning",
                stacklevel=4,
            )
