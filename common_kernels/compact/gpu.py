"""Stream compaction on a GPU, in Triton: count per block, then write."""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024  # rows of a program: 8 flags for each of the 128 threads


def compact(mask: Tensor, out: Tensor | None = None) -> Tensor:
    """`out`, where given, has as many rows as the mask has true entries."""
    mask = mask.contiguous()
    n = mask.shape[0]
    n_blocks = triton.cdiv(n, BLOCK)
    starts = torch.zeros(n_blocks + 1, dtype=torch.int64, device=mask.device)
    if n > 0:
        count_kernel[(n_blocks,)](starts[1:], mask, n, BLOCK=BLOCK)
        starts = torch.cumsum(starts, 0)
    if out is None:
        out = torch.empty(int(starts[-1]), dtype=torch.int32, device=mask.device)
    if out.shape[0] > 0:
        write_kernel[(n_blocks,)](out, starts, mask, n, BLOCK=BLOCK)
    return out


@triton.jit
def count_kernel(counts_ptr, mask_ptr, n, BLOCK: tl.constexpr):
    block = tl.program_id(0)
    rows = block.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    flags = tl.load(mask_ptr + rows, mask=rows < n, other=0).to(tl.int32)
    tl.store(counts_ptr + block, tl.sum(flags, 0).to(tl.int64))


@triton.jit
def write_kernel(out_ptr, starts_ptr, mask_ptr, n, BLOCK: tl.constexpr):
    block = tl.program_id(0)
    rows = block.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    flags = tl.load(mask_ptr + rows, mask=rows < n, other=0).to(tl.int32)
    place = tl.load(starts_ptr + block) + tl.cumsum(flags, 0) - flags
    tl.store(out_ptr + place, rows.to(tl.int32), mask=flags > 0)
