"""Gather-GEMM on the CPU: tiles of output rows, taps inside, register tiles of explicit SIMD innermost."""

from collections.abc import Sequence

import numpy as np
import torch
from numba import njit
from torch import Tensor

from common_kernels.gather_gemm import reference
from common_kernels.kernel_map.cpu_schedule import TILE
from common_kernels.simd import (
    HAS_BF16_DOT,
    LANES,
    MAX_VECTORS,
    TILE_ROWS,
    add_row,
    add_row_bf16,
    copy_row,
    gemm_tile,
    relu_row,
    relu_row_bf16,
    round_row_bf16,
)
from common_kernels.threads import parallel_for

TALLEST = max(TILE_ROWS)


def gather_gemm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str,
    table: Tensor,
    schedule: list[Tensor],
) -> Tensor:
    """fp32, and bf16 where the CPU multiplies it; fp16 and other bf16 pass through fp32, fp64 takes the reference."""
    if x.dtype == torch.float64:
        return reference.gather_gemm(x, table, weight, bias, residual, activation)
    if not packs(x.dtype):
        bias = None if bias is None else bias.float()
        residual = None if residual is None else residual.float()
        return gather_gemm(x.float(), weight.float(), bias, residual, activation, table, schedule).to(x.dtype)
    return multiply(x, pack_weight(weight), weight.shape[2], bias, residual, activation, table, schedule)


