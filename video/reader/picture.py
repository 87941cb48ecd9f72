"""From a decoded picture to tensors: luma, RGB, orientation, size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from video.reader.container import import_av

if TYPE_CHECKING:
    import av

Size = tuple[int, int] | int | None


@dataclass(frozen=True)
class Orientation:
    """How the stored picture is turned to be shown: transposed first, then mirrored."""

    transpose: bool = False
    flip_rows: bool = False
    flip_columns: bool = False

    @property
    def upright(self) -> bool:
        """The stored picture is shown as it is."""
        return not (self.transpose or self.flip_rows or self.flip_columns)

    @property
    def clockwise(self) -> int:
        """Degrees by which the stored picture is turned clockwise: 0, 90, 180 or 270; mirrors count as 0 or 90."""
        if self.transpose:
            return 270 if self.flip_rows and not self.flip_columns else 90
        return 180 if self.flip_rows and self.flip_columns else 0

    def apply(self, picture: torch.Tensor) -> torch.Tensor:
        """`picture` [H, W, ...] as shown, a fresh contiguous tensor unless upright."""
        if self.upright:
            return picture
        turned = picture.transpose(0, 1) if self.transpose else picture
        axes = [axis for axis, flip in ((0, self.flip_rows), (1, self.flip_columns)) if flip]
        return (turned.flip(axes) if axes else turned).contiguous()

    @classmethod
    def of(cls, frame: av.VideoFrame) -> Orientation:
        """What the frame's display matrix says; turns that are not by quarters are left out."""
        av = import_av()
        data = frame.side_data.get(av.sidedata.sidedata.Type.DISPLAYMATRIX)
        if data is None:
            return UPRIGHT
        a, b, _, c, d = np.frombuffer(bytes(data), np.int32)[:5].tolist()
        unit = 1 << 16
        if abs(a) == unit and abs(d) == unit and b == c == 0:
            return cls(False, flip_rows=d < 0, flip_columns=a < 0)
        if abs(b) == unit and abs(c) == unit and a == d == 0:
            return cls(True, flip_rows=b < 0, flip_columns=c < 0)
        return UPRIGHT


UPRIGHT = Orientation()
# Larger pictures overflow FFmpeg's counts of bytes.
_MAX_SIDE = 2**16
_MAX_PIXELS = 2**27


def shown_size(height: int, width: int, size: Size) -> tuple[int, int]:
    """Height and width asked for by `size`: None as it is, an integer for the shorter side, or (height, width)."""
    if size is None:
        return height, width
    target = _target(height, width, size)
    if max(target) > _MAX_SIDE or target[0] * target[1] > _MAX_PIXELS:
        raise ValueError(
            f"size must give sides of at most {_MAX_SIDE} and at most {_MAX_PIXELS} pixels, got {size!r}, which is "
            f"{target[0]}x{target[1]} for pictures of {height}x{width}"
        )
    return target


def _target(height: int, width: int, size: tuple[int, int] | int) -> tuple[int, int]:
    if isinstance(size, (int, np.integer)) and not isinstance(size, bool):
        if size < 1:
            raise ValueError(f"size must be at least 1, got {size}")
        short = min(height, width)
        return max(1, round(height * size / short)), max(1, round(width * size / short))
    if isinstance(size, (tuple, list)) and len(size) == 2 and all(isinstance(s, (int, np.integer)) for s in size):
        if min(size) < 1:
            raise ValueError(f"size must be at least 1 by 1, got {tuple(size)}")
        return int(size[0]), int(size[1])
    raise ValueError(f"size must be None, an integer (shorter side) or (height, width), got {size!r}")


def luma(frame: av.VideoFrame) -> torch.Tensor:
    """Brightness as stored, uint8 [H, W]: shares the decoder's memory for 8-bit pictures, else a copy scaled to 8 bits.

    Pictures stored as RGB have no such plane: theirs is computed.
    """
    form = frame.format
    if form.is_rgb or not form.components or form.has_palette or form.is_bit_stream:
        frame = frame.reformat(format="gray", threads=1)
        form = frame.format
    plane, bits = frame.planes[0], form.components[0].bits
    if bits <= 8:
        rows = np.frombuffer(plane, np.uint8).reshape(frame.height, -1)
        step = 2 if form.name in ("yuyv422", "yvyu422", "uyvy422") else 1
        first = 1 if form.name == "uyvy422" else 0
        return torch.from_numpy(rows[:, first : first + frame.width * step : step])
    words = np.frombuffer(plane, ">u2" if form.is_big_endian else "<u2").reshape(frame.height, -1)[:, : frame.width]
    # These keep their bits at the top of each word.
    shift = 8 if form.name[:4] in ("p010", "p012", "p016", "p210", "p212", "p216") else bits - 8
    return torch.from_numpy((words >> shift).astype(np.uint8))


