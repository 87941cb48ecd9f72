"""Readers in turn on one clip: 8 uniform frames, 10 random ones, all in order, all resized; opening the file included.

Each competitor runs on one thread. What it gives is held against decoding in order by plain PyAV before it is timed:
brightness on a coarse grid, which the readers' different ways from YUV to RGB leave alone and another frame changes,
unless nothing moves.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.data import Unavailable
from benchmarks.harness import Competitor, Settings, Trial
from benchmarks.video.clips import Clip

UNIFORM, RANDOM, DRAWS = 8, 10, 3
RESIZED = (256, 340)  # height, width
_STEP, _GRID = 8, (6, 10)
# Of white. Chroma siting and rounding stay below 0.02, resizing by other filters below 0.04.
_TOLERANCE, _TOLERANCE_RESIZED = 0.03, 0.06


def trials(clip: Clip, settings: Settings) -> Iterator[Trial]:
    """The four tasks on the clip; the settings' dtypes and threads do not apply."""
    path = str(clip.path)
    right = _in_order(path)
    draws = random_draws(len(right))
    yield _trial(clip, f"{UNIFORM} uniform frames", "uniform", right, [uniform(len(right))])
    yield _trial(clip, f"{RANDOM} random frames, {DRAWS} draws", "random", right, draws)
    yield _trial(clip, "all frames in order", "all", right, [list(range(len(right)))])
    small = f"all frames at {RESIZED[1]}x{RESIZED[0]}"
    yield _trial(clip, small, "resized", _in_order(path, RESIZED), [list(range(len(right)))])


def uniform(count: int) -> list[int]:
    """The middles of 8 equal parts of `count` frames."""
    return [int(count / UNIFORM / 2 + count / UNIFORM * i) for i in range(UNIFORM)] if count else []


def random_draws(count: int) -> list[list[int]]:
    """3 times 10 distinct frames out of `count`, in no order."""
    rng = np.random.default_rng(0)
    return [rng.choice(count, min(RANDOM, count), replace=False).tolist() for _ in range(DRAWS)]


def _trial(clip: Clip, shape: str, task: str, right: list[Tensor], draws: Sequence[list[int]]) -> Trial:
    wanted = [right[i] for draw in draws for i in draw]
    tolerance = _TOLERANCE_RESIZED if task == "resized" else _TOLERANCE
    competitors = [
        Competitor(name, "uint8", 1, functools.partial(_build, name, task, str(clip.path), draws), _parts, tolerance)
        for name in READERS
    ]
    return Trial("reader", clip.name, shape, lambda: _parts(wanted), competitors)


def _build(name: str, task: str, path: str, draws: Sequence[list[int]]) -> Callable[[], list[Tensor]]:
    reader = READERS[name]()
    if task == "all":
        return lambda: reader.all(path)
    if task == "resized":
        return lambda: reader.resized(path)
    return lambda: [picture for draw in draws for picture in reader.some(path, draw)]


def _parts(samples: Sequence[Tensor]) -> list[Tensor]:
    """Brightness from 0 to 1 on a coarse grid, [T, 6, 10], of samples [h, w, 3], all of one size."""
    if not samples:
        return [torch.zeros(0, *_GRID)]
    bright = torch.stack(list(samples)).float().mean(-1)[:, None] / 255
    return [torch.nn.functional.adaptive_avg_pool2d(bright, _GRID)[:, 0]]


def sample(frame: Tensor) -> Tensor:
    """A few pixels of a frame [H, W, 3], copied: keeping all frames of a clip would fill the memory."""
    return frame[::_STEP, ::_STEP].clone()


def _in_order(path: str, size: tuple[int, int] | None = None) -> list[Tensor]:
    """Samples of every frame, decoded from the first to the last by plain PyAV."""
    av = _import("av")
    samples = []
    with av.open(path) as container:
        for frame in container.decode(video=0):
            picture = torch.from_numpy(frame.to_ndarray(format="rgb24"))
            if size is not None:
                planes = picture.permute(2, 0, 1)[None]
                planes = torch.nn.functional.interpolate(planes, size, mode="bilinear", antialias=True)
                picture = planes[0].permute(1, 2, 0)
            samples.append(sample(picture))
    return samples


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except (ImportError, OSError, RuntimeError) as error:  # torchcodec raises RuntimeError without an FFmpeg
        raise Unavailable(f"{name} cannot be imported ({' '.join(str(error).split())[:120]})") from error


