"""Pooling by the floor rule, and over samples."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from common_kernels.gather_rows import gather_rows
from common_kernels.kernel_map import KernelMap
from pointcloud.shims.MinkowskiEngine.convolution import pairs
from pointcloud.shims.MinkowskiEngine.regions import KernelGenerator
from pointcloud.shims.MinkowskiEngine.tensor import SparseTensor
from pointcloud.shims.torch_scatter import scatter


class _Pooling(nn.Module):
    def __init__(
        self,
        kernel_size: Any,
        stride: Any = 1,
        dilation: Any = 1,
        kernel_generator: Any = None,
        dimension: int | None = None,
    ) -> None:
        super().__init__()
        self.kernel_generator = kernel_generator or KernelGenerator(
            kernel_size, stride, dilation, dimension=dimension if dimension is not None else 0
        )
        self.dimension = self.kernel_generator.dimension

    def forward(self, input: SparseTensor, coordinates: Any = None) -> SparseTensor:
        """Pool, to the given coordinates where there are any: a tensor's, a key's, or int [M, 1 + D]."""
        target, found = pairs(input, self.kernel_generator, False, coordinates)
        return input.at(self.reduce(input.F, found), target)

    def reduce(self, features: Tensor, found: KernelMap) -> Tensor:
        raise NotImplementedError


class MinkowskiSumPooling(_Pooling):
    """The sum of the rows that the kernel reads."""

    def reduce(self, features: Tensor, found: KernelMap) -> Tensor:
        return _total(features, found)


class MinkowskiAvgPooling(_Pooling):
    """The mean of the rows that the kernel reads."""

    def reduce(self, features: Tensor, found: KernelMap) -> Tensor:
        return _total(features, found) / (found.table >= 0).sum(0).clamp(min=1)[:, None]


class MinkowskiMaxPooling(_Pooling):
    """The maximum of the rows that the kernel reads, 0 where there is none."""

    def reduce(self, features: Tensor, found: KernelMap) -> Tensor:
        tap, row = (found.table >= 0).nonzero(as_tuple=True)
        picked = gather_rows(features, found.table[tap, row])
        return scatter(picked, row, 0, dim_size=found.n_out, reduce="max")


def _total(features: Tensor, found: KernelMap) -> Tensor:
    out = features.new_zeros(found.n_out, features.shape[1])
    for rows in found.table:
        out = out + gather_rows(features, rows)
    return out


class _GlobalPooling(nn.Module):
    """One row for each sample, at the origin."""

    MODE = "mean"

    def __init__(self, mode: Any = None) -> None:
        super().__init__()
        if mode is not None:
            raise NotImplementedError("mode must be None with Trisparse's stand-in for MinkowskiEngine")

    def forward(self, input: SparseTensor) -> SparseTensor:
        sample = input.C[:, 0].long()
        n = int(sample.max()) + 1 if len(sample) else 0
        coords = torch.zeros(n, input.D + 1, dtype=torch.int32, device=input.device)
        coords[:, 0] = torch.arange(n)
        pooled = scatter(input.F, sample, 0, dim_size=n, reduce=self.MODE)
        return input.at(pooled, input.coordinate_manager.add(coords, (0,) * input.D, "samples"))


class MinkowskiGlobalSumPooling(_GlobalPooling):
    MODE = "sum"


class MinkowskiGlobalAvgPooling(_GlobalPooling):
    MODE = "mean"


class MinkowskiGlobalPooling(_GlobalPooling):
    MODE = "mean"


class MinkowskiGlobalMaxPooling(_GlobalPooling):
    MODE = "max"
