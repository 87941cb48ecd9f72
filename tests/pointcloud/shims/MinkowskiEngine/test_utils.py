"""Batches and cells."""

import numpy as np
import torch

from pointcloud.shims.MinkowskiEngine import utils


def test_batches() -> None:
    points = [np.array([[0.5, -0.5]]), np.array([[1.2, 2.0], [3.0, 4.9]])]
    assert utils.batched_coordinates(points).tolist() == [[0, 0, -1], [1, 1, 2], [1, 3, 4]]
    cells, feats, labels = utils.sparse_collate(points, points, [np.array([1]), np.array([2, 3])])
    assert cells.dtype == torch.int32 and feats.shape == (3, 2) and labels.tolist() == [1, 2, 3]


def test_cells() -> None:
    points = np.array([[0.1, 0.1], [0.9, 0.3], [-0.1, 0.0], [0.2, 0.3]])
    cells, labels, first, inverse = utils.sparse_quantize(
        points, labels=np.array([1, 2, 3, 1]), quantization_size=0.5, return_index=True, return_inverse=True
    )
    assert cells.tolist() == [[0, 0], [1, 0], [-1, 0]] and labels.tolist() == [1, 2, 3]
    assert first.tolist() == [0, 1, 2] and inverse.tolist() == [0, 1, 2, 0]
    mixed = utils.sparse_quantize(points, labels=np.array([1, 2, 3, 9]), quantization_size=0.5)[1]
    assert mixed.tolist() == [-100, 2, 3]


def test_kaiming() -> None:
    torch.manual_seed(0)
    kernel = utils.kaiming_normal_(torch.empty(27, 40, 30), mode="fan_out", nonlinearity="relu")
    assert abs(float(kernel.std()) / (2 / (27 * 30)) ** 0.5 - 1) < 0.05
