"""Reductions of ranges of consecutive elements, along the last axis of their bounds."""

from __future__ import annotations

import torch
from torch import Tensor

from common_kernels.checks import describe
from common_kernels.segment_reduce import segment_reduce
from pointcloud.shims.torch_scatter.scatter import REDUCTIONS, scatter_max, scatter_mean, scatter_min, scatter_sum
from pointcloud.shims.torch_scatter.segment_coo import gather_coo

FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def segment_csr(src: Tensor, indptr: Tensor, out: Tensor | None = None, reduce: str = "sum") -> Tensor:
    """`out[..., s, ...]` = the reduction of `src[..., indptr[s] : indptr[s + 1], ...]`.

    Args:
        src: any shape.
        indptr: int64 [..., S + 1], rising; its axes are the first ones of src, or broadcast to them.
        out: a tensor that the result is written to.
        reduce: "sum" (or "add"), "mean", "min" or "max". An empty range gives 0.

    Raises:
        ValueError: an unknown reduction, bounds that do not rise or go beyond src.
    """
    if reduce not in REDUCTIONS or reduce == "mul":
        raise ValueError(f"reduce must be sum, add, mean, min or max, got {reduce!r}")
    if indptr.dim() == 1 and src.dtype in FLOATS and src.dim() > 0:
        return _write(out, _rows(src, indptr, reduce))
    by_name = {"mean": segment_mean_csr, "sum": segment_sum_csr, "add": segment_sum_csr}
    if reduce in by_name:
        return by_name[reduce](src, indptr, out)
    return (segment_min_csr if reduce == "min" else segment_max_csr)(src, indptr, out)[0]


def segment_sum_csr(src: Tensor, indptr: Tensor, out: Tensor | None = None) -> Tensor:
    """`segment_csr` with reduce="sum"."""
    part, index, dim, n = _as_index(src, indptr)
    return _write(out, scatter_sum(part, index, dim, dim_size=n))


segment_add_csr = segment_sum_csr


def segment_mean_csr(src: Tensor, indptr: Tensor, out: Tensor | None = None) -> Tensor:
    """`segment_csr` with reduce="mean"."""
    part, index, dim, n = _as_index(src, indptr)
    return _write(out, scatter_mean(part, index, dim, dim_size=n))


def segment_min_csr(src: Tensor, indptr: Tensor, out: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Least elements and their positions in src; 0 and src.size(dim) for an empty range."""
    return _extreme(src, indptr, out, scatter_min)


def segment_max_csr(src: Tensor, indptr: Tensor, out: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Largest elements and their positions in src; 0 and src.size(dim) for an empty range."""
    return _extreme(src, indptr, out, scatter_max)


def gather_csr(src: Tensor, indptr: Tensor, out: Tensor | None = None) -> Tensor:
    """`src[..., s, ...]` repeated `indptr[s + 1] - indptr[s]` times: the inverse of `segment_csr`."""
    dim = indptr.dim() - 1
    lengths = indptr.diff(dim=-1)
    if src.dim() <= dim or src.shape[dim] != lengths.shape[-1] or (lengths < 0).any():
        raise ValueError(f"indptr must rise and bound the {describe(src)} of src, got {describe(indptr)}")
    flat = lengths.reshape(-1, lengths.shape[-1])
    if bool((flat.sum(1) != flat[:1].sum(1)).any()):
        raise ValueError("indptr must bound the same number of elements in every row")
    segment = torch.arange(lengths.shape[-1], device=src.device)
    rows = [torch.repeat_interleave(segment, each) for each in flat]
    index = torch.stack(rows).view(*lengths.shape[:-1], -1)
    return gather_coo(src, index, out)


def _extreme(src: Tensor, indptr: Tensor, out: Tensor | None, scatter: object) -> tuple[Tensor, Tensor]:
    part, index, dim, n = _as_index(src, indptr)
    values, places = scatter(part, index, dim, dim_size=n)  # type: ignore[operator]
    shift = indptr.flatten()[0] if indptr.dim() == 1 else 0
    missing = places == part.shape[dim]
    return _write(out, values), torch.where(missing, src.shape[dim], places + shift)


def _rows(src: Tensor, indptr: Tensor, reduce: str) -> Tensor:
    """Ranges along the first axis, by the operator of the house."""
    part, offsets = _cut(src, indptr)
    if reduce == "min":
        return -_rows(-src, indptr, "max")
    found = segment_reduce(part, offsets, "sum" if reduce == "add" else reduce)
    if reduce != "max":
        return found
    empty = (offsets.diff() == 0).view(-1, *[1] * (found.dim() - 1))
    return found.masked_fill(empty, 0)


def _cut(src: Tensor, indptr: Tensor) -> tuple[Tensor, Tensor]:
    """The elements that bounds [S + 1] reach, and the bounds from 0."""
    if indptr.numel() == 0 or indptr.dtype != torch.int64:
        raise ValueError(f"indptr must be int64 [S + 1], got {describe(indptr)}")
    first, last = int(indptr[0]), int(indptr[-1])
    if first < 0 or last > src.shape[0] or bool((indptr.diff() < 0).any()):
        raise ValueError(f"indptr must rise from at least 0 to at most {src.shape[0]}, got {first} to {last}")
    return src[first:last], indptr - first


def _as_index(src: Tensor, indptr: Tensor) -> tuple[Tensor, Tensor, int, int]:
    """(elements, their segments, axis, number of segments)."""
    dim = indptr.dim() - 1
    if not 1 <= indptr.dim() <= src.dim():
        raise ValueError(f"indptr must have 1 to {src.dim()} axes for src {describe(src)}, got {describe(indptr)}")
    n = indptr.shape[-1] - 1
    if indptr.dim() == 1:
        part, offsets = _cut(src, indptr)
        return part, torch.repeat_interleave(offsets.diff(), output_size=len(part)), 0, n
    bounds = torch.broadcast_to(indptr, (*src.shape[:dim], n + 1)).reshape(-1, n + 1)
    if bool((bounds[:, 0] != 0).any()) or bool((bounds[:, -1] != src.shape[dim]).any()):
        raise ValueError(f"indptr of several axes must rise from 0 to {src.shape[dim]} in every row")
    if bool((bounds.diff(dim=1) < 0).any()):
        raise ValueError("indptr must rise along its last axis")
    rows = [torch.repeat_interleave(each) for each in bounds.diff(dim=1)]
    index = torch.stack(rows).view(*src.shape[:dim], src.shape[dim])
    return src, index, dim, n


def _write(out: Tensor | None, found: Tensor) -> Tensor:
    return found if out is None else out.copy_(found)
