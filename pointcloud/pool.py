"""Pooling over the active cells of a window, and over whole samples."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from common_kernels import KernelMap
from pointcloud.convolution import Size, sizes
from pointcloud.coordinates import Geometry, describe
from pointcloud.functional import pool_samples, window_max, window_mean
from pointcloud.graphs import leaf_of_graphs
from pointcloud.modules import SparseModule
from pointcloud.tensor import ConvAlgo, SparseConvTensor, check_algo


class SparsePool(SparseModule):
    """Base of the pools: windows as a SparseConv with these arguments has them; empty cells do not count.

    Args:
        kernel_size, stride, padding, dilation: an int, or one per axis. A stride of None is the kernel size.
        indice_key: name of the map, for a SparseInverseConv.
        subm: the outputs are the inputs, each with the window around it; stride must be 1, padding has no meaning.
        algo: accepted for spconv's sake; it cannot change a result.
        record_voxel_count: keep the largest number of output rows in the buffer `max_num_voxels_during_training`.
    """

    def __init__(
        self,
        ndim: int,
        kernel_size: Size = 3,
        stride: Size | None = 1,
        padding: Size = 0,
        dilation: Size = 1,
        indice_key: str | None = None,
        subm: bool = False,
        algo: ConvAlgo | None = None,
        record_voxel_count: bool = False,
        name: str | None = None,
    ) -> None:
        super().__init__(name=name)
        check_algo(algo, "algo")
        self.ndim = ndim
        self.kernel_size = sizes(kernel_size, ndim, "kernel_size", 1)
        self.stride = list(self.kernel_size) if stride is None else sizes(stride, ndim, "stride", 1)
        self.padding = sizes(padding, ndim, "padding", 0)
        self.dilation = sizes(dilation, ndim, "dilation", 1)
        if subm and max(self.stride) > 1:
            raise ValueError(f"stride of a submanifold pool must be 1, got {self.stride}")
        self.indice_key = indice_key
        self.subm = subm
        self.algo = algo
        self.record_voxel_count = record_voxel_count
        self.geometry = Geometry(
            "submanifold" if subm else "strided",
            tuple(self.kernel_size),
            tuple(self.stride),
            (0,) * ndim if subm else tuple(self.padding),
            tuple(self.dilation),
            (0,) * ndim,
        )
        if record_voxel_count and not subm:
            self.register_buffer("max_num_voxels_during_training", torch.zeros(1, dtype=torch.int32))

    def get_max_num_voxels(self) -> Tensor | None:
        """The largest number of output rows so far, int32 [1]; None without `record_voxel_count`."""
        return getattr(self, "max_num_voxels_during_training", None)

    @leaf_of_graphs
    def forward(self, input: SparseConvTensor) -> SparseConvTensor:
        """Pool features [N, C] of a floating dtype to [M, C]."""
        if not isinstance(input, SparseConvTensor):
            raise TypeError(f"input must be a SparseConvTensor, got {type(input).__name__}")
        if len(input.spatial_shape) != self.ndim:
            raise ValueError(f"input must have {self.ndim} axes, got spatial_shape {input.spatial_shape}")
        if not input.features.is_floating_point():
            raise ValueError(f"input must have floating features, got {describe(input.features)}")
        found = input.find_map(self.geometry, self.indice_key)
        out = self._pool(input.features, found.link.map)
        count = self.get_max_num_voxels()
        if count is not None:
            count.clamp_(min=len(out))
        return SparseConvTensor.over(found.target, out, input.with_key(self.indice_key, found))

    def _pool(self, x: Tensor, map: KernelMap) -> Tensor:
        raise NotImplementedError

    def extra_repr(self) -> str:
        parts = [f"kernel_size={self.kernel_size}, stride={self.stride}"]
        plain = {"padding": 0, "dilation": 1}
        parts += [f"{key}={getattr(self, key)}" for key, usual in plain.items() if set(getattr(self, key)) != {usual}]
        if self.subm:
            parts.append("subm=True")
        if self.indice_key is not None:
            parts.append(f"indice_key={self.indice_key!r}")
        return ", ".join(parts)


class SparseMaxPool(SparsePool):
    """Maximum of the active inputs in the window.

    Args:
        spconv_compat: spconv starts from 0, so that a window of negative values gives 0; networks trained with it may
            depend on that. Off, the maximum is the maximum.
    """

    def __init__(self, *args: Any, spconv_compat: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.spconv_compat = spconv_compat

    def _pool(self, x: Tensor, map: KernelMap) -> Tensor:
        out = window_max(x, map)
        return out.clamp(min=0) if self.spconv_compat else out

    def extra_repr(self) -> str:
        return super().extra_repr() + (", spconv_compat=True" if self.spconv_compat else "")


class SparseAvgPool(SparsePool):
    """Mean of the active inputs in the window: the sum divided by their number, not by the size of the window."""

    def _pool(self, x: Tensor, map: KernelMap) -> Tensor:
        return window_mean(x, map)


class _MaxPool(SparseMaxPool):
    NDIM: ClassVar[int]

    def __init__(
        self,
        kernel_size: Size,
        stride: Size | None = None,
        padding: Size = 0,
        dilation: Size = 1,
        indice_key: str | None = None,
        algo: ConvAlgo | None = None,
        record_voxel_count: bool = False,
        name: str | None = None,
        *,
        spconv_compat: bool = False,
    ) -> None:
        super().__init__(
            self.NDIM,
            kernel_size,
            stride,
            padding,
            dilation,
            indice_key,
            algo=algo,
            record_voxel_count=record_voxel_count,
            name=name,
            spconv_compat=spconv_compat,
        )


class _AvgPool(SparseAvgPool):
    NDIM: ClassVar[int]

    def __init__(
        self,
        kernel_size: Size,
        stride: Size | None = None,
        padding: Size = 0,
        dilation: Size = 1,
        indice_key: str | None = None,
        algo: ConvAlgo | None = None,
        record_voxel_count: bool = False,
        name: str | None = None,
    ) -> None:
        super().__init__(
            self.NDIM,
            kernel_size,
            stride,
            padding,
            dilation,
            indice_key,
            algo=algo,
            record_voxel_count=record_voxel_count,
            name=name,
        )


class SparseGlobalPool(SparseModule):
    """Base of the pools over all rows of a sample."""

    REDUCE: ClassVar[str]

    @leaf_of_graphs
    def forward(self, input: SparseConvTensor) -> Tensor:
        """[batch_size, C]; zeros for a sample without rows."""
        if not isinstance(input, SparseConvTensor):
            raise TypeError(f"input must be a SparseConvTensor, got {type(input).__name__}")
        return pool_samples(input, self.REDUCE)


class SparseGlobalMaxPool(SparseGlobalPool):
    """Maximum over all rows of each sample."""

    REDUCE = "max"


class SparseGlobalAvgPool(SparseGlobalPool):
    """Mean over all rows of each sample."""

    REDUCE = "mean"


class SparseMaxPool1d(_MaxPool):
    """Maximum over windows of 1 axis: see SparseMaxPool."""

    NDIM = 1


class SparseMaxPool2d(_MaxPool):
    """Maximum over windows of 2 axes: see SparseMaxPool."""

    NDIM = 2


class SparseMaxPool3d(_MaxPool):
    """Maximum over windows of 3 axes: see SparseMaxPool."""

    NDIM = 3


class SparseMaxPool4d(_MaxPool):
    """Maximum over windows of 4 axes: see SparseMaxPool."""

    NDIM = 4


class SparseAvgPool1d(_AvgPool):
    """Mean over windows of 1 axis: see SparseAvgPool."""

    NDIM = 1


class SparseAvgPool2d(_AvgPool):
    """Mean over windows of 2 axes: see SparseAvgPool."""

    NDIM = 2


class SparseAvgPool3d(_AvgPool):
    """Mean over windows of 3 axes: see SparseAvgPool."""

    NDIM = 3


class SparseAvgPool4d(_AvgPool):
    """Mean over windows of 4 axes: see SparseAvgPool."""

    NDIM = 4
