"""MinkUNet against the same network written with spconv's layers, and by its own properties."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pointcloud.models import MinkUNet
from pointcloud.tensor import SparseConvTensor
from pointcloud.voxels.voxelize import voxelize

# Networks this small lose more by a second thread than they gain, and much where its core is taken.
pytestmark = pytest.mark.usefixtures("one_thread")


def surface(
    n: int = 1500, batch_size: int = 2, size: float = 0.15, seed: int = 0, device: str = "cpu"
) -> SparseConvTensor:
    """Spheres standing on wavy ground, voxelized, with features x, y, z and a random column."""
    generator = torch.Generator().manual_seed(seed)
    ground = torch.rand(n, 3, generator=generator) * 6 - 3
    ground[:, 2] = torch.sin(ground[:, 0]) * 0.5
    sphere = F.normalize(torch.randn(n, 3, generator=generator), dim=1) + torch.tensor([0.0, 0.0, 1.0])
    points = torch.cat([ground, sphere])
    points = torch.cat([points, torch.rand(2 * n, 1, generator=generator)], 1)
    batch = torch.randint(batch_size, (2 * n,), generator=generator)
    return voxelize(points.to(device), size, batch_index=batch.to(device), batch_size=batch_size)[0]


def trained_like(model: MinkUNet, seed: int = 0) -> MinkUNet:
    """Batch norms as after training: statistics and scales that are not those of a fresh layer."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm1d):
            shape = module.running_mean.shape
            module.running_mean.copy_(torch.randn(shape, generator=generator) * 0.1)
            module.running_var.copy_(torch.rand(shape, generator=generator) * 0.2 + 0.05)
            with torch.no_grad():
                module.weight.copy_(torch.rand(shape, generator=generator) + 0.5)
                module.bias.copy_(torch.randn(shape, generator=generator) * 0.1)
    return model.eval()


class SpconvMinkUNet:
    """The published architecture, step by step, in spconv's layers and torch's functions, from a state dict."""

    def __init__(self, spconv: Any, state: dict[str, Tensor], blocks: tuple[int, ...]) -> None:
        self.spconv, self.state, self.blocks = spconv, state, blocks

    def conv(self, x: Any, key: str, kind: str, **kwargs: Any) -> Any:
        weight = self.state[key + ".weight"]
        layer = getattr(self.spconv, kind)(weight.shape[4], weight.shape[0], weight.shape[1], bias=False, **kwargs)
        layer.weight.data.copy_(weight)
        return layer.eval()(x)

    def norm(self, x: Any, key: str) -> Any:
        s = self.state
        names = ("running_mean", "running_var", "weight", "bias")
        return x.replace_feature(F.batch_norm(x.features, *(s[f"{key}.{name}"] for name in names)))

    def relu(self, x: Any) -> Any:
        return x.replace_feature(x.features.relu())

    def residual(self, x: Any, key: str, level: int) -> Any:
        out = self.relu(
            self.norm(self.conv(x, f"{key}.net.0", "SubMConv3d", indice_key=f"subm{level}"), f"{key}.net.1")
        )
        out = self.norm(self.conv(out, f"{key}.net.3", "SubMConv3d", indice_key=f"subm{level}"), f"{key}.net.4")
        shortcut = x.features
        if f"{key}.downsample.0.weight" in self.state:
            weight = self.state[f"{key}.downsample.0.weight"]
            shortcut = shortcut @ weight.view(weight.shape[-1], weight.shape[0])  # [Cin, Cout], as spconv reads it
            shortcut = self.norm(x.replace_feature(shortcut), f"{key}.downsample.1").features
        return self.relu(out.replace_feature(out.features + shortcut))

    def __call__(self, x: Any) -> Tensor:
        for i in (0, 3):
            x = self.relu(self.norm(self.conv(x, f"stem.{i}", "SubMConv3d", indice_key="subm0"), f"stem.{i + 1}"))
        levels = [x]
        for i in range(4):
            x = self.conv(x, f"stages.{i}.down.0", "SparseConv3d", stride=2, indice_key=f"down{i}")
            x = self.relu(self.norm(x, f"stages.{i}.down.1"))
            for j in range(self.blocks[i]):
                x = self.residual(x, f"stages.{i}.blocks.{j}", i + 1)
            levels.append(x)
        levels.pop()
        for i in range(4):
            x = self.conv(x, f"ups.{i}.up.0", "SparseInverseConv3d", indice_key=f"down{3 - i}")
            x = self.relu(self.norm(x, f"ups.{i}.up.1"))
            x = x.replace_feature(torch.cat([x.features, levels.pop().features], 1))
            for j in range(self.blocks[4 + i]):
                x = self.residual(x, f"ups.{i}.blocks.{j}", 3 - i)
        return F.linear(x.features, self.state["classifier.weight"], self.state["classifier.bias"])


