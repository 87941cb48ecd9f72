"""`VideoReader`: a video file as a sequence of frames, in which frame i is frame i."""

from __future__ import annotations

import operator
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, SupportsIndex, overload

import torch

from video.reader.backends import Backend, check_backend, open_backend
from video.reader.decoder import SKIP, Decoder
from video.reader.errors import VideoError
from video.reader.frame import Frame
from video.reader.index import FrameIndex
from video.reader.picture import Converter, Size, resize_rgb, shown_size


class PacketTable(NamedTuple):
    """What the packets say about the frames in display order, without decoding."""

    size: torch.Tensor
    """Bytes, int64 [N]; 0 where a file without times does not tell."""
    is_keyframe: torch.Tensor
    """bool [N]"""
    time: torch.Tensor
    """Seconds since frame 0, float64 [N]."""


class VideoReader:
    """The frames of a video file, by number.

    Frame i is the i-th frame that decoding the whole file would show, whatever the container claims: the index comes
    from one pass over the packets, decoding goes to the exact presentation time, and a frame that does not decode
    raises `VideoError` instead of returning its neighbour. Frames at a damaged end that never decode do not count.

    Memory stays bounded: one decoder with its reference pictures, no read-ahead. The decoder stays open between calls,
    so reading on does not seek; `close` gives everything back, and the next read opens it again. Readers can be pickled
    and used in forked children (the file is opened again there). A file whose size or time of change is another one
    than when it was indexed is not opened again: VideoError. One thread at a time may use a reader.

    `threads` decodes with that many threads, 0 with one per core. More than one shortens the wait for long runs of
    frames, at more CPU time, memory, and latency of single frames; hence 1 as default.
    `backend` names the library that decodes RGB: "pyav", or "torchcodec" or "decord", which are checked against the
    index and refused with the reason where they would give a wrong frame.

    Raises FileNotFoundError, IsADirectoryError, PermissionError, or VideoError (empty, no video, unreadable).

    Example:
        >>> import video
        >>> reader = video.VideoReader("clip.mp4")
        >>> len(reader), reader[3].shape  # [H, W, 3]
        (20, torch.Size([48, 64, 3]))
    """

    def __init__(self, path: str | os.PathLike[str], backend: str = "pyav", threads: int = 1) -> None:
        check_backend(backend)
        if isinstance(threads, bool) or not isinstance(threads, int) or threads < 0:
            raise ValueError(f"threads must be an integer of 0 (one per core) or more, got {threads!r}")
        self.path = os.fspath(path)
        self.backend = backend
        self.threads = threads
        self.index, container = FrameIndex.build_open(self.path)
        self._shown: tuple[int, int, int] | None = None
        self._prepare(container)

    def _prepare(self, container: Any = None) -> None:
        # Taken out while an iteration uses it, so that reads in between get one of their own.
        self._idle: Decoder | None = Decoder(self.index, self.threads, container=container)
        self._closings = 0
        self._converter = Converter()
        self._backend: Backend | None = None
        if self.backend != "pyav":
            self._backend = open_backend(self.backend, self.index, self.threads)

    def __getstate__(self) -> dict[str, Any]:
        kept = ("path", "backend", "threads", "index", "_shown")
        return {name: getattr(self, name) for name in kept}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._prepare()

    def close(self) -> None:
        """Give back the file and the decoder's memory."""
        self._closings += 1
        if self._idle is not None:
            self._idle.close()
        self._converter = Converter()
        if self._backend is not None:
            self._backend.close()

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        size = f"{self.index.width}x{self.index.height}"
        return f"VideoReader({self.path!r}, {len(self)} frames, {size}, {self.fps:.3f} fps)"

    def __len__(self) -> int:
        return len(self.index)

    @property
    def timestamps(self) -> torch.Tensor:
        """Seconds of every frame since frame 0, float64 [N]."""
        return torch.from_numpy(self.index.times.copy())

    @property
    def fps(self) -> float:
        """Mean frames per second, 0 for fewer than two frames."""
        times = self.index.times
        return float((len(times) - 1) / times[-1]) if len(times) > 1 and times[-1] > 0 else 0.0

    @property
    def duration(self) -> float:
        """Seconds from the first frame to the end of the last, which is taken to stay as long as the mean frame."""
        times = self.index.times
        return float(times[-1] + times[-1] / (len(times) - 1)) if len(times) > 1 else 0.0

    @property
    def keyframes(self) -> list[int]:
        """Numbers of the frames where decoding can start."""
        return self.index.is_keyframe.nonzero()[0].tolist()

    @property
    def packets(self) -> PacketTable:
        """Size, key frame and time of every frame in display order, without decoding."""
        return PacketTable(
            torch.from_numpy(self.index.size.copy()), torch.from_numpy(self.index.is_keyframe.copy()), self.timestamps
        )

    @property
    def rotation(self) -> int:
        """Degrees clockwise by which RGB frames are turned against the stored picture: 0, 90, 180 or 270."""
        return self._look()[2]

    @property
    def width(self) -> int:
        """Columns of frame 0 as shown, after rotation."""
        return self._look()[1]

    @property
    def height(self) -> int:
        """Rows of frame 0 as shown, after rotation."""
        return self._look()[0]

    def _look(self) -> tuple[int, int, int]:
        """(height, width, rotation) of frame 0, which has to be decoded for them."""
        if self._shown is None:
            if not len(self):
                return self.index.height, self.index.width, 0
            with self._borrowed() as decoder:
                ((_, picture),) = decoder.read([0])
            orientation = self._converter.orientation(picture)
            size = (picture.height, picture.width)
            self._shown = (*(size[::-1] if orientation.transpose else size), orientation.clockwise)
        return self._shown

    def index_at(self, seconds: float) -> int:
        """Number of the frame on screen `seconds` after frame 0; ValueError for NaN and times outside of the file."""
        return self.index.index_at(float(seconds))

    @overload
    def __getitem__(self, key: SupportsIndex) -> torch.Tensor: ...
    @overload
    def __getitem__(self, key: slice) -> torch.Tensor: ...
    def __getitem__(self, key: SupportsIndex | slice) -> torch.Tensor:
        """RGB of one frame, uint8 [H, W, 3], or of a slice, uint8 [T, H, W, 3]."""
        if isinstance(key, slice):
            return self.get_batch(range(*key.indices(len(self))))
        return self._rgb([self._number(key)], None)[0]

    def __iter__(self) -> Iterator[torch.Tensor]:
        """RGB of every frame in order."""
        if self._backend is not None:
            yield from self._backend.read(list(range(len(self))))
            return
        for frame in self.frames():
            yield frame.rgb()

    def get_batch(self, indices: Iterable[SupportsIndex] | torch.Tensor, size: Size = None) -> torch.Tensor:
        """RGB of the frames at `indices`, uint8 [T, h, w, 3], in the order asked for; repeats are decoded once.

        `indices` count from the end where negative; IndexError beyond the file. `size`: None, the shorter side, or
        (height, width). VideoError where a frame does not decode, or where frames differ in size and `size` does not
        give both sides.
        """
        values = indices.tolist() if isinstance(indices, torch.Tensor) else indices
        return self._rgb([self._number(value) for value in values], size)

    def _number(self, value: SupportsIndex) -> int:
        try:
            i = operator.index(value)
        except TypeError:
            raise TypeError(f"frame index must be an integer, got {value!r}") from None
        n = len(self)
        if not -n <= i < n:
            raise IndexError(f"{self.path}: frame index must be within {-n} and {n - 1} ({n} frames), got {i}")
        return i + n if i < 0 else i

    def _rgb(self, numbers: list[int], size: Size) -> torch.Tensor:
        if not numbers:
            return torch.empty(0, *shown_size(self.height, self.width, size), 3, dtype=torch.uint8)
        rows: dict[int, list[int]] = {}
        for row, number in enumerate(numbers):
            rows.setdefault(number, []).append(row)
        ordered = sorted(rows)
        out: torch.Tensor | None = None
        for number, picture in self._pictures(ordered, size):
            if out is None:
                out = torch.empty(len(numbers), *picture.shape, dtype=torch.uint8)
            if picture.shape != out.shape[1:]:
                raise VideoError(
                    f"{self.path}: frame {number} is {picture.shape[0]}x{picture.shape[1]}, frame {ordered[0]} "
                    f"{out.shape[1]}x{out.shape[2]}: ask for size=(height, width), or read frame by frame"
                )
            for row in rows[number]:
                out[row] = picture
        assert out is not None  # numbers is not empty
        return out

    def _pictures(self, ordered: list[int], size: Size) -> Iterator[tuple[int, torch.Tensor]]:
        if self._backend is not None:
            for number, rgb in zip(ordered, self._backend.read(ordered)):
                yield number, resize_rgb(rgb, size)
            return
        with self._borrowed() as decoder:
            for number, picture in decoder.read(ordered):
                yield number, self._converter.rgb(picture, size, self._converter.orientation(picture))

    @contextmanager
    def _borrowed(self, motion_vectors: bool = False, skip: str = "none") -> Iterator[Decoder]:
        """The reader's own decoder where it is idle and will do, else one that is closed after use."""
        plain, closings = not motion_vectors and skip == "none", self._closings
        decoder, self._idle = (self._idle, None) if plain else (None, self._idle)
        if decoder is None:
            decoder = Decoder(self.index, self.threads, motion_vectors, skip)
        try:
            yield decoder
        finally:
            keep = plain and self._idle is None
            if keep:
                self._idle = decoder
            if not keep or self._closings != closings:
                decoder.close()

    def frames(
        self, start: int = 0, stop: int | None = None, motion_vectors: bool = False, skip: str = "none"
    ) -> Iterator[Frame]:
        """Frames from `start` to before `stop`, decoded in order and not converted to RGB.

        `skip="nonref"` leaves out pictures that the codec marks as unreferenced (codecs without such marks give all),
        `skip="nonkey"` all but key frames; neither decodes what it leaves out. `motion_vectors=True` lets the decoder
        export them. Other reads may go on meanwhile, by a decoder of their own. Always PyAV.
        """
        if skip not in SKIP:
            raise ValueError(f"skip must be one of {', '.join(map(repr, SKIP))}, got {skip!r}")
        first, last, _ = slice(start, stop).indices(len(self))
        return self._frames(range(first, last), motion_vectors, skip)

    def decode(self, indices: Iterable[SupportsIndex], motion_vectors: bool = False) -> Iterator[Frame]:
        """Frames at `indices`, in exactly that order and not converted to RGB. Always PyAV.

        Ascending runs are decoded in one go; each step back costs a seek. Decodes only as far as the caller reads.
        """
        return self._frames([self._number(value) for value in indices], motion_vectors, None)

    def _frames(self, numbers: range | list[int], motion_vectors: bool, skip: str | None) -> Iterator[Frame]:
        index = self.index
        with self._borrowed(motion_vectors, skip or "none") as decoder:
            if skip is None or isinstance(numbers, list):
                pictures = decoder.read(numbers)
            else:
                pictures = decoder.read_all(numbers.start, numbers.stop)
            for number, picture in pictures:
                time, key, size = index.times.item(number), index.is_keyframe.item(number), index.size.item(number)
                yield Frame(picture, self._converter, number, time, key, size)
