"""Means of points by voxel."""

import torch

from pointcloud.shims.torchsparse.nn import functional as F


def test_means() -> None:
    feats = torch.tensor([[1.0], [3.0], [7.0], [9.0]], dtype=torch.float64, requires_grad=True)
    rows = torch.tensor([0, 0, 2, -1], dtype=torch.int32)
    assert F.spvoxelize(feats, rows, F.spcount(rows, 3)).flatten().tolist() == [2.0, 0.0, 7.0]
    assert torch.autograd.gradcheck(lambda x: F.spvoxelize(x, rows, F.spcount(rows, 3)), feats)