def spconv_logits(model: MinkUNet, x: SparseConvTensor, blocks: tuple[int, ...]) -> Tensor:
    spconv = pytest.importorskip("spconv.pytorch")
    shape = [-(-n // 16) * 16 for n in x.spatial_shape]
    with torch.no_grad():
        peer = SpconvMinkUNet(spconv, model.state_dict(), blocks)
        return peer(spconv.SparseConvTensor(x.features, x.indices, shape, x.batch_size))


@pytest.mark.parametrize(("depth", "blocks"), [(14, (1,) * 8), (18, (2,) * 8), (34, (2, 3, 4, 6, 2, 2, 2, 2))])
def test_equals_spconv(depth: int, blocks: tuple[int, ...]) -> None:
    model = trained_like(MinkUNet(num_classes=7, width=0.25, depth=depth))
    x = surface()
    with torch.no_grad():
        ours = model(x)
    assert ours.shape == (len(x.features), 7)
    theirs = spconv_logits(model, x, blocks)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4 * float(theirs.abs().max()))


def test_equals_spconv_on_a_real_sweep(data_dir: Path) -> None:
    points = torch.from_numpy(
        np.fromfile(data_dir / "pointcloud/nuscenes_lidar_top.pcd.bin", dtype=np.float32).reshape(-1, 5)[:, :4].copy()
    )
    points[:, 3] /= 255
    x, _ = voxelize(points, 0.2, [-20, -20, -3, 20, 20, 2])
    assert x.features.shape[0] > 3000
    model = trained_like(MinkUNet(width=0.5))
    with torch.no_grad():
        ours = model(x)
    theirs = spconv_logits(model, x, (2,) * 8)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4 * float(theirs.abs().max()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_equals_the_network_in_double_precision(dtype: torch.dtype, device: str) -> None:
    """On every device, against the CPU's fp64."""
    model = trained_like(MinkUNet(num_classes=7, width=0.25))
    x = surface(600)
    with torch.no_grad():
        expected = copy.deepcopy(model).double()(x.to(torch.float64))
        got = model.to(device, dtype)(x.to(device).to(dtype))
    assert got.dtype == dtype and got.device.type == device
    tolerance = {torch.float32: 5e-5, torch.float16: 1e-2, torch.bfloat16: 6e-2}[dtype]
    torch.testing.assert_close(got.cpu().double(), expected, rtol=0, atol=tolerance * float(expected.abs().max()))


@pytest.mark.parametrize(("width", "million"), [(1.0, 21.7), (0.64, 8.8), (0.5, 5.4)])
def test_number_of_parameters(width: float, million: float) -> None:
    """SPVNAS states 21.7, 8.8 and 5.5 million; its count includes point branches that its MinkUNet does not use."""
    count = sum(p.numel() for p in MinkUNet(width=width).parameters())
    assert round(count / 1e6, 1) == million


def test_gradients_reach_every_parameter(device: str) -> None:
    model = MinkUNet(num_classes=5, width=0.25).to(device)
    x = surface(400, device=device)
    target = torch.randint(5, (len(x.features),)).to(device)
    features = x.features.clone().requires_grad_()
    F.cross_entropy(model(x.replace_feature(features)), target).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and bool(parameter.grad.isfinite().all()), name
        assert bool(parameter.grad.any()), name
    assert bool(features.grad.any())


@pytest.mark.parametrize("dtype", [None, torch.bfloat16], ids=["fp32", "autocast"])
def test_training_lowers_the_loss(dtype: torch.dtype | None, device: str) -> None:
    model = MinkUNet(num_classes=2, width=0.125, depth=14).to(device)
    x = surface(400, batch_size=1, device=device)
    target = (x.features[:, 2] > 0.4).long()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    losses = []
    for _ in range(8):
        with torch.autocast(device, dtype, enabled=dtype is not None):
            loss = F.cross_entropy(model(x), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.7 * losses[0]


def test_order_of_rows_does_not_matter(device: str) -> None:
    model = trained_like(MinkUNet(num_classes=3, width=0.25)).to(device)
    x = surface(500, device=device)
    order = torch.randperm(len(x.features)).to(device)
    with torch.no_grad():
        a, b = model(x), model(x.select_by_index(order))
    torch.testing.assert_close(a[order], b, rtol=1e-4, atol=1e-5)


def test_samples_do_not_see_each_other(device: str) -> None:
    model = trained_like(MinkUNet(num_classes=3, width=0.25)).to(device)
    x = surface(500, batch_size=2, device=device)
    second = x.indices[:, 0] == 1
    indices = x.indices[second].clone()
    indices[:, 0] = 0
    alone = SparseConvTensor(x.features[second], indices, x.spatial_shape, 1)
    with torch.no_grad():
        torch.testing.assert_close(model(x)[second], model(alone), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [[1, 1, 1], [17, 33, 5], [15, 16, 31]], ids=str)
def test_odd_grids_lose_no_voxel(shape: list[int], device: str) -> None:
    """A grid of any size gives what the same cells give in a much larger one: no level drops its last plane."""
    corner = torch.tensor([[0, *(n - 1 for n in shape)], [0, 0, 0, 0]], dtype=torch.int32).unique(dim=0)
    features, corner = torch.randn(len(corner), 4).to(device), corner.to(device)
    model = trained_like(MinkUNet(num_classes=3, width=0.25)).to(device)
    with torch.no_grad():
        small = model(SparseConvTensor(features, corner, shape, 1))
        large = model(SparseConvTensor(features, corner, [64, 64, 64], 1))
        blank = model(SparseConvTensor(torch.zeros_like(features), corner, shape, 1))
    torch.testing.assert_close(small, large)
    assert not torch.allclose(small, blank)


@pytest.mark.parametrize("training", [False, True])
def test_no_voxels(training: bool, device: str) -> None:
    model = MinkUNet(num_classes=3, width=0.25).train(training).to(device)
    empty = SparseConvTensor(torch.empty(0, 4), torch.empty(0, 4, dtype=torch.int32), [20, 20, 20], 2).to(device)
    assert model(empty).shape == (0, 3)


def test_one_voxel(device: str) -> None:
    one = SparseConvTensor(torch.randn(1, 4), torch.zeros(1, 4, dtype=torch.int32), [20, 20, 20], 1).to(device)
    model = MinkUNet(num_classes=3, width=0.25).to(device)
    assert bool(model.eval()(one).isfinite().all())
    with pytest.raises(ValueError, match="more than 1 value per channel"):  # torch's own message
        model.train()(one)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MinkUNet(depth=50), "depth must be one of 14, 18, 34, got 50"),
        (lambda: MinkUNet(width=0.01), "width at least 1/32, got"),
        (lambda: MinkUNet(in_channels=3, width=0.25)(surface(50)), "3 channels, got features"),
    ],
    ids=["depth", "width", "in_channels"],
)
def test_bad_arguments(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
