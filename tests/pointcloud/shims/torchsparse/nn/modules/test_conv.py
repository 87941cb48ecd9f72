"""The layer's parameters, and a small point-voxel network from torchsparse's names."""

from __future__ import annotations

import torch
from torch import nn

from pointcloud.shims import torchsparse
from pointcloud.shims.torchsparse import nn as spnn


def test_parameters_have_the_original_shapes() -> None:
    assert spnn.Conv3d(4, 8, 3).kernel.shape == (27, 4, 8)
    assert spnn.Conv3d(4, 8, 1).kernel.shape == (4, 8)
    assert spnn.Conv3d(4, 8, 1, stride=2).kernel.shape == (1, 4, 8)
    assert spnn.Conv3d(4, 8, (1, 1, 3), (1, 1, 2), bias=True).state_dict().keys() == {"kernel", "bias"}
    assert spnn.Conv3d(4, 8, 3, padding=5).padding == (1, 1, 1)
    assert spnn.Conv3d(4, 8, 3, stride=2, padding=1).padding == (1, 1, 1)


def test_a_small_unet_trains() -> None:
    torch.manual_seed(0)
    coords = torch.cat([torch.zeros(40, 1), torch.unique(torch.randint(0, 8, (400, 3)), dim=0)[:40]], 1).int()
    x = torchsparse.SparseTensor(torch.randn(40, 4), coords)
    stem = nn.Sequential(spnn.Conv3d(4, 8, 3), spnn.BatchNorm(8), spnn.ReLU(True))
    down = nn.Sequential(spnn.Conv3d(8, 8, 2, 2), spnn.GroupNorm(2, 8), spnn.LeakyReLU())
    up = nn.Sequential(spnn.Conv3d(8, 8, 2, 2, transposed=True), spnn.InstanceNorm(40), spnn.SiLU())
    skip = stem(x)
    y = torchsparse.cat([up(down(skip)), skip])
    assert y.feats.shape == (40, 16) and y.coords is x.coords
    (y + y).F.square().sum().backward()
    for name, parameter in nn.ModuleList([stem, down, up]).named_parameters():
        assert parameter.grad is not None and bool(parameter.grad.isfinite().all()), name
    assert spnn.GlobalAvgPool()(y).shape == spnn.GlobalMaxPool()(y).shape == (1, 16)
    assert int(spnn.SparseCrop((1, 1, 1), (4, 4, 4))(y).C[:, 1:].max()) < 4
