"""Max and average pooling where the input changed."""

from __future__ import annotations

import torch
from torch import Tensor

from common_kernels.checks import describe
from common_kernels.pool_update import reference
from common_kernels.windows import Pair, Window, check_threshold

KINDS = ("max", "avg")
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def pool_update(
    x: Tensor,
    changed: Tensor | None,
    out: Tensor,
    *,
    kind: str,
    kernel_size: Pair,
    stride: Pair | None = None,
    padding: Pair = 0,
    dilation: Pair = 1,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
    threshold: float = 0.0,
) -> Tensor:
    """Pool again the windows that hold a changed pixel, and overwrite `out` where it moves by more than `threshold`.

    Mutates `out`; no gradients, no operator of torch.library (its boundary costs more than a small pool).

    Args:
        x: contiguous [B, H, W, C], fp32, fp64, fp16 or bf16.
        changed: [B, H, W] bool; None for all pixels.
        out: contiguous [B, Ho, Wo, C] of x's dtype, the kept output.
        kind: "max" or "avg".
        kernel_size, stride, padding, dilation, ceil_mode, count_include_pad, divisor_override: torch's. `stride` None
            is the kernel. The last two belong to "avg", which has no dilation.
        threshold: as in `update_rows`.

    Returns:
        [B, Ho, Wo] bool, which pixels were overwritten.

    Raises:
        ValueError: other shapes or dtypes, tensors that are not contiguous, a window out of range.
    """
    check_threshold(threshold)
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {KINDS}, got {kind!r}")
    window = Window.of(kernel_size, kernel_size if stride is None else stride, padding, dilation, ceil_mode)
    if any(2 * pad > taps for pad, taps in zip(window.padding, window.kernel)):
        raise ValueError(f"padding must be at most half of the kernel {window.kernel}, got {window.padding}")
    if kind == "avg" and window.dilation != (1, 1):
        raise ValueError(f"dilation belongs to max pooling, got {window.dilation} for 'avg'")
    if kind == "max" and not (count_include_pad and divisor_override is None):
        raise ValueError("count_include_pad and divisor_override belong to average pooling, got them for 'max'")
    if divisor_override is not None and divisor_override == 0:
        raise ValueError("divisor_override must not be 0")
    if x.ndim != 4 or x.dtype not in DTYPES or not x.is_contiguous():
        raise ValueError(f"x must be contiguous fp32, fp64, fp16 or bf16 [B, H, W, C], got {describe(x)}")
    batch, height, width, channels = x.shape
    wanted = (batch, *window.output_size(height, width), channels)
    if out.shape != wanted or out.dtype != x.dtype or out.device != x.device or not out.is_contiguous():
        raise ValueError(f"out must be contiguous {list(wanted)} of x's dtype and device, got {describe(out)}")
    if changed is not None and (
        changed.shape != x.shape[:3] or changed.dtype != torch.bool or changed.device != x.device
    ):
        raise ValueError(f"changed must be bool {list(x.shape[:3])} on x's device, got {describe(changed)}")
    if out.numel() == 0:
        return torch.zeros(wanted[:3], dtype=torch.bool, device=x.device)
    arguments = (x, changed, out, kind, window, count_include_pad, divisor_override, float(threshold))
    if x.device.type == "cpu" and x.dtype in (torch.float32, torch.bfloat16):
        from common_kernels.pool_update import cpu

        return cpu.pool_update(*arguments)
    if x.device.type == "cuda" and x.dtype != torch.float64:
        from common_kernels.pool_update import gpu

        return gpu.pool_update(*arguments)
    return reference.pool_update(*arguments)
