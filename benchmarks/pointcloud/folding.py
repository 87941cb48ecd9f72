"""Networks whose blocks are written by hand, as they are loaded and after `pointcloud.accelerate`, maps rebuilt."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pointcloud
from benchmarks.competitors import NETWORK_TOLERANCE, OURS
from benchmarks.harness import DTYPES, Competitor, Settings, Trial
from benchmarks.pointcloud import peers
from benchmarks.pointcloud.workloads import Workload

AS_LOADED = "trisparse as loaded"


def trials(work: Workload, settings: Settings) -> Iterator[Trial]:
    """A detector's residual backbone and a U-Net, in each dtype folded and not."""
    for title, make in (("residual backbone by hand", Backbone), ("MinkUNet by hand", UNet)):
        model = _trained_like(make(work.features.shape[1]))
        yield Trial(
            case="folding",
            workload=work.name,
            shape=title,
            reference=partial(_reference, model, work, settings),
            competitors=[
                Competitor(
                    name,
                    dtype,
                    threads,
                    partial(_build, model, name == OURS, dtype, work, settings),
                    lambda out: [out],
                    NETWORK_TOLERANCE[dtype],
                )
                for name in (AS_LOADED, OURS)
                for dtype in settings.dtypes
                for threads in settings.threads
            ],
        )


def _reference(model: nn.Module, work: Workload, settings: Settings) -> list[Tensor]:
    """In fp64, layer by layer, as loaded."""
    return [_call(_copy(model).double().to(settings.device), work, settings, torch.float64)()]


def _build(model: nn.Module, fold: bool, dtype: str, work: Workload, settings: Settings) -> Callable[[], Tensor]:
    loaded = _copy(model).to(settings.device)
    own = dtype == "fp32"
    if own and not fold:
        return _call(loaded, work, settings, torch.float32)
    fast = pointcloud.accelerate(loaded, dtype=None if own else DTYPES[dtype], fold=fold)
    return _call(fast, work, settings, torch.float32)


def _copy(model: nn.Module) -> nn.Module:
    made = type(model)(4)
    made.load_state_dict(model.state_dict())
    return made.eval()


def _call(model: nn.Module, work: Workload, settings: Settings, dtype: torch.dtype) -> Callable[[], Tensor]:
    features = work.features.to(settings.device, dtype)

    @torch.no_grad()
    def call() -> Tensor:
        out: Tensor = model(peers.tensor_of(pointcloud, work, features))
        return out

    return call


def _trained_like(model: nn.Module) -> nn.Module:
    """Batch norms with statistics and factors of their own."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            for tensor, low, high in (
                (module.running_mean, -0.2, 0.2),
                (module.running_var, 0.3, 0.8),
                (module.weight.data, 0.2, 1.2),
                (module.bias.data, -0.2, 0.2),
            ):
                assert tensor is not None
                tensor.copy_(torch.rand(tensor.shape, generator=generator) * (high - low) + low)
    return model.eval()


class Block(nn.Module):
    """Two convolutions with batch norm, ReLU and a sum, all by hand."""

    def __init__(self, c_in: int, c_out: int, key: str) -> None:
        super().__init__()
        self.conv1 = pointcloud.SubMConv3d(c_in, c_out, 3, bias=False, indice_key=key)
        self.bn1 = nn.BatchNorm1d(c_out)
        self.conv2 = pointcloud.SubMConv3d(c_out, c_out, 3, bias=False, indice_key=key)
        self.bn2 = nn.BatchNorm1d(c_out)
        self.proj = pointcloud.SubMConv3d(c_in, c_out, 1, bias=False) if c_in != c_out else None
        self.bn3 = nn.BatchNorm1d(c_out) if c_in != c_out else None

    def forward(self, x: Any) -> Any:
        out = self.conv1(x)
        out = out.replace_feature(F.relu(self.bn1(out.features)))
        out = self.conv2(out)
        features = self.bn2(out.features)
        features += x.features if self.proj is None else self.bn3(self.proj(x).features)  # type: ignore[misc]
        return out.replace_feature(F.relu(features, inplace=True))


def _blocks(c_in: int, c_out: int, key: str) -> nn.ModuleList:
    return nn.ModuleList([Block(c_in, c_out, key), Block(c_out, c_out, key)])


class _Change(nn.Module):
    """A convolution to or from another level, batch norm and ReLU."""

    def __init__(self, conv: nn.Module, channels: int) -> None:
        super().__init__()
        self.conv = conv
        self.bn = nn.BatchNorm1d(channels)

    def forward(self, x: Any) -> Any:
        out = self.conv(x)
        return out.replace_feature(torch.relu(self.bn(out.features)))


def _down(c_in: int, c_out: int, kernel: int, key: str) -> _Change:
    padding = 1 if kernel == 3 else 0
    conv = pointcloud.SparseConv3d(c_in, c_out, kernel, 2, padding=padding, bias=False, indice_key=key)
    return _Change(conv, c_out)


class Backbone(nn.Module):
    """Levels of 16, 32, 64 and 128 channels with two blocks each, halved by strided convolutions of kernel 3."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        widths = (16, 32, 64, 128)
        self.stem = _Change(pointcloud.SubMConv3d(channels, 16, 3, bias=False, indice_key="stem"), 16)
        self.downs = nn.ModuleList(_down(a, b, 3, f"down{b}") for a, b in pairwise(widths))
        self.blocks = nn.ModuleList(nn.ModuleList(Block(c, c, f"level{c}") for _ in range(2)) for c in widths)

    def forward(self, x: Any) -> Tensor:
        x = self.stem(x)
        for level, blocks in enumerate(self.blocks):
            x = self.downs[level - 1](x) if level else x
            for block in blocks:  # type: ignore[attr-defined]
                x = block(x)
        features: Tensor = x.features
        return features


class UNet(nn.Module):
    """MinkUNet18 of half the published width: four levels down and up, a concatenation with the skip in each."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        down, up = (16, 16, 32, 64, 128), (128, 128, 64, 48, 48)
        self.stem = _Change(pointcloud.SubMConv3d(channels, 16, 3, bias=False, indice_key="level0"), 16)
        self.downs, self.ups = nn.ModuleList(), nn.ModuleList()
        self.encoder, self.decoder = nn.ModuleList(), nn.ModuleList()
        for i in range(4):
            self.downs.append(_down(down[i], down[i], 2, f"down{i}"))
            self.encoder.append(_blocks(down[i], down[i + 1], f"level{i + 1}"))
            inverse = pointcloud.SparseInverseConv3d(up[i], up[i + 1], 2, f"down{3 - i}", bias=False)
            self.ups.append(_Change(inverse, up[i + 1]))
            self.decoder.append(_blocks(up[i + 1] + down[3 - i], up[i + 1], f"level{3 - i}"))
        self.head = nn.Linear(48, 19)

    def forward(self, x: Any) -> Tensor:
        x = self.stem(x)
        skips = []
        for down, blocks in zip(self.downs, self.encoder):
            skips.append(x)
            x = down(x)
            for block in blocks:  # type: ignore[attr-defined]
                x = block(x)
        for up, blocks in zip(self.ups, self.decoder):
            x = up(x)
            x = x.replace_feature(torch.cat([x.features, skips.pop().features], 1))
            for block in blocks:  # type: ignore[attr-defined]
                x = block(x)
        scores: Tensor = self.head(x.features)
        return scores
