"""Our MinkUNet with spconv's layers in place of ours: the same code and the same weights on the peer's kernels."""

from __future__ import annotations

import copy
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from pointcloud.conv import SparseConvolution
from pointcloud.models import MinkUNet
from pointcloud.modules import SparseModule, SparseSequential


def with_spconv_layers(model: MinkUNet, spconv: ModuleType) -> nn.Module:
    """A copy of the model in evaluation mode on `spconv.pytorch`'s layers; it takes spconv's sparse tensors.

    The grid of its inputs must be a multiple of 16 on each axis, which spares MinkUNet from padding it.
    """
    copied = copy.deepcopy(model)
    _replace(copied, "", spconv)
    return copied.eval()


def _replace(parent: nn.Module, path: str, spconv: ModuleType) -> None:
    for name, child in parent.named_children():
        where = f"{path}.{name}" if path else name
        _replace(child, where, spconv)
        if isinstance(child, SparseConvolution):
            setattr(parent, name, _layer(child, where, spconv))
        elif isinstance(child, SparseSequential):
            members = list(child)
            # Blocks of blocks pass sparse tensors on; spconv's container would hand them bare features.
            plain = all(isinstance(member, SparseModule) for member in members)
            setattr(parent, name, nn.Sequential(*members) if plain else spconv.SparseSequential(*members))


def _level(where: str) -> int:
    """How often the grid was halved where this layer's outputs lie."""
    part, *rest = where.split(".")
    return 0 if part == "stem" else int(rest[0]) + 1 if part == "stages" else 3 - int(rest[0])


def _layer(ours: SparseConvolution, where: str, spconv: ModuleType) -> nn.Module:
    n_out, size, n_in = ours.weight.shape[0], ours.weight.shape[1], ours.weight.shape[-1]
    kind = type(ours).__name__
    if size == 1:
        # spconv 2.3.8 reads the weight of a kernel of one cell transposed. It is a linear layer.
        linear = nn.Linear(n_in, n_out, bias=False)
        linear.weight.data.copy_(ours.output_first_weight.detach().reshape(n_out, n_in))
        return linear
    arguments: dict[str, Any] = {"bias": False}
    if kind == "SubMConv3d":
        # One map for each level, as its users write it; without a key it would build one for each layer.
        arguments["indice_key"] = f"subm{_level(where)}"
    else:
        arguments["indice_key"] = ours.indice_key
    if kind == "SparseConv3d":
        arguments["stride"] = 2
    layer = getattr(spconv, kind)(n_in, n_out, size, **arguments)
    layer.weight.data.copy_(ours.weight.detach())
    return layer


def submanifold_pairs(spconv: ModuleType, coords: Tensor, shape: list[int]) -> Any:
    """spconv's pairs of a submanifold convolution of 27 taps."""
    ones, zeros = [1] * 3, [0] * 3
    return spconv.ops.get_indice_pairs(coords, 1, shape, spconv.ConvAlgo.Native, [3] * 3, ones, ones, ones, zeros, True)


def pair_keys(built: Any) -> Tensor:
    """int64, sorted: a number for each pair (tap, input row, output row) of what `submanifold_pairs` returned."""
    coords, pairs, counts = built
    n, sizes = len(coords), counts.tolist()
    half = len(sizes) // 2
    keys = [torch.arange(n) * (n + 1) + half * n * n]
    for tap in range(half):  # only these are stored; the others mirror them
        rows, out = pairs[0, tap, : sizes[tap]].long(), pairs[1, tap, : sizes[tap]].long()
        keys += [tap * n * n + rows * n + out, (len(sizes) - 1 - tap) * n * n + out * n + rows]
    return torch.cat(keys).sort().values


def table_keys(table: Tensor) -> Tensor:
    """The same numbers for a table [K, N] of input rows, -1 for none."""
    n = table.shape[1]
    taps, out = (table >= 0).nonzero().unbind(1)
    return (taps * n * n + table[taps, out].long() * n + out).sort().values
