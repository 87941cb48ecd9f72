"""Stream compaction on the CPU: count, then write."""

import numpy as np
import torch
from numba import njit
from torch import Tensor

from common_kernels.threads import parallel_for

_BLOCK = 1 << 14


def compact(mask: Tensor) -> Tensor:
    flags = mask.contiguous().numpy()
    n_blocks = -(-len(flags) // _BLOCK)
    ends = np.zeros(n_blocks + 1, dtype=np.int64)
    parallel_for(_count, n_blocks, 4, ends[1:], flags, _BLOCK)
    np.cumsum(ends, out=ends)
    out = torch.empty(int(ends[-1]), dtype=torch.int32)
    parallel_for(_write, n_blocks, 4, out.numpy(), ends, flags, _BLOCK)
    return out


@njit(nogil=True, cache=True)
def _count(counts, flags, block, begin, end):
    for b in range(begin, end):
        total = 0
        for i in range(b * block, min((b + 1) * block, flags.shape[0])):
            total += flags[i]
        counts[b] = total


@njit(nogil=True, cache=True)
def _write(out, starts, flags, block, begin, end):
    for b in range(begin, end):
        place = starts[b]
        last = starts[b + 1]
        i = b * block
        # Without a branch: each row is written to the next free place, and kept there if its flag is set.
        while place < last:
            out[place] = i
            place += flags[i]
            i += 1
