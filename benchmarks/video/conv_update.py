"""One convolution between two frames that differ in blobs of pixels: all of it again, changed tiles, changed pixels.

Each call is two frames, there and back, so that every active pixel changes in every frame.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks import competitors
from benchmarks.harness import DTYPES, Competitor, Settings, Trial
from common_kernels.conv_update import ConvUpdate
from common_kernels.reach import reach

DENSE, TILES, OURS = "library, dense", "library, changed tiles", "trisparse"
DENSITIES = (0.05, 0.1, 0.25, 0.5, 0.75, 1.0)
# Channels in and out, side of the input, kernel, stride, groups: 3x3 layers of a ResNet-50, its 1x1 and first layer,
# depthwise layers of a MobileNetV2.
LAYERS = (
    (64, 64, 56, 3, 1, 1), (128, 128, 28, 3, 1, 1), (256, 256, 28, 3, 1, 1), (128, 128, 112, 3, 1, 1),
    (256, 64, 56, 1, 1, 1), (1024, 256, 14, 1, 1, 1), (3, 64, 224, 7, 2, 1), (144, 144, 56, 3, 1, 144),
    (576, 576, 14, 3, 1, 576),
)  # fmt: skip


class Layer:
    """Weights, two frames [1, H, W, C] and the mask of their difference, in fp64 and in a run's dtype."""

    def __init__(self, layer: tuple[int, int, int, int, int, int], density: float) -> None:
        c_in, c_out, side, self.kernel, self.stride, self.groups = layer
        self.padding = self.kernel // 2
        generator = torch.Generator().manual_seed(0)
        fan = c_in // self.groups * self.kernel**2
        weight = torch.randn(c_out, c_in // self.groups, self.kernel, self.kernel, generator=generator)
        self.weight, self.bias = weight / fan**0.5, torch.randn(c_out, generator=generator)
        self.before = torch.randn(1, side, side, c_in, generator=generator)
        self.changed = blobs(side, density, self.kernel, self.stride, self.padding)
        self.after = self.before + self.changed[..., None]
        self.active = reach(self.changed, self.kernel, self.stride, self.padding)

    def dense(self, frame: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """relu(conv(frame)) [1, Ho, Wo, Cout] by the library."""
        planes = F.conv2d(frame.permute(0, 3, 1, 2), weight, bias, self.stride, self.padding, 1, self.groups)
        return planes.relu_().permute(0, 2, 3, 1)

    def operands(self, settings: Settings, dtype: str) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Both frames, the mask, weight and bias where they run."""
        kind = DTYPES[dtype]
        frames = [each.to(settings.device, kind) for each in (self.before, self.after)]
        weight = self.weight.to(settings.device, kind)
        return (*frames, self.changed.to(settings.device), weight, self.bias.to(settings.device, kind))


def blobs(side: int, density: float, kernel: int, stride: int, padding: int) -> Tensor:
    """[1, side, side] bool, smooth blobs as moving things leave, whose reach is a share `density` of the outputs."""
    if density >= 1:
        return torch.ones(1, side, side, dtype=torch.bool)
    width = max(3, side // 5) | 1
    height = torch.randn(1, 1, side, side, generator=torch.Generator().manual_seed(3))
    for _ in range(2):
        height = F.avg_pool2d(F.pad(height, (width // 2,) * 4, mode="reflect"), width, 1)
    order = height.flatten().argsort(descending=True)
    mask = torch.zeros(side * side, dtype=torch.bool)
    low, high = 0, side * side
    while low < high:
        middle = (low + high) // 2
        mask[:] = False
        mask[order[:middle]] = True
        if reach(mask.view(1, side, side), kernel, stride, padding).float().mean() < density:
            low = middle + 1
        else:
            high = middle
    mask[:] = False
    mask[order[:low]] = True
    return mask.view(1, side, side)


def trials(work: Any, settings: Settings) -> Iterator[Trial]:
    """For each layer and share of active pixels the library's convolution, its changed tiles, and ours."""
    for shape in LAYERS:
        c_in, c_out, side, kernel, stride, groups = shape
        for density in DENSITIES:
            layer = Layer(shape, density)
            name = f"{kernel}x{kernel}, {c_in} to {c_out}" + (", depthwise" if groups > 1 else "")
            active = int(layer.active.sum())
            entrants = [(DENSE, _dense), (OURS, _ours)]
            if kernel == 3 and stride == 1 and groups == 1:
                entrants.insert(1, (TILES, _tiles))
            yield Trial(
                case="conv_update",
                workload=work.name,
                shape=f"{name}, {side} x {side}, {density:.0%} active",
                reference=lambda layer=layer: [  # type: ignore[misc]
                    layer.dense(layer.before.double(), layer.weight.double(), layer.bias.double())
                ],
                competitors=[
                    Competitor(
                        title,
                        dtype,
                        threads,
                        partial(build, layer, settings, dtype),
                        lambda out: [out],
                        competitors.LAYER_TOLERANCE[dtype],
                    )
                    for title, build in entrants
                    for dtype in settings.dtypes
                    for threads in settings.threads
                ],
                # Of the active pixels alone, in two frames.
                products=[(2 * active, c_in // groups * kernel**2, c_out)] if groups == 1 else (),
                values=2 * active * (c_in + c_out) + c_out * c_in // groups * kernel**2,
            )


def _dense(layer: Layer, settings: Settings, dtype: str) -> Callable[[], Tensor]:
    before, after, _, weight, bias = layer.operands(settings, dtype)
    weight = weight.contiguous(memory_format=torch.channels_last)

    def call() -> Tensor:
        layer.dense(after, weight, bias)
        return layer.dense(before, weight, bias)

    return competitors.inference(call)


def _ours(layer: Layer, settings: Settings, dtype: str) -> Callable[[], Tensor]:
    before, after, changed, weight, bias = layer.operands(settings, dtype)
    update = ConvUpdate(
        weight, bias, stride=layer.stride, padding=layer.padding, groups=layer.groups, activation="relu"
    )
    out = before.new_empty(update.output_shape(before))
    update(before, None, out)

    def call() -> Tensor:
        update(after, changed, out)
        update(before, changed, out)
        return out

    return call


def _tiles(layer: Layer, settings: Settings, dtype: str) -> Callable[[], Tensor]:
    """Tiles that hold an active pixel are gathered with their border, convolved as a batch and written back.

    Nothing is compared, which a network needs to know what changed: a little less work than ours.
    """
    before, after, _, weight, bias = layer.operands(settings, dtype)
    weight = weight.contiguous(memory_format=torch.channels_last)
    side, channels = before.shape[1], before.shape[3]
    tile = 8 if side % 8 == 0 else 7
    count = side // tile
    steps = torch.arange(tile + 2, device=before.device)
    out = layer.dense(before, weight, bias).contiguous()
    blocks = out.view(count, tile, count, tile, -1).permute(0, 2, 1, 3, 4)
    active = layer.active.to(before.device).view(count, tile, count, tile)

    def update(frame: Tensor) -> None:
        at_y, at_x = active.any(3).any(1).nonzero().unbind(1)
        padded = F.pad(frame, (0, 0, 1, 1, 1, 1)).view(-1, channels)
        lines = at_y[:, None] * tile + steps
        rows = lines[:, :, None] * (side + 2) + (at_x[:, None] * tile + steps)[:, None]
        gathered = padded.index_select(0, rows.flatten()).view(-1, tile + 2, tile + 2, channels)
        new = F.conv2d(gathered.permute(0, 3, 1, 2), weight, bias).relu_()
        blocks[at_y, at_x] = new.permute(0, 2, 3, 1)

    def call() -> Tensor:
        update(after)
        update(before)
        return out

    return competitors.inference(call)
