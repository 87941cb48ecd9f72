"""A temporal shift and the 1×1 convolution after it as one matrix product, where that is faster."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from common_kernels.shift_gemm import ACTIVATIONS, fused_pays, shift_gemm
from common_models.modes import is_hooked
from video.packed_conv import PackedConv2d


def shifted_convolution(net: nn.Module, x: Tensor, num_segments: int, groups: list[tuple[int, int]]) -> Tensor | None:
    """`net(channel_shift(x, num_segments, groups))` without the shifted copy; None where that is not to be had.

    That is where `net` is a plain 1×1 convolution that nothing watches, x [N * T, C, H, W] lies channels-last, no
    gradient is recorded, and `fused_pays`.
    """
    packed = type(net) is PackedConv2d
    if (
        not (packed or type(net) is nn.Conv2d)
        or not _is_plain(net)
        or torch.compiler.is_compiling()
        or torch.jit.is_tracing()
    ):
        return None
    assert isinstance(net, nn.Conv2d)
    weight, (n, c, h, w) = net.weight, x.shape
    if (
        n == 0
        or x.dtype != weight.dtype
        or x.device != weight.device
        or c != net.in_channels
        or (torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad))
        or torch.is_autocast_enabled(x.device.type)
        or not x.is_contiguous(memory_format=torch.channels_last)
        or not fused_pays(c, net.out_channels, h * w, x.dtype, x.device, packed)
    ):
        return None
    activation = net.activation if isinstance(net, PackedConv2d) else "none"
    if activation not in ACTIVATIONS:
        return None
    rows = x.permute(0, 2, 3, 1).reshape(n * h * w, c)
    spans = [(channels, offset * h * w) for channels, offset in groups]
    out = shift_gemm(rows, num_segments * h * w, spans, weight.flatten(1).t(), net.bias, None, activation)
    return out.view(n, h, w, -1).permute(0, 3, 1, 2)


def _is_plain(net: nn.Module) -> bool:
    everywhere = torch.nn.modules.module._has_any_global_hook()
    return (
        isinstance(net, nn.Conv2d)
        and net.kernel_size == (1, 1)
        and net.stride == (1, 1)
        and net.padding == (0, 0)
        and net.groups == 1
        and not is_hooked(net)
        and not everywhere
    )
