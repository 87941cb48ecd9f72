"""Concatenation, and addition over the union of cells."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pointcloud.shims.torch_scatter import scatter_sum
from pointcloud.shims.torchsparse.tensor import SparseTensor


def cat(inputs: Sequence[SparseTensor]) -> SparseTensor:
    """Features side by side. Raises ValueError for tensors that are not at the same cells in the same order."""
    first = inputs[0]
    for other in inputs[1:]:
        if other.coords is not first.coords and not torch.equal(other.coords, first.coords):
            raise ValueError("inputs of cat must have the same coordinates in the same order")
    return first.with_feats(torch.cat([each.feats for each in inputs], dim=1))


def generative_add(a: SparseTensor, b: SparseTensor) -> SparseTensor:
    """The sum over the union of the cells of both."""
    larger = a if len(a.feats) >= len(b.feats) else b
    coords, row = torch.unique(torch.cat([a.coords, b.coords]), dim=0, return_inverse=True)
    feats = scatter_sum(torch.cat([a.feats, b.feats]), row, dim=0, dim_size=len(coords))
    return SparseTensor(feats, coords, larger.stride, larger.spatial_range)
