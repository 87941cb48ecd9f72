"""EfficientNet-Lite on single frames, in the module names of its PyTorch port, whose weights load unchanged."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from video.models.mobilenet_v2 import round_channels

# Kernel, expansion, channels, blocks and stride of the stages (Tan & Le, 2019, table 1).
STAGES = (
    (3, 1, 16, 1, 1),
    (3, 6, 24, 2, 2),
    (5, 6, 40, 2, 2),
    (3, 6, 80, 3, 2),
    (5, 6, 112, 3, 1),
    (5, 6, 192, 4, 2),
    (3, 6, 320, 1, 1),
)
# Width, depth and side of the frames of the published variants.
VARIANTS = {
    "lite0": (1.0, 1.0, 224),
    "lite1": (1.0, 1.1, 240),
    "lite2": (1.1, 1.2, 260),
    "lite3": (1.2, 1.4, 280),
    "lite4": (1.4, 1.8, 300),
}
STEM, HEAD = 32, 1280  # not scaled in the lite variants, nor are the depths of the first and last stage


class SamePad(nn.Module):
    """TensorFlow's "same" padding of a strided convolution: where it is uneven, the larger half is right and below."""

    def __init__(self, kernel: int, stride: int) -> None:
        super().__init__()
        self.kernel = kernel
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        sides = []
        for size in (x.shape[3], x.shape[2]):
            total = max(0, (math.ceil(size / self.stride) - 1) * self.stride + self.kernel - size)
            sides += [total // 2, total - total // 2]
        return F.pad(x, sides)


def padded(
    in_channels: int, out_channels: int, kernel: int, stride: int, groups: int = 1
) -> tuple[nn.Module, nn.Conv2d]:
    """The padding, nothing where the convolution's own will do, and the convolution."""
    own = kernel // 2 if stride == 1 else 0
    pad = nn.Identity() if stride == 1 else SamePad(kernel, stride)
    return pad, nn.Conv2d(in_channels, out_channels, kernel, stride, own, groups=groups, bias=False)


def norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)


class MBConv(nn.Module):
    """1×1 expansion (unless it is 1), depthwise k×k, linear 1×1; beside a shortcut where the shape stays."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = in_channels * expansion
        self.expands = expansion != 1
        if self.expands:
            self._expand_conv = nn.Conv2d(in_channels, inner, 1, bias=False)
            self._bn0 = norm(inner)
        self.pad, self._depthwise_conv = padded(inner, inner, kernel, stride, groups=inner)
        self._bn1 = norm(inner)
        self._project_conv = nn.Conv2d(inner, out_channels, 1, bias=False)
        self._bn2 = norm(out_channels)
        self.act = nn.ReLU6(inplace=True)
        self.shortcut = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        out = self.act(self._bn0(self._expand_conv(x))) if self.expands else x
        out = self.act(self._bn1(self._depthwise_conv(self.pad(out))))
        out = self._bn2(self._project_conv(out))
        return out + x if self.shortcut else out


class EfficientNetLite(nn.Module):
    """EfficientNet (Tan & Le, 2019) without squeeze-excite and with ReLU6, as published for small devices in 2020.

    Args:
        num_classes: logits.
        width: factor on the channel counts of the stages, which are rounded to multiples of 8.
        depth: factor on the blocks of the stages but the first and last, rounded up.
        dropout: before the classifier.
        in_channels: 3 for RGB.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        width: float = 1.0,
        depth: float = 1.0,
        dropout: float = 0.2,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        if num_classes < 1 or in_channels < 1 or not 0 < width < math.inf or not 0 < depth < math.inf:
            raise ValueError(
                "num_classes and in_channels must be at least 1, width and depth above 0, got "
                f"num_classes {num_classes}, in_channels {in_channels}, width {width}, depth {depth}"
            )
        self.num_classes = num_classes
        self.pad, self._conv_stem = padded(in_channels, STEM, 3, 2)
        self._bn0 = norm(STEM)
        channels = STEM
        blocks = []
        for stage, (kernel, expansion, out, n_blocks, stride) in enumerate(STAGES):
            out = round_channels(out * width)
            if 0 < stage < len(STAGES) - 1:
                n_blocks = math.ceil(n_blocks * depth)
            for i in range(n_blocks):
                blocks.append(MBConv(channels, out, kernel, stride if i == 0 else 1, expansion))
                channels = out
        self._blocks = nn.ModuleList(blocks)
        self._conv_head = nn.Conv2d(channels, HEAD, 1, bias=False)
        self._bn1 = norm(HEAD)
        self.act = nn.ReLU6(inplace=True)
        self._dropout = nn.Dropout(dropout)
        self._fc = nn.Linear(HEAD, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.01)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [N, num_classes] of frames [N, in_channels, H, W]."""
        x = self.act(self._bn0(self._conv_stem(self.pad(x))))
        for block in self._blocks:
            x = block(x)
        x = self.act(self._bn1(self._conv_head(x)))
        return self._fc(self._dropout(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1)))


def variant_of(state: Mapping[str, Tensor]) -> tuple[str, dict[str, Any]]:
    """Name and arguments of the published variant that has this state dict.

    Raises:
        ValueError: it is of none of them.
    """
    found = {int(match[1]) for key in state if (match := re.match(r"_blocks\.(\d{1,3})\.", key))}
    try:
        channels = state["_conv_head.weight"].shape[1]
        num_classes, in_channels = state["_fc.weight"].shape[0], state["_conv_stem.weight"].shape[1]
    except (KeyError, IndexError) as error:
        raise ValueError(f"not the state dict of an EfficientNet-Lite: {error!r}") from None
    for name, (width, depth, _) in VARIANTS.items():
        n_blocks = 2 + sum(math.ceil(n * depth) for *_, n, _ in STAGES[1:-1])
        if len(found) == n_blocks and channels == round_channels(STAGES[-1][2] * width):
            return name, dict(num_classes=num_classes, width=width, depth=depth, in_channels=in_channels)
    raise ValueError(
        f"not the state dict of a published EfficientNet-Lite ({', '.join(VARIANTS)}): {len(found)} blocks, "
        f"{channels} channels before the head"
    )
