"""Helpers of layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pointcloud.shims.lattice import taps
from pointcloud.shims.torchsparse.tensor import SparseTensor
from pointcloud.shims.torchsparse.utils.utils import make_ntuple

__all__ = ["fapply", "get_kernel_offsets"]


def fapply(input: SparseTensor, fn: Callable[..., Tensor], *args: Any, **kwargs: Any) -> SparseTensor:
    """A tensor with `fn` of the features."""
    return input.with_feats(fn(input.feats, *args, **kwargs))


def get_kernel_offsets(size: Any, stride: Any = 1, dilation: Any = 1, device: Any = "cpu") -> Tensor:
    """The cells that a kernel reads around its own, int32 [K, 3], in the order of the weights."""
    kernel, steps, spread = (make_ntuple(each, ndim=3) for each in (size, stride, dilation))
    odd = all(k % 2 == 1 for k in kernel)
    offsets = [
        [(r - (k - 1) // 2) * s * d for r, k, s, d in zip(tap, kernel, steps, spread)] for tap in taps(kernel, odd)
    ]
    return torch.tensor(offsets, dtype=torch.int32, device=device)
