"""Pooling over samples, and crops."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from pointcloud.shims.torchsparse.nn import functional as F
from pointcloud.shims.torchsparse.tensor import SparseTensor


class GlobalAvgPool(nn.Module):
    def forward(self, input: SparseTensor) -> Tensor:
        return F.global_avg_pool(input)


class GlobalMaxPool(nn.Module):
    def forward(self, input: SparseTensor) -> Tensor:
        return F.global_max_pool(input)


class SparseCrop(nn.Module):
    """`torchsparse.nn.functional.spcrop` as a layer."""

    def __init__(self, coords_min: Sequence[int] | None = None, coords_max: Sequence[int] | None = None) -> None:
        super().__init__()
        self.coords_min = coords_min
        self.coords_max = coords_max

    def forward(self, input: SparseTensor) -> SparseTensor:
        return F.spcrop(input, self.coords_min, self.coords_max)
