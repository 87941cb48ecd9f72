"""Convolutions in MinkowskiEngine's parameters."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from common_kernels.gather_rows import gather_rows
from common_kernels.kernel_map import KernelMap
from pointcloud.shims.lattice import convolve
from pointcloud.shims.MinkowskiEngine.regions import KernelGenerator
from pointcloud.shims.MinkowskiEngine.tensor import Key, SparseTensor


class _Convolution(nn.Module):
    transposed = False
    generates = False

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Any = -1,
        stride: Any = 1,
        dilation: Any = 1,
        bias: bool = False,
        kernel_generator: Any = None,
        expand_coordinates: bool = False,
        convolution_mode: Any = None,
        dimension: int | None = None,
    ) -> None:
        super().__init__()
        self.in_channels, self.out_channels = in_channels, out_channels
        self.kernel_generator = kernel_generator or KernelGenerator(
            kernel_size, stride, dilation, self.transposed, expand_coordinates=expand_coordinates or self.generates,
            dimension=dimension if dimension is not None else 0,
        )  # fmt: skip
        region: KernelGenerator = self.kernel_generator
        self.dimension = region.dimension
        self.kernel_size, self.stride, self.dilation = region.kernel_size, region.kernel_stride, region.kernel_dilation
        volume = region.kernel_volume
        self.use_mm = volume == 1 and max(self.stride) == 1 and not any(region.offsets[0])
        shape = (in_channels, out_channels) if self.use_mm else (volume, in_channels, out_channels)
        self.kernel = nn.Parameter(torch.empty(shape))
        self.bias = nn.Parameter(torch.empty(1, out_channels)) if bias else None
        self.reset_parameters()

    def reset_parameters(self, is_transpose: bool = False) -> None:
        """Uniform in ±1 / sqrt(channels times taps), the channels of the output where transposed."""
        channels = self.out_channels if self.transposed or is_transpose else self.in_channels
        bound = 1 / math.sqrt(channels * self.kernel_generator.kernel_volume)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    def extra_repr(self) -> str:
        return (
            f"in={self.in_channels}, out={self.out_channels}, kernel_size={list(self.kernel_size)}, "
            f"stride={list(self.stride)}, dilation={list(self.dilation)}"
        )

    def forward(self, input: SparseTensor, coordinates: Any = None) -> SparseTensor:
        """Convolve, to the given coordinates where there are any: a tensor's, a key's, or int [M, 1 + D]."""
        bias = None if self.bias is None else self.bias[0]
        if self.use_mm and coordinates is None:
            return input.at(convolve(input.F, None, self.kernel, bias))
        weight = self.kernel if self.kernel.ndim == 3 else self.kernel[None]
        target, found = pairs(input, self.kernel_generator, self.transposed, coordinates)
        return input.at(convolve(input.F, found, weight, bias), target)


def pairs(input: SparseTensor, region: KernelGenerator, transposed: bool, coordinates: Any) -> tuple[Key, KernelMap]:
    """Where a layer's output lies, and which rows it reads."""
    manager, key = input.coordinate_manager, input.coordinate_map_key
    stride, dilation = region.kernel_stride, region.kernel_dilation
    if not transposed:
        coarse = tuple(a * b for a, b in zip(key[0], stride))
        if coordinates is not None:
            target = manager.given(coordinates, coarse)
        elif region.expand_coordinates:
            if max(stride) > 1:
                raise NotImplementedError("expand_coordinates needs a stride of 1 with Trisparse's MinkowskiEngine")
            back = tuple(tuple(-step for step in offset) for offset in region.offsets)
            target = manager.reached(key, key[0], back, dilation)
        else:
            target = manager.strided(key, stride) if max(stride) > 1 else key
        return target, manager.map(key, target, region.offsets, dilation)
    if any(a % b for a, b in zip(key[0], stride)):
        raise ValueError(f"stride must divide the tensor stride {list(key[0])} of the input, got {list(stride)}")
    fine = tuple(a // b for a, b in zip(key[0], stride))
    target = (fine, key[1])
    if coordinates is not None:
        target = manager.given(coordinates, fine)
    elif region.expand_coordinates or target not in manager:
        target = manager.reached(key, fine, region.offsets, dilation)
    found = manager.map(target, key, region.offsets, dilation)
    return target, found.transpose(manager.coords(target), found.shape)


class MinkowskiConvolution(_Convolution):
    """`kernel` [K, Cin, Cout], first axis fastest, [Cin, Cout] for one tap without a stride; `bias` [1, Cout].

    The output lies at the floor of the coordinates for a stride above 1, else at the input's; with expand_coordinates
    at all cells from which some tap finds an input.
    """


class MinkowskiConvolutionTranspose(_Convolution):
    """The pairs of the convolution from the finer coordinates, with input and output exchanged, tap by tap.

    The output lies at the coordinates that the input came from; where it came from none, and with expand_coordinates,
    at all cells that the kernel reaches.
    """

    transposed = True


class MinkowskiGenerativeConvolutionTranspose(MinkowskiConvolutionTranspose):
    """A transposed convolution that makes all cells that its kernel reaches."""

    generates = True


class MinkowskiChannelwiseConvolution(nn.Module):
    """Each channel by its own weights: `kernel` [K, C]; `bias` [1, C]."""

    def __init__(
        self,
        in_channels: int,
        kernel_size: Any = -1,
        stride: Any = 1,
        dilation: Any = 1,
        bias: bool = False,
        kernel_generator: Any = None,
        dimension: int = -1,
    ) -> None:
        super().__init__()
        self.in_channels = self.out_channels = in_channels
        self.kernel_generator = kernel_generator or KernelGenerator(kernel_size, stride, dilation, dimension=dimension)
        self.dimension = self.kernel_generator.dimension
        self.kernel = nn.Parameter(torch.empty(self.kernel_generator.kernel_volume, in_channels))
        self.bias = nn.Parameter(torch.empty(1, in_channels)) if bias else None
        bound = 1 / math.sqrt(in_channels * self.kernel_generator.kernel_volume)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    def forward(self, input: SparseTensor, coordinates: Any = None) -> SparseTensor:
        target, found = pairs(input, self.kernel_generator, False, coordinates)
        out = input.F.new_zeros(found.n_out, self.in_channels)
        for rows, weight in zip(found.table, self.kernel):
            out = out + gather_rows(input.F, rows) * weight
        return input.at(out if self.bias is None else out + self.bias, target)
