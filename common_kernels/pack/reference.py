"""The meaning of packing a batch and of unpacking it, in plain torch, on any device."""

import torch
from torch import Tensor


def pack(x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """x where the mask is not 0; the flat places; the offsets of the sequences."""
    kept = mask != 0
    offsets = torch.cat([kept.new_zeros(1, dtype=torch.int64), kept.sum(1).cumsum(0)])
    return x[kept], kept.flatten().nonzero().squeeze(1), offsets


def unpack(rows: Tensor, index: Tensor, shape: tuple[int, int], fill: int | float | bool = 0) -> Tensor:
    """Row t of the rows at the flat place index[t], `fill` elsewhere."""
    out = rows.new_full((shape[0] * shape[1], *rows.shape[1:]), fill)
    out[index.long()] = rows
    return out.unflatten(0, shape)
