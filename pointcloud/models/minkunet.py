"""MinkUNet: a U-Net of sparse convolutions that labels every voxel."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pointcloud.conv import SparseConv3d, SparseInverseConv3d, SubMConv3d
from pointcloud.models.residual import ResidualBlock
from pointcloud.modules import SparseModule, SparseSequential
from pointcloud.tensor import SparseConvTensor

CHANNELS = (32, 32, 64, 128, 256, 256, 128, 96, 96)
# Residual blocks of the four encoder and the four decoder stages.
BLOCKS = {14: (1,) * 8, 18: (2,) * 8, 34: (2, 3, 4, 6, 2, 2, 2, 2)}
STRIDE = 16  # of the deepest level


class MinkUNet(nn.Module):
    """U-Net with four levels below the input's (Choy et al., 4D Spatio-Temporal ConvNets, 2019; layers as in SPVNAS).

    Stem of two convolutions; four stages of a strided convolution (kernel 2) and residual blocks; four stages of an
    inverse convolution to the coordinates of the level above, concatenation of that level's features, and residual
    blocks; a linear classifier. Channels are `int(width * c)` for c in 32, 32, 64, 128, 256, 256, 128, 96, 96.

    Args:
        in_channels: features per input voxel.
        num_classes: logits per voxel.
        width: factor on all channel counts; 1.0 has 21.7 million parameters with depth 18, 0.5 has 5.5 million.
        depth: 14 (one residual block per stage), 18 (two), or 34 (2, 3, 4, 6 in the encoder, two in the decoder).
    """

    def __init__(self, in_channels: int = 4, num_classes: int = 19, width: float = 1.0, depth: int = 18) -> None:
        super().__init__()
        if depth not in BLOCKS:
            raise ValueError(f"depth must be one of {', '.join(map(str, BLOCKS))}, got {depth}")
        channels = [int(width * c) for c in CHANNELS]
        if in_channels < 1 or num_classes < 1 or min(channels) < 1:
            raise ValueError(
                "in_channels and num_classes must be at least 1 and width at least 1/32, got "
                f"in_channels {in_channels}, num_classes {num_classes}, width {width}"
            )
        self.in_channels = in_channels
        self.num_classes = num_classes
        self.width = width
        self.depth = depth
        encoder, decoder = BLOCKS[depth][:4], BLOCKS[depth][4:]
        self.stem = SparseSequential(
            SubMConv3d(in_channels, channels[0], 3, bias=False),
            nn.BatchNorm1d(channels[0]),
            nn.ReLU(),
            SubMConv3d(channels[0], channels[0], 3, bias=False),
            nn.BatchNorm1d(channels[0]),
            nn.ReLU(),
        )
        self.stages = nn.ModuleList(
            DownStage(channels[i], channels[i + 1], n_blocks, f"down{i}") for i, n_blocks in enumerate(encoder)
        )
        self.ups = nn.ModuleList(
            UpStage(channels[4 + i], channels[3 - i], channels[5 + i], n_blocks, f"down{3 - i}")
            for i, n_blocks in enumerate(decoder)
        )
        self.classifier = nn.Linear(channels[8], num_classes)

    def forward(self, x: SparseConvTensor) -> Tensor:
        """Label voxels.

        Args:
            x: features [N, in_channels] at coordinates of three axes. A grid that is no multiple of 16 is treated as
                part of one that is, so that no level loses its last plane. Kernel maps are kept for the next call only
                where it is.

        Returns:
            Logits [N, num_classes] in the order of the input's rows.
        """
        skips = [self.stem(padded(x, STRIDE))]
        for stage in self.stages:
            skips.append(stage(skips[-1]))
        out = skips.pop()
        for up in self.ups:
            out = up(out, skips.pop())
        return self.classifier(out.features)


class DownStage(SparseModule):
    """Strided convolution (kernel 2, stride 2), batch norm, ReLU; residual blocks."""

    def __init__(self, in_channels: int, out_channels: int, n_blocks: int, indice_key: str) -> None:
        super().__init__()
        self.down = SparseSequential(
            SparseConv3d(in_channels, in_channels, 2, stride=2, bias=False, indice_key=indice_key),
            nn.BatchNorm1d(in_channels),
            nn.ReLU(),
        )
        self.blocks = residual_blocks(in_channels, out_channels, n_blocks)

    def forward(self, x: SparseConvTensor) -> SparseConvTensor:
        """The next coarser level."""
        return self.blocks(self.down(x))


class UpStage(SparseModule):
    """Inverse of a DownStage's convolution, batch norm, ReLU; concatenation with the skip; residual blocks."""

    def __init__(self, in_channels: int, skip_channels: int, out_channels: int, n_blocks: int, indice_key: str) -> None:
        super().__init__()
        self.up = SparseSequential(
            SparseInverseConv3d(in_channels, out_channels, 2, indice_key, bias=False),
            nn.BatchNorm1d(out_channels),
            nn.ReLU(),
        )
        self.blocks = residual_blocks(out_channels + skip_channels, out_channels, n_blocks)

    def forward(self, x: SparseConvTensor, skip: SparseConvTensor) -> SparseConvTensor:
        """The level of `skip`, whose coordinates entered the convolution that is inverted here."""
        up = self.up(x)
        return self.blocks(up.replace_feature(torch.cat([up.features, skip.features], 1)))


def residual_blocks(in_channels: int, out_channels: int, n_blocks: int) -> SparseSequential:
    """The first block changes the number of channels."""
    inputs = [in_channels] + [out_channels] * (n_blocks - 1)
    return SparseSequential(*(ResidualBlock(c, out_channels) for c in inputs))


def padded(x: SparseConvTensor, multiple: int) -> SparseConvTensor:
    """The same rows in a grid whose extents are multiples of `multiple`."""
    shape = [-(-extent // multiple) * multiple for extent in x.spatial_shape]
    if shape == x.spatial_shape:
        return x
    return SparseConvTensor(x.features, x.indices, shape, x.batch_size)
