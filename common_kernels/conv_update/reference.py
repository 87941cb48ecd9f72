"""The meaning of a convolution's update, in plain torch, on any device."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional as F

from common_kernels.checks import wide
from common_kernels.reach import reference as reach_reference
from common_kernels.row_update import reference as rows_reference
from common_kernels.windows import Window

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda x: x,
    "relu": F.relu,
    "relu6": F.relu6,
    "hardswish": F.hardswish,
    "silu": F.silu,
}


def convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    window: Window,
    groups: int,
    residual: Tensor | None,
    activation: str,
) -> Tensor:
    """[B, Ho, Wo, Cout] in x's dtype: act(conv + bias + residual), accumulated in at least fp32."""
    kind = wide(x.dtype)
    bias = None if bias is None else bias.to(kind)
    planes = x.to(kind).permute(0, 3, 1, 2)
    new = F.conv2d(planes, weight.to(kind), bias, window.stride, window.padding, window.dilation, groups)
    new = new.permute(0, 2, 3, 1)
    if residual is not None:
        new = new + residual
    return ACTIVATIONS[activation](new).to(x.dtype)


def active_pixels(changed: Tensor | None, also: Tensor | None, window: Window) -> Tensor | None:
    """[B, Ho, Wo]: which outputs to look at, or None for all."""
    if changed is None:
        return None
    active = reach_reference.reach(changed, window)
    return active if also is None else active | also


def conv_update(
    x: Tensor,
    changed: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    out: Tensor,
    window: Window,
    groups: int,
    residual: Tensor | None,
    also: Tensor | None,
    activation: str,
    threshold: float,
) -> Tensor:
    new = convolve(x, weight, bias, window, groups, residual, activation)
    return rows_reference.update_rows(out, new, active_pixels(changed, also, window), threshold)
