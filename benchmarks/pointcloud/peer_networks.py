"""MinkUNet of spvnas, written from its list of layers, in plain torch and in spconv, with the same weights.

Independent of `pointcloud.models`: it is what ours is checked against. A stem of two convolutions; four stages of a
halving convolution and two residual blocks; four rises of an inverse convolution, the skip joined on, and two residual
blocks; a linear classifier. Convolutions have no bias. Channels are those below times the width, rounded down.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.pointcloud import peers
from benchmarks.pointcloud.workloads import Workload

CHANNELS = (32, 32, 64, 128, 256, 256, 128, 96, 96)
LEVELS = 4


@dataclass(frozen=True)
class Conv:
    """One convolution with its batch norm. `level` is that of its output; `kind` subm, down, up or point."""

    name: str
    kind: str
    level: int
    cin: int
    cout: int

    @property
    def kernel(self) -> int:
        return {"subm": 3, "down": 2, "up": 2, "point": 1}[self.kind]


def layers(in_channels: int, width: float) -> list[Conv]:
    """All convolutions in the order in which they run."""
    c = [int(width * n) for n in CHANNELS]
    found = [Conv("stem.0", "subm", 0, in_channels, c[0]), Conv("stem.1", "subm", 0, c[0], c[0])]

    def block(name: str, level: int, cin: int, cout: int) -> None:
        found.append(Conv(f"{name}.0", "subm", level, cin, cout))
        found.append(Conv(f"{name}.1", "subm", level, cout, cout))
        if cin != cout:
            found.append(Conv(f"{name}.skip", "point", level, cin, cout))

    for i in range(1, LEVELS + 1):
        found.append(Conv(f"stage{i}.down", "down", i, c[i - 1], c[i - 1]))
        block(f"stage{i}.1", i, c[i - 1], c[i])
        block(f"stage{i}.2", i, c[i], c[i])
    for i in range(1, LEVELS + 1):
        level, wide, skip = LEVELS - i, c[LEVELS + i], c[LEVELS - i]
        found.append(Conv(f"up{i}.up", "up", level, c[LEVELS + i - 1], wide))
        block(f"up{i}.1", level, wide + skip, wide)
        block(f"up{i}.2", level, wide, wide)
    return found


def random_weights(in_channels: int, num_classes: int, width: float, seed: int = 0) -> dict[str, Tensor]:
    """fp32 weights by `layer.part`: convolution weights [Cout, k, k, k, Cin], batch-norm parts [Cout], the classifier.

    Scaled for some eight neighbours per voxel, so that values stay near 1 through the whole network.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    weights: dict[str, Tensor] = {}
    plan = layers(in_channels, width)
    for conv in plan:
        neighbours = {"subm": 6, "down": 2, "up": 1, "point": 1}[conv.kind]
        scale = math.sqrt(2 / (conv.cin * neighbours))
        weights[f"{conv.name}.weight"] = normal(conv.cout, *[conv.kernel] * 3, conv.cin) * scale
        # The branch that is added to the skip stays small, or values would double with each block.
        weights[f"{conv.name}.gamma"] = (0.3 if conv.name.endswith(".1") else 1) * (1 + 0.1 * normal(conv.cout))
        weights[f"{conv.name}.beta"] = 0.1 * normal(conv.cout)
        weights[f"{conv.name}.mean"] = 0.1 * normal(conv.cout)
        weights[f"{conv.name}.var"] = 1 + 0.1 * normal(conv.cout).abs()
    last = plan[-1].cout
    weights["classifier.weight"] = normal(num_classes, last) / math.sqrt(last)
    weights["classifier.bias"] = 0.1 * normal(num_classes)
    return weights


class Engine(Protocol):
    """How a library writes the parts of the network; `x` is whatever it passes from layer to layer."""

    def conv_bn(self, name: str, x: Any) -> Any: ...
    def has(self, name: str) -> bool: ...
    def relu(self, x: Any) -> Any: ...
    def add(self, x: Any, y: Any) -> Any: ...
    def cat(self, x: Any, y: Any) -> Any: ...
    def classify(self, x: Any) -> Tensor: ...


