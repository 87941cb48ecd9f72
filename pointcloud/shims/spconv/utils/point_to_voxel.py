"""Point2VoxelCPU and Point2VoxelGPU: PointToVoxel under the calling conventions of spconv's compiled classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from pointcloud.voxels import PointToVoxel


class Point2Voxel:
    """Voxels with at most so many points each; arguments as those of `PointToVoxel`, for one number of axes.

    Points may be a torch tensor, an array of numpy, or anything with `.numpy()` (cumm's tensors). Results are torch
    tensors, whose `.numpy()` gives arrays, as that of cumm's tensors does.
    """

    NDIM: ClassVar[int]
    DEVICE: ClassVar[str] = "cpu"

    def __init__(
        self,
        vsize_xyz: Sequence[float],
        coors_range_xyz: Sequence[float],
        num_point_features: int,
        max_num_voxels: int,
        max_num_points_per_voxel: int,
    ) -> None:
        if len(vsize_xyz) != self.NDIM:
            raise ValueError(f"vsize_xyz must have {self.NDIM} numbers for {type(self).__name__}, got {vsize_xyz!r}")
        self._generator = PointToVoxel(
            vsize_xyz, coors_range_xyz, num_point_features, max_num_voxels, max_num_points_per_voxel, self.DEVICE
        )

    @property
    def grid_size(self) -> list[int]:
        """Cells per axis, z, y, x."""
        return list(self._generator.grid_size)

    def point_to_voxel(self, points: Any, clear_voxels: bool = True) -> tuple[Tensor, Tensor, Tensor]:
        """(voxels [M, P, C], indices int32 [M, D] in the order z, y, x, points per voxel int32 [M])."""
        return self._generator(self._tensor(points), clear_voxels)

    def point_to_voxel_empty_mean(self, points: Any, clear_voxels: bool = True) -> tuple[Tensor, Tensor, Tensor]:
        """The same with empty slots filled by the mean of the voxel's points."""
        return self._generator(self._tensor(points), clear_voxels, empty_mean=True)

    def point_to_voxel_hash(
        self, points: Any, clear_voxels: bool = True, empty_mean: bool = False
    ) -> tuple[Tensor, Tensor, Tensor]:
        """`point_to_voxel`, by the name it has in spconv's GPU classes."""
        return self._generator(self._tensor(points), clear_voxels, empty_mean)

    def _tensor(self, points: Any) -> Tensor:
        if not isinstance(points, Tensor):
            points = torch.as_tensor(points.numpy() if hasattr(points, "numpy") else points)
        return points.to(self.DEVICE)


class Point2VoxelCPU1d(Point2Voxel):
    """Voxels of 1 axis: see Point2Voxel."""

    NDIM = 1


class Point2VoxelCPU2d(Point2Voxel):
    """Voxels of 2 axes: see Point2Voxel."""

    NDIM = 2


class Point2VoxelCPU3d(Point2Voxel):
    """Voxels of 3 axes: see Point2Voxel."""

    NDIM = 3


class Point2VoxelCPU4d(Point2Voxel):
    """Voxels of 4 axes: see Point2Voxel."""

    NDIM = 4


class Point2VoxelGPU1d(Point2VoxelCPU1d):
    """Voxels of 1 axis, on a GPU: see Point2Voxel."""

    DEVICE = "cuda"


class Point2VoxelGPU2d(Point2VoxelCPU2d):
    """Voxels of 2 axes, on a GPU: see Point2Voxel."""

    DEVICE = "cuda"


class Point2VoxelGPU3d(Point2VoxelCPU3d):
    """Voxels of 3 axes, on a GPU: see Point2Voxel."""

    DEVICE = "cuda"


class Point2VoxelGPU4d(Point2VoxelCPU4d):
    """Voxels of 4 axes, on a GPU: see Point2Voxel."""

    DEVICE = "cuda"
