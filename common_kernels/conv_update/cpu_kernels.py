"""Blocks of listed output pixels: addresses of the rows that their taps read, SIMD register tiles, compare, write."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit

from common_kernels.conv_update.cpu_simd import depthwise_rows, hardswish_row, settle_row, silu_row
from common_kernels.gather_gemm.cpu import TALLEST, multiply_rows
from common_kernels.reach.cpu import bytes_at, int32_at
from common_kernels.row_update.cpu_simd import copy_bytes
from common_kernels.simd import LANES, add_row, add_row_bf16, copy_row, keep, round_row_bf16

# Pixels of a block: whole register tiles of every height (6, 8 and 12 rows), sums that stay in the L2 cache.
BLOCK = 96
# Of a depthwise convolution: rows whose every channel lies in one of few sets of the L1 cache.
DEPTHWISE_BLOCK = 24


class Spec(NamedTuple):
    """What a layer is, as integers that reach the kernels in one array. Offsets and pitches are in bytes."""

    height: int
    width: int
    rows: int
    cols: int
    kernel_y: int
    kernel_x: int
    stride_y: int
    stride_x: int
    pad_y: int
    pad_x: int
    dilation_y: int
    dilation_x: int
    c_in: int
    c_out: int
    groups: int
    half: int  # bf16 instead of fp32
    activation: int
    # Taps multiplied at once, as one row: 1, a row of the window, or all of them.
    run_y: int
    run_x: int
    steps: int
    columns: int  # of one group, padded to whole vectors
    copies: int  # a run is never read where it lies


# Where each of them stands in the array.
_AT = Spec(*range(len(Spec._fields)))

NONE, RELU, RELU6, HARDSWISH, SILU = range(5)

_depthwise_9, _depthwise_9_half = depthwise_rows(9, LANES, False), depthwise_rows(9, LANES, True)
_depthwise_25, _depthwise_25_half = depthwise_rows(25, LANES, False), depthwise_rows(25, LANES, True)
_depthwise_any, _depthwise_any_half = depthwise_rows(0, LANES, False), depthwise_rows(0, LANES, True)
_depthwise_lane, _depthwise_lane_half = depthwise_rows(0, 1, False), depthwise_rows(0, 1, True)
settle, settle_half = settle_row(False), settle_row(True)


@njit(nogil=True, cache=True)
def finish_row(sums, row, residual, out, mask, c_out, half, activation, threshold):
    """Sums of output pixel `row`, fp32 at an address, to its kept value where they differ; the mask says where."""
    pitch = (2 if half else 4) * c_out
    if residual:
        if half:
            add_row_bf16(sums, residual + row * pitch, c_out)
        else:
            add_row(sums, residual + row * pitch, c_out)
    low, high = np.float32(-np.inf), np.float32(np.inf)
    if activation == HARDSWISH:
        hardswish_row(sums, sums, c_out)
    elif activation == SILU:
        silu_row(sums, sums, c_out)
    elif activation != NONE:
        low = np.float32(0)
        if activation == RELU6:
            high = np.float32(6)
    kept = out + row * pitch
    if half:
        moved = settle_half(sums, kept, c_out, low, high, threshold)
        if moved:
            round_row_bf16(kept, sums, c_out)
    else:
        moved = settle(sums, kept, c_out, low, high, threshold)
        if moved:
            copy_row(kept, sums, c_out)
    mask[row] = moved


@njit(nogil=True, cache=True)
def _corners(listed, first, n, spec, image, top, left):
    """The image and the upper left input pixel of n listed outputs."""
    rows, cols, stride_x = spec[_AT.rows], spec[_AT.cols], spec[_AT.stride_x]
    y = np.int64(0)
    z = cols
    b = np.int64(0)
    previous = np.int64(-2)
    for r in range(n):
        row = np.int64(listed[first + r])
        z += 1
        # Changes come in runs along a line, which need no division.
        if row != previous + 1 or z >= cols:
            line = row // cols
            z = row - line * cols
            b = line // rows
            y = (line - b * rows) * spec[_AT.stride_y] - spec[_AT.pad_y]
        previous = row
        image[r], top[r], left[r] = b, y, z * stride_x - spec[_AT.pad_x]


@njit(nogil=True, cache=True)
def update_blocks(x, packed, start, zeros, residual, out, mask, rows, count, spec, threshold, begin, end):
    """Blocks [begin, end) of the `count` listed pixels. All but spec and the numbers are addresses.

    packed: [groups, runs, steps, columns] words as `gather_gemm`'s; start: [groups, columns] fp32 sums to begin with;
    zeros: as many as a run has inputs, for the taps outside the image.
    """
    height, width = spec[_AT.height], spec[_AT.width]
    c_in, c_out, groups = spec[_AT.c_in], spec[_AT.c_out], spec[_AT.groups]
    kernel_y, kernel_x, run_y, run_x = spec[_AT.kernel_y], spec[_AT.kernel_x], spec[_AT.run_y], spec[_AT.run_x]
    dilation_y, dilation_x = spec[_AT.dilation_y], spec[_AT.dilation_x]
    steps, columns, activation = spec[_AT.steps], spec[_AT.columns], spec[_AT.activation]
    half, copies = spec[_AT.half] != 0, spec[_AT.copies] != 0
    size = 2 if half else 4
    pitch, taken = size * c_in, size * (c_in // groups)
    runs = (kernel_y // run_y) * (kernel_x // run_x)
    height_of = min(BLOCK, count - begin * BLOCK)
    sums = np.empty((height_of + 1, groups * columns), np.float32)  # the last row takes what fills up register tiles
    stride = 4 * groups * columns
    acc, src = np.empty(BLOCK + TALLEST, np.int64), np.empty(BLOCK + TALLEST, np.int64)
    image, top, left = np.empty(BLOCK, np.int64), np.empty(BLOCK, np.int64), np.empty(BLOCK, np.int64)
    # Room for runs that reach over the edge of the image, and are put together tap by tap.
    single = run_x * run_y == 1
    patch = np.zeros((0 if single and not copies else height_of, 4 * steps), np.uint8)
    base, listed, flags = np.int64(sums.ctypes.data), int32_at(rows, count), bytes_at(mask, 1 << 40)
    pieces = np.int64(patch.ctypes.data)
    for block in range(begin, end):
        first = block * BLOCK
        n = min(BLOCK, count - first)
        _corners(listed, first, n, spec, image, top, left)
        for r in range(n):
            copy_row(base + r * stride, start, groups * columns)
        for group in range(groups):
            for r in range(n):
                acc[r] = base + r * stride + 4 * group * columns
            for r in range(n, n + TALLEST):
                acc[r] = base + height_of * stride
                src[r] = zeros
            for run in range(runs):
                ky = run // (kernel_x // run_x) * run_y
                kx = run % (kernel_x // run_x) * run_x
                for r in range(n):
                    y, z = top[r] + ky * dilation_y, left[r] + kx * dilation_x
                    here = x + ((image[r] * height + y) * width + z) * pitch + group * taken
                    if single and not copies:
                        inside = (0 <= y) & (y < height) & (0 <= z) & (z < width)
                        src[r] = here if inside else zeros
                    elif run_y == 1 and (y < 0 or y >= height):
                        src[r] = zeros
                    elif not copies and 0 <= z and z + run_x <= width:
                        src[r] = here
                    else:
                        src[r] = pieces + r * 4 * steps
                        _put_together(src[r], x, image[r], y, z, spec, size, group * taken)
                w = packed + (group * runs + run) * steps * columns * 4
                multiply_rows(n, acc.ctypes.data, src.ctypes.data, w, 0, steps, steps, columns, half)
        for r in range(n):
            row_sums = base + r * stride
            if columns * groups != c_out:
                for group in range(1, groups):
                    copy_row(row_sums + 4 * group * (c_out // groups), row_sums + 4 * group * columns, c_out // groups)
            finish_row(row_sums, np.int64(listed[first + r]), residual, out, flags, c_out, half, activation, threshold)
    keep(sums)
    keep(patch)


@njit(nogil=True, cache=True)
def _put_together(to, x, image, y, z, spec, size, offset):
    """The run of taps from input pixel (y, z) on, as one row at an address, with zeros outside the image.

    What follows the row's last input is never written.
    """
    height, width, run_y, run_x = spec[_AT.height], spec[_AT.width], spec[_AT.run_y], spec[_AT.run_x]
    dilation_y, dilation_x = spec[_AT.dilation_y], spec[_AT.dilation_x]
    pitch, taken = size * spec[_AT.c_in], size * (spec[_AT.c_in] // spec[_AT.groups])
    # Neighbours lie side by side, and are moved together, where no dilation and no other group's channels part them.
    together = run_x if taken == pitch and dilation_x == 1 else 1
    for ky in range(run_y):
        row = y + ky * dilation_y
        line = x + (image * height + row) * width * pitch + offset
        for kx in range(0, run_x, together):
            column = z + kx * dilation_x
            before = min(max(0, -column), together)
            last = min(max(before, width - column), together)
            if row < 0 or row >= height:
                before = last = 0
            if before > 0:
                bytes_at(to, before * taken)[:] = 0
            if last > before:
                copy_bytes(to + before * taken, line + (column + before) * pitch, (last - before) * taken)
            if last < together:
                bytes_at(to + last * taken, (together - last) * taken)[:] = 0
            to += together * taken


@njit(nogil=True, cache=True)
def update_depthwise(x, packed, start, zeros, residual, out, mask, rows, count, spec, threshold, begin, end):
    """As `update_blocks` for one input channel per output channel; packed is [taps, C] fp32, start [C]."""
    height, width, channels = spec[_AT.height], spec[_AT.width], spec[_AT.c_out]
    kernel_y, kernel_x = spec[_AT.kernel_y], spec[_AT.kernel_x]
    half = spec[_AT.half] != 0
    size, taps = 2 if half else 4, kernel_y * kernel_x
    pitch, stride = size * channels, 4 * channels
    height_of = min(DEPTHWISE_BLOCK, count - begin * DEPTHWISE_BLOCK)
    sums = np.empty((height_of, channels), np.float32)
    table = np.empty((height_of, taps), np.int64)
    image, top, left = (
        np.empty(DEPTHWISE_BLOCK, np.int64),
        np.empty(DEPTHWISE_BLOCK, np.int64),
        np.empty(DEPTHWISE_BLOCK, np.int64),
    )
    within = np.empty(taps, np.int64)
    for t in range(taps):
        within[t] = ((t // kernel_x) * spec[_AT.dilation_y] * width + (t % kernel_x) * spec[_AT.dilation_x]) * pitch
    reach_y, reach_x = (kernel_y - 1) * spec[_AT.dilation_y], (kernel_x - 1) * spec[_AT.dilation_x]
    base, entries = np.int64(sums.ctypes.data), np.int64(table.ctypes.data)
    listed, flags = int32_at(rows, count), bytes_at(mask, 1 << 40)
    for block in range(begin, end):
        first = block * DEPTHWISE_BLOCK
        n = min(DEPTHWISE_BLOCK, count - first)
        _corners(listed, first, n, spec, image, top, left)
        for r in range(n):
            if top[r] >= 0 and top[r] + reach_y < height and left[r] >= 0 and left[r] + reach_x < width:
                corner = x + ((image[r] * height + top[r]) * width + left[r]) * pitch
                for t in range(taps):
                    table[r, t] = corner + within[t]
                continue
            for ky in range(kernel_y):
                y = top[r] + ky * spec[_AT.dilation_y]
                inside_y = (0 <= y) & (y < height)
                line = x + (image[r] * height + y) * width * pitch
                for kx in range(kernel_x):
                    z = left[r] + kx * spec[_AT.dilation_x]
                    table[r, ky * kernel_x + kx] = line + z * pitch if inside_y & (0 <= z) & (z < width) else zeros
        if channels < LANES:
            for c in range(channels):
                to, from_w, begins = base + 4 * c, packed + 4 * c, start + 4 * c
                if half:
                    _depthwise_lane_half(to, stride, entries, 2 * c, from_w, stride, begins, taps, n)
                else:
                    _depthwise_lane(to, stride, entries, 4 * c, from_w, stride, begins, taps, n)
        else:
            for vector in range(-(-channels // LANES)):
                # The last vector overlaps the one before: the channels of both get the same sums twice.
                c = min(vector * LANES, channels - LANES)
                to, from_w, begins = base + 4 * c, packed + 4 * c, start + 4 * c
                if half:
                    if taps == 9:
                        _depthwise_9_half(to, stride, entries, 2 * c, from_w, stride, begins, taps, n)
                    elif taps == 25:
                        _depthwise_25_half(to, stride, entries, 2 * c, from_w, stride, begins, taps, n)
                    else:
                        _depthwise_any_half(to, stride, entries, 2 * c, from_w, stride, begins, taps, n)
                elif taps == 9:
                    _depthwise_9(to, stride, entries, 4 * c, from_w, stride, begins, taps, n)
                elif taps == 25:
                    _depthwise_25(to, stride, entries, 4 * c, from_w, stride, begins, taps, n)
                else:
                    _depthwise_any(to, stride, entries, 4 * c, from_w, stride, begins, taps, n)
        for r in range(n):
            row = np.int64(listed[first + r])
            finish_row(base + r * stride, row, residual, out, flags, channels, half, spec[_AT.activation], threshold)
    keep(sums)
