"""Between points and voxels: grids, grouping, voxelize and devoxelize, spconv's PointToVoxel."""
