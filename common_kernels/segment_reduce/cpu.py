"""Reduction over segments on the CPU."""

import numpy as np
import torch
from numba import njit
from torch import Tensor

from common_kernels.checks import as_rows, wide
from common_kernels.threads import parallel_for

# A chunk should take long beside the 20 µs of waking a thread: some 256 KiB of reading.
_GRAIN_BYTES = 1 << 18


def segment_reduce(src: Tensor, offsets: Tensor, reduce: str) -> Tensor:
    check_offsets(offsets, src.shape[0])
    rows = as_rows(src.to(wide(src.dtype)))
    n_segments = offsets.shape[0] - 1
    out = torch.empty(n_segments, *src.shape[1:], dtype=rows.dtype)
    bytes_per_segment = rows.numel() * rows.element_size() // max(n_segments, 1) + 1
    grain = max(1, _GRAIN_BYTES // bytes_per_segment)
    flat = out.view(n_segments, rows.shape[1]).numpy()
    bounds = offsets.contiguous().numpy()
    if reduce == "max":
        parallel_for(_maximum, n_segments, grain, flat, rows.numpy(), bounds)
    else:
        parallel_for(_sum, n_segments, grain, flat, rows.numpy(), bounds, reduce == "mean")
    return out.to(src.dtype)


def check_offsets(offsets: Tensor, n_rows: int) -> None:
    """Raise unless the offsets rise from 0 to n_rows."""
    bounds = offsets.numpy()
    if bounds[0] != 0 or bounds[-1] != n_rows:
        raise ValueError(
            f"offsets must begin with 0 and end with the {n_rows} rows of src, got {bounds[0]} and {bounds[-1]}"
        )
    falls = np.flatnonzero(bounds[1:] < bounds[:-1])
    if len(falls):
        s = int(falls[0])
        raise ValueError(f"offsets must not fall, got {bounds[s]} then {bounds[s + 1]} at segment {s}")


@njit(nogil=True, cache=True)
def _sum(out, src, offsets, mean, begin, end):
    width = src.shape[1]
    for s in range(begin, end):
        first = offsets[s]
        last = offsets[s + 1]
        for c in range(width):
            out[s, c] = 0
        for m in range(first, last):
            for c in range(width):
                out[s, c] += src[m, c]
        if mean and last > first:
            count = out.dtype.type(last - first)
            for c in range(width):
                out[s, c] /= count


@njit(nogil=True, cache=True)
def _maximum(out, src, offsets, begin, end):
    width = src.shape[1]
    for s in range(begin, end):
        for c in range(width):
            out[s, c] = -np.inf
        for m in range(offsets[s], offsets[s + 1]):
            for c in range(width):
                value = src[m, c]
                best = out[s, c]
                # A NaN enters by the second test and stays by the first. Written as a choice, not as a branch, which
                # a processor would guess wrong half of the time.
                out[s, c] = value if (value > best) | (value != value) else best
