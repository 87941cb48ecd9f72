"""What a stream of clouds remembers between frames."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from common_kernels.row_update import update_rows
from pointcloud.stream.followed import Clock
from pointcloud.stream.places import PlacedFeatures
from pointcloud.stream.rows import Rows


@dataclass
class Kept:
    """Features of the rows of a level from the last frame.

    Attributes:
        buffer: [at least n, C], rows in their places.
        form: of what they are the result; other results are not kept values of the same layer.
        frame: in which they were brought up to date.
        scale: root mean square of the values when they were first kept.
    """

    rows: Rows
    buffer: Tensor
    form: Any
    frame: int
    scale: float = 0.0

    def follow(self, rows: Rows, form: Any, frame: int) -> bool:
        """Move the rows that moved; whether the values are those of the frame before."""
        change = rows.change
        if self.rows is not rows or self.form != form or self.frame != frame - 1 or change is None:
            return False
        n = len(rows)
        if n > len(self.buffer):
            grown = self.buffer.new_empty(n + n // 16, self.buffer.shape[1])
            grown[: change.before] = self.buffer[: change.before]
            self.buffer = grown
        elif len(change.source):
            self.buffer[change.target] = self.buffer[change.source]
        self.frame = frame
        return True

    def update(self, fresh: Tensor, index: Tensor | None, new: Tensor, threshold: float) -> PlacedFeatures:
        """Take the fresh rows [M, C] that differ by more than a threshold. They are those at places `index`, the ones
        at `new` among them, or for None all."""
        live = self.buffer[: len(self.rows)]
        live[new] = torch.nan
        if index is not None and not len(index):
            return PlacedFeatures.of(live, self.rows, index)
        places = None if index is None else index.to(torch.int32)
        changed = update_rows(live, fresh, places, threshold=threshold)
        return PlacedFeatures.of(live, self.rows, changed.nonzero().squeeze(1))


@dataclass
class Scene:
    """The content of a state.

    Attributes:
        rows: of the input.
        input: features of the input.
        kept: by layer and number of its call in a frame.
        calls: how often each layer was called in this frame, less one.
        work: of each layer, the rows that were computed in this frame, all rows, and the multiplications of both.
        threshold: of the layers, in units of their scale.
    """

    rows: Rows | None = None
    input: Kept | None = None
    kept: dict[Any, Kept] = field(default_factory=dict)
    clock: Clock = field(default_factory=Clock)
    calls: dict[str, int] = field(default_factory=dict)
    work: dict[str, tuple[int, int, int, int]] = field(default_factory=dict)
    threshold: float = 0.0

    @property
    def frame(self) -> int:
        return self.clock.frame

    def call(self, name: str) -> tuple[str, int]:
        """A name for this call of a layer."""
        number = self.calls[name] = self.calls.get(name, -1) + 1
        return name, number

    def note(self, name: str, rows: int, all_rows: int, pairs: int, all_pairs: int, size: int) -> None:
        """Count what a layer computed, and what it would have computed as a whole, `size` multiplications a pair."""
        new = (rows, all_rows, pairs * size, all_pairs * size)
        before = self.work.get(name, (0, 0, 0, 0))
        self.work[name] = (before[0] + new[0], before[1] + new[1], before[2] + new[2], before[3] + new[3])

    def begin(self) -> None:
        """A frame begins."""
        self.clock.frame += 1
        self.calls, self.work = {}, {}

    def place(self, key: Any, features: Tensor, rows: Rows) -> PlacedFeatures:
        """Ordinary features, in the order in which the network as a whole has the rows, in the rows' places; compared
        with those of the frame before under that key."""
        kept = self.kept.get(key)
        if (
            kept is not None
            and kept.buffer.dtype == features.dtype
            and kept.follow(rows, features.shape[1], self.frame)
        ):
            change = rows.change
            assert change is not None
            return kept.update(features, rows.order, change.new, 0.0)
        placed = torch.empty_like(features, memory_format=torch.contiguous_format)
        placed[rows.order] = features
        self.kept[key] = Kept(rows, placed, features.shape[1], self.frame)
        return PlacedFeatures.of(placed, rows, None)

    def keep(self, key: Any, rows: Rows, form: Any, out: Tensor) -> PlacedFeatures:
        """Keep the whole output [n, C] of a layer."""
        scale = float(out.float().square().mean().sqrt()) if self.threshold and out.numel() else 0.0
        self.kept[key] = Kept(rows, out, form, self.frame, scale)
        return PlacedFeatures.of(out, rows, None)

    def forget(self) -> None:
        """Drop the values that no layer asked for in this frame."""
        self.kept = {key: kept for key, kept in self.kept.items() if kept.frame == self.frame}


class StreamState:
    """What a stream remembers of the frames so far. A stream takes a state and the next frame and returns the state
    after it; the state it was given is used up. `clone` keeps one.

    Attributes:
        frames: number of frames seen since the start or a reset.
    """

    def __init__(self) -> None:
        self.frames = 0
        self._scene: Scene | None = Scene()
        self._owner: object = None

    @property
    def is_fresh(self) -> bool:
        """Whether no frame was seen since the start or a reset."""
        return self.frames == 0

    @property
    def n_bytes(self) -> int:
        """Memory of the kept features, coordinates and kernel maps."""
        seen: dict[int, int] = {}
        _visit(self._scene, lambda x: seen.__setitem__(x.untyped_storage().data_ptr(), x.untyped_storage().nbytes()))
        return sum(seen.values())

    def reset(self) -> StreamState:
        """Make the stream fresh, for any network; returns the state itself."""
        self.frames, self._scene, self._owner = 0, Scene(), None
        return self

    def clone(self) -> StreamState:
        """A state of its own memory. Raises ValueError for one that is used up."""
        self._check()
        other = StreamState()
        other.frames, other._owner = self.frames, self._owner
        other._scene = copy.deepcopy(self._scene)
        return other

    def take(self, owner: object) -> Scene:
        """The content, for the network that it belongs to; the state is used up. Raises ValueError for another's."""
        self.check(owner)
        scene, self._scene = self._scene, None
        assert scene is not None
        return scene

    def check(self, owner: object) -> Scene:
        """The content. Raises ValueError for a state of another network, or one that is used up."""
        self._check()
        if self._owner is not None and self._owner is not owner:
            raise ValueError("state is of another Stream: start with a fresh one (None)")
        assert self._scene is not None
        return self._scene

    @classmethod
    def after(cls, scene: Scene, frames: int, owner: object) -> StreamState:
        """The state that holds this content."""
        state = cls()
        state._scene, state.frames, state._owner = scene, frames, owner
        return state

    def _check(self) -> None:
        if self._scene is None:
            raise ValueError(
                "state is used up: step returned the state after it (after an error, start anew); clone() keeps one"
            )

    def __repr__(self) -> str:
        return f"StreamState(frames={self.frames}, {'used up' if self._scene is None else f'{self.n_bytes:,} bytes'})"


def _visit(value: Any, act: Callable[[Tensor], Any], seen: set[int] | None = None) -> None:
    """Call `act` on every tensor of a nest of plain objects."""
    seen = set() if seen is None else seen
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, Tensor):
        act(value)
    elif isinstance(value, dict):
        for each in value.values():
            _visit(each, act, seen)
    elif type(value).__module__.startswith(("pointcloud.stream", "common_kernels")):
        _visit(vars(value), act, seen)
