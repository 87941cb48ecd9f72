"""Attention within segments for processors without AVX-512: torch's fused kernel on views, without copies."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from common_kernels.varlen_attention import reference

# Blocks of scores of the column sums stay in the second-level cache: this many numbers, over all heads.
_BLOCK_SCORES = 1 << 17


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
) -> tuple[Tensor, Tensor]:
    """(out [T, H, D], lse [H, T] fp32)."""
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
    out = torch.empty(q.shape, dtype=q.dtype)
    lse = torch.empty(q.shape[1], q.shape[0])
    for rows, cols, count in _runs(offsets, offsets_k):
        n, n_k = (rows.stop - rows.start) // count, (cols.stop - cols.start) // count
        if n == 0 or n_k == 0:
            out[rows], lse[:, rows] = 0, -torch.inf
            continue
        top_left = causal and window is None and n == n_k
        mask = None if top_left else _mask(n, n_k, causal, window)
        if bias is not None:
            keys = bias[cols].view(count, 1, 1, n_k)
            mask = keys if mask is None else mask + keys
        batch_q, batch_k, batch_v = (
            x[at].unflatten(0, (count, -1)).transpose(1, 2) for x, at in ((q, rows), (k, cols), (v, cols))
        )
        batch_out, batch_lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            batch_q, batch_k, batch_v, is_causal=top_left, attn_mask=mask, scale=scale
        )
        out[rows].unflatten(0, (count, -1)).copy_(batch_out.transpose(1, 2))
        if mask is not None:
            # The fused kernel gives 0 for a query that sees no key.
            batch_lse = batch_lse.masked_fill((mask == -torch.inf).all(-1), -torch.inf)
        lse[:, rows].unflatten(1, (count, -1)).copy_(batch_lse.transpose(0, 1))
    return out, lse


def column_sums(
    q: Tensor,
    k: Tensor,
    lse: Tensor | None,
    offsets: Tensor,
    offsets_k: Tensor | None,
    causal: bool,
    window: int | None,
    scale: float,
    bias: Tensor | None,
    queries: int | None,
) -> Tensor:
    """[Hkv, Tk] fp32, from the queries' log-sum-exp where it is known."""
    total = torch.zeros(k.shape[1], k.shape[0])
    if lse is not None:
        lse = torch.where(lse == -torch.inf, torch.inf, lse)
    for rows, cols in reference.segments(offsets, offsets_k):
        n, n_k = rows.stop - rows.start, cols.stop - cols.start
        chosen = reference.strided_queries(n, queries)
        step = max(1, _BLOCK_SCORES // max(q.shape[1] * n_k, 1))
        key_bias = None if bias is None else bias[cols]
        for first in range(0, len(chosen), step):
            block = chosen[first : first + step]
            s = reference.scores(q[rows], k[cols], causal, window, scale, key_bias, block)
            if lse is None:
                p = reference.probabilities(s)
            else:
                known = lse[:, rows][:, block if isinstance(block, list) else slice(block.start, block.stop)]
                p = s.sub_(known.unflatten(0, (k.shape[1], -1))[..., None]).exp_()
            total[:, cols] += p.sum((1, 2))
        if len(chosen) < n:
            total[:, cols] *= n / len(chosen)
    return total


def _runs(offsets: Tensor, offsets_k: Tensor | None) -> Iterator[tuple[slice, slice, int]]:
    """Rows of the queries and of the keys of each run of neighbouring segments of equal lengths, and their number."""
    run: tuple[slice, slice, int] | None = None
    lengths = (0, 0)
    for rows, cols in reference.segments(offsets, offsets_k):
        these = (rows.stop - rows.start, cols.stop - cols.start)
        if run is not None and these == lengths:
            run = slice(run[0].start, rows.stop), slice(run[1].start, cols.stop), run[2] + 1
            continue
        if run is not None:
            yield run
        run, lengths = (rows, cols, 1), these
    if run is not None:
        yield run


def _mask(n: int, n_k: int, causal: bool, window: int | None) -> Tensor | None:
    """[n, n_k] fp32 of 0 and -inf, or None where all is visible."""
    seen = reference.visible(n, n_k, causal, window, range(n), torch.device("cpu"))
    return None if seen is None else torch.zeros(n, n_k).masked_fill_(~seen, -torch.inf)
