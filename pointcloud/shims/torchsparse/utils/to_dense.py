"""Sparse rows as a dense grid."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def to_dense(feats: Tensor, coords: Tensor, spatial_range: Sequence[int]) -> Tensor:
    """[*spatial_range, C] with feats [N, C] at coords [N, 4], zeros elsewhere. Raises IndexError for one outside."""
    out = feats.new_zeros(*spatial_range, feats.shape[1])
    return out.index_put(tuple(coords.long().unbind(1)), feats)