def forward(engine: Engine, x: Any) -> Tensor:
    """Class scores [N, num_classes] of the input's rows."""

    def block(name: str, x: Any) -> Any:
        y = engine.conv_bn(f"{name}.1", engine.relu(engine.conv_bn(f"{name}.0", x)))
        return engine.relu(engine.add(y, engine.conv_bn(f"{name}.skip", x) if engine.has(f"{name}.skip") else x))

    for i in range(2):
        x = engine.relu(engine.conv_bn(f"stem.{i}", x))
    skips = []
    for i in range(1, LEVELS + 1):
        skips.append(x)
        x = engine.relu(engine.conv_bn(f"stage{i}.down", x))
        x = block(f"stage{i}.2", block(f"stage{i}.1", x))
    for i in range(1, LEVELS + 1):
        x = engine.relu(engine.conv_bn(f"up{i}.up", x))
        x = engine.cat(x, skips.pop())
        x = block(f"up{i}.2", block(f"up{i}.1", x))
    return engine.classify(x)


@dataclass(frozen=True)
class Pyramid:
    """The maps of the whole network: submanifold and halving pairs of each level."""

    submanifold: list[peers.Pairs]
    down: list[peers.Pairs]

    @staticmethod
    def build(coords: Tensor, shape: tuple[int, ...]) -> Pyramid:
        submanifold, down = [peers.torch_submanifold(coords, shape)], []
        for _ in range(LEVELS):
            down.append(peers.torch_strided(coords, shape, 2, 2, 0))
            coords, shape = down[-1].coords, down[-1].shape
            submanifold.append(peers.torch_submanifold(coords, shape))
        return Pyramid(submanifold, down)

    def pairs(self, conv: Conv) -> peers.Pairs:
        """The pairs of a layer that is not a point-wise one."""
        if conv.kind == "subm":
            return self.submanifold[conv.level]
        if conv.kind == "down":
            return self.down[conv.level - 1]
        finer = self.submanifold[conv.level]
        return self.down[conv.level].turned(finer.coords, finer.shape)

    def products(self, plan: list[Conv], num_classes: int) -> list[tuple[int, int, int]]:
        """(rows, Cin, Cout) of each matrix product of a forward pass."""
        found = []
        for conv in plan:
            if conv.kind == "point":
                found.append((self.submanifold[conv.level].coords.shape[0], conv.cin, conv.cout))
            else:
                found += [(rows.numel(), conv.cin, conv.cout) for rows, _ in self.pairs(conv).taps if rows.numel()]
        return [*found, (self.submanifold[0].coords.shape[0], plan[-1].cout, num_classes)]


