"""MobileNetV2 on single frames, in torchvision's module names, so that its published weights load unchanged."""

from __future__ import annotations

import torch
from torch import Tensor, nn

# Expansion, channels, blocks and stride of the stages (Sandler et al., 2018, table 2).
STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


def round_channels(channels: float, divisor: int = 8) -> int:
    """The closest multiple of the divisor that is not more than 10 % too small."""
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded if rounded >= 0.9 * channels else rounded + divisor


def conv_bn_relu6(in_channels: int, out_channels: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """A convolution that keeps the size (but for the stride), batch norm, ReLU6."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU6(inplace=True),
    )


class InvertedResidual(nn.Module):
    """1×1 expansion (unless it is 1), depthwise 3×3, linear 1×1; beside a shortcut where the shape stays."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = in_channels * expansion
        layers: list[nn.Module] = [] if expansion == 1 else [conv_bn_relu6(in_channels, inner, 1)]
        layers += [
            conv_bn_relu6(inner, inner, 3, stride, groups=inner),
            nn.Conv2d(inner, out_channels, 1, bias=False),
            nn.BatchNorm2d(out_channels),
        ]
        self.conv = nn.Sequential(*layers)
        self.use_res_connect = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.use_res_connect else self.conv(x)


class MobileNetV2(nn.Module):
    """Inverted residuals and linear bottlenecks (Sandler et al., 2018).

    Args:
        num_classes: logits.
        width: factor on all channel counts, which are rounded to multiples of 8; the last layer does not get narrower
            than 1280.
        dropout: before the classifier.
        in_channels: 3 for RGB.
    """

    def __init__(self, num_classes: int = 1000, width: float = 1.0, dropout: float = 0.2, in_channels: int = 3) -> None:
        super().__init__()
        if num_classes < 1 or in_channels < 1 or not width > 0:
            raise ValueError(
                "num_classes and in_channels must be at least 1 and width above 0, got "
                f"num_classes {num_classes}, in_channels {in_channels}, width {width}"
            )
        self.num_classes = num_classes
        self.width = width
        channels = round_channels(32 * width)
        last = round_channels(1280 * max(1.0, width))
        features: list[nn.Module] = [conv_bn_relu6(in_channels, channels, 3, 2)]
        for expansion, out, n_blocks, stride in STAGES:
            out = round_channels(out * width)
            for i in range(n_blocks):
                features.append(InvertedResidual(channels, out, stride if i == 0 else 1, expansion))
                channels = out
        features.append(conv_bn_relu6(channels, last, 1))
        self.features = nn.Sequential(*features)
        self.classifier = nn.Sequential(nn.Dropout(dropout), nn.Linear(last, num_classes))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.01)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [N, num_classes] of frames [N, in_channels, H, W]."""
        x = nn.functional.adaptive_avg_pool2d(self.features(x), 1)
        return self.classifier(torch.flatten(x, 1))
