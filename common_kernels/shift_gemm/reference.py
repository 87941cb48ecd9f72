"""The meaning of the shifted matrix product, in plain torch, on any device."""

from collections.abc import Sequence

from torch import Tensor

from common_kernels.channel_shift.reference import channel_shift
from common_kernels.checks import wide


def shift_gemm(
    x: Tensor,
    length: int,
    channels: Sequence[int],
    offsets: Sequence[int],
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str,
) -> Tensor:
    """act(channel_shift(x) @ weight + bias + residual), accumulated in at least fp32."""
    out = channel_shift(x, length, channels, offsets).to(wide(x.dtype)) @ weight.to(wide(x.dtype))
    if bias is not None:
        out = out + bias
    if residual is not None:
        out = out + residual
    if activation != "none":
        out = out.clamp(0, 6) if activation == "relu6" else out.relu()
    return out.to(x.dtype)