# --- who competes -----------------------------------------------------------------------------------------------------


class Ours:
    """`VideoReader` with its default backend."""

    def some(self, path: str, indices: list[int]) -> Tensor:
        from video.reader import VideoReader

        with VideoReader(path) as reader:
            return torch.stack([sample(frame) for frame in reader.get_batch(indices)])

    def all(self, path: str) -> list[Tensor]:
        from video.reader import VideoReader

        with VideoReader(path) as reader:
            return [sample(frame) for frame in reader]

    def resized(self, path: str) -> list[Tensor]:
        from video.reader import VideoReader

        with VideoReader(path) as reader:
            return [sample(frame.rgb(RESIZED)) for frame in reader.frames()]


class Decord:
    def __init__(self) -> None:
        self._decord = _import("decord")

    def _open(self, path: str, **kwargs: int) -> Any:
        return self._decord.VideoReader(path, ctx=self._decord.cpu(0), num_threads=1, **kwargs)

    def some(self, path: str, indices: list[int]) -> Tensor:
        batch = torch.from_numpy(self._open(path).get_batch(indices).asnumpy())
        return torch.stack([sample(frame) for frame in batch])

    def all(self, path: str) -> list[Tensor]:
        return self._read(self._open(path))

    def resized(self, path: str) -> list[Tensor]:
        return self._read(self._open(path, height=RESIZED[0], width=RESIZED[1]))

    @staticmethod
    def _read(reader: Any) -> list[Tensor]:
        return [sample(torch.from_numpy(reader.next().asnumpy())) for _ in range(len(reader))]


class Torchcodec:
    def __init__(self) -> None:
        self._decoders, self._transforms = _import("torchcodec.decoders"), _import("torchcodec.transforms")

    def _open(self, path: str, **kwargs: Any) -> Any:
        return self._decoders.VideoDecoder(path, dimension_order="NHWC", num_ffmpeg_threads=1, **kwargs)

    def some(self, path: str, indices: list[int]) -> Tensor:
        return torch.stack([sample(frame) for frame in self._open(path).get_frames_at(indices).data])

    def all(self, path: str) -> list[Tensor]:
        return [sample(frame) for frame in self._open(path)]

    def resized(self, path: str) -> list[Tensor]:
        return [sample(frame) for frame in self._open(path, transforms=[self._transforms.Resize(RESIZED)])]


class OpenCV:
    def __init__(self) -> None:
        self._cv2 = _import("cv2")
        self._cv2.setNumThreads(1)

    def _frames(self, path: str, indices: list[int] | None = None) -> Iterator[Any]:
        cv2 = self._cv2
        capture = cv2.VideoCapture(path, cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
        try:
            for i in range(2**31) if indices is None else indices:
                if indices is not None:
                    capture.set(cv2.CAP_PROP_POS_FRAMES, i)
                found, picture = capture.read()
                if not found:
                    if indices is None:
                        return
                    raise ValueError(f"OpenCV does not read frame {i} of {path}")
                yield picture
        finally:
            capture.release()

    def _rgb(self, picture: Any) -> Tensor:
        return torch.from_numpy(self._cv2.cvtColor(picture, self._cv2.COLOR_BGR2RGB))

    def some(self, path: str, indices: list[int]) -> Tensor:
        return torch.stack([sample(self._rgb(picture)) for picture in self._frames(path, indices)])

    def all(self, path: str) -> list[Tensor]:
        return [sample(self._rgb(picture)) for picture in self._frames(path)]

    def resized(self, path: str) -> list[Tensor]:
        size = RESIZED[::-1]
        small = (self._cv2.resize(p, size, interpolation=self._cv2.INTER_AREA) for p in self._frames(path))
        return [sample(self._rgb(picture)) for picture in small]


READERS: dict[str, Callable[[], Any]] = {
    "trisparse": Ours,
    "decord": Decord,
    "torchcodec": Torchcodec,
    "OpenCV": OpenCV,
}


def clip_of(path: Path) -> Clip:
    """Any video file as a clip."""
    return Clip(path.name, path, "a file")