class TorchEngine:
    """Plain torch: gather, multiply, add per tap. Differentiable, any dtype and device."""

    def __init__(self, plan: list[Conv], weights: dict[str, Tensor], pyramid: Pyramid, training: bool = False) -> None:
        self.plan = {conv.name: conv for conv in plan}
        self.weights = weights
        self.pyramid = pyramid
        self.training = training

    def has(self, name: str) -> bool:
        return name in self.plan

    def conv_bn(self, name: str, x: Tensor) -> Tensor:
        conv, w = self.plan[name], self.weights
        weight = w[f"{name}.weight"]
        if conv.kind == "point":
            y = x @ weight.reshape(conv.cout, conv.cin).T
        else:
            y = peers.torch_convolve(x, self.pyramid.pairs(conv), weight)
        mean, var = (None, None) if self.training else (w[f"{name}.mean"], w[f"{name}.var"])
        return F.batch_norm(y, mean, var, w[f"{name}.gamma"], w[f"{name}.beta"], self.training)

    def relu(self, x: Tensor) -> Tensor:
        return F.relu(x, inplace=True)

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        return x + y

    def cat(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.cat([x, y], 1)

    def classify(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weights["classifier.weight"], self.weights["classifier.bias"])


class SpconvEngine:
    """spconv's layers with torch's batch norm between them, as its users write it, in inference."""

    def __init__(self, module: ModuleType, plan: list[Conv], weights: dict[str, Tensor]) -> None:
        self.weights = weights
        self.convs: dict[str, Callable[[Any], Any]] = {}
        for conv in plan:
            weight = weights[f"{conv.name}.weight"]
            if conv.kind == "subm":
                layer = module.SubMConv3d(conv.cin, conv.cout, 3, bias=False, indice_key=f"subm{conv.level}")
            elif conv.kind == "down":
                layer = module.SparseConv3d(conv.cin, conv.cout, 2, 2, bias=False, indice_key=f"down{conv.level}")
            elif conv.kind == "up":
                key = f"down{conv.level + 1}"
                layer = module.SparseInverseConv3d(conv.cin, conv.cout, 2, indice_key=key, bias=False)
            else:
                # Not spconv's own: it reads the [Cout, 1, 1, 1, Cin] weight of a point-wise layer as [Cin, Cout].
                self.convs[conv.name] = _point_wise(weight)
                continue
            layer = layer.to(weight.device, weight.dtype).eval()
            with torch.no_grad():
                layer.weight.copy_(weight.reshape(layer.weight.shape))
            self.convs[conv.name] = layer

    def has(self, name: str) -> bool:
        return name in self.convs

    def conv_bn(self, name: str, x: Any) -> Any:
        y, w = self.convs[name](x), self.weights
        parts = (w[f"{name}.mean"], w[f"{name}.var"], w[f"{name}.gamma"], w[f"{name}.beta"])
        return y.replace_feature(F.batch_norm(y.features, *parts))

    def relu(self, x: Any) -> Any:
        return x.replace_feature(F.relu(x.features, inplace=True))

    def add(self, x: Any, y: Any) -> Any:
        return x.replace_feature(x.features + y.features)

    def cat(self, x: Any, y: Any) -> Any:
        return x.replace_feature(torch.cat([x.features, y.features], 1))

    def classify(self, x: Any) -> Tensor:
        self.last = x  # knows all maps
        return F.linear(x.features, self.weights["classifier.weight"], self.weights["classifier.bias"])


def _point_wise(weight: Tensor) -> Callable[[Any], Any]:
    matrix = weight.reshape(weight.shape[0], -1)
    return lambda x: x.replace_feature(F.linear(x.features, matrix))


def torch_network(work: Workload, weights: dict[str, Tensor], width: float, cached: bool) -> Callable[[], Tensor]:
    """A call that runs the network in plain torch, its maps built once or in each call."""
    weight = weights["classifier.weight"]
    features, coords = work.features.to(weight.device, weight.dtype), work.coords.to(weight.device)
    plan = layers(features.shape[1], width)
    kept = Pyramid.build(coords, work.shape) if cached else None

    @torch.no_grad()
    def call() -> Tensor:
        return forward(TorchEngine(plan, weights, kept or Pyramid.build(coords, work.shape)), features)

    return call


def spconv_network(
    module: ModuleType, work: Workload, weights: dict[str, Tensor], width: float, cached: bool
) -> Callable[[], Tensor]:
    """A call that runs the network in spconv, or in a module with its names.

    Of the maps only the submanifold ones can be kept for another call; spconv rebuilds the strided ones each time.
    """
    weight = weights["classifier.weight"]
    features, coords = work.features.to(weight.device, weight.dtype), work.coords.to(weight.device)
    engine = SpconvEngine(module, layers(features.shape[1], width), weights)
    kept = module.SparseConvTensor(features, coords, list(work.shape), 1)

    @torch.no_grad()
    def call() -> Tensor:
        x = kept.replace_feature(features) if cached else module.SparseConvTensor(features, coords, list(work.shape), 1)
        return forward(engine, x)

    if cached:
        with peers.one_thread():
            call()
            peers.hand_maps(kept, engine.last)
    return call
