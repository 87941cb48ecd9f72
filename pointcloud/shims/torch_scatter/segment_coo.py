"""Reductions of runs of a sorted index, along its last axis."""

from __future__ import annotations

import torch
from torch import Tensor

from common_kernels.checks import describe
from pointcloud.shims.torch_scatter.scatter import scatter, scatter_max, scatter_mean, scatter_min, scatter_sum


def segment_coo(
    src: Tensor, index: Tensor, out: Tensor | None = None, dim_size: int | None = None, reduce: str = "sum"
) -> Tensor:
    """`scatter` along the last axis of the sorted index [..., M], whose axes are the first ones of src."""
    return scatter(src, _along(index, src), index.dim() - 1, out, dim_size, reduce)


def segment_sum_coo(src: Tensor, index: Tensor, out: Tensor | None = None, dim_size: int | None = None) -> Tensor:
    """`segment_coo` with reduce="sum"."""
    return scatter_sum(src, _along(index, src), index.dim() - 1, out, dim_size)


segment_add_coo = segment_sum_coo


def segment_mean_coo(src: Tensor, index: Tensor, out: Tensor | None = None, dim_size: int | None = None) -> Tensor:
    """`segment_coo` with reduce="mean"."""
    return scatter_mean(src, _along(index, src), index.dim() - 1, out, dim_size)


def segment_min_coo(
    src: Tensor, index: Tensor, out: Tensor | None = None, dim_size: int | None = None
) -> tuple[Tensor, Tensor]:
    """Least elements and their positions, as `scatter_min`."""
    return scatter_min(src, _along(index, src), index.dim() - 1, out, dim_size)


def segment_max_coo(
    src: Tensor, index: Tensor, out: Tensor | None = None, dim_size: int | None = None
) -> tuple[Tensor, Tensor]:
    """Largest elements and their positions, as `scatter_max`."""
    return scatter_max(src, _along(index, src), index.dim() - 1, out, dim_size)


def gather_coo(src: Tensor, index: Tensor, out: Tensor | None = None) -> Tensor:
    """`src[..., index, ...]`: the element of its segment for every position."""
    dim = index.dim() - 1
    if index.dim() == 1:
        found = src.index_select(0, index)
    else:
        shape = [*src.shape[:dim], index.shape[dim], *src.shape[dim + 1 :]]
        wide = index.view(*index.shape, *[1] * (src.dim() - index.dim())).expand(shape)
        found = src.gather(dim, wide)
    return found if out is None else out.copy_(found)


def _along(index: Tensor, src: Tensor) -> Tensor:
    if not 1 <= index.dim() <= src.dim():
        raise ValueError(f"index must have 1 to {src.dim()} axes for src {describe(src)}, got {describe(index)}")
    if index.numel() and bool((index.diff(dim=-1) < 0).any()):
        raise ValueError("index must be sorted along its last axis; scatter takes one that is not")
    return index if index.dim() == 1 else torch.broadcast_to(index, src.shape[: index.dim()])
