"""Features of voxels to points, by trilinear interpolation between eight corners."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from common_kernels.gather_rows import gather_rows


@torch.no_grad()
def calc_ti_weights(coords: Tensor, idx_query: Tensor, scale: float = 1) -> Tensor:
    """Weights [N, 8] of the corners of the cells that floating coords [N, 3] lie in, the last axis fastest.

    Corners without a row (idx_query [N, 8] is -1) weigh nothing, and the others are divided by their sum plus 1e-8.
    """
    lower = torch.floor(coords / scale) * scale
    upper = (coords - lower) / scale
    sides = [(1 - column, column) for column in upper.unbind(1)]
    weights = torch.stack([x * y * z for x, y, z in itertools.product(*sides)], dim=1)
    weights = weights.masked_fill(idx_query == -1, 0)
    return weights / (weights.sum(1, keepdim=True) + 1e-8)


def spdevoxelize(feats: Tensor, coords: Tensor, weights: Tensor) -> Tensor:
    """`sum over corners c of feats[coords[i, c]] * weights[i, c]`, [N, C]; rows of -1 add nothing."""
    out = feats.new_zeros(len(coords), feats.shape[1])
    for corner, weight in zip(coords.unbind(1), weights.to(feats.dtype).unbind(1)):
        out = torch.addcmul(out, weight[:, None], gather_rows(feats, corner.contiguous()))
    return out
