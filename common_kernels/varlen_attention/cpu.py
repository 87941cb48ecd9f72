"""Attention within segments on the CPU: our kernels where they run, else torch's."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from common_kernels.varlen_attention import cpu_kernels, cpu_library, reference


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: Tensor,
    offsets_k: Tensor | None,
    causal: bool,
    window: int | None,
    scale: float,
    bias: Tensor | None,
    queries: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """(out [T, H, D], lse [H, T] fp32, or fp64 for fp64, column sums [Tk] fp32, or [0] where queries is 0)."""
    _check_all(q, k, offsets, offsets_k)
    limit = None if queries < 0 else queries
    if q.dtype == torch.float64:
        out, lse = reference.varlen_attention(q, k, v, offsets, offsets_k, causal, window, scale, bias)
        if not queries:
            return out, lse, torch.empty(0)
        return out, lse, reference.column_sums(q, k, offsets, offsets_k, causal, window, scale, bias, False, limit)
    q, scale = _with_positive_scale(q, scale)
    if cpu_kernels.AVAILABLE:
        out, lse, sums = cpu_kernels.attend(q, k, v, offsets, offsets_k, causal, window, scale, bias, queries)
    else:
        out, lse = cpu_library.forward(q, k, v, offsets, offsets_k, causal, window, scale, bias)
        if queries:
            sums = cpu_library.column_sums(q, k, lse, offsets, offsets_k, causal, window, scale, bias, limit)
    return out, lse, _add_heads(sums) if queries else torch.empty(0)


def column_sums(
    q: Tensor,
    k: Tensor,
    offsets: Tensor,
    offsets_k: Tensor | None,
    causal: bool,
    window: int | None,
    scale: float,
    bias: Tensor | None,
    queries: int,
    per_head: bool,
) -> Tensor:
    """[Tk] or [Hkv, Tk] fp32."""
    _check_all(q, k, offsets, offsets_k)
    limit = None if queries < 0 else queries
    if q.dtype == torch.float64:
        return reference.column_sums(q, k, offsets, offsets_k, causal, window, scale, bias, per_head, limit)
    q, scale = _with_positive_scale(q, scale)
    if cpu_kernels.AVAILABLE:
        sums = cpu_kernels.attend(q, k, None, offsets, offsets_k, causal, window, scale, bias, queries)[2]
    else:
        sums = cpu_library.column_sums(q, k, None, offsets, offsets_k, causal, window, scale, bias, limit)
    return sums if per_head else _add_heads(sums)


def _with_positive_scale(q: Tensor, scale: float) -> tuple[Tensor, float]:
    """Queries that carry a scale of 0 or below: a score masked with -inf would not stay -inf under it."""
    return (q, scale) if scale > 0 else (q * scale, 1.0)


def _add_heads(sums: Tensor) -> Tensor:
    """[Hkv, Tk] summed over the heads, one after the other: torch's own order depends on the number of columns."""
    total = torch.zeros(sums.shape[1])
    for row in sums:
        total += row
    return total


def _check_all(q: Tensor, k: Tensor, offsets: Tensor, offsets_k: Tensor | None) -> None:
    _check_offsets("offsets", offsets, "q", q.shape[0])
    if offsets_k is not None:
        _check_offsets("offsets_k", offsets_k, "k", k.shape[0])


def _check_offsets(name: str, offsets: Tensor, rows_name: str, n_rows: int) -> None:
    """Raise unless the offsets rise from 0 to n_rows."""
    bounds = offsets.tolist()
    if bounds[0] != 0 or bounds[-1] != n_rows:
        raise ValueError(
            f"{name} must begin with 0 and end with the {n_rows} rows of {rows_name}, got {bounds[0]} and {bounds[-1]}"
        )
    for s, (begin, end) in enumerate(pairwise(bounds)):
        if end < begin:
            raise ValueError(f"{name} must not fall, got {begin} then {end} at segment {s}")
