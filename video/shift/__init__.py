"""Temporal shift: some channels of each frame are read from the frame before or after it (Lin et al., TSM, 2019)."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from common_kernels.channel_shift import channel_shift, reference
from common_kernels.checks import describe
from common_models.modes import exporting
from video.shift import memory

DIRECTIONS = ("both", "past")


def temporal_shift(x: Tensor, num_segments: int, fold_div: int = 8, direction: str = "both") -> Tensor:
    """Shift channels along time within each clip; frames beyond a clip's ends are zero.

    With f = C // fold_div: "both" reads channels [0, f) from the next frame and [f, 2f) from the one before; "past"
    reads [0, f) from the one before and can therefore run live. The other channels stay.

    Args:
        x: [N * T, C, H, W], the T = num_segments frames of each clip in order.

    Returns:
        A new tensor of the shape, dtype and memory format of x.

    Example:
        >>> import torch, video
        >>> clip = torch.arange(3.0).view(3, 1, 1, 1).expand(3, 2, 1, 1)  # frames 0, 1 and 2
        >>> video.temporal_shift(clip, num_segments=3, fold_div=2, direction="past")[:, 0].flatten()
        tensor([0., 0., 1.])
    """
    check_shift(num_segments, fold_div, direction)
    if x.ndim != 4 or x.shape[0] % num_segments:
        raise ValueError(f"x must be [N * {num_segments}, C, H, W] (num_segments={num_segments}), got {describe(x)}")
    groups = shift_groups(x.shape[1], fold_div, direction)
    if exporting():  # for a program that has none of our operators
        return reference.channel_shift(x, num_segments, [n for n, _ in groups], [offset for _, offset in groups])
    return channel_shift(x, num_segments, groups)


def shift_groups(channels: int, fold_div: int, direction: str) -> list[tuple[int, int]]:
    """(channels, frames further on at which they are read) of the groups that a shift moves."""
    fold = channels // fold_div
    return [(fold, 1), (fold, -1)] if direction == "both" else [(fold, -1)]


def check_shift(num_segments: int, fold_div: int, direction: str) -> None:
    """Raise unless the three describe a temporal shift."""
    for name, value in (("num_segments", num_segments), ("fold_div", fold_div)):
        if isinstance(value, bool) or not hasattr(value, "__index__"):
            raise ValueError(f"{name} must be a whole number, got {value!r}")
    if num_segments < 1:
        raise ValueError(f"num_segments must be at least 1, got {num_segments}")
    if fold_div < (2 if direction == "both" else 1):
        raise ValueError(f"fold_div must be at least 2 (1 for direction 'past'), got {fold_div}")
    if direction not in DIRECTIONS:
        raise ValueError(f"direction must be one of {', '.join(DIRECTIONS)}, got {direction!r}")


class TemporalShift(nn.Module):
    """`net` after a temporal shift of its input; the key of its parameters gains `.net`, as in published checkpoints.

    Within `memory.running(...)` a "past" shift reads the frame before from the stream's state instead of the batch.
    """

    def __init__(self, net: nn.Module, num_segments: int, fold_div: int = 8, direction: str = "both") -> None:
        super().__init__()
        check_shift(num_segments, fold_div, direction)
        self.net = net
        self.num_segments = num_segments
        self.fold_div = fold_div
        self.direction = direction

    def forward(self, x: Tensor) -> Tensor:
        live = memory.current()
        if live is not None:
            return self.net(live.shift(self, x, x.shape[1] // self.fold_div))
        fused = self._fused(x)
        if fused is not None:
            return fused
        return self.net(temporal_shift(x, self.num_segments, self.fold_div, self.direction))

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "net":
                raise
            # Networks ask their convolutions for the stride to compute padding (transformers' MobileNetV2).
            return getattr(self.net, name)

    def _fused(self, x: Tensor) -> Tensor | None:
        from video.shift.fused import shifted_convolution  # which knows the packed convolution, and that one this file

        if x.ndim != 4 or x.shape[0] % self.num_segments or exporting():
            return None
        groups = shift_groups(x.shape[1], self.fold_div, self.direction)
        return shifted_convolution(self.net, x, self.num_segments, groups)

    def extra_repr(self) -> str:
        return f"num_segments={self.num_segments}, fold_div={self.fold_div}, direction={self.direction!r}"
