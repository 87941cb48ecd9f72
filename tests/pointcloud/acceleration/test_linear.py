"""Batch norm behind a linear layer, in a network of sparse convolutions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pointcloud
from pointcloud.conv import SubMConv3d
from pointcloud.tensor import SparseConvTensor

pytestmark = pytest.mark.usefixtures("one_thread")


class Net(nn.Module):
    """Linear layers with and without a norm, as the unpooling of a point transformer has them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = SubMConv3d(4, 8, 3, bias=False), nn.BatchNorm1d(8)
        self.proj = nn.Sequential(nn.Linear(8, 12), nn.BatchNorm1d(12), nn.ReLU())
        self.skip = nn.Sequential(nn.Linear(8, 12, bias=False), nn.BatchNorm1d(12))
        self.head = nn.Linear(12, 5)
        self.calls: list[Tensor] = []

    def forward(self, x: SparseConvTensor) -> Tensor:
        features = F.gelu(self.norm(self.stem(x).features))
        kept = features.clone()
        skip = self.skip(features)
        features.zero_()  # after the linear layer has read it
        return self.head(self.proj(kept) + skip).log_softmax(1)


def cloud() -> SparseConvTensor:
    generator = torch.Generator().manual_seed(0)
    points = F.normalize(torch.randn(300, 3, generator=generator), dim=1) * 2
    return pointcloud.voxelize(points, 0.4, features=torch.randn(300, 4, generator=generator))[0]


def network() -> nn.Module:
    model = Net()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            nn.init.uniform_(module.running_mean, -1, 1)
            nn.init.uniform_(module.running_var, 0.2, 1)
            nn.init.uniform_(module.weight, -1, 1.5)
            nn.init.uniform_(module.bias, -1, 1)
    return model.eval().requires_grad_(False)


@pytest.mark.parametrize("dtype", [None, "bf16"])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_norms_behind_linear_layers(mode: Any, dtype: str | None) -> None:
    model, x = network(), cloud()
    fast = pointcloud.accelerate(model, dtype=dtype)
    for _ in range(3):
        with mode():
            expected, got = model(x), fast(x)
        assert type(got) is Tensor
        tolerance = 1e-5 if dtype is None else 0.1
        torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)
    assert fast.acceleration.batch_norms == 3 and fast.acceleration.left == {}


def test_results_follow_edits() -> None:
    model, x = network(), cloud()
    fast = pointcloud.accelerate(model, example=x)
    with torch.no_grad():
        for each in (model, fast):
            each.proj[0].weight.data.mul_(3)
            each.skip[1].running_var.mul_(2)
        torch.testing.assert_close(fast(x), model(x), rtol=1e-5, atol=1e-5)


def test_gradients_pass() -> None:
    model, x = network(), cloud()
    fast = pointcloud.accelerate(model, example=x)
    leaf = x.features.clone().requires_grad_()
    fast(x.replace_feature(leaf)).sum().backward()
    assert leaf.grad is not None


def test_a_network_without_sparse_convolutions_is_left_as_it_is() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).eval()
    fast = pointcloud.accelerate(model)
    assert fast.acceleration.left == {"1": "there is no sparse convolution that could take it over"}
    assert not fast._forward_hooks and not fast[0]._forward_pre_hooks
