"""Synthetic static-camera video and small networks for the tests of `video.delta`."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def patch_clip(frames: int, size: int = 40, seed: int = 0, noise: float = 0.0) -> Tensor:
    """[T, 3, size, size]: a still scene, a textured patch that wanders over it, and noise of the camera."""
    generator = torch.Generator().manual_seed(seed)
    scene = torch.randn(3, size, size, generator=generator)
    patch = torch.randn(3, size // 5, size // 5, generator=generator)
    clip = scene.repeat(frames, 1, 1, 1)
    for t in range(frames):
        y, x = (t * 3) % (size - size // 5), (t * 5 // 2) % (size - size // 5)
        if t % 7 != 6:  # some frames show the scene alone
            clip[t, :, y : y + size // 5, x : x + size // 5] = patch
    return clip + noise * torch.randn(clip.shape, generator=generator)


def settle(model: nn.Module, seed: int = 0) -> nn.Module:
    """Random batch-norm statistics, so that folding them matters; evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low, high in (
                (module.running_mean, -0.2, 0.2),
                (module.running_var, 0.5, 1.5),
                (module.weight, 0.7, 1.3),
                (module.bias, -0.2, 0.2),
            ):
                tensor.data.copy_(low + (high - low) * torch.rand(tensor.shape, generator=generator))
    return model.eval()


def conv(c_in: int, c_out: int, kernel: int = 3, stride: int = 1, groups: int = 1, act: nn.Module | None = None):
    """Convolution, batch norm, activation."""
    layers = [nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, groups=groups, bias=False), nn.BatchNorm2d(c_out)]
    return nn.Sequential(*layers, nn.ReLU() if act is None else act)


class Residual(nn.Module):
    """A residual block with or without a projection."""

    def __init__(self, c_in: int, c_out: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = conv(c_in, c_out, 3, stride)
        self.conv2 = conv(c_out, c_out, act=nn.Identity())
        self.down = conv(c_in, c_out, 1, stride, act=nn.Identity()) if stride > 1 or c_in != c_out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.conv2(self.conv1(x)) + self.down(x))


class SqueezeExcite(nn.Module):
    """Channels weighted by what the whole frame shows."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(channels, channels // 4, 1),
            nn.SiLU(),
            nn.Conv2d(channels // 4, channels, 1),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(x)


class DenseBlock(nn.Module):
    """Each layer sees the outputs of all before (DenseNet)."""

    def __init__(self, channels: int, growth: int = 6) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.BatchNorm2d(channels + growth * i) for i in range(3)])
        self.convs = nn.ModuleList([nn.Conv2d(channels + growth * i, growth, 3, padding=1) for i in range(3)])

    def forward(self, x: Tensor) -> Tensor:
        for norm, layer in zip(self.norms, self.convs):
            x = torch.cat([x, layer(torch.relu(norm(x)))], 1)
        return x


class Shuffle(nn.Module):
    """Channel shuffle: views that no rule knows."""

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        return x.view(b, 4, c // 4, h, w).transpose(1, 2).reshape(b, c, h, w)


class Function(nn.Module):
    """Any function of tensors as a module."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def classifier(*body: nn.Module, channels: int, classes: int = 10, seed: int = 0) -> nn.Module:
    """A stem, the body, global pooling and a linear layer, with random weights."""
    torch.manual_seed(seed)
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(channels, classes)]
    model = nn.Sequential(*body, *head)
    for module in model.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    return settle(model, seed)
