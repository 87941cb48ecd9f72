"""Row updates on a GPU, in Triton: a program compares a block of rows, then writes those that moved."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from common_kernels.gather_gemm.gpu import on_device
from common_kernels.reach.gpu import list_mask


def update_rows(out: Tensor, rows: Tensor, index: Tensor | None, threshold: float) -> Tensor:
    changed = torch.zeros(out.shape[:-1], dtype=torch.bool, device=out.device)
    n = changed.numel()
    count = None
    picked = index is not None and index.dtype != torch.bool
    if index is not None:
        if picked:
            n = len(index)
        else:
            with on_device(out.device):
                index, count = list_mask(index)
    settle(out, changed, rows.contiguous(), index, count, n, threshold, picked=picked)
    return changed


def settle(
    out: Tensor,
    changed: Tensor,
    new: Tensor,
    index: Tensor | None,
    count: Tensor | None,
    limit: int,
    threshold: float,
    *,
    picked: bool,
) -> None:
    """Rows of `out` and entries of `changed`, for the first `count` of `limit` entries of `index`, or all.

    Args:
        picked: the new rows follow each other in the index's order, instead of lying where the kept ones do.
    """
    channels = out.shape[-1]
    if limit == 0 or channels == 0:
        return
    block_c = min(triton.next_power_of_2(channels), 128)
    block_m = max(4096 // block_c, 16)
    with on_device(out.device):
        settle_kernel[(triton.cdiv(limit, block_m),)](
            out,
            changed,
            new,
            index,
            count,
            limit,
            changed.numel(),
            channels,
            threshold,
            PICKED=picked,
            BLOCK_M=block_m,
            BLOCK_C=block_c,
            num_warps=4,
            enable_fp_fusion=True,
        )


@triton.jit
def far(new, old, threshold):
    """1 where fp32 values are not within the threshold; equal infinities are, though they differ by NaN."""
    near = (tl.abs(new - old) <= threshold) | (new == old)
    return tl.where(near, 0, 1)


@triton.jit
def settle_kernel(
    out_ptr,
    changed_ptr,
    new_ptr,
    index_ptr,
    count_ptr,
    limit,
    n_rows,
    channels,
    threshold,
    PICKED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    first = tl.program_id(0).to(tl.int64) * BLOCK_M
    count = limit.to(tl.int64)
    if count_ptr is not None:
        count = tl.load(count_ptr).to(tl.int64)
    # Programs beyond the last entry have nothing to do.
    if first < count:
        entry = first + tl.arange(0, BLOCK_M)
        used = entry < count
        rows = entry
        if index_ptr is not None:
            rows = tl.load(index_ptr + entry, mask=used, other=0).to(tl.int64)
            used = used & (rows >= 0) & (rows < n_rows)
        source = rows
        if PICKED:
            source = entry
        moved = tl.zeros([BLOCK_M], tl.int32)
        for c0 in range(0, channels, BLOCK_C):
            cols = c0 + tl.arange(0, BLOCK_C)
            cells = used[:, None] & (cols < channels)[None, :]
            new = tl.load(new_ptr + source[:, None] * channels + cols[None, :], mask=cells, other=0).to(tl.float32)
            old = tl.load(out_ptr + rows[:, None] * channels + cols[None, :], mask=cells, other=0).to(tl.float32)
            moved |= tl.max(far(new, old, threshold), 1)
        for c0 in range(0, channels, BLOCK_C):
            cols = c0 + tl.arange(0, BLOCK_C)
            cells = (used & (moved > 0))[:, None] & (cols < channels)[None, :]
            new = tl.load(new_ptr + source[:, None] * channels + cols[None, :], mask=cells, other=0)
            tl.store(out_ptr + rows[:, None] * channels + cols[None, :], new, mask=cells)
        tl.store(changed_ptr + rows, moved > 0, mask=used)
