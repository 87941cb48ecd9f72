"""One decoded frame, in tiers of cost: what its packet says, luma, motion vectors, RGB."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from video.reader.picture import Converter, Size, luma, shown_size

if TYPE_CHECKING:
    import av


class Frame:
    """A decoded picture that is not RGB yet.

    Attributes:
        index: number of the frame in its file, or since a live stream was opened.
        time: seconds since frame 0.
        is_keyframe: decoding can start here.
        packet_size: bytes of its packet, 0 where unknown.
    """

    __slots__ = ("_converter", "_orientation", "_picture", "_rgb", "index", "is_keyframe", "packet_size", "time")

    def __init__(
        self,
        picture: av.VideoFrame,
        converter: Converter,
        index: int,
        time: float,
        is_keyframe: bool,
        packet_size: int,
    ) -> None:
        self._picture = picture
        self._converter = converter
        self._orientation = converter.orientation(picture)
        self._rgb: tuple[tuple[int, int], torch.Tensor] | None = None
        self.index = index
        self.time = time
        self.is_keyframe = is_keyframe
        self.packet_size = packet_size

    def __repr__(self) -> str:
        return f"Frame(index={self.index}, time={self.time:.3f}, {self.height}x{self.width})"

    @property
    def height(self) -> int:
        """Rows as shown, after rotation."""
        return self._picture.width if self._orientation.transpose else self._picture.height

    @property
    def width(self) -> int:
        """Columns as shown, after rotation."""
        return self._picture.height if self._orientation.transpose else self._picture.width

    @property
    def luma(self) -> torch.Tensor:
        """Brightness as stored, before rotation, uint8 [H, W], in the file's own range (mostly 16 to 235).

        Shares the decoder's memory, which stays valid as long as the tensor or the frame lives; do not write to it.
        Deeper than 8 bits: a copy, scaled to 8.
        """
        return luma(self._picture)

    @property
    def motion_vectors(self) -> np.ndarray | None:
        """Structured array, a row per block: source, w, h, src_x, src_y, dst_x, dst_y, flags, motion_x, motion_y, ...

        None for pictures without: key frames, codecs that export none, frames read without `motion_vectors=True`.
        """
        for data in self._converter.tag(self._picture).side_data:
            if data.type.name == "MOTION_VECTORS":
                return data.to_ndarray()
        return None

    def rgb(self, size: Size = None) -> torch.Tensor:
        """RGB as shown (rotation applied), uint8 [h, w, 3]; converted once and kept.

        `size`: None, the shorter side, or (height, width). Do not write to the result: a later call returns it again.
        """
        target = shown_size(self.height, self.width, size)
        if self._rgb is None or self._rgb[0] != target:
            self._rgb = (target, self._converter.rgb(self._picture, size, self._orientation))
        return self._rgb[1]
