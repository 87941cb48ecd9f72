"""Channel shift on a GPU, in Triton: a block of rows by a block of columns, each column from its group's row."""

from collections.abc import Sequence
from contextlib import nullcontext
from itertools import accumulate

import torch
import triton
import triton.language as tl
from torch import Tensor

from common_kernels.channel_shift.layout import layout_of, word_bytes

WORDS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def channel_shift(
    x: Tensor, length: int, channels: Sequence[int], offsets: Sequence[int], out: Tensor | None = None
) -> Tensor:
    """`out`: a tensor of the shape, dtype and strides of x to write to."""
    layout = layout_of(x)
    if layout is None:
        dense = channel_shift(x.contiguous(), length, channels, offsets)
        return (torch.empty_like(x) if out is None else out).copy_(dense)
    out = torch.empty_like(x) if out is None else out
    if out.numel() == 0:
        return out
    # Bits are moved, in the widest words that no group's border divides.
    bytes_moved = word_bytes(x, layout, channels, 8)
    if out.data_ptr() % bytes_moved:
        bytes_moved = min(bytes_moved, x.element_size())
    word = WORDS[bytes_moved]
    width = layout.width * x.element_size() // bytes_moved
    channel_bytes, ends, inner = layout.inner * x.element_size(), tuple(accumulate(channels)), 1
    if channel_bytes % bytes_moved:
        ends = tuple(end * channel_bytes // bytes_moved for end in ends)
    else:
        inner = channel_bytes // bytes_moved
    block_rows, block_cols, num_warps = launch_config(width)
    grid = (triton.cdiv(layout.n_rows, block_rows), triton.cdiv(width, block_cols))
    with torch.cuda.device(x.device) if x.is_cuda else nullcontext():
        channel_shift_kernel[grid](
            _words(out, layout.n_rows * width, word), _words(x, layout.n_rows * width, word),
            layout.n_rows, width, length * layout.step, layout.step, inner,
            ENDS=ends, OFFSETS=tuple(offsets), BLOCK_ROWS=block_rows, BLOCK_COLS=block_cols, num_warps=num_warps,
        )  # fmt: skip
    return out


def _words(x: Tensor, n: int, word: torch.dtype) -> Tensor:
    """The memory of a dense tensor as n words."""
    return x.as_strided((x.numel(),), (1,)).view(word).view(n)


def launch_config(width: int) -> tuple[int, int, int]:
    """(rows of a block, columns of a block, warps): a block moves some 2048 words."""
    block_cols = min(triton.next_power_of_2(max(width, 1)), 512)
    return min(2048 // block_cols, 256), block_cols, 4


@triton.jit
def channel_shift_kernel(
    out_ptr,
    x_ptr,
    n_rows,
    width,
    length,  # rows of a segment
    step,  # rows per unit of an offset
    inner,  # columns per unit of a group's end
    ENDS: tl.constexpr,  # of the groups; few networks have more than a handful of different ones
    OFFSETS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLS: tl.constexpr,
):
    rows = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    cols = tl.program_id(1) * BLOCK_COLS + tl.arange(0, BLOCK_COLS)
    unit = cols // inner
    offset = tl.zeros([BLOCK_COLS], tl.int32)
    # From the last group to the first: each overwrites what lies before its end.
    for g in tl.static_range(len(ENDS)):
        offset = tl.where(unit < ENDS[len(ENDS) - 1 - g], OFFSETS[len(ENDS) - 1 - g], offset)
    offset *= step
    place = (rows % length)[:, None] + offset[None, :]
    inside = (rows < n_rows)[:, None] & (cols < width)[None, :]
    source = (rows[:, None] + offset[None, :]) * width + cols[None, :]
    values = tl.load(x_ptr + source, mask=inside & (place >= 0) & (place < length), other=0)
    tl.store(out_ptr + rows[:, None] * width + cols[None, :], values, mask=inside)
