"""The meaning of attention within segments, in plain torch, on any device."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from common_kernels.checks import wide

# The backward holds a few matrices of scores at once: this many numbers in each, over all heads.
_BLOCK_SCORES = 1 << 21


def varlen_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: Tensor,
    offsets_k: Tensor | None = None,
    causal: bool = False,
    window: int | None = None,
    scale: float | None = None,
    bias: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """(out [T, H, D], log of the sum of the exponentiated scores of each query [H, T]); differentiable."""
    outs, sums = [q.new_zeros(0, *q.shape[1:])], [q.new_zeros(q.shape[1], 0, dtype=wide(q.dtype))]
    for rows, cols in segments(offsets, offsets_k):
        s = scores(q[rows], k[cols], causal, window, scale, None if bias is None else bias[cols])
        values = v[cols].to(s.dtype).transpose(0, 1)[:, None]  # [Hkv, 1, n_k, D]
        out = (probabilities(s) @ values).flatten(0, 1).transpose(0, 1)
        outs.append(out.to(q.dtype))
        sums.append(s.flatten(0, 1).logsumexp(-1))
    return torch.cat(outs), torch.cat(sums, 1)


def column_sums(
    q: Tensor,
    k: Tensor,
    offsets: Tensor,
    offsets_k: Tensor | None = None,
    causal: bool = False,
    window: int | None = None,
    scale: float | None = None,
    bias: Tensor | None = None,
    per_head: bool = False,
    queries: int | None = None,
) -> Tensor:
    """What each key receives of all queries' attention probabilities, [Tk] or [Hkv, Tk] fp32."""
    sums = [q.new_zeros(k.shape[1], 0, dtype=wide(q.dtype))]
    for rows, cols in segments(offsets, offsets_k):
        n = rows.stop - rows.start
        chosen = strided_queries(n, queries)
        s = scores(q[rows], k[cols], causal, window, scale, None if bias is None else bias[cols], chosen)
        sums.append(probabilities(s).sum((1, 2)) * (n / max(len(chosen), 1)))
    total = torch.cat(sums, 1)
    return (total if per_head else total.sum(0)).float()


def backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    offsets: Tensor,
    offsets_k: Tensor | None = None,
    causal: bool = False,
    window: int | None = None,
    scale: float | None = None,
    bias: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """(dq, dk, dv, dbias): the probabilities are computed again, a block of queries at a time."""
    dtype = wide(q.dtype)
    scale = q.shape[2] ** -0.5 if scale is None else scale
    grad_q = torch.zeros(q.shape, dtype=q.dtype, device=q.device)
    grad_k = torch.zeros(k.shape, dtype=dtype, device=k.device)
    grad_v = torch.zeros(v.shape, dtype=dtype, device=v.device)
    grad_bias = None if bias is None else torch.zeros_like(bias)
    # A query that sees no key has -inf: its probabilities are exp(-inf - inf) = 0.
    lse = torch.where(lse == -torch.inf, torch.inf, lse)
    for rows, cols in segments(offsets, offsets_k):
        n, n_k = rows.stop - rows.start, cols.stop - cols.start
        keys, values = (x[cols].to(dtype).transpose(0, 1) for x in (k, v))  # [Hkv, n_k, D]
        step = max(16, _BLOCK_SCORES // max(q.shape[1] * n_k, 1))
        for first in range(0, n, step):
            chosen = range(first, min(first + step, n))
            block = slice(rows.start + first, rows.start + chosen.stop)
            s = scores(q[rows], k[cols], causal, window, scale, None if bias is None else bias[cols], chosen)
            p = (s - _grouped(lse[:, block, None].transpose(0, 1), k)).exp_()
            queries, grads, outs = (_grouped(x[block].to(dtype), k) for x in (q, grad, out))  # [Hkv, G, rows, D]
            grad_s = (grads @ values.mT[:, None]).sub_((grads * outs).sum(-1, keepdim=True)).mul_(p)
            grad_q[block] = (grad_s @ keys[:, None]).mul_(scale).flatten(0, 1).transpose(0, 1)
            grad_k[cols] += (grad_s.flatten(1, 2).mT @ queries.flatten(1, 2)).mul_(scale).transpose(0, 1)
            grad_v[cols] += (p.flatten(1, 2).mT @ grads.flatten(1, 2)).transpose(0, 1)
            if grad_bias is not None:
                grad_bias[cols] += grad_s.sum((0, 1, 2))
    return grad_q, grad_k.to(k.dtype), grad_v.to(v.dtype), grad_bias


def segments(offsets: Tensor, offsets_k: Tensor | None) -> Iterator[tuple[slice, slice]]:
    """The rows of the queries and of the keys of each segment."""
    bounds = offsets.tolist()
    bounds_k = bounds if offsets_k is None else offsets_k.tolist()
    return zip(map(slice, bounds, bounds[1:]), map(slice, bounds_k, bounds_k[1:]))


def strided_queries(n: int, queries: int | None) -> range | list[int]:
    """The queries of a segment of n that an estimate looks at: evenly strided, the last one included."""
    if queries is None or queries >= n:
        return range(n)
    return [(i + 1) * n // queries - 1 for i in range(queries)]


def visible(
    n: int, n_k: int, causal: bool, window: int | None, chosen: range | list[int], device: torch.device
) -> Tensor | None:
    """Which keys each chosen query of a segment sees, [chosen, n_k] bool; None for all. The ends are aligned."""
    if not causal and window is None:
        return None
    before = torch.as_tensor(chosen, device=device)[:, None] + (n_k - n) - torch.arange(n_k, device=device)
    seen = torch.ones_like(before, dtype=torch.bool)
    if causal:
        seen &= before >= 0
    if window is not None:
        seen &= before < window
        seen &= before > -window
    return seen


def scores(
    q: Tensor,
    k: Tensor,
    causal: bool,
    window: int | None,
    scale: float | None,
    bias: Tensor | None,
    chosen: range | list[int] | None = None,
) -> Tensor:
    """The scores of one segment's chosen queries in at least fp32, [Hkv, G, chosen, n_k]; -inf where not visible.

    q: [n, H, D], k: [n_k, Hkv, D], bias: [n_k]. G = H / Hkv query heads share a head of keys.
    """
    n, dtype = q.shape[0], wide(q.dtype)
    chosen = range(n) if chosen is None else chosen
    picked = q[chosen.start : chosen.stop] if isinstance(chosen, range) else q[chosen]
    s = _grouped(picked.to(dtype), k) @ k.to(dtype).permute(1, 2, 0)[:, None]
    s = s * (q.shape[2] ** -0.5 if scale is None else scale)
    if bias is not None:
        s = s + bias.to(dtype)
    seen = visible(n, k.shape[0], causal, window, chosen, q.device)
    return s if seen is None else s.masked_fill(~seen, -torch.inf)


def probabilities(s: Tensor) -> Tensor:
    """Softmax over the keys; a query that sees none has zeros."""
    blind = (s == -torch.inf).all(-1, keepdim=True)
    return s.masked_fill(blind, 0).softmax(-1).masked_fill(blind, 0)


def _grouped(x: Tensor, k: Tensor) -> Tensor:
    """x [n, H, ...] as [Hkv, G, n, ...]."""
    return x.transpose(0, 1).unflatten(0, (k.shape[1], -1))
