"""ProxylessNAS mobile networks: searched inverted residuals, in the module names of the published weights."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

STAGE_STRIDES = (2, 2, 2, 1, 2, 1)  # of the stages after the first block
STAGE_BLOCKS = (4, 4, 4, 4, 4, 1)
N_BLOCKS = 1 + sum(STAGE_BLOCKS)


def _strides() -> tuple[int, ...]:
    """Of all blocks: the first of each stage has the stage's."""
    strides = [1]
    for n_blocks, stride in zip(STAGE_BLOCKS, STAGE_STRIDES):
        strides += [stride] + [1] * (n_blocks - 1)
    return tuple(strides)


STRIDES = _strides()


class ConvLayer(nn.Module):
    """Convolution, batch norm, and ReLU6 unless it is linear."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int, stride: int = 1, groups: int = 1, linear: bool = False
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(out_channels, eps=1e-3)  # as trained: running statistics agree with this one only
        self.act = nn.Identity() if linear else nn.ReLU6(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn(self.conv(x)))


class InvertedConv(nn.Module):
    """1×1 expansion (unless the inner channels are the input's), depthwise k×k, linear 1×1."""

    def __init__(self, in_channels: int, inner: int, out_channels: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.inverted_bottleneck = None if inner == in_channels else ConvLayer(in_channels, inner, 1)
        self.depth_conv = ConvLayer(inner, inner, kernel, stride, groups=inner)
        self.point_linear = ConvLayer(inner, out_channels, 1, linear=True)

    def forward(self, x: Tensor) -> Tensor:
        if self.inverted_bottleneck is not None:
            x = self.inverted_bottleneck(x)
        return self.point_linear(self.depth_conv(x))


class Block(nn.Module):
    """An inverted convolution, beside a shortcut where the shape stays; None: the search left only the shortcut."""

    def __init__(self, mobile_inverted_conv: InvertedConv | None, shortcut: bool) -> None:
        super().__init__()
        self.mobile_inverted_conv = mobile_inverted_conv
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        if self.mobile_inverted_conv is None:
            return x
        out = self.mobile_inverted_conv(x)
        return out + x if self.shortcut else out


class Classifier(nn.Module):
    """A linear layer under the published name."""

    def __init__(self, in_features: int, num_classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(in_features, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x)


class ProxylessNAS(nn.Module):
    """Mobile network found by search (Cai et al., ProxylessNAS, 2019): 22 blocks, each of its own kernel and widths.

    Args:
        blocks: of each of the 22 blocks (kernel, inner channels, out channels), or None for one that is only a
            shortcut. The strides are those of the published search space.
        stem: channels of the first convolution.
        features: channels that are averaged for the classifier.
        num_classes: logits.
        in_channels: 3 for RGB.
    """

    def __init__(
        self,
        blocks: Sequence[Sequence[int] | None],
        stem: int = 32,
        features: int = 1280,
        num_classes: int = 1000,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        if len(blocks) != N_BLOCKS:
            raise ValueError(f"blocks must describe {N_BLOCKS} blocks, got {len(blocks)}")
        self.num_classes = num_classes
        self.first_conv = ConvLayer(in_channels, stem, 3, 2)
        channels = stem
        layers = []
        for i, (block, stride) in enumerate(zip(blocks, STRIDES)):
            if block is None:
                if stride != 1:
                    raise ValueError(f"blocks[{i}] must not be None: it has stride {stride}")
                layers.append(Block(None, True))
                continue
            if len(block) != 3 or min(block) < 1 or block[0] % 2 == 0:
                raise ValueError(f"blocks[{i}] must be (odd kernel, inner channels, out channels), got {block}")
            kernel, inner, out = block
            layers.append(Block(InvertedConv(channels, inner, out, kernel, stride), stride == 1 and channels == out))
            channels = out
        self.blocks = nn.ModuleList(layers)
        self.feature_mix_layer = ConvLayer(channels, features, 1)
        self.classifier = Classifier(features, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")

    def forward(self, x: Tensor) -> Tensor:
        """Logits [N, num_classes] of frames [N, in_channels, H, W]."""
        x = self.first_conv(x)
        for block in self.blocks:
            x = block(x)
        return self.classifier(self.feature_mix_layer(x).mean((2, 3)))


def arguments_of(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """The arguments of the ProxylessNAS network that has this state dict.

    Raises:
        ValueError: it is of no such network.
    """
    kernels: dict[int, dict[str, Tensor]] = {}
    for key, value in state.items():
        match = re.fullmatch(r"blocks\.(\d{1,3})\.mobile_inverted_conv\.(\w+)\.conv\.weight", key)
        if match:
            kernels.setdefault(int(match[1]), {})[match[2]] = value
    try:
        blocks: list[list[int] | None] = [None] * N_BLOCKS
        for i, layers in kernels.items():
            depthwise = layers["depth_conv"]
            blocks[i] = [depthwise.shape[-1], depthwise.shape[0], layers["point_linear"].shape[0]]
        num_classes, features = state["classifier.linear.weight"].shape
        stem, in_channels = state["first_conv.conv.weight"].shape[:2]
    except (KeyError, IndexError, ValueError) as error:
        raise ValueError(f"not the state dict of a ProxylessNAS network: {error!r}") from None
    return dict(blocks=blocks, stem=stem, features=features, num_classes=num_classes, in_channels=in_channels)
