"""Attention within segments in Numba: whole rows of scores at a time, so that their sums over the queries are at hand.

A task is one segment and one head of keys. Its keys are laid out once, transposed in panels of 64, its values row by
row; then blocks of queries: scores = q @ keys, softmax of the rows, out = probabilities @ values, column sums.
Everything a task computes depends on its own segment alone.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numba import njit
from torch import Tensor

from common_kernels.simd import HAS_BF16_DOT, LANES, copy_row, gemm_tile
from common_kernels.threads import parallel_for
from common_kernels.varlen_attention.cpu_simd import AVAILABLE as AVAILABLE
from common_kernels.varlen_attention.cpu_simd import (
    LINE,
    interleave_row,
    product_tile,
    scale_row,
    softmax_row,
    transpose_block,
)

# Rows of queries whose scores over some hundred keys stay in the caches near a core; the tiles' rows divide it.
_BLOCK = 24
# Tiles of 6 rows by 4 vectors and 12 by 2 hold 24 sums in registers.
_SCORES, _VALUES = 6, 12
# Multiplications of a chunk of tasks: some 0.1 ms.
_GRAIN = 1 << 23

_scores_1, _scores_2, _scores_3, _scores_4 = (product_tile(_SCORES, n, False) for n in (1, 2, 3, 4))
_bf16_scores_1, _bf16_scores_2, _bf16_scores_3, _bf16_scores_4 = (product_tile(_SCORES, n, True) for n in (1, 2, 3, 4))
_values_1, _values_2 = (product_tile(_VALUES, n, False) for n in (1, 2))
_bf16_values_2 = product_tile(_VALUES, 2, True)
_softmax, _bf16_softmax = softmax_row(False), softmax_row(True)
_scale, _bf16_scale = scale_row(False), scale_row(True)
_add_rows = gemm_tile(1, 1, False)


class _Rows(NamedTuple):
    """A tensor [rows, heads, size] as the kernels see it: strides in bytes."""

    address: int
    row: int
    head: int


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor | None,
    offsets: Tensor,
    offsets_k: Tensor | None,
    causal: bool,
    window: int | None,
    scale: float,
    bias: Tensor | None,
    queries: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """(out [T, H, D], lse [H, T], column sums [Hkv, Tk]): without values no out and lse, with queries = 0 no sums.

    queries: -1 for the sums over all queries, n >= 1 for their estimate from n of each segment. scale: above 0.
    """
    n_rows, heads, size = q.shape
    n_keys, kv_heads = k.shape[:2]
    bf16 = q.dtype == torch.bfloat16 and HAS_BF16_DOT and size % (2 * LANES) == 0
    tensors = [_prepared(x, torch.bfloat16 if bf16 else torch.float32) for x in (q, k, *([] if v is None else [v]))]
    padded = tensors[0].shape[2]
    begins = offsets.numpy().astype(np.int64)
    begins_k = begins if offsets_k is None else offsets_k.numpy().astype(np.int64)
    out = torch.empty(0 if v is None else n_rows, heads, padded, dtype=tensors[0].dtype)
    top, total = (torch.empty(heads, out.shape[0]) for _ in range(2))
    sums = torch.empty(kv_heads, n_keys if queries else 0)
    key_bias = np.empty(0, np.float32) if bias is None else bias.detach().contiguous().numpy()
    cost = np.zeros(kv_heads * (len(begins) - 1) + 1, np.int64)
    np.cumsum(np.repeat(np.diff(begins) * np.diff(begins_k) + 1, kv_heads), out=cost[1:])
    parallel_for(
        _attend, int(cost[-1]), max(1, _GRAIN // (padded * heads // kv_heads)),
        out.data_ptr(), top.numpy(), total.numpy(), sums.numpy(), _rows(tensors[0]), _rows(tensors[1]),
        _rows(tensors[-1]), begins, begins_k, cost, key_bias, heads // kv_heads, padded, bf16, causal,
        1 << 62 if window is None else window, np.float32(scale), bias is not None, v is not None, queries,
    )  # fmt: skip
    out = out if padded == size else out[..., :size].contiguous()
    return out.to(q.dtype), total.log_().add_(top), sums


def _prepared(x: Tensor, dtype: torch.dtype) -> Tensor:
    """x of the kernel's dtype, its last axis contiguous and padded with zeros to whole vectors: x itself if it is."""
    x = x.detach().to(dtype)
    if x.shape[2] % LANES:
        return torch.nn.functional.pad(x, [0, -x.shape[2] % LANES])
    return x if x.stride(-1) == 1 else x.contiguous()


def _rows(x: Tensor) -> _Rows:
    return _Rows(x.data_ptr(), x.stride(0) * x.element_size(), x.stride(1) * x.element_size())


