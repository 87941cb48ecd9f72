"""What one frame cost, and when a network is better run as a whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from video.delta.layers import Layer

# Measured on ResNet-50 and MobileNetV2 (benchmarks/video/delta.py): with more than this share of the frame changed, or
# of the multiplications to be done again, the dense network is as fast.
FRAME_SHARE = 0.6
WORK_SHARE = 0.7
LONGEST_WAIT = 64


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

    def __init__(self, layers: Sequence[Layer]) -> None:
        self.layers = tuple(layer.name for layer in layers)
        self.positions = tuple(layer.positions for layer in layers)
        self.costs = tuple(layer.cost for layer in layers)

    def work(self, mode: str, frame_share: float | None, computed: Sequence[int] = ()) -> Work:
        """The work of a frame."""
        return Work(mode, frame_share, self.layers, tuple(computed), self.positions, self.costs)


class Policy:
    """When a frame is run as a whole. It depends on the frames alone, and remembers in the stream's state.

    A frame of which more than FRAME_SHARE changed is run dense, and nothing is kept. After one that kept too little
    (more than WORK_SHARE of the multiplications done again) the next frames are run dense, at first 1, then twice as
    many each time up to LONGEST_WAIT: a network that never gains loses less than a fiftieth. A frame that keeps more
    starts over; a still frame ends the wait.
    """

    def __init__(self, state: Tensor | None, streams: int) -> None:
        """`state` is int64 [B, 2]: frames still to wait, and the wait before. All streams share the longest."""
        both = [0, 0] if state is None or not len(state) else state.amax(0).tolist()
        self.wait, self.last_wait = both
        self.streams = streams

    def is_dense(self, frame_share: float) -> bool:
        """Whether to run this frame as a whole and keep nothing."""
        if frame_share == 0:
            self.wait = 0
        if self.wait > 0:
            self.wait -= 1
            return True
        return frame_share > FRAME_SHARE

    def saw(self, work_share: float) -> bool:
        """Take note of a frame of which only changes were computed; whether that gained."""
        if work_share <= WORK_SHARE:
            self.last_wait = 0
            return True
        self.last_wait = min(max(1, 2 * self.last_wait), LONGEST_WAIT)
        self.wait = self.last_wait
        return False

    def state(self) -> Tensor:
        """What to remember, int64 [B, 2]."""
        return torch.tensor([[self.wait, self.last_wait]] * self.streams, dtype=torch.int64).view(self.streams, 2)
