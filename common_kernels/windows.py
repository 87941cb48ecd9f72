"""Windows that slide over [B, H, W, C] pixels: their arguments, output sizes and limits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

Pair = int | Sequence[int]


@dataclass(frozen=True)
class Window:
    """A window of `kernel` taps, (vertical, horizontal) each, as torch's convolutions and pools define it."""

    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    ceil_mode: bool = False

    @classmethod
    def of(
        cls, kernel_size: Pair, stride: Pair = 1, padding: Pair = 0, dilation: Pair = 1, ceil_mode: bool = False
    ) -> Window:
        """Raises ValueError for what is not one or two ints, and for ints out of range."""
        return cls(
            pair("kernel_size", kernel_size, 1),
            pair("stride", stride, 1),
            pair("padding", padding, 0),
            pair("dilation", dilation, 1),
            ceil_mode,
        )

    @property
    def is_pointwise(self) -> bool:
        """Whether output pixel (y, x) reads input pixel (y, x) alone."""
        return self.kernel == (1, 1) and self.stride == (1, 1) and self.padding == (0, 0)

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """Output pixels of an image of height x width; raises ValueError where no window fits."""
        sizes = tuple(self._along(axis, size) for axis, size in enumerate((height, width)))
        if min(sizes) < 1:
            raise ValueError(
                f"x must be at least as large as a window of kernel {self.kernel}, dilation {self.dilation} and "
                f"padding {self.padding}, got {height} x {width} pixels"
            )
        return sizes[0], sizes[1]

    def _along(self, axis: int, size: int) -> int:
        stride, padding = self.stride[axis], self.padding[axis]
        room = size + 2 * padding - self.dilation[axis] * (self.kernel[axis] - 1) - 1
        if not self.ceil_mode:
            return room // stride + 1
        count = -(-room // stride) + 1
        # The last window must begin in the image or the padding before it.
        return count - 1 if (count - 1) * stride >= size + padding else count


def pair(name: str, value: Pair, least: int) -> tuple[int, int]:
    """`value` for both axes; raises ValueError unless it is one or two ints of at least `least`."""
    both = (value, value) if isinstance(value, int) else tuple(value)
    if len(both) != 2 or not all(isinstance(each, int) and each >= least for each in both):
        raise ValueError(f"{name} must be one or two ints of at least {least}, got {value}")
    return both[0], both[1]


def check_threshold(threshold: float) -> None:
    """Raise unless threshold is a number of at least 0; inf keeps every value that is not NaN."""
    if not threshold >= 0 or math.isnan(threshold):
        raise ValueError(f"threshold must be at least 0, got {threshold}")
