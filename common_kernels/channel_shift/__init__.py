"""Groups of channels read from another row of the same segment; the other channels stay."""

from collections.abc import Sequence

import torch
from torch import Tensor

from common_kernels.channel_shift import reference
from common_kernels.checks import check_fixed, describe
from common_kernels.operators import operator


def channel_shift(x: Tensor, length: int, groups: Sequence[tuple[int, int]]) -> Tensor:
    """`out[i, c] = x[i + offset(c), c]` within segments of `length` rows; zero where the segment has no such row.

    Differentiable; the backward is the same operator with the offsets reversed. Bits are moved, never computed.

    Args:
        x: [N, C, ...], any dtype, N a multiple of length. Both orders of memory are served as they lie: channels
            outside (contiguous) and channels innermost (channels_last).
        groups: (channels, offset) of consecutive groups from channel 0 on; the channels after the last one stay.

    Returns:
        A new tensor of the shape, dtype and memory order of x.

    Raises:
        ValueError: a wrong shape, length or group.
    """
    channels, offsets = [n for n, _ in groups], [offset for _, offset in groups]
    check_fixed("length and groups", length, *channels, *offsets)
    return torch.ops.trisparse.channel_shift(x, length, channels, offsets)


def check_groups(x: Tensor, length: int, channels: Sequence[int], offsets: Sequence[int]) -> None:
    """Raise unless groups of so many channels and their offsets describe a shift of x [N, C, ...]."""
    if length < 1:
        raise ValueError(f"length must be at least 1, got {length}")
    if x.ndim < 2 or x.shape[0] % length:
        raise ValueError(f"x must be [N, C, ...] with N a multiple of length={length}, got {describe(x)}")
    if len(channels) != len(offsets) or any(n < 0 for n in channels) or sum(channels) > x.shape[1]:
        groups = list(zip(channels, offsets))
        raise ValueError(f"groups must be (channels, offset) of at most {x.shape[1]} channels in all, got {groups}")


@operator("channel_shift")
def _channel_shift(x: Tensor, length: int, channels: Sequence[int], offsets: Sequence[int]) -> Tensor:
    return torch.empty_like(x).copy_(reference.channel_shift(x, length, channels, offsets))


_channel_shift.register_check(check_groups)


@_channel_shift.register_kernel("cpu")
def _(x: Tensor, length: int, channels: Sequence[int], offsets: Sequence[int]) -> Tensor:
    from common_kernels.channel_shift import cpu

    return cpu.channel_shift(x, length, channels, offsets)


@_channel_shift.register_kernel("cuda")
def _(x: Tensor, length: int, channels: Sequence[int], offsets: Sequence[int]) -> Tensor:
    from common_kernels.channel_shift import gpu

    return gpu.channel_shift(x, length, channels, offsets)


@_channel_shift.register_fake
def _(x, length, channels, offsets):  # type: ignore[no-untyped-def]
    return torch.empty_like(x)


def _setup(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    _, ctx.length, ctx.channels, ctx.offsets = inputs


def _backward(ctx, grad):  # type: ignore[no-untyped-def]
    back = [-offset for offset in ctx.offsets]
    return torch.ops.trisparse.channel_shift(grad, ctx.length, ctx.channels, back), None, None, None


_channel_shift.register_autograd(_backward, setup_context=_setup)
