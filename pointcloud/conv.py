"""Sparse convolutions with spconv's names, arguments, weight layout and state-dict keys."""

from __future__ import annotations

from typing import ClassVar

import torch

from pointcloud.convolution import Size, SparseConvolution
from pointcloud.tensor import ConvAlgo


class SubMConv(SparseConvolution):
    """Submanifold convolution: the outputs are the inputs, in the same order."""

    NDIM: ClassVar[int]

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Size = 0,
        dilation: Size = 1,
        groups: int = 1,
        bias: bool = True,
        indice_key: str | None = None,
        algo: ConvAlgo | None = None,
        fp32_accum: bool | None = None,
        large_kernel_fast_algo: bool = False,
        name: str | None = None,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            self.NDIM,
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            bias,
            subm=True,
            indice_key=indice_key,
            algo=algo,
            fp32_accum=fp32_accum,
            large_kernel_fast_algo=large_kernel_fast_algo,
            name=name,
            device=device,
            dtype=dtype,
        )


class SparseConv(SparseConvolution):
    """Convolution over all cells that some input reaches."""

    NDIM: ClassVar[int]

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Size = 0,
        dilation: Size = 1,
        groups: int = 1,
        bias: bool = True,
        indice_key: str | None = None,
        algo: ConvAlgo | None = None,
        fp32_accum: bool | None = None,
        record_voxel_count: bool = False,
        large_kernel_fast_algo: bool = False,
        name: str | None = None,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            self.NDIM,
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            bias,
            indice_key=indice_key,
            algo=algo,
            fp32_accum=fp32_accum,
            record_voxel_count=record_voxel_count,
            large_kernel_fast_algo=large_kernel_fast_algo,
            name=name,
            device=device,
            dtype=dtype,
        )


class SparseConvTranspose(SparseConvolution):
    """Transposed convolution over all cells that some input reaches."""

    NDIM: ClassVar[int]

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Size = 0,
        dilation: Size = 1,
        groups: int = 1,
        bias: bool = True,
        indice_key: str | None = None,
        algo: ConvAlgo | None = None,
        fp32_accum: bool | None = None,
        record_voxel_count: bool = False,
        large_kernel_fast_algo: bool = False,
        name: str | None = None,
        *,
        output_padding: Size = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            self.NDIM,
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            bias,
            output_padding=output_padding,
            transposed=True,
            indice_key=indice_key,
            algo=algo,
            fp32_accum=fp32_accum,
            record_voxel_count=record_voxel_count,
            large_kernel_fast_algo=large_kernel_fast_algo,
            name=name,
            device=device,
            dtype=dtype,
        )


class SparseInverseConv(SparseConvolution):
    """Back to the coordinates that entered the layer of this `indice_key`, along the same pairs, tap by tap."""

    NDIM: ClassVar[int]

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        indice_key: str,
        bias: bool = True,
        algo: ConvAlgo | None = None,
        fp32_accum: bool | None = None,
        large_kernel_fast_algo: bool = False,
        name: str | None = None,
        *,
        groups: int = 1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            self.NDIM,
            in_channels,
            out_channels,
            kernel_size,
            groups=groups,
            bias=bias,
            inverse=True,
            indice_key=indice_key,
            algo=algo,
            fp32_accum=fp32_accum,
            large_kernel_fast_algo=large_kernel_fast_algo,
            name=name,
            device=device,
            dtype=dtype,
        )


class SubMConv1d(SubMConv):
    """Submanifold convolution over 1 axis: see SparseConvolution."""

    NDIM = 1


class SubMConv2d(SubMConv):
    """Submanifold convolution over 2 axes: see SparseConvolution."""

    NDIM = 2


class SubMConv3d(SubMConv):
    """Submanifold convolution over 3 axes: see SparseConvolution.

    Example:
        >>> import torch, pointcloud
        >>> cells = torch.tensor([[0, 2, 3, 1], [0, 2, 4, 1]], dtype=torch.int32)
        >>> x = pointcloud.SparseConvTensor(torch.ones(2, 4), cells, spatial_shape=[8, 8, 8], batch_size=1)
        >>> pointcloud.SubMConv3d(4, 16, kernel_size=3)(x).features.shape
        torch.Size([2, 16])
    """

    NDIM = 3


class SubMConv4d(SubMConv):
    """Submanifold convolution over 4 axes: see SparseConvolution."""

    NDIM = 4


class SparseConv1d(SparseConv):
    """Sparse convolution over 1 axis: see SparseConvolution."""

    NDIM = 1


class SparseConv2d(SparseConv):
    """Sparse convolution over 2 axes: see SparseConvolution."""

    NDIM = 2


class SparseConv3d(SparseConv):
    """Sparse convolution over 3 axes: see SparseConvolution."""

    NDIM = 3


class SparseConv4d(SparseConv):
    """Sparse convolution over 4 axes: see SparseConvolution."""

    NDIM = 4


class SparseConvTranspose1d(SparseConvTranspose):
    """Sparse transposed convolution over 1 axis: see SparseConvolution."""

    NDIM = 1


class SparseConvTranspose2d(SparseConvTranspose):
    """Sparse transposed convolution over 2 axes: see SparseConvolution."""

    NDIM = 2


class SparseConvTranspose3d(SparseConvTranspose):
    """Sparse transposed convolution over 3 axes: see SparseConvolution."""

    NDIM = 3


class SparseConvTranspose4d(SparseConvTranspose):
    """Sparse transposed convolution over 4 axes: see SparseConvolution."""

    NDIM = 4


class SparseInverseConv1d(SparseInverseConv):
    """Inverse of a sparse convolution over 1 axis: see SparseConvolution."""

    NDIM = 1


class SparseInverseConv2d(SparseInverseConv):
    """Inverse of a sparse convolution over 2 axes: see SparseConvolution."""

    NDIM = 2


class SparseInverseConv3d(SparseInverseConv):
    """Inverse of a sparse convolution over 3 axes: see SparseConvolution."""

    NDIM = 3


class SparseInverseConv4d(SparseInverseConv):
    """Inverse of a sparse convolution over 4 axes: see SparseConvolution."""

    NDIM = 4
