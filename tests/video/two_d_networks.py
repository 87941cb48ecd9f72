"""Small 2D networks as other projects write them, restated: what `add_temporal_shift` must find its way in."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class TimmBlock(nn.Module):
    """A bottleneck in timm's manner: separate activations, anti-aliasing and squeeze-excite in the branch."""

    def __init__(self, inplanes: int, planes: int, stride: int, groups: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inplanes, planes, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.act1 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, groups=groups, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.act2 = nn.ReLU(inplace=True)
        self.aa = nn.AvgPool2d(stride, stride) if stride > 1 else nn.Identity()
        self.conv3 = nn.Conv2d(planes, planes * 2, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(planes * 2)
        self.se = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(planes * 2, planes * 2, 1), nn.Sigmoid())
        self.act3 = nn.ReLU(inplace=True)
        self.downsample: nn.Module | None = None
        if stride > 1 or inplanes != planes * 2:
            self.downsample = nn.Sequential(
                nn.AvgPool2d(stride, stride), nn.Conv2d(inplanes, planes * 2, 1), nn.BatchNorm2d(planes * 2)
            )

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x
        x = self.act1(self.bn1(self.conv1(x)))
        x = self.aa(self.act2(self.bn2(self.conv2(x))))
        x = self.bn3(self.conv3(x))
        x = x * self.se(x)
        if self.downsample is not None:
            shortcut = self.downsample(shortcut)
        x += shortcut
        return self.act3(x)


class TimmResNet(nn.Module):
    """Four stages of TimmBlock (grouped: ResNeXt-like), features and head apart."""

    def __init__(self, groups: int = 1, num_classes: int = 5) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 3, 1, 1))
        self.layer1 = nn.Sequential(TimmBlock(16, 8, 1, groups), TimmBlock(16, 8, 1, groups))
        self.layer2 = nn.Sequential(TimmBlock(16, 16, 2, groups), TimmBlock(32, 16, 1, groups))
        self.global_pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(32, num_classes)

    def forward_features(self, x: Tensor) -> Tensor:
        return self.layer2(self.layer1(self.conv1(x)))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.global_pool(self.forward_features(x)).flatten(1))


class PreActivation(nn.Module):
    """Norm and ReLU before each convolution, the shortcut from before or after them."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(channels), nn.Conv2d(channels, out, 3, 1, 1)
        self.bn2, self.conv2 = nn.BatchNorm2d(out), nn.Conv2d(out, out, 3, 1, 1)
        self.shortcut = nn.Conv2d(channels, out, 1) if channels != out else None

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(x))
        x = x if self.shortcut is None else self.shortcut(y)
        return self.conv2(F.relu(self.bn2(self.conv1(y)))) + x


class ConvNeXtBlock(nn.Module):
    """A depthwise convolution first, linear layers on channels-last."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(channels, channels, 7, 1, 3, groups=channels)
        self.norm = nn.LayerNorm(channels)
        self.pwconv1, self.pwconv2 = nn.Linear(channels, 4 * channels), nn.Linear(4 * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.dwconv(x).permute(0, 2, 3, 1))
        return x + self.pwconv2(F.gelu(self.pwconv1(y))).permute(0, 3, 1, 2)


class InOneForward(nn.Module):
    """Two residual branches in one forward, a skip over both, branches of whatever kind."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.a1, self.a2 = nn.Conv2d(8, 8, 3, 1, 1), nn.Conv2d(8, 8, 3, 1, 1)
        self.b1, self.b2 = nn.Conv2d(8, 8, 3, 1, 1), nn.Conv2d(8, 8, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        head = F.relu(self.stem(x))
        x = head + self.a2(F.relu(self.a1(head)))
        x = x + self.b2(F.relu(self.b1(x)))
        return head + x


class Repeated(nn.Module):
    """The same block twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.conv(x)
        return x + self.conv(x)


class Parallel(nn.Module):
    """A branch that begins with two convolutions at once, and an addition without a shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3)
        self.left, self.right, self.last = (nn.Conv2d(8, 8, k, 1, k // 2) for k in (1, 3, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.last(torch.cat([self.left(x)[:, :4], self.right(x)[:, 4:]], 1))
        return self.left(x) + self.right(x)


class Functional(nn.Module):
    """A block that convolves with a parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3)
        self.weight = nn.Parameter(torch.randn(8, 8, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return x + F.conv2d(x, self.weight, padding=1)
