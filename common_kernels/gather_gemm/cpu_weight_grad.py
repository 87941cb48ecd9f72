"""The weight gradient of gather-GEMM on the CPU: outer products of the pairs' rows, summed in registers."""

import numpy as np
import torch
from numba import njit
from torch import Tensor

from common_kernels.gather_gemm import reference
from common_kernels.kernel_map.cpu_schedule import TILE
from common_kernels.simd import LANES, MAX_VECTORS, OUTER_ROWS, outer_tile
from common_kernels.threads import parallel_for

# Taps that are summed together share the cached rows of a tile; their sums should stay in the second-level cache.
_SUMS_BYTES = 512 * 1024


def weight_grad(x: Tensor, grad: Tensor, table: Tensor, schedule: list[Tensor]) -> Tensor:
    """[K, Cin, Cout] fp32 (fp64 by the reference). Threads share out the taps, so their number changes no bit."""
    if x.dtype == torch.float64:
        return reference.weight_grad(x, grad, table)
    taps, c_in, c_out = table.shape[0], x.shape[1], grad.shape[1]
    columns = -(-c_out // LANES) * LANES
    sums = x.new_zeros(taps, c_in, columns, dtype=torch.float32)
    if sums.numel() and len(schedule[0]):
        rows, lines = x.float().contiguous(), grad.float()
        lines = torch.nn.functional.pad(lines, (0, columns - c_out)) if columns > c_out else lines.contiguous()
        source, slot, offsets = (each.numpy() for each in schedule)
        parallel_for(_sum_taps, taps, 1, rows.numpy(), lines.numpy(), source, slot, offsets, sums.numpy())
    return sums[:, :, :c_out].contiguous()


_outer_1, _outer_1_row = outer_tile(OUTER_ROWS[1], 1), outer_tile(1, 1)
_outer_2, _outer_2_row = outer_tile(OUTER_ROWS[2], 2), outer_tile(1, 2)
_outer_3, _outer_3_row = outer_tile(OUTER_ROWS[3], 3), outer_tile(1, 3)
_outer_4, _outer_4_row = outer_tile(OUTER_ROWS[4], 4), outer_tile(1, 4)


@njit(nogil=True, cache=True)
def _sum_taps(x, grad, source, slot, offsets, sums, begin, end):
    taps, c_in, columns = sums.shape
    stride = 4 * columns
    group = max(1, _SUMS_BYTES // (c_in * stride))
    src, line = np.empty(TILE, np.int64), np.empty(TILE, np.int64)
    x_base, grad_base = np.int64(x.ctypes.data), np.int64(grad.ctypes.data)
    for first in range(begin, end, group):
        for tile in range((len(offsets) - 1) // taps):
            for k in range(first, min(first + group, end)):
                at = offsets[tile * taps + k]
                n = offsets[tile * taps + k + 1] - at
                if n == 0:
                    continue
                for i in range(n):
                    src[i] = x_base + np.int64(source[at + i]) * (4 * c_in)
                    line[i] = grad_base + (tile * TILE + np.int64(slot[at + i])) * stride
                acc = np.int64(sums.ctypes.data) + k * c_in * stride
                _add_outer(acc, c_in, columns, src.ctypes.data, line.ctypes.data, n)


@njit(nogil=True, cache=True)
def _add_outer(acc, c_in, columns, x, grad, n):
    """acc[c, :] += sum over n pairs of x[c] * grad[:], the rows of x and grad being given by address."""
    stride, vectors, at = 4 * columns, columns // LANES, 0
    while at < vectors:
        v = min(MAX_VECTORS, vectors - at)
        g, rows, c = 4 * LANES * at, OUTER_ROWS[v], 0
        while c < c_in:
            tall = c + rows <= c_in
            to = acc + c * stride + g
            if v == 4:
                if tall:
                    _outer_4(to, stride, x, 4 * c, grad, g, n)
                else:
                    _outer_4_row(to, stride, x, 4 * c, grad, g, n)
            elif v == 3:
                if tall:
                    _outer_3(to, stride, x, 4 * c, grad, g, n)
                else:
                    _outer_3_row(to, stride, x, 4 * c, grad, g, n)
            elif v == 2:
                if tall:
                    _outer_2(to, stride, x, 4 * c, grad, g, n)
                else:
                    _outer_2_row(to, stride, x, 4 * c, grad, g, n)
            elif tall:
                _outer_1(to, stride, x, 4 * c, grad, g, n)
            else:
                _outer_1_row(to, stride, x, 4 * c, grad, g, n)
            c += rows if tall else 1
        at += v
