"""Which outputs of a sliding window a mask of input pixels touches."""

from __future__ import annotations

import torch
from torch import Tensor

from common_kernels.checks import describe
from common_kernels.reach import reference
from common_kernels.windows import Pair, Window


def reach(
    changed: Tensor,
    kernel_size: Pair,
    stride: Pair = 1,
    padding: Pair = 0,
    dilation: Pair = 1,
    *,
    ceil_mode: bool = False,
) -> Tensor:
    """The output pixels whose window holds a true pixel of `changed`.

    A plain function that dispatches on the device, for inference: not an operator of torch.library, whose boundary
    costs more than the work.

    Args:
        changed: [B, H, W] bool.
        kernel_size, stride, padding, dilation, ceil_mode: as torch's convolutions and pools take them.

    Returns:
        [B, Ho, Wo] bool, a fresh tensor.

    Raises:
        ValueError: a mask that is not bool [B, H, W], a window out of range or larger than the image.
    """
    if changed.ndim != 3 or changed.dtype != torch.bool:
        raise ValueError(f"changed must be bool [B, H, W], got {describe(changed)}")
    return reach_window(changed, Window.of(kernel_size, stride, padding, dilation, ceil_mode))


def reach_window(changed: Tensor, window: Window) -> Tensor:
    """`reach` of a prepared window, for callers that have checked their arguments."""
    if window.is_pointwise:
        return changed.clone()
    if changed.device.type == "cpu":
        from common_kernels.reach import cpu

        return cpu.reach(changed, window)
    if changed.device.type == "cuda":
        from common_kernels.reach import gpu

        return gpu.reach(changed, window)
    return reference.reach(changed, window)
