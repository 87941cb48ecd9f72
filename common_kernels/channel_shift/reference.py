"""The meaning of a channel shift, in plain torch, on any device; exporters can follow it."""

from collections.abc import Sequence

import torch
from torch import Tensor


def channel_shift(x: Tensor, length: int, channels: Sequence[int], offsets: Sequence[int]) -> Tensor:
    """out[i, c] = x[i + offset(c), c] within segments of `length` rows, else 0; slices, zeros and `cat` only."""
    segments = -1 if x.numel() else x.shape[0] // length
    rows = x.reshape(segments, length, *x.shape[1:])
    parts, begin = [], 0
    for n, offset in zip(channels, offsets):
        parts.append(_moved(rows[:, :, begin : begin + n], length, offset))
        begin += n
    return torch.cat([*parts, rows[:, :, begin:]], 2).reshape(x.shape)


def _moved(part: Tensor, length: int, offset: int) -> Tensor:
    """[segments, length, n, ...] read from `offset` rows further on."""
    offset = max(-length, min(offset, length))
    nothing = torch.zeros_like(part[:, : abs(offset)])
    if offset >= 0:
        return torch.cat([part[:, offset:], nothing], 1)
    return torch.cat([nothing, part[:, :offset]], 1)
