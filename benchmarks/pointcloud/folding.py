"""Networks whose blocks are written by hand: on spconv, as they are loaded, and after `pointcloud.accelerate`.

Maps are rebuilt in each call. The networks take any module with spconv's names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pointcloud
from benchmarks.competitors import NETWORK_TOLERANCE, OURS, inference
from benchmarks.harness import DTYPES, Competitor, Settings, Trial
from benchmarks.pointcloud import peers
from benchmarks.pointcloud.entrants import SPCONVS, entrants
from benchmarks.pointcloud.workloads import Workload

AS_LOADED = "trisparse as loaded"


def trials(work: Workload, settings: Settings) -> Iterator[Trial]:
    """A detector's residual backbone and a U-Net: on spconv, and on ours in each dtype folded and not."""
    for title, make in (("residual backbone by hand", Backbone), ("MinkUNet by hand", UNet)):
        model = _trained_like(make(work.features.shape[1]))
        found: list[tuple[str, str, int]] = []
        for name, dtype, threads in entrants(settings):
            if name == OURS:
                found += [(each, dtype, threads) for each in (AS_LOADED, OURS)]
            elif name in SPCONVS:
                found.append((name, dtype, threads))
        yield Trial(
            case="folding",
            workload=work.name,
            shape=title,
            reference=partial(_reference, model, work, settings),
            competitors=[
                Competitor(
                    name, dtype, threads, partial(_build, model, name, dtype, work, settings), _sorted,
                    NETWORK_TOLERANCE[dtype],
                )
                for name, dtype, threads in found
            ],
        )  # fmt: skip


def _reference(model: nn.Module, work: Workload, settings: Settings) -> list[Tensor]:
    """In fp64, layer by layer, as loaded."""
    return _sorted(_call(_copy(model).double().to(settings.device), pointcloud, work, settings, torch.float64)())


def _sorted(out: Any) -> list[Tensor]:
    return [peers.by_coordinates(out.indices, out.features)]


def _build(model: nn.Module, name: str, dtype: str, work: Workload, settings: Settings) -> Callable[[], Any]:
    library: Any = peers.spconv(SPCONVS[name]) if name in SPCONVS else pointcloud
    loaded = _copy(model, library).to(settings.device)
    own = dtype == "fp32"
    if name in SPCONVS:
        return _call(loaded.to(DTYPES[dtype]), library, work, settings, DTYPES[dtype])
    if own and name == AS_LOADED:
        return _call(loaded, library, work, settings, torch.float32)
    fast = pointcloud.accelerate(loaded, dtype=None if own else DTYPES[dtype], fold=name == OURS)
    return _call(fast, library, work, settings, torch.float32)


def _copy(model: nn.Module, library: Any = pointcloud) -> nn.Module:
    made = type(model)(4, library)
    made.load_state_dict(model.state_dict())
    return made.eval()


def _call(model: nn.Module, library: Any, work: Workload, settings: Settings, dtype: torch.dtype) -> Callable[[], Any]:
    features = work.features.to(settings.device, dtype)
    return inference(lambda: model(peers.tensor_of(library, work, features)))


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

    def __init__(self, library: Any, c_in: int, c_out: int, key: str) -> None:
        super().__init__()
        self.conv1 = library.SubMConv3d(c_in, c_out, 3, bias=False, indice_key=key)
        self.bn1 = nn.BatchNorm1d(c_out)
        self.conv2 = library.SubMConv3d(c_out, c_out, 3, bias=False, indice_key=key)
        self.bn2 = nn.BatchNorm1d(c_out)
        self.proj = library.SubMConv3d(c_in, c_out, 1, bias=False) if c_in != c_out else None
        self.bn3 = nn.BatchNorm1d(c_out) if c_in != c_out else None

    def forward(self, x: Any) -> Any:
        out = self.conv1(x)
        out = out.replace_feature(F.relu(self.bn1(out.features)))
        out = self.conv2(out)
        features = self.bn2(out.features)
        features += x.features if self.proj is None else self.bn3(self.proj(x).features)  # type: ignore[misc]
        return out.replace_feature(F.relu(features, inplace=True))


def _blocks(library: Any, c_in: int, c_out: int, key: str) -> nn.ModuleList:
    return nn.ModuleList([Block(library, c_in, c_out, key), Block(library, c_out, c_out, key)])


class _Change(nn.Module):
    """A convolution to or from another level, batch norm and ReLU."""

    def __init__(self, conv: nn.Module, channels: int) -> None:
        super().__init__()
        self.conv = conv
        self.bn = nn.BatchNorm1d(channels)

    def forward(self, x: Any) -> Any:
        out = self.conv(x)
        return out.replace_feature(torch.relu(self.bn(out.features)))


def _down(library: Any, c_in: int, c_out: int, kernel: int, key: str) -> _Change:
    padding = 1 if kernel == 3 else 0
    conv = library.SparseConv3d(c_in, c_out, kernel, 2, padding=padding, bias=False, indice_key=key)
    return _Change(conv, c_out)


class Backbone(nn.Module):
    """Levels of 16, 32, 64 and 128 channels with two blocks each, halved by strided convolutions of kernel 3."""

    def __init__(self, channels: int, library: Any = pointcloud) -> None:
        super().__init__()
        widths = (16, 32, 64, 128)
        self.stem = _Change(library.SubMConv3d(channels, 16, 3, bias=False, indice_key="stem"), 16)
        self.downs = nn.ModuleList(_down(library, a, b, 3, f"down{b}") for a, b in pairwise(widths))
        self.blocks = nn.ModuleList(nn.ModuleList(Block(library, c, c, f"level{c}") for _ in range(2)) for c in widths)

    def forward(self, x: Any) -> Any:
        x = self.stem(x)
        for level, blocks in enumerate(self.blocks):
            x = self.downs[level - 1](x) if level else x
            for block in blocks:  # type: ignore[attr-defined]
                x = block(x)
        return x


class UNet(nn.Module):
    """MinkUNet18 of half the published width: four levels down and up, a concatenation with the skip in each."""

    def __init__(self, channels: int, library: Any = pointcloud) -> None:
        super().__init__()
        down, up = (16, 16, 32, 64, 128), (128, 128, 64, 48, 48)
        self.stem = _Change(library.SubMConv3d(channels, 16, 3, bias=False, indice_key="level0"), 16)
        self.downs, self.ups = nn.ModuleList(), nn.ModuleList()
        self.encoder, self.decoder = nn.ModuleList(), nn.ModuleList()
        for i in range(4):
            self.downs.append(_down(library, down[i], down[i], 2, f"down{i}"))
            self.encoder.append(_blocks(library, down[i], down[i + 1], f"level{i + 1}"))
            inverse = library.SparseInverseConv3d(up[i], up[i + 1], 2, f"down{3 - i}", bias=False)
            self.ups.append(_Change(inverse, up[i + 1]))
            self.decoder.append(_blocks(library, up[i + 1] + down[3 - i], up[i + 1], f"level{3 - i}"))
        self.head = nn.Linear(48, 19)

    def forward(self, x: Any) -> Any:
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
        return x.replace_feature(self.head(x.features))
