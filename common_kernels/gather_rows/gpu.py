"""Gathering and scattering rows on a GPU, in Triton."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from common_kernels.checks import as_rows
from common_kernels.segment_reduce import gpu as segment_reduce

WORDS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def gather_rows(src: Tensor, index: Tensor, out: Tensor | None = None) -> Tensor:
    """Rows of src; zeros where the index is -1 or outside of src, which no GPU kernel can raise."""
    index = index.contiguous()
    n_out = index.shape[0]
    if out is None:
        out = src.new_empty(n_out, *src.shape[1:])
    if out.numel() > 0:
        # Bits are moved, whatever they mean: four kernels serve every dtype, complex and 8-bit ones too.
        word = WORDS[min(src.element_size(), 8)]
        rows = as_rows(src).view(word)
        n_cols = rows.shape[1]
        block_rows, block_cols, num_warps = launch_config(n_cols)
        grid = (triton.cdiv(n_out, block_rows), triton.cdiv(n_cols, block_cols))
        gather_rows_kernel[grid](
            out.view(n_out, -1).view(word), rows, index, n_out, src.shape[0], n_cols,
            BLOCK_ROWS=block_rows, BLOCK_COLS=block_cols, num_warps=num_warps,
        )  # fmt: skip
    return out


def scatter_add_rows(src: Tensor, index: Tensor, n_rows: int) -> Tensor:
    """Sums of the rows of src; rows whose index is -1 or outside of the output are skipped.

    A stable sort brings the rows of each output together in ascending order, where a segment sum adds them in that
    order: no atomics.
    """
    ordered, order = torch.sort(index, stable=True)
    offsets = torch.searchsorted(ordered, torch.arange(n_rows + 1, device=index.device, dtype=index.dtype))
    rows = as_rows(src)
    return segment_reduce.segment_reduce(rows, offsets, "sum", order).view(n_rows, *src.shape[1:])


def launch_config(n_cols: int) -> tuple[int, int, int]:
    """(rows of a block, columns of a block, warps): a block moves some 4096 elements."""
    block_cols = min(triton.next_power_of_2(max(n_cols, 1)), 256)
    return min(4096 // block_cols, 512), block_cols, 4


@triton.jit
def gather_rows_kernel(
    out_ptr, src_ptr, index_ptr, n_out, n_rows, n_cols, BLOCK_ROWS: tl.constexpr, BLOCK_COLS: tl.constexpr
):
    out_rows = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    cols = tl.program_id(1) * BLOCK_COLS + tl.arange(0, BLOCK_COLS)
    row = tl.load(index_ptr + out_rows, mask=out_rows < n_out, other=-1).to(tl.int64)
    inside = (row >= 0) & (row < n_rows)
    values = tl.load(src_ptr + row[:, None] * n_cols + cols[None, :], mask=inside[:, None] & (cols < n_cols)[None, :],
                     other=0)  # fmt: skip
    tl.store(out_ptr + out_rows[:, None] * n_cols + cols[None, :], values,
             mask=(out_rows < n_out)[:, None] & (cols < n_cols)[None, :])  # fmt: skip
