"""What one frame cost, and when a network is better run as a whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from video.delta.layers import Layer

# A frame of which more than this share changed is not worth looking at closer.
FRAME_SHARE = 0.75
# Debt in thousandths of a frame as a whole: what a frame earns, what keeping all outputs costs, the most that a try may
# cost before it is given up, and the most that is saved up. A network that never gains loses some 2 %.
EARNED, KEEPING, GIVEN_UP, SAVED = 20, 250, 400, 1000


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
    """When a frame is run as a whole. It depends on the frames and the network's Costs, and remembers in the state.

    What keeping outputs and computing changes costs more than the whole, by those costs, is a debt; what it costs
    less pays it back, and every frame earns a little. Only without debt a try begins (a frame as a whole whose
    outputs are kept), and one that has cost too much is given up: then frames are run as a whole and nothing is kept.
    A frame of which more than FRAME_SHARE changed ends a try as well.
    """

    def __init__(self, state: Tensor | None, streams: int) -> None:
        """`state` is int64 [B, 1]: the debt. All streams share the largest."""
        self.debt: int = 0 if state is None or not len(state) else int(state.max())
        self.streams = streams

    def tries(self) -> bool:
        """Note one more frame, of which nothing is kept so far; whether to begin a try with it."""
        self._add(-EARNED)
        return self.debt <= 0

    def kept(self) -> None:
        """Note that all outputs of a frame were kept."""
        self._add(KEEPING)

    def goes_on(self, effort: float) -> bool:
        """Note a frame of which only changes were computed, at that share of the whole's cost; whether to go on."""
        self._add(round(1000 * (effort - 1)) - EARNED)
        return effort <= 1 or self.debt <= GIVEN_UP

    def _add(self, debt: int) -> None:
        self.debt = max(self.debt + debt, -SAVED)

    def state(self) -> Tensor:
        """What to remember, int64 [B, 1]."""
        return torch.full((self.streams, 1), self.debt, dtype=torch.int64)
