"""Channel shift on the CPU: rows copied by explicit SIMD, each group from its own row."""

from collections.abc import Sequence
from itertools import accumulate

import numpy as np
import torch
from numba import njit
from torch import Tensor

from common_kernels.channel_shift.layout import layout_of, word_bytes
from common_kernels.simd import LANES, copy_row
from common_kernels.threads import parallel_for

# A chunk should take long beside the 20 µs of waking a thread.
_GRAIN_BYTES = 1 << 18
# Words that are copied at once: half of the first-level cache holds them twice.
_BLOCK = 4096
# Beyond the caches torch's copies, which write past them, are faster than patching rows that were copied whole.
_MOST_PATCHED_BYTES = 8 << 20
_WORD = 4
_ZEROS = np.zeros(_BLOCK, np.float32)


def channel_shift(x: Tensor, length: int, channels: Sequence[int], offsets: Sequence[int]) -> Tensor:
    layout = layout_of(x)
    if layout is None:
        dense = channel_shift(x.contiguous(), length, channels, offsets)
        return torch.empty_like(x).copy_(dense)
    out = torch.empty_like(x)
    if out.numel() == 0:
        return out
    width = layout.width * x.element_size() // _WORD
    scale = layout.inner * x.element_size()
    in_cache = layout.n_rows * width * _WORD <= _MOST_PATCHED_BYTES
    ends = [end * scale // _WORD for end in accumulate(channels)]
    vectors = ends and width - ends[-1] >= LANES and max(channels) * scale <= _WORD * LANES
    if (width <= _BLOCK and not in_cache) or word_bytes(x, layout, channels, _WORD) < _WORD:
        _copy_slices(out, x, length, channels, offsets, whole=in_cache and layout.inner == 1)
        return out
    parallel_for(
        _shift_vectors if vectors else _shift_rows,
        layout.n_rows,
        max(1, _GRAIN_BYTES // (_WORD * width)),
        out.data_ptr(),
        x.data_ptr(),
        _ZEROS.ctypes.data,
        width,
        length * layout.step,
        np.array([ends, [offset * layout.step for offset in offsets]], np.int64),
    )
    return out


def _copy_slices(
    out: Tensor, x: Tensor, length: int, channels: Sequence[int], offsets: Sequence[int], whole: bool
) -> None:
    """The same by torch. `whole`: everything is copied first, which is faster than to leave out narrow groups."""
    shape = (x.shape[0] // length, length)
    src, to, begin = x.unflatten(0, shape), out.unflatten(0, shape), 0
    if whole:
        out.copy_(x)
    for n, offset in zip(channels, offsets):
        offset = max(-length, min(offset, length))
        first, last = max(0, -offset), length - max(0, offset)  # the rows that have a source
        here = to[:, :, begin : begin + n]
        here[:, first:last] = src[:, first + offset : last + offset, begin : begin + n]
        here[:, :first] = 0
        here[:, last:] = 0
        begin += n
    if not whole:
        to[:, :, begin:] = src[:, :, begin:]


@njit(nogil=True, cache=True)
def _clear(to, zeros, n):
    for done in range(0, n, _BLOCK):
        copy_row(to + _WORD * done, zeros, min(_BLOCK, n - done))


@njit(nogil=True, cache=True)
def _shift_rows(out, x, zeros, width, length, groups, first, last):
    """Rows [first, last) of `width` words. out, x and zeros are addresses, groups the ends and the offsets."""
    stride, together = _WORD * width, max(1, _BLOCK // width)
    patched = width <= _BLOCK
    for block in range(first, last, together):
        end = min(block + together, last)
        if patched:
            copy_row(out + block * stride, x + block * stride, (end - block) * width)
        begin = 0
        for g in range(groups.shape[1]):
            n, offset, place = groups[0, g] - begin, groups[1, g], block % length
            to = out + block * stride + _WORD * begin
            src = x + (block + offset) * stride + _WORD * begin
            for _ in range(block, end):
                if 0 <= place + offset < length:
                    copy_row(to, src, n)
                else:
                    _clear(to, zeros, n)
                to += stride
                src += stride
                place += 1
                if place == length:
                    place = 0
            begin += n
        if not patched:
            for row in range(block, end):
                at = row * stride + _WORD * begin
                copy_row(out + at, x + at, width - begin)


@njit(nogil=True, cache=True)
def _shift_vectors(out, x, zeros, width, length, groups, first, last):
    """The same for groups of at most LANES words with LANES or more behind them: a whole vector each.

    What a vector writes beyond its group is written again, rightly, by what follows.
    """
    n_groups, stride, place = groups.shape[1], _WORD * width, first % length
    kept = _WORD * groups[0, n_groups - 1]
    n = width - groups[0, n_groups - 1]
    body, tail = n - n % LANES, stride - _WORD * LANES
    for row in range(first, last):
        to, src, begin = out + row * stride, x + row * stride, 0
        for g in range(n_groups):
            offset = groups[1, g]
            if 0 <= place + offset < length:
                copy_row(to + begin, src + offset * stride + begin, LANES)
            else:
                copy_row(to + begin, zeros, LANES)
            begin = _WORD * groups[0, g]
        copy_row(to + kept, src + kept, body)
        if body < n:
            copy_row(to + tail, src + tail, LANES)
        place += 1
        if place == length:
            place = 0
