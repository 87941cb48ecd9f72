"""Residual blocks of the ResNets and U-Nets."""

from __future__ import annotations

from torch import nn

from pointcloud.shims.MinkowskiEngine.convolution import MinkowskiConvolution
from pointcloud.shims.MinkowskiEngine.pointwise import MinkowskiBatchNorm, MinkowskiReLU
from pointcloud.shims.MinkowskiEngine.tensor import SparseTensor


class _Block(nn.Module):
    expansion = 1
    PLAN: tuple[int, ...]  # kernel size of each convolution

    def __init__(
        self,
        inplanes: int,
        planes: int,
        stride: int = 1,
        dilation: int = 1,
        downsample: nn.Module | None = None,
        bn_momentum: float = 0.1,
        dimension: int = -1,
    ) -> None:
        super().__init__()
        channels = [inplanes] + [planes] * (len(self.PLAN) - 1) + [planes * self.expansion]
        strided = 0 if len(self.PLAN) == 2 else 1
        for i, kernel in enumerate(self.PLAN):
            conv = MinkowskiConvolution(
                channels[i],
                channels[i + 1],
                kernel_size=kernel,
                stride=stride if i == strided else 1,
                dilation=dilation if kernel > 1 else 1,
                dimension=dimension,
            )
            setattr(self, f"conv{i + 1}", conv)
            setattr(self, f"norm{i + 1}", MinkowskiBatchNorm(channels[i + 1], momentum=bn_momentum))
        self.relu = MinkowskiReLU(inplace=True)
        self.downsample = downsample

    def forward(self, x: SparseTensor) -> SparseTensor:
        out = x
        for i in range(1, len(self.PLAN) + 1):
            out = getattr(self, f"norm{i}")(getattr(self, f"conv{i}")(out))
            out = self.relu(out) if i < len(self.PLAN) else out
        return self.relu(out + (x if self.downsample is None else self.downsample(x)))


class BasicBlock(_Block):
    """Two convolutions of size 3, and the input added."""

    PLAN = (3, 3)


class Bottleneck(_Block):
    """Convolutions of size 1, 3 and 1 with four times the planes at the end, and the input added."""

    expansion = 4
    PLAN = (1, 3, 1)
