"""Between points and voxels: grids, grouping, voxelize and devoxelize, spconv's PointToVoxel."""

from pointcloud.voxels.grid import VoxelGrid
from pointcloud.voxels.point_to_voxel import PointToVoxel
from pointcloud.voxels.voxelize import devoxelize, voxelize

__all__ = ["PointToVoxel", "VoxelGrid", "devoxelize", "voxelize"]
