"""The residual block of sparse networks."""

from __future__ import annotations

from torch import nn

from pointcloud.conv import SubMConv3d
from pointcloud.modules import SparseModule, SparseSequential
from pointcloud.tensor import SparseConvTensor


class ResidualBlock(SparseModule):
    """`relu(net(x) + shortcut(x))` with net = conv 3, batch norm, ReLU, conv 3, batch norm.

    The shortcut is the identity, or conv 1 and batch norm where the channels differ (He et al., 2016, on submanifold
    convolutions). All convolutions are without bias.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.net = SparseSequential(
            SubMConv3d(in_channels, out_channels, 3, bias=False),
            nn.BatchNorm1d(out_channels),
            nn.ReLU(),
            SubMConv3d(out_channels, out_channels, 3, bias=False),
            nn.BatchNorm1d(out_channels),
        )
        self.downsample = (
            SparseSequential(SubMConv3d(in_channels, out_channels, 1, bias=False), nn.BatchNorm1d(out_channels))
            if in_channels != out_channels
            else None
        )

    def forward(self, x: SparseConvTensor) -> SparseConvTensor:
        """x with features [N, in_channels] -> the same coordinates with features [N, out_channels]."""
        shortcut = x if self.downsample is None else self.downsample(x)
        out = self.net(x)
        return out.replace_feature((out.features + shortcut.features).relu())


class FusedResidualBlock(SparseModule):
    """A ResidualBlock for inference: batch norm in the weights, ReLU and the sum inside of the convolutions.

    Made by `pointcloud.accelerate`. `first` ends with ReLU; `second` adds the shortcut and ends with ReLU.
    """

    def __init__(self, first: SparseModule, second: SparseModule, downsample: SparseModule | None) -> None:
        super().__init__()
        self.first = first
        self.second = second
        self.downsample = downsample

    def forward(self, x: SparseConvTensor) -> SparseConvTensor:
        """x with features [N, in_channels] -> the same coordinates with features [N, out_channels]."""
        shortcut = x if self.downsample is None else self.downsample(x)
        return self.second(self.first(x), residual=shortcut.features)
