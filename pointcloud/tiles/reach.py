"""How far a network looks: which voxels of the input an output depends on."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pointcloud.convolution import SparseConvolution
from pointcloud.coordinates import Geometry
from pointcloud.modules import ToDense
from pointcloud.norms import SparseGroupNorm, SparseInstanceNorm
from pointcloud.offsets import SparseOffsetConv
from pointcloud.pool import SparseGlobalAvgPool, SparseGlobalMaxPool, SparsePool
from pointcloud.tensor import SparseConvTensor

_GLOBAL = (
    SparseGlobalAvgPool, SparseGlobalMaxPool, SparseGroupNorm, SparseInstanceNorm, ToDense,
    nn.modules.instancenorm._InstanceNorm,
)  # fmt: skip


@dataclass(frozen=True)
class Reach:
    """How far a network looks, in voxels of its input, one number per axis.

    Attributes:
        halo: an output depends on no voxel farther than this from its own cell (its first one, of a coarser level).
        stride: extent of the coarsest level's cells (the least that all levels' cells divide).
    """

    halo: tuple[int, ...]
    stride: tuple[int, ...]


def check_local(model: nn.Module) -> None:
    """Raise ValueError where a module looks at the whole cloud."""
    for name, module in model.named_modules():
        whole = isinstance(module, _GLOBAL)
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None:
            whole = True
        if whole:
            raise ValueError(
                f"model cannot be run tile by tile: {name or 'it'} ({type(module).__name__}) looks at the whole cloud"
            )


@torch.no_grad()
def find_reach(model: nn.Module, x: SparseConvTensor) -> Reach:
    """How far the network looks, from the layers that a call on some voxels runs: the sum over all of them, which no
    path through the network exceeds.

    Raises:
        ValueError: a module looks at the whole cloud, a layer reads coordinates that no known layer made, or an answer
            depends on voxels farther away in some other way.
    """
    check_local(model)
    walk = _Walk(x)
    hooks = [
        module.register_forward_hook(walk.layer(name or type(module).__name__))
        for name, module in model.named_modules()
        if isinstance(module, (SparseConvolution, SparsePool, SparseOffsetConv))
    ]
    try:
        model(x)
    finally:
        for hook in hooks:
            hook.remove()
    reach = Reach(tuple(walk.halo), tuple(walk.coarsest))
    _check_nothing_else(model, x, reach)
    return reach


class _Walk:
    """Follows the extent of the cells from layer to layer."""

    def __init__(self, x: SparseConvTensor) -> None:
        ndim = len(x.spatial_shape)
        self.halo = [0] * ndim
        self.coarsest = [1] * ndim
        self.strides: dict[int, list[int]] = {}
        self.held: list[Tensor] = []  # a freed tensor's address would be given to another
        self._note(x.indices, [1] * ndim)

    def layer(self, name: str) -> Any:
        def hook(module: Any, args: Any, output: Any) -> None:
            self._pass(name, module, args[0], output)

        return hook

    def _note(self, indices: Tensor, stride: list[int]) -> None:
        self.held.append(indices)
        self.strides[indices.data_ptr()] = stride
        self.coarsest = [math.lcm(a, b) for a, b in zip(self.coarsest, stride)]

    def _pass(self, name: str, module: Any, x: SparseConvTensor, out: SparseConvTensor) -> None:
        here = self.strides.get(x.indices.data_ptr())
        if here is None:
            raise ValueError(
                f"model cannot be run tile by tile: {name} reads coordinates that no convolution or pool made, so how "
                "far it looks is not known"
            )
        if isinstance(module, SparseOffsetConv):
            far = module.offsets.abs().amax(0).tolist()
            self._look(far, here)
            if out.indices.data_ptr() not in self.strides:
                self._note(out.indices, [s * t for s, t in zip(module.stride, here)])
            return
        there = self.strides.get(out.indices.data_ptr())
        if isinstance(module, SparseConvolution) and module.inverse:
            if there is None:
                raise ValueError(
                    f"model cannot be run tile by tile: the coordinates that {name} returns to are not known"
                )
            known = x.find_inverse(module.kernel_size, module.indice_key)
            self._look(_distance(known.geometry), there)
            return
        geometry = module.geometry
        if geometry.kind == "transposed":
            if any(t % s for t, s in zip(here, geometry.stride)):
                raise ValueError(f"model cannot be run tile by tile: {name} makes cells finer than the input's")
            fine = [t // s for t, s in zip(here, geometry.stride)]
            self._look(_distance(geometry), fine)
            self._note(out.indices, fine)
            return
        self._look(_distance(geometry), here)
        if there is None:
            self._note(out.indices, [s * t for s, t in zip(geometry.stride, here)])

    def _look(self, cells: list[int], extent: list[int]) -> None:
        self.halo = [far + n * t for far, n, t in zip(self.halo, cells, extent)]


def _distance(geometry: Geometry) -> list[int]:
    """The farthest that a tap lies from the output's own cell, in cells of the finer side."""
    far = []
    for k, p, d in zip(geometry.kernel_size, geometry.padding, geometry.dilation):
        before = k // 2 * d if geometry.kind == "submanifold" else p
        far.append(max(before, (k - 1) * d - before))
    return far


def _check_nothing_else(model: nn.Module, x: SparseConvTensor, reach: Reach) -> None:
    """Raise where the answer changes with voxels beyond the reach: something in a forward looks at all of them."""
    step = torch.tensor(reach.stride, device=x.indices.device)
    halo = torch.tensor(reach.halo, device=step.device)
    low = x.indices[:, 1:].amin(0)
    extent = x.indices[:, 1:].amax(0) - low + 1
    margin = (2 * halo // step + 1) * step
    away = int((extent[0] + 2 * halo[0]) // step[0] + 2) * int(step[0])
    cells = x.indices.clone()
    cells[:, 1:] += (margin - low // step * step).int()
    other = cells.clone()
    other[:, 1] += away
    # The same voxels in a grid far larger than they are, so that no border of it plays a part.
    top = other[:, 1:].amax(0) + margin
    shape = ((top // step + 1) * step).tolist()
    alone = rows_of(model(SparseConvTensor(x.features, cells, shape, 1)), len(cells))
    twice = torch.cat([x.features, x.features * 2 + 1])
    both = rows_of(model(SparseConvTensor(twice, torch.cat([cells, other]), shape, 1)), 2 * len(cells))
    difference = (both[: len(cells)] - alone).abs().max() if len(cells) else torch.zeros(())
    if not difference <= 1e-3 * alone.abs().max().clamp(min=1e-6):
        raise ValueError(
            "model cannot be run tile by tile: its answer for a voxel changes with voxels farther away than its "
            f"layers look ({list(reach.halo)} voxels): something in its forward looks at the whole cloud"
        )


def rows_of(output: Any, n: int) -> Tensor:
    """The network's answer as a tensor [n, classes], one row per input voxel. Raises ValueError for another form."""
    features = output.features if isinstance(output, SparseConvTensor) else output
    if not isinstance(features, Tensor) or features.ndim != 2 or len(features) != n:
        got = list(features.shape) if isinstance(features, Tensor) else type(output).__name__
        raise ValueError(f"model must return one row of logits for each of the {n} voxels given, got {got}")
    return features
