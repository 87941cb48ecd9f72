"""spconv.pytorch.modules: containers and modules on features."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import nn

from pointcloud.convolution import SparseConvolution
from pointcloud.modules import (
    SparseBatchNorm,
    SparseIdentity,
    SparseModule,
    SparseReLU,
    SparseSequential,
    SparseSyncBatchNorm,
    is_spconv_module,
)
from pointcloud.tensor import SparseConvTensor

__all__ = [
    "PrintCurrentTime",
    "PrintTensorMeta",
    "SparseBatchNorm",
    "SparseIdentity",
    "SparseModule",
    "SparseReLU",
    "SparseSequential",
    "SparseSyncBatchNorm",
    "assign_name_for_sparse_modules",
    "is_sparse_conv",
    "is_spconv_module",
]


def is_sparse_conv(module: nn.Module) -> bool:
    """Whether the module is a sparse convolution of any kind."""
    return isinstance(module, SparseConvolution)


def assign_name_for_sparse_modules(module: nn.Module) -> None:
    """Give every SparseModule within its path as `_sparse_unique_name`."""
    for path, each in module.named_modules():
        if isinstance(each, SparseModule):
            each._sparse_unique_name = path


class PrintTensorMeta(nn.Module):
    """Print minimum, maximum and mean of what passes."""

    def forward(self, x: Any) -> Any:
        values = x.features if isinstance(x, SparseConvTensor) else x
        print(values.min(), values.max(), values.mean())
        return x


class PrintCurrentTime(nn.Module):
    """Print the seconds since the first call, or since the last with `reset`."""

    def __init__(self) -> None:
        super().__init__()
        self.first_time = time.time()

    def forward(self, x: Any, msg: str = "", reset: bool = False) -> Any:
        if reset:
            self.first_time = time.time()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        print(msg, time.time() - self.first_time)
        return x