def multiply(
    x: Tensor,
    packed: np.ndarray,
    c_out: int,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str,
    table: Tensor,
    schedule: Sequence[Tensor],
) -> Tensor:
    """The same for a weight that is packed, with c_out columns, in a dtype that `packs`."""
    half = x.dtype == torch.bfloat16
    out = x.new_empty(table.shape[1], c_out)
    if out.numel() == 0:
        return out
    rows = _even_channels(x) if half else x.contiguous()
    start = np.zeros(packed.shape[2], np.float32)
    if bias is not None:
        start[: len(bias)] = bias.float().numpy()
    source, slot, offsets = (each.numpy() for each in schedule)
    residual = None if residual is None else residual.contiguous()
    parallel_for(
        _multiply_tiles,
        -(-len(out) // TILE),
        1,
        rows.data_ptr(),
        rows.shape[1] * rows.element_size(),
        packed,
        start,
        0 if residual is None else residual.data_ptr(),
        activation == "relu",
        half,
        source,
        slot,
        offsets,
        out.data_ptr(),
        *out.shape,
    )
    return out


def packs(dtype: torch.dtype) -> bool:
    """Whether products in a dtype read packed weights here."""
    return dtype == torch.float32 or (dtype == torch.bfloat16 and bool(HAS_BF16_DOT))


def pack_weight(weight: Tensor) -> np.ndarray:
    """weight [K, Cin, Cout] as [K, steps, columns] fp32 words, columns padded with zeros to whole vectors.

    A word of bf16 holds two input channels, which the dot-product instruction multiplies in one step.
    """
    taps, c_in, c_out = weight.shape
    columns = -(-c_out // LANES) * LANES
    if weight.dtype == torch.float32:
        packed = weight.new_zeros(taps, c_in, columns)
        packed[:, :, :c_out] = weight
        return packed.numpy()
    steps = -(-c_in // 2)
    packed = weight.new_zeros(taps, steps, columns, 2)
    packed[:, :, :c_out, 0] = weight[:, 0::2]
    packed[:, : c_in // 2, :c_out, 1] = weight[:, 1::2]
    return packed.view(torch.float32).squeeze(3).numpy()


def _even_channels(x: Tensor) -> Tensor:
    """x with a channel of zeros appended where their number is odd, since a bf16 step reads two."""
    return torch.nn.functional.pad(x, (0, 1)) if x.shape[1] % 2 else x.contiguous()


# Numba cannot index a tuple of different functions: so the tiles have names, and `multiply_rows` a ladder.
_wide_1, _wide_1_short = gemm_tile(TILE_ROWS[1], 1, False), gemm_tile(TILE_ROWS[1] // 2, 1, False)
_wide_2, _wide_2_short = gemm_tile(TILE_ROWS[2], 2, False), gemm_tile(TILE_ROWS[2] // 2, 2, False)
_wide_3, _wide_3_short = gemm_tile(TILE_ROWS[3], 3, False), gemm_tile(TILE_ROWS[3] // 2, 3, False)
_wide_4, _wide_4_short = gemm_tile(TILE_ROWS[4], 4, False), gemm_tile(TILE_ROWS[4] // 2, 4, False)
_half_1, _half_1_short = gemm_tile(TILE_ROWS[1], 1, HAS_BF16_DOT), gemm_tile(TILE_ROWS[1] // 2, 1, HAS_BF16_DOT)
_half_2, _half_2_short = gemm_tile(TILE_ROWS[2], 2, HAS_BF16_DOT), gemm_tile(TILE_ROWS[2] // 2, 2, HAS_BF16_DOT)
_half_3, _half_3_short = gemm_tile(TILE_ROWS[3], 3, HAS_BF16_DOT), gemm_tile(TILE_ROWS[3] // 2, 3, HAS_BF16_DOT)
_half_4, _half_4_short = gemm_tile(TILE_ROWS[4], 4, HAS_BF16_DOT), gemm_tile(TILE_ROWS[4] // 2, 4, HAS_BF16_DOT)


@njit(nogil=True, cache=True)
def multiply_rows(n, acc, x, w, steps, columns, half):
    """acc[r] += x[r] @ w for the n rows whose addresses lie at acc and x, filled up to a whole register tile."""
    stride, vectors, at = 4 * columns, columns // LANES, 0
    while at < vectors:
        v = min(MAX_VECTORS, vectors - at)
        offset, rows, r = 4 * LANES * at, TILE_ROWS[v], 0
        while r < n:
            short = n - r <= rows // 2
            to, src, line = acc + 8 * r, x + 8 * r, w + offset
            if half:
                if v == 4:
                    if short:
                        _half_4_short(to, offset, src, line, steps, stride)
                    else:
                        _half_4(to, offset, src, line, steps, stride)
                elif v == 3:
                    if short:
                        _half_3_short(to, offset, src, line, steps, stride)
                    else:
                        _half_3(to, offset, src, line, steps, stride)
                elif v == 2:
                    if short:
                        _half_2_short(to, offset, src, line, steps, stride)
                    else:
                        _half_2(to, offset, src, line, steps, stride)
                elif short:
                    _half_1_short(to, offset, src, line, steps, stride)
                else:
                    _half_1(to, offset, src, line, steps, stride)
            elif v == 4:
                if short:
                    _wide_4_short(to, offset, src, line, steps, stride)
                else:
                    _wide_4(to, offset, src, line, steps, stride)
            elif v == 3:
                if short:
                    _wide_3_short(to, offset, src, line, steps, stride)
                else:
                    _wide_3(to, offset, src, line, steps, stride)
            elif v == 2:
                if short:
                    _wide_2_short(to, offset, src, line, steps, stride)
                else:
                    _wide_2(to, offset, src, line, steps, stride)
            elif short:
                _wide_1_short(to, offset, src, line, steps, stride)
            else:
                _wide_1(to, offset, src, line, steps, stride)
            r += rows // 2 if short else rows
        at += v


@njit(nogil=True, cache=True)
def _multiply_tiles(
    x, x_stride, packed, start, residual, relu, half, source, slot, offsets, out, n_rows, c_out, begin, end
):
    """Output rows of tiles [begin, end). x, residual (0: none) and out are addresses of bf16 if `half`, else fp32."""
    taps, steps, columns = packed.shape
    direct = not half and c_out == columns
    # The accumulators of a tile are its rows of `out` where those have the form, else a buffer. The rows that fill up
    # the last register tile of a tap write to `spare`.
    buffer, spare = np.empty((0 if direct else TILE, columns), np.float32), np.empty(columns, np.float32)
    stride, out_stride = 4 * columns, (2 if half else 4) * c_out
    acc, src = np.empty(TILE + TALLEST, np.int64), np.empty(TILE + TALLEST, np.int64)
    for tile in range(begin, end):
        first, last = tile * TILE, min((tile + 1) * TILE, n_rows)
        target = out + first * out_stride
        base = target if direct else np.int64(buffer.ctypes.data)
        for r in range(last - first):
            copy_row(base + r * stride, np.int64(start.ctypes.data), columns)
            if residual:
                added = residual + (first + r) * out_stride
                if half:
                    add_row_bf16(base + r * stride, added, c_out)
                else:
                    add_row(base + r * stride, added, c_out)
        for k in range(taps):
            at = offsets[tile * taps + k]
            n = offsets[tile * taps + k + 1] - at
            if n == 0:
                continue
            for i in range(n):
                acc[i] = base + np.int64(slot[at + i]) * stride
                src[i] = x + np.int64(source[at + i]) * x_stride
            for i in range(n, n + TALLEST):
                acc[i] = spare.ctypes.data
                src[i] = x
            w = np.int64(packed.ctypes.data) + k * steps * stride
            multiply_rows(n, acc.ctypes.data, src.ctypes.data, w, steps, columns, half)
        for r in range(last - first):
            done, row = target + r * out_stride, base + r * stride
            if half:
                if relu:
                    relu_row_bf16(done, row, c_out)
                else:
                    round_row_bf16(done, row, c_out)
            elif relu:
                relu_row(done, row, c_out)
            elif not direct:
                copy_row(done, row, c_out)
