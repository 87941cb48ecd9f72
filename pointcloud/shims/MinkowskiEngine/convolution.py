"""Convolutions in MinkowskiEngine's parameters."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from pointcloud.shims.lattice import convolve
from pointcloud.shims.MinkowskiEngine.tensor import SparseTensor


def per_axis(value: Any, dimension: int, name: str) -> tuple[int, ...]:
    """`value` as one number for each axis."""
    if not isinstance(dimension, int) or dimension < 1:
        raise ValueError(f"dimension must be given as the number of axes, got {dimension!r}")
    numbers = (value,) * dimension if isinstance(value, int) else tuple(int(v) for v in value)
    if len(numbers) != dimension or min(numbers) < 1:
        raise ValueError(f"{name} must be an int or {dimension} ints of at least 1, got {value!r}")
    return numbers


class _Convolution(nn.Module):
    transposed = False

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
        refused = (("kernel_generator", kernel_generator, None), ("expand_coordinates", expand_coordinates, False))
        for name, value, only in refused:
            if value != only:
                raise NotImplementedError(f"{name} must be {only} with Trisparse's stand-in for MinkowskiEngine")
        D = dimension if dimension is not None else 0
        self.in_channels, self.out_channels, self.dimension = in_channels, out_channels, D
        self.kernel_size = per_axis(kernel_size, D, "kernel_size")
        self.stride = per_axis(stride, D, "stride")
        self.dilation = per_axis(dilation, D, "dilation")
        volume = math.prod(self.kernel_size)
        self.use_mm = volume == 1 and max(self.stride) == 1
        shape = (in_channels, out_channels) if self.use_mm else (volume, in_channels, out_channels)
        self.kernel = nn.Parameter(torch.empty(shape))
        self.bias = nn.Parameter(torch.empty(1, out_channels)) if bias else None
        self.reset_parameters()

    def reset_parameters(self, is_transpose: bool = False) -> None:
        """Uniform in ±1 / sqrt(channels times taps), the channels of the output where transposed."""
        channels = self.out_channels if self.transposed or is_transpose else self.in_channels
        bound = 1 / math.sqrt(channels * math.prod(self.kernel_size))
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    def extra_repr(self) -> str:
        return (
            f"in={self.in_channels}, out={self.out_channels}, kernel_size={list(self.kernel_size)}, "
            f"stride={list(self.stride)}, dilation={list(self.dilation)}"
        )

    def forward(self, input: SparseTensor, coordinates: Any = None) -> SparseTensor:
        """Convolve. Raises NotImplementedError for coordinates of the output."""
        if coordinates is not None:
            raise NotImplementedError("coordinates must be None with Trisparse's stand-in for MinkowskiEngine")
        bias = None if self.bias is None else self.bias[0]
        if self.use_mm:
            return input.at(convolve(input.F, None, self.kernel, bias))
        manager, key = input.coordinate_manager, input.coordinate_map_key
        if not self.transposed:
            target = manager.strided(key, self.stride) if max(self.stride) > 1 else key
            found = manager.map(key, target, self.kernel_size, self.dilation)
            return input.at(convolve(input.F, found, self.kernel, bias), target)
        target = (tuple(a // b for a, b in zip(key[0], self.stride)), key[1])
        if target not in manager:
            raise NotImplementedError(
                f"a transposed layer comes back to coordinates of stride {list(target[0])}, which the input has not "
                "passed; generating them is not part of Trisparse's stand-in for MinkowskiEngine"
            )
        found = manager.map(target, key, self.kernel_size, self.dilation)
        back = found.transpose(manager.coords(target), found.shape)
        return input.at(convolve(input.F, back, self.kernel, bias), target)


class MinkowskiConvolution(_Convolution):
    """`kernel` [K, Cin, Cout], first axis fastest, [Cin, Cout] for one tap without a stride; `bias` [1, Cout].

    The output lies at the floor of the coordinates for a stride above 1, else at the input's. Raises
    NotImplementedError for a kernel_generator and for expand_coordinates.
    """


class MinkowskiConvolutionTranspose(_Convolution):
    """The pairs of the convolution from the finer coordinates, with input and output exchanged, tap by tap."""

    transposed = True
