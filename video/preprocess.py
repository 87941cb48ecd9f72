"""Decoded pixels to network input: resize the short side, cut crops, normalise, as published for TSN and TSM."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import torch
import torch.nn.functional as F
from torch import Tensor

from common_kernels.checks import describe

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
CROPS = (1, 3, 5, 10)


class Preprocess:
    """Resize frames so that their short side is `resize`, cut square crops of `size`, normalise RGB of 0 to 1.

    Crops: 1 in the centre; 3 at the beginning, end and middle of the long side ("full resolution" with size=256);
    5 at the corners (top left, top right, bottom left, bottom right) and in the middle; 10 those five, each followed by
    its mirror image. The resize is bilinear with antialiasing on 8-bit values, as Pillow's, of the region that the
    crops need only.

    Raises:
        ValueError: a size below 1 or above resize, a number of crops that does not exist, mean or std that are not
            three numbers, a std that is not positive.
    """

    def __init__(
        self,
        size: int = 224,
        resize: int = 256,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        crops: int = 1,
    ) -> None:
        if not 1 <= size <= resize:
            raise ValueError(f"size must be from 1 to resize={resize}, got {size}")
        if crops not in CROPS:
            raise ValueError(f"crops must be one of {', '.join(map(str, CROPS))}, got {crops}")
        for name, values in (("mean", mean), ("std", std)):
            if len(values) != 3 or not all(math.isfinite(value) for value in values):
                raise ValueError(f"{name} must be three numbers, for red, green and blue, got {values!r}")
        if min(std) <= 0:
            raise ValueError(f"std must be positive, got {std!r}")
        self.size = size
        self.resize = resize
        self.mean = tuple(map(float, mean))
        self.std = tuple(map(float, std))
        self.crops = crops
        # (x / 255 - mean) / std = (x - mean * 255) * (1 / (std * 255))
        self._shift = torch.tensor(self.mean) * 255
        self._scale = 1 / (torch.tensor(self.std) * 255)

    def __repr__(self) -> str:
        return (
            f"Preprocess(size={self.size}, resize={self.resize}, mean={self.mean}, std={self.std}, crops={self.crops})"
        )

    def __call__(self, frames: Tensor) -> Tensor:
        """Crops [crops, T, 3, size, size] float32 of frames uint8 [T, H, W, 3]; each crop is channels-last in memory.

        Raises:
            ValueError: frames are none.
        """
        if frames.ndim != 4 or frames.shape[3] != 3 or frames.dtype != torch.uint8:
            raise ValueError(f"frames must be uint8 [T, H, W, 3], got {describe(frames)}")
        count, height, width = frames.shape[:3]
        if count == 0:
            return torch.empty(self.crops, 0, 3, self.size, self.size, device=frames.device)
        if height == 0 or width == 0:
            raise ValueError(f"frames must have pixels, got {describe(frames)}")
        shape = self.resized(height, width)
        corners = self.corners(*shape)
        small, top, left = self._shrink(frames, shape, corners)
        mirrored = 2 if self.crops == 10 else 1
        out = torch.empty(self.crops, count, self.size, self.size, 3, device=frames.device)
        for i, (y, x) in enumerate(corners):
            crop = out[i * mirrored]
            crop.copy_(small[:, y - top : y - top + self.size, x - left : x - left + self.size])
            crop.sub_(self._shift.to(crop.device)).mul_(self._scale.to(crop.device))
            if mirrored == 2:
                out[i * 2 + 1] = crop.flip(2)
        return out.permute(0, 1, 4, 2, 3)

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """Height and width after the resize."""
        if height <= width:
            return self.resize, int(self.resize * width / height)
        return int(self.resize * height / width), self.resize

    def corners(self, height: int, width: int) -> list[tuple[int, int]]:
        """(top, left) of each crop, mirror images left out, within a resized frame."""
        high, wide = height - self.size, width - self.size
        if self.crops == 1:
            return [(round(high / 2), round(wide / 2))]
        # The published code measures in quarters, rounded down.
        dy, dx = high // 4, wide // 4
        if self.crops == 3:
            if height > width:
                return [(0, 2 * dx), (4 * dy, 2 * dx), (2 * dy, 2 * dx)]
            return [(2 * dy, 0), (2 * dy, 4 * dx), (2 * dy, 2 * dx)]
        return [(0, 0), (0, 4 * dx), (4 * dy, 0), (4 * dy, 4 * dx), (2 * dy, 2 * dx)]

    def _shrink(
        self, frames: Tensor, shape: tuple[int, int], corners: Sequence[tuple[int, int]]
    ) -> tuple[Tensor, int, int]:
        """The part of the resized frames that holds all crops, [T, h, w, 3], and its top and left in them."""
        (height, width), size = frames.shape[1:3], self.size
        tops, lefts = zip(*corners, strict=True)
        if (height, width) == shape:
            return frames, 0, 0
        y0, y1, top = _source(height, shape[0], min(tops), max(tops) + size)
        x0, x1, left = _source(width, shape[1], min(lefts), max(lefts) + size)
        small = F.interpolate(
            frames[:, y0:y1, x0:x1].permute(0, 3, 1, 2),
            scale_factor=(shape[0] / height, shape[1] / width),
            mode="bilinear",
            antialias=True,
            recompute_scale_factor=False,
        )
        return small.permute(0, 2, 3, 1), top, left


def _source(n_in: int, n_out: int, start: int, stop: int) -> tuple[int, int, int]:
    """Source range for the output range of a resize from n_in to n_out, and the output index where it begins.

    It begins where a source pixel's edge and an output pixel's edge coincide, so that the resized range equals the
    same range of the resized whole to the bit; one output pixel or source pixel more on each side feeds the filter.
    """
    scale = Fraction(n_in, n_out)
    margin = max(1, math.ceil(1 / scale)) + 1
    first = max(0, start - margin) // scale.denominator * scale.denominator
    last = math.ceil((stop + margin) * scale) + 1
    return int(first * scale), min(n_in, last), first
