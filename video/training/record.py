"""A live clip as a file: one digit that goes on and on, its motion changing every eight frames."""

from __future__ import annotations

import os
from collections.abc import Sequence
from fractions import Fraction

from common_models.files import replace_atomically
from video.training.clips import CLASS_NAMES, digits, live_frames


def write_live_clip(
    path: str | os.PathLike[str], motions: Sequence[int], seed: int = 0, size: int = 192, fps: int = 8
) -> list[int]:
    """Write an H.264 file of a held-out digit in these motions; returns the class of each frame.

    Args:
        path: of a kind that PyAV knows by its ending, as .mp4; appears whole or not at all.
        motions: indices into CLASS_NAMES, eight frames each.
        size: height and width, pixels, even.

    Raises:
        ValueError: a motion that does not exist, or an odd size.
        ImportError: PyAV or scikit-learn is not installed.
    """
    try:
        import av
    except ImportError as error:
        raise ImportError("writing video needs PyAV: pip install 'trisparse[video]'") from error
    if size < 2 or size % 2:
        raise ValueError(f"size must be even and at least 2, got {size}")
    wrong = [motion for motion in motions if not 0 <= motion < len(CLASS_NAMES)]
    if wrong:
        raise ValueError(f"motions must be in 0 to {len(CLASS_NAMES) - 1}, got {wrong[0]}")
    images, _ = digits(held_out=True)
    classes = []
    with replace_atomically(path) as partial, av.open(os.fspath(partial), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps))
        stream.width = stream.height = size
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": "18"}
        for frame, motion in live_frames(images[seed % len(images)], motions, seed, size):
            classes.append(motion)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame.numpy(), format="rgb24")))
        container.mux(stream.encode())
    return classes
