"""Activations, pooling over samples, and crops."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from pointcloud.shims.torch_scatter import scatter_max, scatter_mean
from pointcloud.shims.torchsparse.nn.utils import fapply
from pointcloud.shims.torchsparse.tensor import SparseTensor


def relu(input: SparseTensor, inplace: bool = True) -> SparseTensor:
    return fapply(input, functional.relu, inplace=inplace)


def silu(input: SparseTensor, inplace: bool = True) -> SparseTensor:
    return fapply(input, functional.silu, inplace=inplace)


def leaky_relu(input: SparseTensor, negative_slope: float = 0.1, inplace: bool = True) -> SparseTensor:
    return fapply(input, functional.leaky_relu, negative_slope=negative_slope, inplace=inplace)


def global_avg_pool(inputs: SparseTensor) -> Tensor:
    """The mean of each sample's features, [B, C]."""
    return scatter_mean(inputs.feats, inputs.coords[:, 0].long(), dim=0)


def global_max_pool(inputs: SparseTensor) -> Tensor:
    """The maximum of each sample's features, [B, C]."""
    return scatter_max(inputs.feats, inputs.coords[:, 0].long(), dim=0)[0]


def spcrop(
    input: SparseTensor, coords_min: Sequence[int] | None = None, coords_max: Sequence[int] | None = None
) -> SparseTensor:
    """The rows from coords_min to before coords_max, along the axes x, y, z.

    torchsparse 2.1 compares the first three columns, which since the batch index came first are batch, x, y.
    """
    cells = input.coords[:, 1:]
    kept = torch.ones(len(cells), dtype=torch.bool, device=cells.device)
    if coords_min is not None:
        kept &= (cells >= cells.new_tensor(list(coords_min))).all(1)
    if coords_max is not None:
        kept &= (cells < cells.new_tensor(list(coords_max))).all(1)
    return SparseTensor(input.feats[kept], input.coords[kept], input.stride)
