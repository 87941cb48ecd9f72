"""A mask's reach on the CPU: its rows are merged, then shifted onto themselves, whole vectors of bytes at once."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numba import carray, njit
from numba.core import types
from numba.extending import intrinsic
from torch import Tensor

from common_kernels.windows import Window


def reach(changed: Tensor, window: Window) -> Tensor:
    changed = changed.contiguous()
    batch, height, width = changed.shape
    rows, cols = window.output_size(height, width)
    out = torch.empty(batch, rows, cols, dtype=torch.bool)
    if out.numel() > 0:
        spec = mask_spec(window, batch, height, width, rows, cols)
        dilate(out.data_ptr(), changed.data_ptr(), 0, spec)
    return out


class MaskSpec(NamedTuple):
    """What `dilate` needs to know of a layer, as integers that reach it in one array."""

    batch: int
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


# Where each of them stands in the array.
AT = MaskSpec(*range(len(MaskSpec._fields)))


def mask_spec(window: Window, batch: int, height: int, width: int, rows: int, cols: int) -> np.ndarray:
    """A `MaskSpec` as one array: a call from Python costs some 100 ns per argument."""
    (kernel_y, kernel_x), (stride_y, stride_x) = window.kernel, window.stride
    (pad_y, pad_x), (dilation_y, dilation_x) = window.padding, window.dilation
    spec = MaskSpec(
        batch=batch, height=height, width=width, rows=rows, cols=cols, kernel_y=kernel_y, kernel_x=kernel_x,
        stride_y=stride_y, stride_x=stride_x, pad_y=pad_y, pad_x=pad_x, dilation_y=dilation_y, dilation_x=dilation_x,
    )  # fmt: skip
    return np.array(spec, np.int64)


@intrinsic
def _as_pointer(context: Any, address: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], context.get_value_type(types.voidptr))

    return types.voidptr(types.int64), codegen


@njit(nogil=True, cache=True)
def bytes_at(address, n):
    return carray(_as_pointer(address), (n,), np.uint8)


@njit(nogil=True, cache=True)
def floats_at(address, n):
    return carray(_as_pointer(address), (n,), np.float32)


@njit(nogil=True, cache=True)
def int32_at(address, n):
    return carray(_as_pointer(address), (n,), np.int32)


@njit(nogil=True, cache=True)
def words_at(address, n):
    return carray(_as_pointer(address), (n,), np.uint64)


@njit(nogil=True, cache=True)
def _any(flags):
    merged = np.uint8(0)
    for i in range(len(flags)):
        merged |= flags[i]
    return merged


@njit(nogil=True, cache=True)
def dilate(out, changed, also, spec):
    """Address `out` [B, Ho, Wo] bytes = reach of `changed` [B, H, W] bytes (0: all true) or `also` (0: none)."""
    batch, height, width, rows, cols = spec[AT.batch], spec[AT.height], spec[AT.width], spec[AT.rows], spec[AT.cols]
    kernel_y, kernel_x, stride_y, stride_x = spec[AT.kernel_y], spec[AT.kernel_x], spec[AT.stride_y], spec[AT.stride_x]
    pad_y, pad_x, dilation_y, dilation_x = spec[AT.pad_y], spec[AT.pad_x], spec[AT.dilation_y], spec[AT.dilation_x]
    target = bytes_at(out, batch * rows * cols)
    if changed == 0:
        target[:] = 1
        return
    source = bytes_at(changed, batch * height * width)
    room = max(pad_x + width, (cols - 1) * stride_x + dilation_x * (kernel_x - 1) + 1)
    line = np.zeros(room, np.uint8)
    middle = line[pad_x : pad_x + width]
    some = np.empty(height, np.uint8)
    for image in range(batch):
        for y in range(height):
            begin = (image * height + y) * width
            some[y] = _any(source[begin : begin + width])
        for y in range(rows):
            found = 0
            for ky in range(kernel_y):
                at = y * stride_y - pad_y + ky * dilation_y
                if 0 <= at < height and some[at] != 0:
                    if found == 0:
                        middle[:] = 0
                        found = 1
                    begin = (image * height + at) * width
                    row = source[begin : begin + width]
                    for i in range(width):
                        middle[i] |= row[i]
            begin = (image * rows + y) * cols
            done = target[begin : begin + cols]
            done[:] = 0
            if found == 0:
                continue
            for kx in range(kernel_x):
                shifted = line[kx * dilation_x :]
                if stride_x == 1:
                    for i in range(cols):
                        done[i] |= shifted[i]
                else:
                    for i in range(cols):
                        done[i] |= shifted[i * stride_x]
    if also:
        more = bytes_at(also, batch * rows * cols)
        for i in range(len(target)):
            target[i] |= more[i]


@njit(nogil=True, cache=True)
def list_true(mask, n, found):
    """Write the places of n bytes that are not 0, ascending, as int32 to `found` (room for n); returns how many.

    mask is an address that 8 divides, as torch allocates them.
    """
    flags, listed = bytes_at(mask, n), int32_at(found, n)
    words = words_at(mask, n // 8)
    count = 0
    for w in range(n // 8):
        if words[w] != 0:
            for i in range(8 * w, 8 * w + 8):
                # Without a branch: written to the next free place, and kept there if the flag is set.
                listed[count] = i
                count += flags[i] != 0  # another type's bytes seen as bool may be any
    for i in range(n // 8 * 8, n):
        if flags[i] != 0:
            listed[count] = i
            count += 1
    return count


@njit(nogil=True, cache=True)
def list_active(out, changed, also, spec, found):
    """`dilate`, then `list_true` of the result."""
    dilate(out, changed, also, spec)
    return list_true(out, spec[AT.batch] * spec[AT.rows] * spec[AT.cols], found)
