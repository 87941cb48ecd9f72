"""Sparse convolution in torchsparse's parameters."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from pointcloud.shims.torchsparse.nn import functional as F
from pointcloud.shims.torchsparse.tensor import SparseTensor
from pointcloud.shims.torchsparse.utils.utils import make_ntuple


class Conv3d(nn.Module):
    """Convolution whose `kernel` is [K, Cin, Cout], or [Cin, Cout] for a kernel and a stride of 1.

    Taps are in the original's order: the first axis fastest where K is odd, the last axis where it is even. See
    `torchsparse.nn.functional.conv3d` for the rules.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Any = 3,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        bias: bool = False,
        transposed: bool = False,
        generative: bool = False,
        config: Any = None,
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel_size = make_ntuple(kernel_size, ndim=3)
        self.stride = make_ntuple(stride, ndim=3)
        self.dilation = dilation
        self.padding = tuple(
            (k - 1) // 2 if k % 2 == 1 and s == 1 else p
            for k, s, p in zip(self.kernel_size, self.stride, make_ntuple(padding, 3))
        )
        if generative:
            raise NotImplementedError("generative=True is not part of Trisparse's stand-in for torchsparse")
        self.transposed = transposed
        self.generative = generative
        self._config = config
        self.kernel_volume = math.prod(self.kernel_size)
        plain = self.kernel_volume == 1 and self.stride == (1, 1, 1)
        shape = (in_channels, out_channels) if plain else (self.kernel_volume, in_channels, out_channels)
        self.kernel = nn.Parameter(torch.zeros(shape))
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Uniform in ±1 / sqrt(channels times taps), the channels of the output where transposed."""
        std = 1 / math.sqrt((self.out_channels if self.transposed else self.in_channels) * self.kernel_volume)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -std, std)

    def forward(self, input: SparseTensor) -> SparseTensor:
        return F.conv3d(
            input,
            weight=self.kernel,
            kernel_size=self.kernel_size,
            bias=self.bias,
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
            transposed=self.transposed,
            config=self._config,
            training=self.training,
        )

    def extra_repr(self) -> str:
        words = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"
        return words + (", transposed=True" if self.transposed else "")
