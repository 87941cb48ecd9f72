"""Row updates on the CPU: one pass that compares a row with the kept one and copies it where they differ."""

from __future__ import annotations

import numpy as np
import torch
from numba import njit
from torch import Tensor

from common_kernels.reach.cpu import bytes_at, int32_at, list_true
from common_kernels.row_update.cpu_simd import copy_bytes, moved_bf16, moved_bytes, moved_fp32
from common_kernels.threads import parallel_for

# Bytes worth handing to another thread, which takes some 30 µs to begin.
_GRAIN = 1 << 18
# Rows compared as one.
_TOGETHER = 32
_KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.uint8: 2}


def update_rows(out: Tensor, rows: Tensor, index: Tensor | None, threshold: float) -> Tensor:
    rows = rows.contiguous()
    n, channels = out.numel() // out.shape[-1], out.shape[-1]
    size = out.element_size() * channels
    changed = torch.zeros(out.shape[:-1], dtype=torch.bool)
    listed, at, count = None, 0, n
    if index is not None and index.dtype == torch.bool:
        mask = index.contiguous()
        if mask.data_ptr() % 8:
            mask = mask.clone()
        listed = torch.empty(n + 1, dtype=torch.int32)
        at = listed.data_ptr()
        count = list_true(mask.data_ptr(), n, at)
    elif index is not None:
        if len(index) and not 0 <= int(index.min()) <= int(index.max()) < n:
            raise ValueError(f"index must lie in [0, {n}), got {int(index.min())} to {int(index.max())}")
        listed = index.to(torch.int32).contiguous()
        at, count = listed.data_ptr(), len(listed)
    picked = index is not None and index.dtype != torch.bool
    parallel_for(
        _update, count, max(1, _GRAIN // size), out.data_ptr(), rows.data_ptr(), at, picked, changed.data_ptr(), n,
        channels, size, _KINDS[out.dtype], threshold,
    )  # fmt: skip
    return changed


@njit(nogil=True, cache=True)
def _update(out, rows, index, picked, changed, n, channels, size, kind, threshold, begin, end):
    """Entries [begin, end) of the int32 list at address `index`, or where that is 0 rows [begin, end).

    `picked`: the entries' new values follow each other, instead of lying where the kept ones do.
    """
    flags = bytes_at(changed, n)
    listed = int32_at(index if index else changed, end)
    limit = np.float32(threshold)
    i = begin
    while i < end:
        if index == 0 and i + _TOGETHER <= end:
            # Most rows of most frames stay: a stretch of them is compared as one.
            if not _moved(rows + i * size, out + i * size, _TOGETHER * channels, kind, limit):
                i += _TOGETHER
                continue
            last = i + _TOGETHER
        else:
            last = i + 1
        while i < last:
            row = np.int64(listed[i]) if index else np.int64(i)
            kept, new = out + row * size, rows + (np.int64(i) if picked else row) * size
            if _moved(new, kept, channels, kind, limit):
                copy_bytes(kept, new, size)
                flags[row] = 1
            i += 1


@njit(nogil=True, cache=True)
def _moved(new, kept, n, kind, limit):
    if kind == 0:
        return moved_fp32(new, kept, n, limit)
    if kind == 1:
        return moved_bf16(new, kept, n, limit)
    return moved_bytes(new, kept, n, limit)
