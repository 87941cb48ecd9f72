"""Between points and voxels: grids, grouping, voxelize and devoxelize, spconv's PointToVoxel."""

from pointcloud.voxels.grid import VoxelGrid, check_finite
from pointcloud.voxels.point_to_voxel import PointToVoxel
from pointcloud.voxels.voxelize import devoxelize, voxelize

__all__ = ["PointToVoxel", "VoxelGrid", "check_finite", "devoxelize", "voxelize"]