@njit(nogil=True, cache=True)
def _attend(
    out, top, total, sums, q, k, v, begins, begins_k, cost, bias, group, size, bf16, causal, window, scale, has_bias,
    with_values, queries, begin, end
):  # fmt: skip
    """Do the tasks whose cost begins in the range [begin, end)."""
    width = size * (2 if bf16 else 4)  # bytes of a row
    kv_heads = sums.shape[0]
    first, last = np.searchsorted(cost, begin), np.searchsorted(cost, end)
    longest = 1
    for task in range(first, last):
        s = task // kv_heads
        longest = max(longest, begins_k[s + 1] - begins_k[s])
    columns = (longest + 15) // 16 * 16
    keys = np.empty(columns * width // 4, np.float32)
    values = np.empty((longest + 1) * width // 4, np.float32)
    key_bias = np.empty(columns, np.float32)
    column_sum = np.empty(columns, np.float32)
    rows = np.empty((_BLOCK, width // 4), np.float32)
    scores = np.empty((_BLOCK, columns), np.float32)
    narrow = np.empty((_BLOCK, columns if bf16 else 1), np.int16)
    stats = np.empty((_BLOCK, 2), np.float32)
    factors = np.empty(_BLOCK, np.float32)
    acc = np.empty((_BLOCK, size), np.float32)
    p, p_row = (narrow.ctypes.data, columns * 2) if bf16 else (scores.ctypes.data, columns * 4)
    for task in range(first, last):
        s, h = task // kv_heads, task % kv_heads
        n, n_k = begins[s + 1] - begins[s], begins_k[s + 1] - begins_k[s]
        if n > 0 and n_k > 0:
            _lay_out_keys(keys, k.address + begins_k[s] * k.row + h * k.head, k.row, n_k, width)
            if with_values:
                _lay_out_values(values, v.address + begins_k[s] * v.row + h * v.head, v.row, n_k, size, bf16)
        if has_bias:
            key_bias[:n_k] = bias[begins_k[s] : begins_k[s + 1]]
        else:
            key_bias[:n_k] = 0
        key_bias[n_k : (n_k + 15) // 16 * 16] = -np.inf
        column_sum[: (n_k + 15) // 16 * 16] = 0
        chosen = n if queries < 0 else min(n, queries)
        for head in range(h * group, (h + 1) * group):
            source = q.address + begins[s] * q.row + head * q.head
            if with_values:
                for i in range(0, n, _BLOCK):
                    n_rows = min(_BLOCK, n - i)
                    low, high = _weigh(scores, narrow, stats, factors, rows, source, q.row, keys, key_bias, i, n_rows,
                                       n, n, n_k, width, bf16, causal, window, scale)  # fmt: skip
                    if queries < 0:
                        _add_columns(column_sum, factors, scores, low, high, n_rows)
                    _multiply_values(acc, p, p_row, values, low, high, n_rows, size, bf16)
                    for r in range(n_rows):
                        row = begins[s] + i + r
                        top[head, row], total[head, row] = stats[r, 0], stats[r, 1]
                        to = out + (row * top.shape[0] + head) * width
                        if bf16:
                            _bf16_scale(to, acc[r].ctypes.data, size, factors[r])
                        else:
                            _scale(to, acc[r].ctypes.data, size, factors[r])
            if queries > 0 or not with_values:
                for i in range(0, chosen, _BLOCK):
                    n_rows = min(_BLOCK, chosen - i)
                    low, high = _weigh(scores, narrow, stats, factors, rows, source, q.row, keys, key_bias, i, n_rows,
                                       chosen, n, n_k, width, bf16, causal, window, scale)  # fmt: skip
                    _add_columns(column_sum, factors, scores, low, high, n_rows)
        if queries != 0:
            share = np.float32(n / max(chosen, 1))
            for j in range(n_k):
                sums[h, begins_k[s] + j] = column_sum[j] * share


@njit(nogil=True, cache=True)
def _weigh(
    scores, narrow, stats, factors, rows, q, q_row, keys, key_bias, i, n_rows, chosen, n, n_k, width, bf16, causal,
    window, scale
):  # fmt: skip
    """Probabilities of the rows [i, i + n_rows) of the `chosen` evenly strided queries, not yet divided by their sums.

    Returns the range of the keys that some of these queries sees, from a panel's first key on.
    """
    ahead = n_k - n - 1
    low = max(0, (i + 1) * n // chosen + ahead - window + 1) // 64 * 64
    final = (i + n_rows) * n // chosen + ahead
    high = min(n_k, final + 1 if causal else min(n_k, final + window))
    if high <= low:  # no query of the block sees a key
        factors[:n_rows] = 0
        stats[:n_rows, 0], stats[:n_rows, 1] = -np.inf, 0
        return low, low
    for r in range(n_rows):
        copy_row(rows[r].ctypes.data, q + ((i + r + 1) * n // chosen - 1) * q_row, width // 4)
    rows[n_rows:] = 0
    _multiply_keys(scores, rows, keys, low, high, n_k, n_rows, width, bf16)
    vectors = (high - low + 15) // 16
    for r in range(n_rows):
        position = (i + r + 1) * n // chosen + ahead
        line = scores[r]
        start, stop = position - window + 1, high
        if causal:
            stop = min(stop, position + 1)
        elif window < n_k:
            stop = min(stop, position + window)
        if start > low:
            line[: min(start - low, vectors * 16)] = -np.inf
        if stop < min(n_k, low + vectors * 16):  # beyond the keys, the bias is -inf
            line[max(stop - low, 0) : vectors * 16] = -np.inf
        bias = key_bias.ctypes.data + low * 4
        if bf16:
            _bf16_softmax(line.ctypes.data, bias, vectors, scale, narrow[r].ctypes.data, stats[r].ctypes.data)
        else:
            _softmax(line.ctypes.data, bias, vectors, scale, 0, stats[r].ctypes.data)
        factors[r] = np.float32(1) / stats[r, 1] if stats[r, 1] != 0 else np.float32(0)
    return low, high


@njit(nogil=True, cache=True)
def _lay_out_keys(keys, k, k_row, n_k, width):
    """Panels of up to 64 keys, each [width / 4, its keys rounded up to 16], one after the other."""
    for first in range(0, n_k, 64):
        vectors = (min(64, n_k - first) + 15) // 16
        panel = keys.ctypes.data + first * width
        for vector in range(vectors):
            at = first + vector * 16
            for step in range(0, width, LINE):
                transpose_block(panel + step // 4 * vectors * LINE + vector * LINE, vectors * LINE,
                                k + at * k_row + step, k_row, n_k - 1 - at)  # fmt: skip


@njit(nogil=True, cache=True)
def _lay_out_values(values, v, v_row, n_k, size, bf16):
    """Rows one after the other; in bf16, two neighbouring rows number by number (the last one twice)."""
    to = values.ctypes.data
    if bf16:
        for j in range(0, n_k, 2):
            interleave_row(to + j * size * 2, v + j * v_row, v + min(j + 1, n_k - 1) * v_row, size)
    else:
        for j in range(n_k):
            copy_row(to + j * size * 4, v + j * v_row, size)


@njit(nogil=True, cache=True)
def _multiply_keys(scores, rows, keys, low, high, n_k, n_rows, width, bf16):
    stride, x_stride = scores.strides[0], rows.strides[0]
    for first in range(low, high, 64):
        vectors = (min(64, n_k - first) + 15) // 16
        panel = keys.ctypes.data + first * width
        for r in range(0, n_rows, _SCORES):
            to, x = scores.ctypes.data + r * stride + (first - low) * 4, rows.ctypes.data + r * x_stride
            if bf16:
                if vectors == 4:
                    _bf16_scores_4(to, stride, x, x_stride, panel, 4 * LINE, width // 4)
                elif vectors == 3:
                    _bf16_scores_3(to, stride, x, x_stride, panel, 3 * LINE, width // 4)
                elif vectors == 2:
                    _bf16_scores_2(to, stride, x, x_stride, panel, 2 * LINE, width // 4)
                else:
                    _bf16_scores_1(to, stride, x, x_stride, panel, LINE, width // 4)
            elif vectors == 4:
                _scores_4(to, stride, x, x_stride, panel, 4 * LINE, width // 4)
            elif vectors == 3:
                _scores_3(to, stride, x, x_stride, panel, 3 * LINE, width // 4)
            elif vectors == 2:
                _scores_2(to, stride, x, x_stride, panel, 2 * LINE, width // 4)
            else:
                _scores_1(to, stride, x, x_stride, panel, LINE, width // 4)


@njit(nogil=True, cache=True)
def _multiply_values(acc, p, p_row, values, low, high, n_rows, size, bf16):
    """acc = p @ values; zeros where there is no key."""
    acc_row, line = acc.strides[0], size * 4
    if bf16:
        steps, w = (high - low + 1) // 2, values.ctypes.data + low * size * 2
    else:
        steps, w = high - low, values.ctypes.data + low * line
    for r in range(0, n_rows, _VALUES):
        to, x = acc.ctypes.data + r * acc_row, p + r * p_row
        for at in range(0, line, 2 * LINE):
            if bf16:
                _bf16_values_2(to + at, acc_row, x, p_row, w + at, line, steps)
            elif at + LINE < line:
                _values_2(to + at, acc_row, x, p_row, w + at, line, steps)
            else:
                _values_1(to + at, acc_row, x, p_row, w + at, line, steps)


@njit(nogil=True, cache=True)
def _add_columns(column_sum, factors, scores, low, high, n_rows):
    """column_sum += factors @ scores."""
    addresses = np.empty(2, np.int64)
    addresses[1] = factors.ctypes.data
    for at in range(0, (high - low) * 4, LINE):
        addresses[0] = column_sum.ctypes.data + low * 4 + at
        _add_rows(addresses.ctypes.data, 0, addresses.ctypes.data + 8, 0, scores.ctypes.data + at, n_rows,
                  scores.strides[0])  # fmt: skip
