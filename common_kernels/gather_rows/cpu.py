"""Gathering and scattering rows on the CPU."""

import numpy as np
import torch
from numba import njit
from torch import Tensor

from common_kernels.checks import as_rows, wide
from common_kernels.threads import parallel_for

# A chunk should take long beside the 20 µs of waking a thread: some 256 KiB of copying.
_GRAIN_BYTES = 1 << 18
_WORDS = (torch.int64, torch.int32, torch.int16, torch.int8)


def gather_rows(src: Tensor, index: Tensor) -> Tensor:
    rows = as_rows(src)
    out = torch.empty(index.shape[0], *src.shape[1:], dtype=src.dtype)
    row_bytes = rows.shape[1] * rows.element_size()
    if row_bytes == 0:
        _check_inside(index, src.shape[0])
        return out
    # Rows are moved as words of one of four sizes, whatever their dtype: few kernels to compile, and any dtype works.
    # The stride counts as well: that of an empty tensor may be anything.
    alignment = row_bytes | (int(rows.storage_offset()) | rows.stride(0)) * rows.element_size()
    word = next(dtype for dtype in _WORDS if alignment % dtype.itemsize == 0)
    outside = np.zeros(1, dtype=np.bool_)
    parallel_for(
        _gather,
        index.shape[0],
        max(1, _GRAIN_BYTES // max(row_bytes, 8)),
        out.view(index.shape[0], rows.shape[1]).view(word).numpy(),
        rows.view(word).numpy(),
        index.contiguous().numpy(),
        outside,
    )
    if outside[0]:
        _check_inside(index, src.shape[0])
    return out


def scatter_add_rows(src: Tensor, index: Tensor, n_rows: int) -> Tensor:
    rows = as_rows(src.to(wide(src.dtype)))
    out = torch.empty(n_rows, *src.shape[1:], dtype=rows.dtype)
    outside = np.zeros(1, dtype=np.bool_)
    # Every chunk reads the whole index, so one chunk a thread, and none for little work.
    work = rows.numel() * rows.element_size()
    grain = max(1, -(-n_rows // max(1, min(torch.get_num_threads(), work // _GRAIN_BYTES))))
    parallel_for(
        _scatter_add,
        n_rows,
        grain,
        out.view(n_rows, rows.shape[1]).numpy(),
        rows.numpy(),
        index.contiguous().numpy(),
        outside,
    )
    if outside[0] or n_rows == 0:
        _check_inside(index, n_rows)
    return out.to(src.dtype)


@njit(nogil=True, cache=True)
def _gather(out, src, index, outside, begin, end):
    n_rows, width = src.shape
    for m in range(begin, end):
        row = index[m]
        if 0 <= row < n_rows:
            for c in range(width):
                out[m, c] = src[row, c]
        else:
            for c in range(width):
                out[m, c] = 0
            if row != -1:
                outside[0] = True


@njit(nogil=True, cache=True)
def _scatter_add(out, src, index, outside, begin, end):
    """Output rows begin to end. Each takes its terms in ascending m: the sum does not depend on the chunks."""
    n_rows, width = out.shape
    out[begin:end] = 0
    for m in range(index.shape[0]):
        row = index[m]
        if begin <= row < end:
            for c in range(width):
                out[row, c] += src[m, c]
        elif row < -1 or row >= n_rows:
            outside[0] = True


def _check_inside(index: Tensor, n_rows: int) -> None:
    if index.numel() == 0:
        return
    low, high = index.aminmax()
    if low >= -1 and high < n_rows:
        return
    place = int(((index < -1) | (index >= n_rows)).nonzero()[0])
    raise IndexError(f"index must be -1 or below the {n_rows} rows, got {int(index[place])} at position {place}")
