"""ResNet on single frames, in torchvision's module names, so that its published weights load unchanged."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

EXPANSION = 4
MAX_BLOCKS = 1000
# Block kind and blocks of the four stages.
DEPTHS: dict[int, tuple[str, tuple[int, int, int, int]]] = {
    18: ("basic", (2, 2, 2, 2)),
    34: ("basic", (3, 4, 6, 3)),
    50: ("bottleneck", (3, 4, 6, 3)),
    101: ("bottleneck", (3, 4, 23, 3)),
    152: ("bottleneck", (3, 8, 36, 3)),
}


class BasicBlock(nn.Module):
    """Two 3×3 convolutions beside a shortcut."""

    def __init__(self, in_channels: int, channels: int, stride: int, groups: int, group_width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample = _projection(in_channels, channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return self.relu(out + shortcut)


class Bottleneck(nn.Module):
    """1×1, 3×3 and 1×1 convolution beside a shortcut; the 3×3 one has the stride ("ResNet v1.5") and the groups."""

    def __init__(self, in_channels: int, channels: int, stride: int, groups: int, group_width: int) -> None:
        super().__init__()
        inner = channels * group_width // 64 * groups
        self.conv1 = nn.Conv2d(in_channels, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, 1, groups=groups, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, channels * EXPANSION, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels * EXPANSION)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _projection(in_channels, channels * EXPANSION, stride)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        return self.relu(out + shortcut)


def _projection(in_channels: int, out_channels: int, stride: int) -> nn.Sequential | None:
    """The shortcut's own convolution where the block changes the shape."""
    if stride == 1 and in_channels == out_channels:
        return None
    return nn.Sequential(nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels))


class ResNet(nn.Module):
    """Residual network (He et al., 2016), with groups ResNeXt (Xie et al., 2017).

    Args:
        depth: 18, 34, 50, 101 or 152.
        num_classes: logits.
        width: channels of the stem and of the first stage; those of the stages double. 64 as published.
        groups: of the 3×3 convolution of a bottleneck block; 32 with group_width 4 is ResNeXt-50 32×4d.
        group_width: channels of each group in the first stage, for width 64.
        layers: blocks of the four stages instead of those of the depth, which then gives the kind of block only.
        in_channels: 3 for RGB.
    """

    def __init__(
        self,
        depth: int = 50,
        num_classes: int = 1000,
        width: int = 64,
        groups: int = 1,
        group_width: int = 64,
        layers: Sequence[int] | None = None,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        if depth not in DEPTHS:
            raise ValueError(f"depth must be one of {', '.join(map(str, DEPTHS))}, got {depth}")
        kind, published = DEPTHS[depth]
        layers = published if layers is None else tuple(layers)
        if len(layers) != 4 or min(layers) < 1 or max(layers) > MAX_BLOCKS:
            raise ValueError(f"layers must be the blocks of four stages, 1 to {MAX_BLOCKS} each, got {list(layers)}")
        if min(num_classes, width, groups, group_width, in_channels) < 1:
            raise ValueError(
                "num_classes, width, groups, group_width and in_channels must be at least 1, got "
                f"{num_classes}, {width}, {groups}, {group_width}, {in_channels}"
            )
        if kind == "basic" and (groups, group_width) != (1, 64):
            raise ValueError(f"groups and group_width need bottleneck blocks (depth 50 or more), got depth {depth}")
        self.depth = depth
        self.num_classes = num_classes
        block, expansion = (Bottleneck, EXPANSION) if kind == "bottleneck" else (BasicBlock, 1)
        self.conv1 = nn.Conv2d(in_channels, width, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        channels = width
        stages = []
        for i, n_blocks in enumerate(layers):
            blocks: list[nn.Module] = []
            for j in range(n_blocks):
                stride = 2 if i and not j else 1
                blocks.append(block(channels, width << i, stride, groups, group_width))
                channels = (width << i) * expansion
            stages.append(nn.Sequential(*blocks))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Logits [N, num_classes] of frames [N, in_channels, H, W]."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(torch.flatten(self.avgpool(x), 1))
