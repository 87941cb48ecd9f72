"""Features of points to voxels."""

from __future__ import annotations

import torch
from torch import Tensor

from common_kernels.gather_rows import scatter_add_rows


def spvoxelize(feats: Tensor, coords: Tensor, counts: Tensor) -> Tensor:
    """`sum of feats[i] / counts[v]` over the points i with coords[i] == v, [M, C]; -1 belongs to no voxel."""
    total = scatter_add_rows(feats.contiguous(), coords.contiguous(), len(counts))
    return total / counts.clamp(min=1).to(torch.promote_types(feats.dtype, torch.float32))[:, None].to(feats.dtype)
