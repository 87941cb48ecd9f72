"""The pairs of a kernel map, tile by tile and tap by tap, as the CPU's gather-GEMM walks them."""

import numpy as np
import torch
from numba import njit
from torch import Tensor

from common_kernels.threads import parallel_for

# Output rows per tile: their accumulators stay in the second-level cache, and a tap still finds enough rows to fill
# register tiles. Slots are int16.
TILE = 256


def map_schedule(table: Tensor) -> list[Tensor]:
    """[source [P] int32, slot [P] int16, offsets [tiles * K + 1] int64] of a table [K, M]."""
    taps, rows = table.shape
    tiles = -(-rows // TILE)
    counts = np.zeros(tiles * taps + 1, np.int64)
    entries = table.numpy()
    parallel_for(_count, tiles, 16, entries, counts)
    offsets = np.cumsum(counts)
    source, slot = np.empty(offsets[-1], np.int32), np.empty(offsets[-1], np.int16)
    parallel_for(_fill, tiles, 16, entries, offsets, source, slot)
    return [torch.from_numpy(source), torch.from_numpy(slot), torch.from_numpy(offsets)]


@njit(nogil=True, cache=True)
def _count(table, counts, begin, end):
    taps, rows = table.shape
    for tile in range(begin, end):
        first, last = tile * TILE, min((tile + 1) * TILE, rows)
        for k in range(taps):
            n = np.int32(0)
            for entry in table[k, first:last]:
                n += np.int32(entry >= 0)
            counts[tile * taps + k + 1] = n


@njit(nogil=True, cache=True)
def _fill(table, offsets, source, slot, begin, end):
    taps, rows = table.shape
    # Without a branch each entry is written and the next one overwrites it unless it counted; the spare place at the
    # end takes what is left.
    sources, slots = np.empty(TILE + 1, np.int32), np.empty(TILE + 1, np.int16)
    for tile in range(begin, end):
        first, last = tile * TILE, min((tile + 1) * TILE, rows)
        for k in range(taps):
            n = 0
            for row in range(first, last):
                entry = table[k, row]
                sources[n] = entry
                slots[n] = row - first
                n += entry >= 0
            at = offsets[tile * taps + k]
            source[at : at + n] = sources[:n]
            slot[at : at + n] = slots[:n]
