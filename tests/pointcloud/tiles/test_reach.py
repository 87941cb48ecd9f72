"""How far networks look."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import pointcloud
from pointcloud import (
    SparseConv3d,
    SparseConvTensor,
    SparseInverseConv3d,
    SparseMaxPool3d,
    SparseSequential,
    SubMConv3d,
)
from pointcloud.models import MinkUNet
from pointcloud.tiles.reach import find_reach
from tests.pointcloud.stream.changing_clouds import settled

GRID = (48, 16, 16)


def cloud(voxels: int = 300) -> SparseConvTensor:
    keys = torch.randperm(48 * 16 * 16)[:voxels]
    index = torch.stack([keys * 0, keys // 256, keys // 16 % 16, keys % 16], 1).int()
    return SparseConvTensor(torch.randn(voxels, 2), index, GRID, 1)


NETWORKS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "submanifold": (lambda: SubMConv3d(2, 3, (3, 5, 1), dilation=(2, 1, 1)), (2, 2, 0)),
    "even": (lambda: SubMConv3d(2, 3, 4), (2, 2, 2)),
    "kernel 1": (lambda: SubMConv3d(2, 3, 1), (0, 0, 0)),
    "two levels": (
        lambda: SparseSequential(
            SparseConv3d(2, 4, 3, 2, padding=1, indice_key="a"),
            SubMConv3d(4, 4, 3),
            SparseInverseConv3d(4, 3, 3, "a"),
        ),
        (1 + 2 + 1,) * 3,
    ),
    "pool": (
        lambda: SparseSequential(
            SparseMaxPool3d(2, 2, indice_key="a"), SubMConv3d(2, 4, 3), SparseInverseConv3d(4, 3, 2, "a")
        ),
        (1 + 2 + 1,) * 3,
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_halo_of_layers(name: str) -> None:
    make, halo = NETWORKS[name]
    assert find_reach(make().eval(), cloud()).halo == halo


def test_halo_covers_what_changes_an_answer() -> None:
    model = settled(MinkUNet(2, 3, width=0.25, depth=14))
    reach = find_reach(model, cloud())
    # Two of stride 1; down: the kernel of 2, and two in the block; up: the kernel, and two in the block.
    assert reach.halo == (2 + sum(2 * t + t // 2 for t in (2, 4, 8, 16)) + sum(2 * t + t for t in (8, 4, 2, 1)),) * 3
    assert reach.stride == (16, 16, 16)


@pytest.mark.parametrize("name", ["submanifold", "even", "two levels"])
def test_nothing_farther_away_counts_and_nearer_does(name: str) -> None:
    model = NETWORKS[name][0]().eval()
    halo = find_reach(model, cloud()).halo[0]
    x = torch.zeros(48 * 16 * 16, 2)
    index = torch.cartesian_prod(torch.arange(1), *(torch.arange(n) for n in GRID)).int()
    with torch.no_grad():
        before = model(SparseConvTensor(x, index, GRID, 1)).features.view(*GRID, -1)
        x = x.view(*GRID, 2).clone()
        x[24] += 1
        after = model(SparseConvTensor(x.view(-1, 2), index, GRID, 1)).features.view(*GRID, -1)
    moved = (before - after).abs().amax((1, 2, 3)).nonzero().squeeze(1)
    assert (moved - 24).abs().max() <= halo and len(moved) > 1


class Mean(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = SubMConv3d(2, 3, 3)

    def forward(self, x: SparseConvTensor) -> Any:
        features = self.conv(x).features
        return features - features.mean(0)


class Sorting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = SubMConv3d(2, 3, 3)

    def forward(self, x: SparseConvTensor) -> Any:
        return self.conv(pointcloud.prune(x, x.features[:, 0] > 0))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (SparseSequential(SubMConv3d(2, 3, 3), pointcloud.SparseInstanceNorm(3)), r"1 \(SparseInstanceNorm\) looks at"),
        (SparseSequential(SubMConv3d(2, 3, 3), pointcloud.SparseGlobalAvgPool()), r"1 \(SparseGlobalAvgPool\) looks"),
        (SparseSequential(SubMConv3d(2, 3, 3), nn.BatchNorm1d(3, track_running_stats=False)), r"1 \(BatchNorm1d\)"),
        (SparseSequential(pointcloud.ToDense()), r"0 \(ToDense\) looks"),
        (Mean(), "something in its forward looks at the whole cloud"),
        (Sorting(), "conv reads coordinates that no convolution or pool made"),
        (SparseConv3d(2, 3, 2, 2), "model must return one row of logits for each of the 300 voxels"),
    ],
)
def test_refusals(model: nn.Module, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        find_reach(model.eval(), cloud())
