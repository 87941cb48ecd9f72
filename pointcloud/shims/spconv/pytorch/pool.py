"""spconv.pytorch.pool."""

from __future__ import annotations

from torch import Tensor

from pointcloud.functional import pool_samples
from pointcloud.modules import SparseModule
from pointcloud.pool import (
    SparseAvgPool,
    SparseAvgPool1d,
    SparseAvgPool2d,
    SparseAvgPool3d,
    SparseGlobalAvgPool,
    SparseGlobalMaxPool,
    SparseMaxPool,
    SparseMaxPool1d,
    SparseMaxPool2d,
    SparseMaxPool3d,
    SparseMaxPool4d,
)
from pointcloud.shims.spconv.cppconstants import CPU_ONLY_BUILD
from pointcloud.shims.spconv.pytorch.core import ConvAlgo, ImplicitGemmIndiceData, IndiceData, expand_nd
from pointcloud.shims.spconv.tools import nullcontext
from pointcloud.tensor import SparseConvTensor

ALL_POOL_LAYERS = {
    SparseMaxPool, SparseMaxPool1d, SparseMaxPool2d, SparseMaxPool3d, SparseMaxPool4d, SparseAvgPool, SparseAvgPool1d,
    SparseAvgPool2d, SparseAvgPool3d,
}  # fmt: skip


class SparseGlobalMaxOrAvgPool(SparseModule):
    """Mean or maximum over all rows of each sample, [batch_size, C]."""

    def __init__(self, is_mean: bool, name: str | None = None) -> None:
        super().__init__(name=name)
        self.is_mean = is_mean

    def forward(self, input: SparseConvTensor) -> Tensor:
        return pool_samples(input, "mean" if self.is_mean else "max")


__all__ = [
    "ALL_POOL_LAYERS",
    "CPU_ONLY_BUILD",
    "ConvAlgo",
    "ImplicitGemmIndiceData",
    "IndiceData",
    "SparseAvgPool",
    "SparseAvgPool1d",
    "SparseAvgPool2d",
    "SparseAvgPool3d",
    "SparseGlobalAvgPool",
    "SparseGlobalMaxOrAvgPool",
    "SparseGlobalMaxPool",
    "SparseMaxPool",
    "SparseMaxPool1d",
    "SparseMaxPool2d",
    "SparseMaxPool3d",
    "SparseMaxPool4d",
    "SparseModule",
    "expand_nd",
    "nullcontext",
]
