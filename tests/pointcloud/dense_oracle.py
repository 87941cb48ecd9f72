"""Dense convolutions and pools of torch, restricted to active sites: the oracle of the sparse layers.

It uses nothing of the product but the container of its results.
"""

from __future__ import annotations

import itertools
import math

import torch
import torch.nn.functional as F
from torch import Tensor

import pointcloud as pc

CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
CONV_TRANSPOSE = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
MAX_POOL = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}


def random_cloud(
    shape: tuple[int, ...],
    channels: int,
    batch_size: int = 2,
    share: float = 0.3,
    dtype: torch.dtype = torch.float64,
    device: str = "cpu",
) -> pc.SparseConvTensor:
    """Random features at a random share of the cells, in random order."""
    cells = batch_size * math.prod(shape)
    keys = torch.randperm(cells)[: max(1, int(share * cells))]
    columns = torch.unravel_index(keys, (batch_size, *shape))
    features = torch.randn(len(keys), channels, dtype=dtype)
    indices = torch.stack(columns, 1).int()
    return pc.SparseConvTensor(features.to(device), indices.to(device), shape, batch_size)


def scatter(x: pc.SparseConvTensor, features: Tensor | None = None) -> Tensor:
    """[B, C, *shape] with the features at their cells, by plain assignment."""
    features = x.features if features is None else features
    grid = features.new_zeros(x.batch_size, *x.spatial_shape, features.shape[1])
    return grid.index_put(tuple(x.indices.long().unbind(1)), features).movedim(-1, 1)


def at(grid: Tensor, indices: Tensor) -> Tensor:
    """[M, C]: the values of a grid [B, C, *shape] at the cells."""
    return grid.movedim(1, -1)[tuple(indices.long().unbind(1))]


def per_axis(value, ndim: int) -> list[int]:
    return [value] * ndim if isinstance(value, int) else list(value)


def torch_weight(weight: Tensor) -> Tensor:
    """[Cout, *kernel, Cin] -> [Cout, Cin, *kernel]"""
    return weight.movedim(-1, 1)


def conv(x, weight, stride, padding, dilation):
    """Dense convolution over 1 to 4 axes; weight [Cout, Cin, *kernel], the rest one number per axis."""
    if x.ndim < 6:
        return CONV[x.ndim - 2](x, weight, None, stride, padding, dilation)
    x = F.pad(x, (0, 0, 0, 0, 0, 0, padding[0], padding[0]))
    n_out = (x.shape[2] - dilation[0] * (weight.shape[2] - 1) - 1) // stride[0] + 1
    slices = []
    for out in range(n_out):
        terms = [
            F.conv3d(
                x[:, :, out * stride[0] + r * dilation[0]], weight[:, :, r], None, stride[1:], padding[1:], dilation[1:]
            )
            for r in range(weight.shape[2])
        ]
        slices.append(sum(terms))
    return torch.stack(slices, 2)


def conv_transpose(x, weight, stride, padding, dilation, output_padding):
    """Dense transposed convolution over 1 to 4 axes; weight [Cin, Cout, *kernel]."""
    if x.ndim < 6:
        return CONV_TRANSPOSE[x.ndim - 2](x, weight, None, stride, padding, output_padding, 1, dilation)
    n = x.shape[2]
    extent = (n - 1) * stride[0] - 2 * padding[0] + dilation[0] * (weight.shape[2] - 1) + output_padding[0] + 1
    slices: list = [0] * extent
    for i, r in itertools.product(range(n), range(weight.shape[2])):
        o = i * stride[0] - padding[0] + r * dilation[0]
        if 0 <= o < extent:
            slices[o] = slices[o] + F.conv_transpose3d(
                x[:, :, i], weight[:, :, r], None, stride[1:], padding[1:], output_padding[1:], 1, dilation[1:]
            )
    empty = next(s for s in slices if torch.is_tensor(s)) * 0
    return torch.stack([s if torch.is_tensor(s) else empty for s in slices], 2)


def submanifold_conv(x, weight, dilation):
    """Dense convolution whose output has the input's grid: tap r reads at (r - k // 2) * dilation."""
    pads = [(k // 2 * d, (k - 1 - k // 2) * d) for k, d in zip(weight.shape[2:], dilation)]
    padded = F.pad(x, [side for pair in reversed(pads) for side in pair])
    ndim = x.ndim - 2
    return conv(padded, weight, (1,) * ndim, (0,) * ndim, dilation)


def reached(x: pc.SparseConvTensor, kernel, stride, padding, dilation, output_padding=None) -> Tensor:
    """Sorted cells [M, 1 + D] that some active input reaches; a transposed convolution if output_padding is given."""
    active = scatter(x, torch.ones(len(x.features), 1, dtype=torch.float64, device=x.features.device))
    ones = torch.ones(1, 1, *kernel, dtype=torch.float64, device=active.device)
    if output_padding is None:
        count = conv(active, ones, stride, padding, dilation)
    else:
        count = conv_transpose(active, ones, stride, padding, dilation, output_padding)
    return (count[:, 0] > 0.5).nonzero()
