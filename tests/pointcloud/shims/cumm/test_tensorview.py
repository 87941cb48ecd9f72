"""Arrays in and out of cumm's tensors, and through a voxel generator as data pipelines write it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pointcloud.shims.cumm import tensorview as tv
from pointcloud.shims.spconv.utils import Point2VoxelCPU3d


def test_views_and_copies() -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    tensor = tv.from_numpy(array)
    assert (tensor.shape, tensor.ndim, tensor.size, tensor.dim(1), len(tensor)) == ([2, 3], 2, 6, 3, 2)
    array[0, 0] = 9
    assert tensor.numpy_view()[0, 0] == 9 and tensor.cpu() is tensor
    copies = tensor.numpy(), tensor.clone().numpy_view()
    array[0, 0] = 1
    assert all(copy[0, 0] == 9 for copy in copies)
    assert "shape=[2, 3]" in repr(tensor)
    assert tv.from_numpy(torch.ones(2)).numpy().tolist() == [1, 1]
    with pytest.raises(TypeError, match="array must be an array of numpy, got list"):
        tv.from_numpy([1, 2])


def test_a_data_pipeline() -> None:
    points = np.random.default_rng(0).uniform(-2, 2, (200, 4)).astype(np.float32)
    generator = Point2VoxelCPU3d(
        vsize_xyz=[0.5, 0.5, 0.5],
        coors_range_xyz=[-2, -2, -2, 2, 2, 2],
        num_point_features=4,
        max_num_points_per_voxel=5,
        max_num_voxels=1000,
    )
    voxels, coordinates, counts = (each.numpy() for each in generator.point_to_voxel(tv.from_numpy(points)))
    cells = np.floor((points[:, :3] + 2) / 0.5).astype(int)
    assert len(voxels) == len(np.unique(cells, axis=0)) and counts.max() <= 5
    for voxel, cell in zip(voxels, coordinates):
        assert (np.floor((voxel[0, :3] + 2) / 0.5).astype(int)[::-1] == cell).all()
