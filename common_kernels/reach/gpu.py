"""A mask's reach and the list of its pixels on a GPU, in Triton, without waiting for the device."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from common_kernels.compact.gpu import BLOCK, write_kernel
from common_kernels.gather_gemm.gpu import on_device
from common_kernels.windows import Window


def reach(changed: Tensor, window: Window) -> Tensor:
    with on_device(changed.device):
        return _mark(changed, None, window, changed.shape, changed.device)[0]


def list_active(
    changed: Tensor | None, also: Tensor | None, window: Window, shape: tuple[int, int, int], device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """The active output pixels of inputs of `shape` [B, H, W].

    Returns:
        mask [B, Ho, Wo] bool; their rows, ascending, at the front of an int32 buffer as long as the mask; int64 [1],
        how many. The counts stay on the device, so that nothing waits for them and a CUDA graph can record it.
    """
    mask, starts = _mark(changed, also, window, shape, device)
    rows = torch.empty(mask.numel(), dtype=torch.int32, device=mask.device)
    ends = torch.cumsum(starts, 0)
    if mask.numel() > 0:
        write_kernel[(len(starts) - 1,)](rows, ends, mask, mask.numel(), BLOCK=BLOCK)
    return mask, rows, ends[-1:]


def list_mask(mask: Tensor) -> tuple[Tensor, Tensor]:
    """The rows that a mask of any shape keeps, and how many, as `list_active`."""
    flat = mask.reshape(1, 1, -1)
    _, rows, count = list_active(flat, None, Window((1, 1)), (1, 1, flat.shape[2]), mask.device)
    return rows, count


def _mark(
    changed: Tensor | None, also: Tensor | None, window: Window, shape: tuple[int, ...], device: torch.device
) -> tuple[Tensor, Tensor]:
    """The mask, and a zero followed by how many of each of its blocks are true."""
    batch, height, width = shape
    rows, cols = window.output_size(height, width)
    mask = torch.empty(batch, rows, cols, dtype=torch.bool, device=device)
    starts = torch.zeros(triton.cdiv(mask.numel(), BLOCK) + 1, dtype=torch.int64, device=device)
    if mask.numel() > 0:
        reach_kernel[(len(starts) - 1,)](
            mask,
            starts[1:],
            None if changed is None else changed.contiguous(),
            None if also is None else also.contiguous(),
            mask.numel(),
            height,
            width,
            rows,
            cols,
            *window.stride,
            *window.padding,
            *window.dilation,
            KERNEL_Y=window.kernel[0],
            KERNEL_X=window.kernel[1],
            BLOCK=BLOCK,
        )
    return mask, starts


@triton.jit
def reach_kernel(
    mask_ptr,
    counts_ptr,
    changed_ptr,
    also_ptr,
    n,
    height,
    width,
    rows,
    cols,
    stride_y,
    stride_x,
    pad_y,
    pad_x,
    dilation_y,
    dilation_x,
    KERNEL_Y: tl.constexpr,
    KERNEL_X: tl.constexpr,
    BLOCK: tl.constexpr,
):
    block = tl.program_id(0)
    pixel = block.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < n
    if changed_ptr is None:
        hit = inside.to(tl.int32)
    else:
        hit = tl.zeros([BLOCK], tl.int32)
        top = (pixel // cols) % rows * stride_y - pad_y
        left = pixel % cols * stride_x - pad_x
        image = pixel // (rows * cols) * height
        for ky in range(KERNEL_Y):
            for kx in range(KERNEL_X):
                y = top + ky * dilation_y
                x = left + kx * dilation_x
                valid = inside & (y >= 0) & (y < height) & (x >= 0) & (x < width)
                hit |= tl.load(changed_ptr + (image + y) * width + x, mask=valid, other=0).to(tl.int32)
        if also_ptr is not None:
            hit |= tl.load(also_ptr + pixel, mask=inside, other=0).to(tl.int32)
    tl.store(mask_ptr + pixel, hit > 0, mask=inside)
    tl.store(counts_ptr + block, tl.sum(hit, 0).to(tl.int64))
