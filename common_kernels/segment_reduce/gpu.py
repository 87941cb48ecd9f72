"""Reduction over segments on a GPU, in Triton."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from common_kernels.checks import as_rows, wide

# One thread adds up this many rows on average, at most. Longer segments are cut into pieces, which are reduced first.
LONGEST_MEAN = 64


def segment_reduce(
    src: Tensor, offsets: Tensor, reduce: str, rows: Tensor | None = None, out: Tensor | None = None
) -> Tensor:
    """Reduce src[offsets[s] : offsets[s + 1]], or src[rows[offsets[s] : offsets[s + 1]]] where `rows` is given.

    The order of summation depends on the numbers of rows and segments alone. Offsets beyond the rows are cut off there.
    """
    n_rows = src.shape[0] if rows is None else rows.shape[0]
    n_segments = offsets.shape[0] - 1
    offsets = offsets.contiguous()
    if out is None:
        out = src.new_empty(n_segments, *src.shape[1:])
    if out.numel() == 0:
        return out
    counted = offsets
    source = as_rows(src)
    while n_rows > LONGEST_MEAN * n_segments:
        pieces = -(-n_rows // (LONGEST_MEAN * n_segments))
        cuts = split(offsets, pieces)
        partial = source.new_empty(cuts.shape[0] - 1, source.shape[1], dtype=wide(src.dtype))
        _launch(partial, source, rows, cuts, cuts, n_rows, "max" if reduce == "max" else "sum")
        source, rows, n_rows = partial, None, partial.shape[0]
        offsets = torch.arange(n_segments + 1, device=offsets.device, dtype=offsets.dtype) * pieces
    _launch(out.view(n_segments, source.shape[1]), source, rows, offsets, counted, n_rows, reduce)
    return out


def split(offsets: Tensor, pieces: int) -> Tensor:
    """Offsets of the segments [S * pieces + 1] that arise when each of S segments is cut into equal pieces."""
    begin, end = offsets[:-1, None].long(), offsets[1:, None].long()
    step = torch.arange(pieces, device=offsets.device)
    cuts = begin + (end - begin) * step // pieces
    return torch.cat([cuts.flatten(), end[-1]]).to(offsets.dtype)


def launch_config(n_cols: int) -> tuple[int, int, int]:
    """(segments of a block, columns of a block, warps)."""
    block_cols = min(triton.next_power_of_2(max(n_cols, 1)), 128)
    return max(1024 // block_cols, 8), block_cols, 4


def _launch(
    out: Tensor, src: Tensor, rows: Tensor | None, offsets: Tensor, counted: Tensor, n_rows: int, reduce: str
) -> None:
    block_segments, block_cols, num_warps = launch_config(src.shape[1])
    grid = (triton.cdiv(out.shape[0], block_segments), triton.cdiv(src.shape[1], block_cols))
    segment_reduce_kernel[grid](
        out, src, offsets if rows is None else rows, offsets, counted, n_rows, out.shape[0], src.shape[1],
        REDUCE=reduce, HAS_ROWS=rows is not None, ACC=tl.float64 if src.dtype == torch.float64 else tl.float32,
        BLOCK_SEGMENTS=block_segments, BLOCK_COLS=block_cols, num_warps=num_warps, enable_fp_fusion=False,
    )  # fmt: skip


@triton.jit
def segment_reduce_kernel(
    out_ptr, src_ptr, rows_ptr, offsets_ptr, counted_ptr, n_rows, n_segments, n_cols,
    REDUCE: tl.constexpr, HAS_ROWS: tl.constexpr, ACC: tl.constexpr,
    BLOCK_SEGMENTS: tl.constexpr, BLOCK_COLS: tl.constexpr,
):  # fmt: skip
    segments = tl.program_id(0).to(tl.int64) * BLOCK_SEGMENTS + tl.arange(0, BLOCK_SEGMENTS)
    cols = tl.program_id(1) * BLOCK_COLS + tl.arange(0, BLOCK_COLS)
    real = segments < n_segments
    begin = tl.maximum(tl.load(offsets_ptr + segments, mask=real, other=0).to(tl.int64), 0)
    end = tl.minimum(tl.load(offsets_ptr + segments + 1, mask=real, other=0).to(tl.int64), n_rows)
    start = -float("inf") if REDUCE == "max" else 0.0
    total = tl.full((BLOCK_SEGMENTS, BLOCK_COLS), start, ACC)
    for step in range(0, tl.max(end - begin, 0).to(tl.int32)):
        row = begin + step
        inside = row < end
        if HAS_ROWS:
            row = tl.load(rows_ptr + row, mask=inside, other=0).to(tl.int64)
        values = tl.load(src_ptr + row[:, None] * n_cols + cols[None, :],
                         mask=inside[:, None] & (cols < n_cols)[None, :], other=start).to(ACC)  # fmt: skip
        if REDUCE == "max":
            total = tl.maximum(total, values, propagate_nan=tl.PropagateNan.ALL)
        else:
            total += values
    if REDUCE == "mean":
        # The rows of the whole segment, where this launch reduces the sums of its pieces.
        first = tl.load(counted_ptr + segments, mask=real, other=0)
        last = tl.load(counted_ptr + segments + 1, mask=real, other=0)
        total = total / tl.maximum(last - first, 1).to(ACC)[:, None]
    tl.store(out_ptr + segments[:, None] * n_cols + cols[None, :], total.to(out_ptr.dtype.element_ty),
             mask=real[:, None] & (cols < n_cols)[None, :])  # fmt: skip
