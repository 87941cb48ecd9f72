"""Small video files for tests, each frame a known picture, written by PyAV."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

av = pytest.importorskip("av", reason="clips are written by PyAV")

Image = NDArray[np.uint8]


def texture(i: int, height: int = 48, width: int = 64) -> Image:
    """RGB [height, width, 3] that moves with `i`; its top left 8x8 block has the grey level 7 * i mod 200 + 20."""
    y, x = np.mgrid[:height, :width]
    image = 128 + 60 * np.sin((x + 2 * i) / 7) + 50 * np.cos((y + i) / 5)
    image = np.stack([image, image[::-1], image[:, ::-1]], -1).clip(0, 255).astype(np.uint8)
    image[:8, :8] = 7 * i % 200 + 20
    return image


def write_clip(
    path: Path,
    images: Iterable[Image],
    *,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    options: dict[str, str] | None = None,
    fps: int = 25,
    gop: int = 10,
    b_frames: int = 2,
    ticks: Sequence[int] | None = None,
    format: str | None = None,
    raw: Sequence[object] = (),
) -> Path:
    """The `images` encoded into `path`, or the PyAV frames `raw` as they are; frame i shown at ticks[i] (default i)."""
    frames = [av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format=pix_fmt) for image in images] or list(
        raw
    )
    with av.open(str(path), "w", format=format) as out:
        stream = out.add_stream(codec, rate=fps, options=options or {})
        stream.pix_fmt = pix_fmt
        if frames:
            stream.width, stream.height = frames[0].width, frames[0].height
        stream.codec_context.time_base = Fraction(1, fps)
        stream.codec_context.gop_size = gop
        stream.codec_context.max_b_frames = b_frames
        stream.codec_context.thread_count = 1
        for i, frame in enumerate(frames):
            frame.pts, frame.time_base = (i if ticks is None else ticks[i]), Fraction(1, fps)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path
