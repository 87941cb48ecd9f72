"""The best rows of each segment on the CPU: the threshold by bisection, then one pass that writes."""

import numpy as np
import torch
from numba import njit
from torch import Tensor

from common_kernels.checks import wide
from common_kernels.threads import parallel_for

# A chunk should take long beside the 20 µs of waking a thread.
_GRAIN_ROWS = 1 << 14


def ragged_topk(score: Tensor, offsets: Tensor, keep: Tensor, total: int | None) -> tuple[Tensor, Tensor]:
    bounds = offsets.to(torch.int64).contiguous().numpy()
    counts = keep.to(torch.int64).contiguous().numpy()
    n_rows, n_segments = score.shape[0], counts.shape[0]
    check_values(bounds, counts, n_rows, total)
    ends = np.zeros(n_segments + 1, dtype=np.int64)
    np.cumsum(counts, out=ends[1:])
    index = torch.empty(int(ends[-1]), dtype=torch.int64)
    values = score.to(wide(score.dtype)).contiguous()
    bits = values.view(torch.int64 if values.dtype == torch.float64 else torch.int32).numpy()
    # All bits but the sign.
    low_bits = bits.dtype.type(np.iinfo(bits.dtype).max)
    infinity = np.array(np.inf, dtype=np.float64 if bits.itemsize == 8 else np.float32).view(bits.dtype)[()]
    grain = max(1, _GRAIN_ROWS * n_segments // max(n_rows, 1))
    parallel_for(_select, n_segments, grain, index.numpy(), np.empty_like(bits), bits, bounds, ends, low_bits, infinity)
    return index, torch.from_numpy(ends).to(offsets.dtype)


def check_values(bounds: np.ndarray, counts: np.ndarray, n_rows: int, total: int | None) -> None:
    """Raise unless the offsets rise from 0 to n_rows and each count lies within its segment."""
    if bounds[0] != 0 or bounds[-1] != n_rows:
        raise ValueError(
            f"offsets must begin with 0 and end with the {n_rows} scores, got {bounds[0]} and {bounds[-1]}"
        )
    lengths = bounds[1:] - bounds[:-1]
    falls = np.flatnonzero(lengths < 0)
    if len(falls):
        b = int(falls[0])
        raise ValueError(f"offsets must not fall, got {bounds[b]} then {bounds[b + 1]} at segment {b}")
    outside = np.flatnonzero((counts < 0) | (counts > lengths))
    if len(outside):
        b = int(outside[0])
        raise ValueError(f"keep must be between 0 and the {lengths[b]} rows of segment {b}, got {counts[b]}")
    if total is not None and total != counts.sum():
        raise ValueError(f"total must be the sum of keep, {counts.sum()}, got {total}")


@njit(nogil=True, cache=True)
def _select(index, keys, bits, offsets, ends, low_bits, infinity, begin, end):
    for b in range(begin, end):
        first = offsets[b]
        last = offsets[b + 1]
        wanted = ends[b + 1] - ends[b]
        place = ends[b]
        if wanted == last - first:
            for i in range(first, last):
                index[place + i - first] = i
        elif wanted > 0:
            segment = keys[first:last]
            _rank(segment, bits[first:last], low_bits, infinity)
            threshold, ties = _threshold(segment, wanted)
            stop = ends[b + 1]
            i = first
            # Without a branch: each row is written to the next free place, and kept there if it is among the best.
            while place < stop:
                key = keys[i]
                tie = (key == threshold) & (ties > 0)
                index[place] = i
                place += (key > threshold) | tie
                ties -= tie
                i += 1


@njit(nogil=True, cache=True)
def _rank(keys, bits, low_bits, infinity):
    """Integers in the order of the numbers, -0 as 0, NaN below all."""
    lowest = -low_bits - 1
    for i in range(bits.shape[0]):
        magnitude = bits[i] & low_bits
        key = -magnitude if bits[i] < 0 else magnitude
        keys[i] = lowest if magnitude > infinity else key


@njit(nogil=True, cache=True)
def _threshold(keys, wanted):
    """(key t, n): the `wanted` best are the keys above t and the first n of those equal to t."""
    low = keys.min()
    high = keys.max()
    # At least `wanted` keys are not below low, fewer are above high.
    while low < high:
        # The upper middle, without overflow: a key may have any sign.
        middle = (low >> 1) + (high >> 1) + ((low | high) & 1)
        count = _count(keys, middle)
        if count == wanted:
            return keys.dtype.type(middle - 1), 0
        if count > wanted:
            low = keys.dtype.type(middle)
        else:
            high = keys.dtype.type(middle - 1)
    return keys.dtype.type(low), wanted - _count_above(keys, low)


@njit(nogil=True, cache=True)
def _count(keys, threshold):
    count = 0
    for i in range(keys.shape[0]):
        count += keys[i] >= threshold
    return count


@njit(nogil=True, cache=True)
def _count_above(keys, threshold):
    count = 0
    for i in range(keys.shape[0]):
        count += keys[i] > threshold
    return count
