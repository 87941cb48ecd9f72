"""What one frame cost, and when a network is better run as a whole."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from video.delta.layers import Layer

# A frame of which more than this share changed is not worth looking at closer.
FRAME_SHARE = 0.75
# Frames after a try that did not gain are run as a whole; this many at most before the next try.
LONGEST_WAIT = 64
# What computing a frame's changes costs, in multiplications at the rate of large convolutions, fitted to ResNet-50 and
# MobileNetV2 on a CPU with AVX-512: for each layer that runs, and for each value that is written.
PER_LAYER = 1_600_000
PER_VALUE = 40


@dataclass(frozen=True)
class Work:
    """The work of one frame of every stream.

    Attributes:
        mode: "dense" (as a whole, nothing kept), "kept" (as a whole, all outputs kept), "changed" (only what changed),
            "still" (nothing changed: the answer before).
        frame_share: of the frame's pixels that changed, None where it was not counted.
        layers: names.
        computed, positions: of each layer, the pixels (rows, where it gives no image) that were computed, and all.
            Nothing is counted on a GPU, where the host would have to wait: `computed` is empty.
        costs: multiplications of each layer's whole output.
    """

    mode: str
    frame_share: float | None
    layers: tuple[str, ...]
    computed: tuple[int, ...]
    positions: tuple[int, ...]
    costs: tuple[int, ...]

    @property
    def dense_macs(self) -> int:
        """Multiplications of the whole network."""
        return sum(self.costs)

    @property
    def macs(self) -> int:
        """Multiplications that were done; raises where nothing was counted."""
        if self.mode in ("dense", "kept"):
            return self.dense_macs
        if self.mode == "still":
            return 0
        if not self.computed:
            raise ValueError("work is not counted on a GPU")
        return sum(cost * done // all_ for cost, done, all_ in zip(self.costs, self.computed, self.positions) if all_)

    @property
    def share(self) -> float:
        """Of the whole network's multiplications."""
        return self.macs / self.dense_macs if self.dense_macs else float(self.mode != "still")

    @property
    def layer_shares(self) -> dict[str, float]:
        """The share of each layer's positions that was computed."""
        if self.mode != "changed":
            return dict.fromkeys(self.layers, float(self.mode != "still"))
        return {name: done / max(all_, 1) for name, done, all_ in zip(self.layers, self.computed, self.positions)}


class WorkCounter:
    """Makes the Work of the frames of one plan."""

    def __init__(self, layers: Sequence[Layer], dtype: torch.dtype) -> None:
        self.layers = tuple(layer.name for layer in layers)
        self.positions = tuple(layer.positions for layer in layers)
        self.costs = tuple(layer.cost for layer in layers)
        values = [math.prod(layer.shape) for layer in layers]
        # A half-wide dtype multiplies twice as fast, and everything else costs the same.
        factor = 2 if dtype.itemsize == 2 else 1
        self._per_layer = PER_LAYER * factor
        self._efforts = [cost + PER_VALUE * factor * size for cost, size in zip(self.costs, values)]
        self._effort = sum(self._efforts)

    def gained(self, computed: Sequence[int]) -> bool:
        """Whether computing so many positions of each layer costs less than all layers as a whole."""
        effort = 0.0
        for done, positions, whole in zip(computed, self.positions, self._efforts):
            if done:
                effort += self._per_layer + whole * done / positions
        return effort < self._effort

    def work(self, mode: str, frame_share: float | None, computed: Sequence[int] = ()) -> Work:
        """The work of a frame."""
        return Work(mode, frame_share, self.layers, tuple(computed), self.positions, self.costs)


class Policy:
    """When a frame is run as a whole. It depends on the frames alone, and remembers in the stream's state.

    A try fails where more than FRAME_SHARE of the frame changed, or where what was computed of it would have cost more
    than the whole by the costs above. Then the next frames are run as a whole, at first 1, then twice as many after
    each try that fails, up to LONGEST_WAIT: a network that never gains loses a hundredth. A try that gains starts over;
    a frame with less than half of the change that failed, at a glance at every fourth, ends the wait.
    """

    def __init__(self, state: Tensor | None, streams: int) -> None:
        """`state` is int64 [B, 3]: frames still to wait, the wait before, changed millionths of the frame that failed.

        All streams share the longest wait.
        """
        known = [0, 0, 0] if state is None or not len(state) else state.amax(0).tolist()
        self.wait: int = known[0]
        self.last_wait: int = known[1]
        self.failed: int = known[2]
        self.streams = streams

    @property
    def looks(self) -> bool:
        """Whether to look at how much of this frame changed: while waiting at every fourth, a look costs too."""
        return self.wait % 4 == 0

    def waits(self, frame_share: float) -> bool:
        """Whether to run this frame as a whole, and keep nothing, without a closer look."""
        if 2_000_000 * frame_share < self.failed:
            self.wait = self.failed = 0
        if self.wait == 0:
            return False
        self.wait -= 1
        return True

    def gives_up(self, frame_share: float) -> bool:
        """Whether too much of the frame changed for a try."""
        if frame_share <= FRAME_SHARE:
            return False
        self._fail(frame_share)
        return True

    def saw(self, gained: bool, frame_share: float) -> None:
        """Take note of a frame of which only changes were computed."""
        if gained:
            self.wait = self.last_wait = self.failed = 0
        else:
            self._fail(frame_share)

    def _fail(self, frame_share: float) -> None:
        self.wait = self.last_wait = min(max(1, 2 * self.last_wait), LONGEST_WAIT)
        self.failed = int(1_000_000 * frame_share)

    def state(self) -> Tensor:
        """What to remember, int64 [B, 3]."""
        row = [self.wait, self.last_wait, self.failed]
        return torch.tensor([row] * self.streams, dtype=torch.int64).view(self.streams, 3)
