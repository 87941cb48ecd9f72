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
    prefetch,
    relu_row,
    relu_row_bf16,
    round_row_bf16,
)
from common_kernels.threads import parallel_for

TALLEST = max(TILE_ROWS)
# Columns of a panel of packed weights, and the steps of it that stay in a first-level cache of 32 KB while all rows of
# a tile pass.
PANEL = LANES * MAX_VECTORS
STEPS = 24 * 1024 // (4 * PANEL)


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

    A word of bf16 holds two input channels, which the dot-product instruction multiplies in one step. The words of a
    tap lie panel by panel: the columns of one register tile, step after step. However many columns there are, a tile
    then reads one piece of memory from its begin to its end.
    """
    taps, c_in, c_out = weight.shape
    per_word = 1 if weight.dtype == torch.float32 else 2
    steps, columns = -(-c_in // per_word), -(-c_out // LANES) * LANES
    packed = weight.new_zeros(taps, steps * columns * per_word)
    whole = c_out // PANEL * PANEL
    for first, end in ((0, whole), (whole, c_out)):
        if first == end:
            continue
        width = min(PANEL, columns - first)
        panels = -(-(end - first) // width)
        place = packed.narrow(1, first * steps * per_word, panels * width * steps * per_word)
        place = place.view(taps, panels, steps, width, per_word)
        values = weight[:, :, first:end].unflatten(2, (panels, -1)).transpose(1, 2)
        for part in range(per_word):
            each = values[:, :, part::per_word]
            place[:, :, : each.shape[2], : each.shape[3], part] = each
    return packed.view(torch.float32).view(taps, steps, columns).numpy()


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
def multiply_rows(n, acc, x, w, first, last, steps, columns, half):
    """acc[r] += x[r] @ w for the n rows whose addresses lie at acc and x, filled up to a whole register tile.

    w: address of one tap of packed weights, of `steps` steps, of which [first, last) are multiplied: the first word of
    x[r] belongs to step `first`.
    """
    blocks = -(-(last - first) // STEPS)
    for panel in range(0, columns, PANEL):
        width = min(PANEL, columns - panel)
        for block in range(blocks):
            begin = first + (last - first) * block // blocks
            end = first + (last - first) * (block + 1) // blocks
            line = w + 4 * (steps * panel + begin * width)
            _multiply_panel(n, acc, 4 * panel, x, 4 * (begin - first), line, end - begin, width // LANES, half)


@njit(nogil=True, cache=True)
def _multiply_panel(n, acc, offset, x, x_offset, w, steps, v, half):
    """The product with one panel of v vectors, from the bytes `offset` of each row of acc and `x_offset` of x on."""
    rows, stride, r = TILE_ROWS[v], 4 * LANES * v, 0
    while r < n:
        short = n - r <= rows // 2
        to, src = acc + 8 * r, x + 8 * r
        if half:
            if v == 4:
                if short:
                    _half_4_short(to, offset, src, x_offset, w, steps, stride)
                else:
                    _half_4(to, offset, src, x_offset, w, steps, stride)
            elif v == 3:
                if short:
                    _half_3_short(to, offset, src, x_offset, w, steps, stride)
                else:
                    _half_3(to, offset, src, x_offset, w, steps, stride)
            elif v == 2:
                if short:
                    _half_2_short(to, offset, src, x_offset, w, steps, stride)
                else:
                    _half_2(to, offset, src, x_offset, w, steps, stride)
            elif short:
                _half_1_short(to, offset, src, x_offset, w, steps, stride)
            else:
                _half_1(to, offset, src, x_offset, w, steps, stride)
        elif v == 4:
            if short:
                _wide_4_short(to, offset, src, x_offset, w, steps, stride)
            else:
                _wide_4(to, offset, src, x_offset, w, steps, stride)
        elif v == 3:
            if short:
                _wide_3_short(to, offset, src, x_offset, w, steps, stride)
            else:
                _wide_3(to, offset, src, x_offset, w, steps, stride)
        elif v == 2:
            if short:
                _wide_2_short(to, offset, src, x_offset, w, steps, stride)
            else:
                _wide_2(to, offset, src, x_offset, w, steps, stride)
        elif short:
            _wide_1_short(to, offset, src, x_offset, w, steps, stride)
        else:
            _wide_1(to, offset, src, x_offset, w, steps, stride)
        r += rows // 2 if short else rows


@njit(nogil=True, cache=True)
def start_rows(n, sums, columns, start, residual, c_out, half):
    """Begin n rows of fp32 sums at an address: `start` [columns] plus the residual's rows at its address (0: none)."""
    stride, residual_stride = 4 * columns, (2 if half else 4) * c_out
    for r in range(n):
        copy_row(sums + r * stride, np.int64(start.ctypes.data), columns)
        if residual:
            if half:
                add_row_bf16(sums + r * stride, residual + r * residual_stride, c_out)
            else:
                add_row(sums + r * stride, residual + r * residual_stride, c_out)


@njit(nogil=True, cache=True)
def finish_rows(n, sums, columns, out, c_out, relu, half):
    """Write n rows of fp32 sums at an address to rows of c_out numbers at `out`, which may be the same place."""
    stride, out_stride = 4 * columns, (2 if half else 4) * c_out
    for r in range(n):
        to, row = out + r * out_stride, sums + r * stride
        if half:
            if relu:
                relu_row_bf16(to, row, c_out)
            else:
                round_row_bf16(to, row, c_out)
        elif relu:
            relu_row(to, row, c_out)
        elif to != row:
            copy_row(to, row, c_out)


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
        added = residual + first * out_stride if residual else 0
        start_rows(last - first, base, columns, start, added, c_out, half)
        for k in range(taps):
            at = offsets[tile * taps + k]
            n = offsets[tile * taps + k + 1] - at
            if n == 0:
                continue
            for i in range(n):
                acc[i] = base + np.int64(slot[at + i]) * stride
                src[i] = x + np.int64(source[at + i]) * x_stride
                # Rows lie anywhere: the processor does not guess them, and fetches the lines behind the first two.
                prefetch(src[i])
                if x_stride > 64:
                    prefetch(src[i] + 64)
            for i in range(n, n + TALLEST):
                acc[i] = spare.ctypes.data
                src[i] = x
            w = np.int64(packed.ctypes.data) + k * steps * stride
            multiply_rows(n, acc.ctypes.data, src.ctypes.data, w, 0, steps, steps, columns, half)
        finish_rows(last - first, base, columns, target, c_out, relu, half)
