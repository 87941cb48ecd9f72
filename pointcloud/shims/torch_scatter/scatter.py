"""Reductions of the elements that share an index."""

from __future__ import annotations

import torch
from torch import Tensor

from common_kernels.checks import describe
from pointcloud.shims.torch_scatter.utils import broadcast

REDUCTIONS = ("sum", "add", "mul", "mean", "min", "max")


def scatter(
    src: Tensor,
    index: Tensor,
    dim: int = -1,
    out: Tensor | None = None,
    dim_size: int | None = None,
    reduce: str = "sum",
) -> Tensor:
    """`out[index[i]]` = the reduction of all `src[i]` along `dim`.

    Args:
        src: any shape.
        index: int64, 1-D along `dim` or of a shape that broadcasts to that of src.
        out: a tensor that the reduction is combined with in place.
        dim_size: extent of the result along `dim`; by default one more than the largest index.
        reduce: "sum" (or "add"), "mul", "mean", "min" or "max". What no element has the index of is 0, of "mul" 1.

    Raises:
        ValueError: an unknown reduction, an index that does not fit.
    """
    if reduce in ("sum", "add"):
        return scatter_sum(src, index, dim, out, dim_size)
    if reduce == "mul":
        return scatter_mul(src, index, dim, out, dim_size)
    if reduce == "mean":
        return scatter_mean(src, index, dim, out, dim_size)
    if reduce == "min":
        return scatter_min(src, index, dim, out, dim_size)[0]
    if reduce == "max":
        return scatter_max(src, index, dim, out, dim_size)[0]
    raise ValueError(f"reduce must be one of {', '.join(REDUCTIONS)}, got {reduce!r}")


def scatter_sum(
    src: Tensor, index: Tensor, dim: int = -1, out: Tensor | None = None, dim_size: int | None = None
) -> Tensor:
    """`scatter` with reduce="sum"."""
    dim = _check(src, index, dim)
    if out is None:
        out = src.new_zeros(_size(src, index, dim, dim_size))
    flat = _as_rows(index, src, dim)
    if flat is not None:
        return out.index_add_(dim, flat, src)
    return out.scatter_add_(dim, broadcast(index, src, dim), src)


scatter_add = scatter_sum


def scatter_mul(
    src: Tensor, index: Tensor, dim: int = -1, out: Tensor | None = None, dim_size: int | None = None
) -> Tensor:
    """`scatter` with reduce="mul"."""
    dim = _check(src, index, dim)
    if out is None:
        out = src.new_ones(_size(src, index, dim, dim_size))
    return out.scatter_reduce_(dim, broadcast(index, src, dim), src, "prod")


def scatter_mean(
    src: Tensor, index: Tensor, dim: int = -1, out: Tensor | None = None, dim_size: int | None = None
) -> Tensor:
    """`scatter` with reduce="mean"; of integers rounded down. A given `out` counts in the sum, not in the number."""
    out = scatter_sum(src, index, dim, out, dim_size)
    dim = dim % src.dim()
    counted = _as_rows(index, src, dim)
    if counted is None:
        number = torch.zeros_like(out, dtype=torch.int64).scatter_add_(
            dim, broadcast(index, src, dim), torch.ones_like(src, dtype=torch.int64)
        )
    else:
        number = torch.bincount(counted, minlength=out.shape[dim]).view(*[1] * dim, -1, *[1] * (src.dim() - dim - 1))
    number = number.clamp(min=1)
    if out.is_floating_point():
        return out.div_(number)
    return out.div_(number, rounding_mode="floor")


def scatter_min(
    src: Tensor, index: Tensor, dim: int = -1, out: Tensor | None = None, dim_size: int | None = None
) -> tuple[Tensor, Tensor]:
    """The least element of each index and its first position along `dim`; where there is none 0 and src.size(dim)."""
    return _extreme(src, index, dim, out, dim_size, largest=False)


def scatter_max(
    src: Tensor, index: Tensor, dim: int = -1, out: Tensor | None = None, dim_size: int | None = None
) -> tuple[Tensor, Tensor]:
    """The largest element of each index and its first position along `dim`; where there is none 0 and src.size(dim)."""
    return _extreme(src, index, dim, out, dim_size, largest=True)


def _extreme(
    src: Tensor, index: Tensor, dim: int, out: Tensor | None, dim_size: int | None, largest: bool
) -> tuple[Tensor, Tensor]:
    dim = _check(src, index, dim)
    size = list(out.shape) if out is not None else _size(src, index, dim, dim_size)
    index = broadcast(index, src, dim)
    found = _positions(src.detach(), index, dim, size, largest)
    n = src.shape[dim]
    if n == 0:
        return (src.new_zeros(size) if out is None else out), found
    none = found == n
    # Through a gather, so that the gradient goes to the element that was chosen and no other.
    values = src.gather(dim, found.clamp(max=n - 1))
    if out is None:
        return values.masked_fill(none, 0), found
    kept = none | ((values <= out) if largest else (values >= out))
    return out.copy_(torch.where(kept, out, values)), found.masked_fill(kept, n)


def _positions(src: Tensor, index: Tensor, dim: int, size: list[int], largest: bool) -> Tensor:
    """Position along `dim` of the first extreme element of each index, src.size(dim) for none; NaN is none."""
    n = src.shape[dim]
    worst: float | bool
    if src.is_floating_point():
        worst = float("-inf" if largest else "inf")
        seen = src.nan_to_num(nan=worst, posinf=float("inf"), neginf=float("-inf"))
        exists = ~src.isnan()
    else:
        limits = torch.iinfo(src.dtype)
        worst = limits.min if largest else limits.max
        seen, exists = src, torch.ones_like(src, dtype=torch.bool)
    best = torch.full(size, worst, dtype=src.dtype, device=src.device)
    best.scatter_reduce_(dim, index, seen, "amax" if largest else "amin")
    along = torch.arange(n, device=src.device).view(*[1] * dim, -1, *[1] * (src.dim() - dim - 1))
    hit = exists & (seen == best.gather(dim, index))
    places = torch.where(hit, along, n)
    return torch.full(size, n, dtype=torch.int64, device=src.device).scatter_reduce_(dim, index, places, "amin")


def _check(src: Tensor, index: Tensor, dim: int) -> int:
    if src.dim() == 0 or not -src.dim() <= dim < src.dim():
        raise ValueError(f"dim must be an axis of src, {describe(src)}, got {dim}")
    dim = dim % src.dim()
    if index.dtype != torch.int64:
        raise ValueError(f"index must be int64, got {describe(index)}")
    wanted = index.shape[0] if index.dim() == 1 else index.shape[dim] if index.dim() > dim else -1
    if index.dim() == 0 or index.dim() > src.dim() or wanted not in (1, src.shape[dim]):
        raise ValueError(f"index must be int64 [{src.shape[dim]}] or like src {describe(src)}, got {describe(index)}")
    return dim


def _size(src: Tensor, index: Tensor, dim: int, dim_size: int | None) -> list[int]:
    size = list(src.shape)
    size[dim] = dim_size if dim_size is not None else int(index.max()) + 1 if index.numel() else 0
    return size


def _as_rows(index: Tensor, src: Tensor, dim: int) -> Tensor | None:
    """The index as one number per position along `dim`, or None where it differs along other axes."""
    if index.dim() == 1:
        return index.expand(src.shape[dim])
    if all(extent == 1 for axis, extent in enumerate(index.shape) if axis != dim):
        return index.flatten().expand(src.shape[dim])
    return None