def resize_rgb(picture: torch.Tensor, size: Size) -> torch.Tensor:
    """`picture` uint8 [H, W, 3] at `size`: area averages, bilinear where it is enlarged in either direction."""
    target = shown_size(picture.shape[0], picture.shape[1], size)
    if target == tuple(picture.shape[:2]):
        return picture
    av = import_av()
    frame = av.VideoFrame.from_ndarray(picture.contiguous().numpy(), format="rgb24")
    return Converter().rgb(frame, target, UPRIGHT)


class Converter:
    """Turns decoded pictures into RGB; keeps FFmpeg's scalers between frames, which cost more to make than to use.

    The colour matrix (BT.601, BT.709, BT.2020, ...) and range are those that the frame names, BT.601 and limited where
    it names none, as FFmpeg does. At full size the values of progressive pictures of 8 bits, and of 4:4:4, are those of
    `ffmpeg -pix_fmt rgb24`, which differ by up to 3 of 255 from the exact formula for 4:2:0 pictures. Deeper 4:2:0
    pictures differ from that command at edges of colour, where chroma is interpolated otherwise (bilinear here), by
    levels up to the height of the edge; so do interlaced 4:2:0 pictures, each field of which gets its own chroma here,
    where older versions of the command mix the fields. Away from such edges they agree within 2 levels. Smaller
    pictures are area averages, taken on the stored planes before conversion, which is the cheapest way; pictures
    enlarged in either direction are bilinear.
    """

    def __init__(self) -> None:
        self._scalers: dict[tuple[int, int] | None, Any] = {}
        self._tagger: Any = None
        self._oriented: tuple[int, Orientation] | None = None

    def orientation(self, frame: av.VideoFrame) -> Orientation:
        """How the frame is shown; looked up again where its rotation is not that of the frame before.

        Asking every frame would cost more than converting small ones.
        """
        rotation = frame.rotation
        if self._oriented is None or self._oriented[0] != rotation:
            self._oriented = (rotation, Orientation.of(self.tag(frame)))
        return self._oriented[1]

    def tag(self, frame: av.VideoFrame) -> av.VideoFrame:
        """A tiny picture with the side data of `frame`.

        PyAV's side data and their frame hold each other until Python's garbage collector runs. Asked for on the frame
        itself, they would keep whole pictures in memory and cost FFmpeg its pool of buffers.
        """
        reformatter = import_av().video.reformatter
        if self._tagger is None:
            self._tagger = reformatter.VideoReformatter()
        way = reformatter.Interpolation.POINT
        return self._tagger.reformat(frame, width=16, height=16, format="gray", interpolation=way, threads=1)

    def rgb(self, frame: av.VideoFrame, size: Size, orientation: Orientation) -> torch.Tensor:
        """RGB as shown, uint8 [h, w, 3]."""
        if size is None:
            stored = (frame.height, frame.width)
        else:
            shown = (frame.width, frame.height) if orientation.transpose else (frame.height, frame.width)
            target = shown_size(*shown, size)
            stored = target[::-1] if orientation.transpose else target
        return orientation.apply(self._convert(frame, *stored))

    def _convert(self, frame: av.VideoFrame, height: int, width: int) -> torch.Tensor:
        """uint8 [h, w, 3], in FFmpeg's memory where its rows lie close together."""
        reformatter = import_av().video.reformatter
        same = (height, width) == (frame.height, frame.width)
        key = None if same else (height, width)
        scaler = self._scalers.get(key)
        if scaler is None:
            if len(self._scalers) >= _MAX_SCALERS:
                self._scalers.clear()
            scaler = self._scalers[key] = reformatter.VideoReformatter()
        shrinks = height <= frame.height and width <= frame.width and not same
        ways = reformatter.Interpolation
        way = ways.AREA if shrinks else ways.BILINEAR
        if not same:
            way |= ways.FULL_CHR_H_INT  # else two neighbours share one colour
        rgb = scaler.reformat(frame, width=width, height=height, format="rgb24", interpolation=way, threads=1)
        rows = np.frombuffer(rgb.planes[0], np.uint8).reshape(height, -1)
        return torch.from_numpy(np.ascontiguousarray(rows[:, : 3 * width]).reshape(height, width, 3))


# Scalers of different sizes that one reader keeps; each holds tables and a few rows.
_MAX_SCALERS = 4
