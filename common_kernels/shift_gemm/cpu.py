"""The shifted matrix product on the CPU: register tiles of explicit SIMD; a shifted row is only another address."""

from collections.abc import Sequence
from itertools import accumulate

import numpy as np
import torch
from numba import njit
from torch import Tensor

from common_kernels.gather_gemm.cpu import TALLEST, finish_rows, multiply_rows, pack_weight, start_rows
from common_kernels.shift_gemm import reference
from common_kernels.simd import HAS_BF16_DOT
from common_kernels.threads import parallel_for

# Rows whose accumulators, weights and inputs stay in the second-level cache.
TILE = 128


def shift_gemm(
    x: Tensor,
    length: int,
    channels: Sequence[int],
    offsets: Sequence[int],
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str,
) -> Tensor:
    """fp32, and bf16 where the CPU multiplies it and every group is even; other fp16 and bf16 pass through fp32."""
    rest = x.shape[1] - sum(channels)
    half = x.dtype == torch.bfloat16
    if x.dtype == torch.float64 or x.shape[1] == 0:
        return reference.shift_gemm(x, length, channels, offsets, weight, bias, residual, activation)
    # A step of the product takes two channels of bf16, which one row must hold.
    if x.dtype == torch.float16 or (half and (not HAS_BF16_DOT or any(n % 2 for n in (*channels, rest)))):
        bias = None if bias is None else bias.float()
        residual = None if residual is None else residual.float()
        return shift_gemm(x.float(), length, channels, offsets, weight.float(), bias, residual, activation).to(x.dtype)
    out = x.new_empty(x.shape[0], weight.shape[1])
    if out.numel() == 0:
        return out
    x, residual = x.contiguous(), None if residual is None else residual.contiguous()
    packed = pack_weight(weight[None])[0]
    start = np.zeros(packed.shape[1], np.float32)
    if bias is not None:
        start[: len(bias)] = bias.detach().float().numpy()
    per_step = 2 if half else 1
    groups = np.array([[*accumulate(channels), x.shape[1]], [*offsets, 0]], np.int64)
    groups[0] //= per_step
    parallel_for(
        _multiply_tiles,
        -(-len(out) // TILE),
        1,
        x.data_ptr(),
        groups,
        length,
        packed,
        start,
        0 if residual is None else residual.data_ptr(),
        activation != "none",
        half,
        out.data_ptr(),
        *out.shape,
    )
    return out.clamp_(max=6) if activation == "relu6" else out


@njit(nogil=True, cache=True)
def _multiply_tiles(x, groups, length, packed, start, residual, relu, half, out, n_rows, c_out, first, last):
    """Output rows of tiles [first, last). x, residual (0: none) and out are addresses of bf16 if `half`, else fp32.

    groups: the step at which each group of channels ends, and how many rows further on it is read.
    """
    steps, columns = packed.shape
    direct = not half and c_out == columns
    buffer, spare = np.empty((0 if direct else TILE, columns), np.float32), np.empty(columns, np.float32)
    stride, out_stride = 4 * columns, (2 if half else 4) * c_out
    acc, src = np.empty(TILE + TALLEST, np.int64), np.empty(TILE + TALLEST, np.int64)
    for tile in range(first, last):
        begin, end = tile * TILE, min((tile + 1) * TILE, n_rows)
        target = out + begin * out_stride
        base = target if direct else np.int64(buffer.ctypes.data)
        added = residual + begin * out_stride if residual else 0
        start_rows(end - begin, base, columns, start, added, c_out, half)
        step = 0
        for g in range(groups.shape[1]):
            offset, place, n = groups[1, g], begin % length, 0
            for r in range(begin, end):
                if 0 <= place + offset < length:
                    acc[n] = base + (r - begin) * stride
                    src[n] = x + 4 * ((r + offset) * steps + step)
                    n += 1
                place += 1
                if place == length:
                    place = 0
            for i in range(n, n + TALLEST):
                acc[i] = spare.ctypes.data
                src[i] = x + 4 * step
            w = np.int64(packed.ctypes.data)
            if n > 0 and groups[0, g] > step:
                multiply_rows(n, acc.ctypes.data, src.ctypes.data, w, step, groups[0, g], steps, columns, half)
            step = groups[0, g]
        finish_rows(end - begin, base, columns, target, c_out, relu, half)
