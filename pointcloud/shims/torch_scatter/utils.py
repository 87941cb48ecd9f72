"""An index in the shape of what it sorts."""

from __future__ import annotations

from torch import Tensor


def broadcast(src: Tensor, other: Tensor, dim: int) -> Tensor:
    """The index `src` expanded to the shape of `other`: 1-D along axis `dim`, else aligned at the first axis."""
    dim = dim % other.dim()
    if src.dim() == 1:
        src = src.view(*[1] * dim, -1)
    return src.view(*src.shape, *[1] * (other.dim() - src.dim())).expand(other.shape)
