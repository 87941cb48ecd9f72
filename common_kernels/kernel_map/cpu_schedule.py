"""The pairs of a kernel map, tile by tile and tap by tap, as the CPU's gather-GEMM walks them."""

import numpy as np
import torch
from numba import njit
from torch import Tensor

from common_kernels.simd import HAS_COMPRESS, LANES, compress_valid, count_valid
from common_kernels.threads import parallel_for

# Output rows per tile: their accumulators stay in the second-level cache, and a tap still finds enough rows to fill
# register tiles. Slots are int16.
TILE = 256


def map_schedule(table: Tensor) -> list[Tensor]:
    """[source [P] int32, slot [P] int16, offsets [tiles * K + 1] int64] of a table [K, M]."""
    entries = table.contiguous().numpy()
    taps, rows = entries.shape
    tiles = -(-rows // TILE)
    counts = np.zeros(tiles * taps + 1, np.int64)
    parallel_for(_count, tiles, 16, entries, counts)
    offsets = np.cumsum(counts)
    source, slot = np.empty(offsets[-1], np.int32), np.empty(offsets[-1], np.int16)
    parallel_for(_fill, tiles, 16, entries, offsets, source, slot)
    return [torch.from_numpy(source), torch.from_numpy(slot), torch.from_numpy(offsets)]


@njit(nogil=True, cache=True)
def _count(table, counts, begin, end):
    taps, rows = table.shape
    base = np.int64(table.ctypes.data)
    for tile in range(begin, end):
        first, last = tile * TILE, min((tile + 1) * TILE, rows)
        whole = (last - first) // LANES * LANES
        for k in range(taps):
            n = count_valid(base + 4 * (k * rows + first), whole)
            for row in range(first + whole, last):
                n += table[k, row] >= 0
            counts[tile * taps + k + 1] = n


@njit(nogil=True, cache=True)
def _fill(table, offsets, source, slot, begin, end):
    taps, rows = table.shape
    base, limit = np.int64(table.ctypes.data), offsets[end * taps]
    # Vectors and loops without a branch write past the pairs of a tap, where the next tap's follow. At the end of
    # these tiles another thread's would: there the pairs go by way of a buffer.
    spare_source, spare_slot = np.empty(TILE + LANES, np.int32), np.empty(TILE + LANES, np.int16)
    for tile in range(begin, end):
        first, last = tile * TILE, min((tile + 1) * TILE, rows)
        whole = (last - first) // LANES * LANES if HAS_COMPRESS else 0
        for k in range(taps):
            at, after = offsets[tile * taps + k], offsets[tile * taps + k + 1]
            buffered = after + LANES > limit
            sources = spare_source if buffered else source[at : after + LANES]
            slots = spare_slot if buffered else slot[at : after + LANES]
            n = 0
            if HAS_COMPRESS:
                entries = base + 4 * (k * rows + first)
                n = compress_valid(entries, whole, np.int64(sources.ctypes.data), np.int64(slots.ctypes.data))
            for row in range(first + whole, last):
                entry = table[k, row]
                sources[n] = entry
                slots[n] = row - first
                n += entry >= 0
            if buffered:
                source[at:after] = sources[:n]
                slot[at:after] = slots[:n]
