"""Arguments that spconv's code or a slip may bring: an error that names them, never another result."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import pointcloud as pc
from common_kernels import kernel_map
from tests.pointcloud.dense_oracle import random_cloud

POINTS = torch.rand(20, 3)
CELLS = torch.zeros(1, 4, dtype=torch.int32)
POINT_TO_VOXEL = ([0.5] * 3, [0, 0, 0, 1, 1, 1], 3)


@pytest.fixture
def x() -> pc.SparseConvTensor:
    return random_cloud((6, 6, 6), 4, dtype=torch.float32)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: pc.SparseConvTensor(torch.zeros(1, 2), CELLS, 8, 1), "spatial_shape must be 3 integers.*got 8"),  # type: ignore[arg-type]
        (lambda: pc.SubMConv3d(4.0, 4, 3), "in_channels must be an integer, got 4.0"),  # type: ignore[arg-type]
        (lambda: pc.SubMConv3d(4, 4, 3, groups=2.0), "groups must be an integer, got 2.0"),  # type: ignore[arg-type]
        (lambda: pc.PointToVoxel(*POINT_TO_VOXEL, 9.5, 5), "max_num_voxels must be an integer, got 9.5"),  # type: ignore[arg-type]
        (lambda: kernel_map([[0, 0]], [8], 3, batch_size=1), "coords must be an integer tensor.*got list"),  # type: ignore[arg-type]
        (lambda: kernel_map(CELLS, [8] * 3, 3.0, batch_size=1), "kernel_size must be an int or 3 ints.*got 3.0"),  # type: ignore[arg-type]
        (lambda: kernel_map(CELLS, [8] * 3, 3, dilation=2**31, batch_size=1), r"dilation must stay below 2\*\*31"),
    ],
)  # fmt: skip
def test_error_names_the_argument(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: pc.voxelize(POINTS, 0.5, features=np.zeros((20, 2))), "features must be floating.*got ndarray"),  # type: ignore[arg-type]
        (lambda: pc.devoxelize(torch.zeros(4, 2), POINTS.numpy()), "points must be a tensor.*got ndarray"),  # type: ignore[arg-type]
        (lambda: pc.devoxelize(None, POINTS), "voxels must be a SparseConvTensor.*got NoneType"),  # type: ignore[arg-type]
        (lambda: pc.PointToVoxel(*POINT_TO_VOXEL, 9, 5)(POINTS.numpy()), "pc must be a floating tensor.*got ndarray"),  # type: ignore[arg-type]
        (lambda: pc.voxelize(POINTS.numpy(), 0.5), "points must be floating.*got ndarray"),  # type: ignore[arg-type]
        (lambda: pc.PointCloud(POINTS.numpy()), r"xyz must be float32 \[N, 3\], got ndarray"),  # type: ignore[arg-type]
        (lambda: pc.PointCloud(POINTS, labels=[0]), r"labels must be int64 \[N\] = \[20\], got list"),  # type: ignore[arg-type]
        (lambda: pc.PointCloud(POINTS, extra={"t": 1}), r"extra\['t'\] must be a tensor.*got int"),  # type: ignore[dict-item]
        (lambda: pc.PointCloud(POINTS).select([0]), "index must be bool.*got list"),  # type: ignore[arg-type]
    ],
)  # fmt: skip
def test_a_wrong_type_names_the_argument(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        call()


def test_indices_modified_in_place_do_not_find_the_map_of_their_key(x) -> None:
    y = pc.SparseConv3d(4, 4, 2, 2, indice_key="down")(pc.SubMConv3d(4, 4, 3, indice_key="k")(x))
    x.indices[:, 1:] //= 2
    inverse = pc.SparseInverseConv3d(4, 4, 2, "down")
    for layer, tensor in ((pc.SubMConv3d(4, 4, 3, indice_key="k"), x.shadow_copy()), (inverse, y)):
        tensor.indice_dict = y.indice_dict
        with pytest.raises(ValueError, match="indices were modified in place"):
            layer(tensor)
    x = random_cloud((6, 6, 6), 4, dtype=torch.float32)
    y = pc.SparseConv3d(4, 4, 2, 2, indice_key="down")(x)
    y.indices[:, 1:] //= 2
    with pytest.raises(ValueError, match="indices were modified in place"):
        inverse(y)


@pytest.mark.parametrize("size", [np.float32(0.5), np.float64(0.5), torch.tensor(0.5), np.array(0.5)])
def test_voxel_size_of_another_library(size: Any) -> None:
    ours, _ = pc.voxelize(POINTS, size)
    assert torch.equal(ours.indices, pc.voxelize(POINTS, 0.5)[0].indices)
