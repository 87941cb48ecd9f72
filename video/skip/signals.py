"""What is known of a frame before it is computed, each tier at its own price and only when it is asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
from torch import Tensor

Array = npt.NDArray[Any]

# From free to dear: container only, decoding, decoding with vectors exported, decoding and the network.
TIERS = ("packets", "luma", "motion", "scores")
# Short side of the luma that is compared: half of what a 256-pixel network sees.
THUMBNAIL = 128
# Side of the blocks whose largest change stands for a small object, in samples of the thumbnail.
BLOCK = 8


class FrameLike(Protocol):
    """What skipping needs of a decoded frame; `video.reader.Frame` has it."""

    @property
    def index(self) -> int: ...
    @property
    def time(self) -> float: ...
    @property
    def is_keyframe(self) -> bool: ...
    @property
    def packet_size(self) -> int: ...
    @property
    def luma(self) -> Tensor: ...
    @property
    def motion_vectors(self) -> Array | None: ...
    def rgb(self) -> Tensor: ...


class Change(NamedTuple):
    """Difference of two thumbnails in levels of 0 to 255: on average, and in the block that changed most."""

    mean: float
    peak: float


class Signals:
    """One frame to decide about. What needs decoding is decoded when it is first read, and kept.

    Attributes:
        scores: the network's last output, None before the first one.
        outputs: every output so far in the order of computation, where a policy wants them all.
    """

    def __init__(
        self,
        index: int,
        *,
        time: float = 0.0,
        is_keyframe: bool = False,
        packet_size: int = 0,
        frame: Callable[[], FrameLike] | None = None,
        luma: Array | None = None,
        motion: float | None = None,
        scores: Tensor | None = None,
        outputs: list[Tensor] | None = None,
    ) -> None:
        self.index = index
        self.time = time
        self.is_keyframe = is_keyframe
        self.packet_size = packet_size
        self.scores = scores
        self.outputs = outputs if outputs is not None else []
        self._get_frame = frame
        self._frame: FrameLike | None = None
        self._luma = luma
        self._motion = motion
        self._change: tuple[Array, Change] | None = None

    @property
    def frame(self) -> FrameLike:
        """The decoded frame."""
        if self._frame is None:
            if self._get_frame is None:
                raise ValueError(f"frame {self.index} has no picture: these signals were made without a frame")
            self._frame = self._get_frame()
        return self._frame

    @property
    def luma(self) -> Array:
        """Thumbnail of the frame's luma, uint8 [h, w]."""
        if self._luma is None:
            self._luma = thumbnail(self.frame.luma)
        return self._luma

    @property
    def motion(self) -> float | None:
        """Mean length of the codec's motion vectors in pixels; None where the frame has none."""
        if self._motion is None and (self._frame is not None or self._get_frame is not None):
            self._motion = mean_motion(self.frame.motion_vectors)
        return self._motion

    def change(self, reference: Array) -> Change:
        """How the luma differs from the thumbnail `reference`, of the same shape."""
        if self._change is None or self._change[0] is not reference:
            self._change = (reference, luma_change(self.luma, reference))
        return self._change[1]


def thumbnail(luma: Tensor) -> Array:
    """Every n-th sample of every n-th row of a luma plane uint8 [H, W], in memory of its own."""
    plane = luma.numpy()
    step = max(1, round(min(plane.shape) / THUMBNAIL))
    return np.array(plane[::step, ::step])


def luma_change(a: Array, b: Array) -> Change:
    """Mean and largest blockwise mean of |a - b|; up to four samples at a border belong to no block."""
    difference = absolute_difference(a, b)
    sums = block_sums(difference)
    peak = float(sums.max()) / BLOCK**2 if sums.size else 0.0
    return Change(mean_of(difference), peak)


def mean_of(x: Array) -> float:
    """Mean of uint8; summing in integers takes half the time of numpy's mean."""
    return int(x.sum(dtype=np.uint32)) / max(1, x.size)


def absolute_difference(a: Array, b: Array) -> Array:
    """|a - b| of uint8, without leaving uint8."""
    difference: Array = np.maximum(a, b)
    difference -= np.minimum(a, b)
    return difference


def block_sums(difference: Array) -> Array:
    """Sums of the blocks in the middle of uint8 [h, w], uint32 [h // 8, w // 8]."""
    rows, columns = difference.shape[0] // BLOCK, difference.shape[1] // BLOCK
    top, left = difference.shape[0] % BLOCK // 2, difference.shape[1] % BLOCK // 2
    inner = difference[top : top + rows * BLOCK, left : left + columns * BLOCK]
    strips = inner.reshape(rows, BLOCK, columns * BLOCK).sum(1, dtype=np.uint16)  # 8 x 255 fits
    return strips.reshape(rows, columns, BLOCK).sum(2, dtype=np.uint32)


def mean_motion(vectors: Array | None) -> float | None:
    """Mean length in pixels of a codec's motion vectors (FFmpeg's fields), weighted by the area of their blocks."""
    if vectors is None or len(vectors) == 0:
        return None
    area = vectors["w"].astype(np.float64) * vectors["h"]
    scale = np.maximum(vectors["motion_scale"].astype(np.float64), 1)
    length = np.hypot(vectors["motion_x"].astype(np.float64), vectors["motion_y"].astype(np.float64)) / scale
    total = float(area.sum())
    return float((area * length).sum() / total) if total else None
