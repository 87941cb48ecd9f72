"""Softmax, log-sum-exp and deviation of the elements that share an index."""

from __future__ import annotations

import torch
from torch import Tensor

from common_kernels.checks import describe
from pointcloud.shims.torch_scatter.scatter import scatter_max, scatter_sum
from pointcloud.shims.torch_scatter.utils import broadcast


def scatter_softmax(src: Tensor, index: Tensor, dim: int = -1, dim_size: int | None = None) -> Tensor:
    """Softmax over the elements that share an index, in the shape of src."""
    shifted, wide = _shifted(src, index, dim, dim_size)
    powers = shifted.exp()
    return powers / scatter_sum(powers, wide, dim, dim_size=dim_size).gather(dim, wide)


def scatter_log_softmax(
    src: Tensor, index: Tensor, dim: int = -1, eps: float = 1e-12, dim_size: int | None = None
) -> Tensor:
    """Logarithm of `scatter_softmax`; `eps` is added to each sum before the logarithm."""
    shifted, wide = _shifted(src, index, dim, dim_size)
    total = scatter_sum(shifted.exp(), wide, dim, dim_size=dim_size)
    return shifted - (total + eps).log().gather(dim, wide)


def scatter_logsumexp(
    src: Tensor,
    index: Tensor,
    dim: int = -1,
    out: Tensor | None = None,
    dim_size: int | None = None,
    eps: float = 1e-12,
) -> Tensor:
    """Logarithm of the sum of the exponentials of each index; 0 where there is none. `out` must be None."""
    if out is not None:
        raise NotImplementedError("out must be None for scatter_logsumexp in Trisparse's stand-in for torch_scatter")
    _check_float(src, "scatter_logsumexp")
    wide = broadcast(index, src, dim)
    largest, place = scatter_max(src.detach(), wide, dim, dim_size=dim_size)
    shifted = src - largest.gather(dim, wide)
    total = scatter_sum(shifted.masked_fill(shifted.isnan(), -torch.inf).exp(), wide, dim, dim_size=dim_size)
    return ((total + eps).log() + largest).masked_fill(place == src.shape[dim], 0)


def scatter_std(
    src: Tensor,
    index: Tensor,
    dim: int = -1,
    out: Tensor | None = None,
    dim_size: int | None = None,
    unbiased: bool = True,
) -> Tensor:
    """Standard deviation of the elements of each index; 1e-6 is added to the divisor, as in the original."""
    if out is not None:
        dim_size = out.shape[dim]
    wide = broadcast(index, src, dim)
    count = scatter_sum(torch.ones_like(src), wide, dim, dim_size=dim_size)
    mean = scatter_sum(src, wide, dim, dim_size=dim_size) / count.clamp(min=1)
    squares = (src - mean.gather(dim, wide)).square()
    total = scatter_sum(squares, wide, dim, out, dim_size)
    divisor = (count - 1 if unbiased else count).clamp(min=1)
    return (total / (divisor + 1e-6)).sqrt()


def _shifted(src: Tensor, index: Tensor, dim: int, dim_size: int | None) -> tuple[Tensor, Tensor]:
    """src less the largest element of its index, and the index in the shape of src."""
    _check_float(src, "scatter_softmax and scatter_log_softmax")
    wide = broadcast(index, src, dim)
    largest = scatter_max(src.detach(), wide, dim, dim_size=dim_size)[0]
    return src - largest.gather(dim, wide), wide


def _check_float(src: Tensor, name: str) -> None:
    if not src.is_floating_point():
        raise ValueError(f"src must be floating for {name}, got {describe(src)}")
