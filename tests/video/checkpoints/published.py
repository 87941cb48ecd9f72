"""Networks whose state dicts have the published keys, restated in a few lines each: an oracle for keys and values.

Shifts are written from the definition; nothing here imports the package.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

T = 4


def shift(x: Tensor) -> Tensor:
    """Both directions, one eighth each."""
    clips = x.reshape(-1, T, *x.shape[1:])
    f, out = x.shape[1] // 8, clips.clone()
    out[:, :, : 2 * f] = 0
    out[:, :-1, :f] = clips[:, 1:, :f]
    out[:, 1:, f : 2 * f] = clips[:, :-1, f : 2 * f]
    return out.reshape(x.shape)


class Shift(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(shift(x))


class ConvModule(nn.Module):
    """mmaction2's (mmcv's) unit: conv, bn, activation."""

    def __init__(self, i: int, o: int, k: int, s: int = 1, groups: int = 1, act: type[nn.Module] | None = nn.ReLU):
        super().__init__()
        self.conv: nn.Module = nn.Conv2d(i, o, k, s, k // 2, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(o)
        self.act = act() if act else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn(self.conv(x)))


class MMBottleneck(nn.Module):
    def __init__(self, i: int, planes: int, stride: int) -> None:
        super().__init__()
        self.conv1 = ConvModule(i, planes, 1)
        self.conv2 = ConvModule(planes, planes, 3, stride)
        self.conv3 = ConvModule(planes, planes * 4, 1, act=None)
        self.downsample: nn.Module | None = None
        if stride > 1 or i != planes * 4:
            self.downsample = ConvModule(i, planes * 4, 1, stride, act=None)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        return F.relu(self.conv3(self.conv2(self.conv1(x))) + shortcut)


class MMBasic(nn.Module):
    def __init__(self, i: int, planes: int, stride: int) -> None:
        super().__init__()
        self.conv1 = ConvModule(i, planes, 3, stride)
        self.conv2 = ConvModule(planes, planes, 3, act=None)
        self.downsample: nn.Module | None = None
        if stride > 1 or i != planes:
            self.downsample = ConvModule(i, planes, 1, stride, act=None)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        return F.relu(self.conv2(self.conv1(x)) + shortcut)


class Head(nn.Module):
    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.fc_cls = nn.Linear(features, classes)


class MMResNet(nn.Module):
    """mmaction2's recognizer of a ResNetTSM; place None is its TSN."""

    def __init__(
        self, layers: tuple[int, ...], width: int = 8, classes: int = 5, place: str | None = "blockres",
        block: type[MMBottleneck] | type[MMBasic] = MMBottleneck,
    ) -> None:  # fmt: skip
        super().__init__()
        self.backbone = nn.Module()
        self.backbone.conv1 = ConvModule(3, width, 7, 2)
        channels, expansion = width, 4 if block is MMBottleneck else 1
        for s, n in enumerate(layers):
            blocks = nn.Sequential()
            for j in range(n):
                blocks.append(block(channels, width << s, 2 if s and not j else 1))
                channels = (width << s) * expansion
                if place == "blockres" and (layers[2] < 23 or j % 2 == 0):
                    blocks[j].conv1.conv = Shift(blocks[j].conv1.conv)  # type: ignore[union-attr, arg-type]
                elif place == "block":
                    blocks[j] = Shift(blocks[j])
            self.backbone.add_module(f"layer{s + 1}", blocks)
        self.cls_head = Head(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        b = self.backbone
        x = F.max_pool2d(b.conv1(x), 3, 2, 1)  # type: ignore[operator]
        for s in range(4):
            x = getattr(b, f"layer{s + 1}")(x)
        return self.cls_head.fc_cls(x.mean((2, 3))).reshape(-1, T, self.cls_head.fc_cls.out_features).mean(1)


# Expansion, channels, blocks, stride.
STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


class Residual(nn.Module):
    """A MobileNetV2 block whose branch is made by the project's own function."""

    def __init__(self, branch: nn.Module, shortcut: bool) -> None:
        super().__init__()
        self.conv = branch
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.shortcut else self.conv(x)


def stages(make: Callable[[int, int, int, int], nn.Module], half: bool = True) -> list[list[nn.Module]]:
    """The blocks of MobileNetV2 (of half the width: 16 channels in the stem), stage by stage."""
    channels, out = (16, []) if half else (32, [])
    for t, c, n, s in STAGES:
        c = {8: 8, 12: 16, 16: 16, 32: 32, 48: 48, 80: 80, 160: 160}[c // 2] if half else c
        blocks = []
        for j in range(n):
            stride = s if j == 0 else 1
            blocks.append(Residual(make(channels, c, stride, t), stride == 1 and channels == c))
            channels = c
        out.append(blocks)
    return out


def mm_branch(i: int, o: int, s: int, t: int) -> nn.Module:
    layers: list[nn.Module] = [ConvModule(i, i * t, 1, act=nn.ReLU6)] if t > 1 else []
    layers += [ConvModule(i * t, i * t, 3, s, i * t, nn.ReLU6), ConvModule(i * t, o, 1, act=None)]
    if t > 1 and s == 1 and i == o:
        layers[0] = Shift(layers[0])
    return nn.Sequential(*layers)


class MMMobileNetV2(nn.Module):
    """mmaction2's recognizer of a MobileNetV2TSM: the shift goes round the whole unit."""

    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.backbone = nn.Module()
        self.backbone.conv1 = ConvModule(3, 16, 3, 2, act=nn.ReLU6)
        for s, blocks in enumerate(stages(mm_branch)):
            self.backbone.add_module(f"layer{s + 1}", nn.Sequential(*blocks))
        self.backbone.conv2 = ConvModule(160, 1280, 1, act=nn.ReLU6)
        self.cls_head = Head(1280, classes)

    def forward(self, x: Tensor) -> Tensor:
        b = self.backbone
        x = b.conv1(x)  # type: ignore[operator]
        for s in range(7):
            x = getattr(b, f"layer{s + 1}")(x)
        x = b.conv2(x).mean((2, 3))  # type: ignore[operator]
        return self.cls_head.fc_cls(x).reshape(-1, T, self.cls_head.fc_cls.out_features).mean(1)


def flat(i: int, o: int, s: int, t: int) -> list[nn.Module]:
    layers: list[nn.Module] = [nn.Conv2d(i, i * t, 1, bias=False), nn.BatchNorm2d(i * t), nn.ReLU6()] if t > 1 else []
    layers += [nn.Conv2d(i * t, i * t, 3, s, 1, groups=i * t, bias=False), nn.BatchNorm2d(i * t), nn.ReLU6()]
    return [*layers, nn.Conv2d(i * t, o, 1, bias=False), nn.BatchNorm2d(o)]


def mit_branch(i: int, o: int, s: int, t: int) -> nn.Module:
    layers = flat(i, o, s, t)
    if len(layers) == 8 and s == 1 and i == o:
        layers[0] = Shift(layers[0])
    return nn.Sequential(*layers)


def flat_features(branch: Callable[[int, int, int, int], nn.Module]) -> nn.Sequential:
    """mit-han-lab's MobileNetV2: all layers of a block in one list."""
    first = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU6())
    last = nn.Sequential(nn.Conv2d(160, 1280, 1, bias=False), nn.BatchNorm2d(1280), nn.ReLU6())
    return nn.Sequential(first, *(block for blocks in stages(branch) for block in blocks), last)


class MITMobileNetV2(nn.Module):
    """As its training code saves it, within DataParallel."""

    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.module = nn.Module()
        self.module.base_model = nn.Module()
        self.module.base_model.features = flat_features(mit_branch)
        self.module.new_fc = nn.Linear(1280, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.module.base_model.features(x).mean((2, 3))  # type: ignore[union-attr, operator]
        return self.module.new_fc(x).reshape(-1, T, self.module.new_fc.out_features).mean(1)  # type: ignore[operator, union-attr]


class OnlineBlock(nn.Module):
    """A block of the live network, run over the frames of a clip one after the other from a buffer of zeros."""

    def __init__(self, branch: list[nn.Module], shortcut: bool) -> None:
        super().__init__()
        self.conv = nn.Sequential(*branch)
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        if not self.shortcut:
            return self.conv(x)
        f, out = x.shape[1] // 8, []
        buffer = torch.zeros_like(x[:1, :f])
        for frame in x.split(1):
            out.append(frame + self.conv(torch.cat([buffer, frame[:, f:]], 1)))
            buffer = frame[:, :f]
        return torch.cat(out)


class OnlineMobileNetV2(nn.Module):
    """The live network of the gesture demonstration: raw keys, no `.net`; forward gives each frame's logits."""

    def __init__(self, classes: int = 27) -> None:
        super().__init__()
        self.features = flat_features(lambda i, o, s, t: nn.Sequential(*flat(i, o, s, t)))
        for k, block in enumerate(self.features):
            if isinstance(block, Residual):
                self.features[k] = OnlineBlock(list(block.conv), block.shortcut)  # type: ignore[call-overload]
        self.classifier = nn.Linear(1280, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).mean((2, 3)))


class TimmMobileNetV2(nn.Module):
    """timm's names, as a 2D network."""

    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.conv_stem, self.bn1 = nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16)
        self.blocks = nn.Sequential()
        for blocks in stages(lambda i, o, s, t: nn.Sequential(*flat(i, o, s, t))):
            self.blocks.append(nn.Sequential(*(TimmBlock(b.conv, b.shortcut) for b in blocks)))  # type: ignore[arg-type]
        self.conv_head, self.bn2 = nn.Conv2d(160, 1280, 1, bias=False), nn.BatchNorm2d(1280)
        self.classifier = nn.Linear(1280, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(F.relu6(self.bn1(self.conv_stem(x))))
        return self.classifier(F.relu6(self.bn2(self.conv_head(x))).mean((2, 3)))


class TimmBlock(nn.Module):
    def __init__(self, layers: nn.Sequential, shortcut: bool) -> None:
        super().__init__()
        units = [layer for layer in layers if not isinstance(layer, nn.ReLU6)]
        names = ["conv_dw", "conv_pw"] if len(units) == 4 else ["conv_pw", "conv_dw", "conv_pwl"]
        self.names = names
        for k, name in enumerate(names):
            self.add_module(name, units[2 * k])
            self.add_module(f"bn{k + 1}", units[2 * k + 1])
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for k, name in enumerate(self.names):
            y = getattr(self, f"bn{k + 1}")(getattr(self, name)(y))
            y = F.relu6(y) if k < len(self.names) - 1 else y
        return x + y if self.shortcut else y


def randomized(model: nn.Module) -> nn.Module:
    """Every parameter and statistic different, signals of about unit size."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
            nn.init.normal_(module.running_mean, std=0.1)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 0.5, 1.5)  # type: ignore[arg-type]
            module.num_batches_tracked.fill_(7)  # type: ignore[union-attr, operator]
        elif isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)
    return model.eval()
