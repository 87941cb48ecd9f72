"""The meaning of a pool's update, in plain torch, on any device."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from common_kernels.checks import wide
from common_kernels.reach import reference as reach_reference
from common_kernels.row_update import reference as rows_reference
from common_kernels.windows import Window


def pool(x: Tensor, kind: str, window: Window, count_include_pad: bool, divisor: int | None) -> Tensor:
    """x [B, H, W, C] pooled to [B, Ho, Wo, C]."""
    planes = x.to(wide(x.dtype)).permute(0, 3, 1, 2)
    kernel, stride, padding, ceil = window.kernel, window.stride, window.padding, window.ceil_mode
    if kind == "max":
        pooled = F.max_pool2d(planes, kernel, stride, padding, window.dilation, ceil)
    else:
        pooled = F.avg_pool2d(planes, kernel, stride, padding, ceil, count_include_pad, divisor)
    return pooled.permute(0, 2, 3, 1).to(x.dtype)


def pool_update(
    x: Tensor,
    changed: Tensor | None,
    out: Tensor,
    kind: str,
    window: Window,
    count_include_pad: bool,
    divisor: int | None,
    threshold: float,
) -> Tensor:
    new = pool(x, kind, window, count_include_pad, divisor)
    active = None if changed is None else reach_reference.reach(changed, window)
    return rows_reference.update_rows(out, new, active, threshold)
