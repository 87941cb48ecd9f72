"""Frames from where there is no index: cameras, network streams, pipes, files that still grow."""

from __future__ import annotations

import math
import os
import select
import stat
from collections.abc import Generator, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from video.reader.container import import_av, open_container, release, set_threads, video_stream
from video.reader.errors import VideoError
from video.reader.frame import Frame
from video.reader.picture import Converter

if TYPE_CHECKING:
    import av


class _Pipe:
    """A pipe that FFmpeg reads through Python: its own reads could not be given up when nothing comes."""

    def __init__(self, name: str, timeout: float) -> None:
        self._descriptor = 0 if name == "-" else os.open(name, os.O_RDONLY)
        self._timeout = None if math.isinf(timeout) else timeout

    def read(self, n: int) -> bytes:
        """Up to `n` bytes, as soon as there are any; b"" at the end."""
        if not select.select([self._descriptor], [], [], self._timeout)[0]:
            raise TimeoutError(f"no data for {self._timeout:g} s")
        return os.read(self._descriptor, n)

    def close(self) -> None:
        """Close the pipe; standard input stays open."""
        descriptor, self._descriptor = self._descriptor, 0
        if descriptor:
            os.close(descriptor)


# Packets whose frame has not come out yet; a picture that never does must not stay here for ever.
_MAX_WAITING = 256
_MAX_ERRORS = 16


class LiveSource:
    """An open stream that gives `Frame`s one by one, as they come; see `open_live`.

    Attributes:
        source: what was opened.
        n_frames: frames given so far.
        n_damaged: packets that did not decode; the stream goes on behind them.
    """

    def __init__(
        self,
        source: str,
        container: av.container.InputContainer,
        stream: av.video.stream.VideoStream,
        timeout: float,
        follow: bool,
        pipe: _Pipe | None,
    ) -> None:
        self.source = source
        self.n_frames = 0
        self.n_damaged = 0
        self._container: av.container.InputContainer | None = container
        self._stream: Any = stream
        self._pid = os.getpid()
        self._timeout = timeout
        self._follow = follow
        self._pipe = pipe
        self._converter = Converter()
        self._iterator: Generator[Frame, None, None] = self._read()

    def __repr__(self) -> str:
        return f"LiveSource({self.source!r}, {self.n_frames} frames so far)"

    def __enter__(self) -> LiveSource:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[Frame]:
        return self

    def __next__(self) -> Frame:
        return next(self._iterator)

    def close(self) -> None:
        """Stop reading and give back the device or connection; iteration ends."""
        self._iterator.close()
        container, self._container, self._stream = self._container, None, None
        if container is not None:
            release(container, self._pid)
        if self._pipe is not None:
            self._pipe.close()

    def __del__(self) -> None:
        self.close()

    def _read(self) -> Generator[Frame, None, None]:
        context, rate = self._stream.codec_context, self._stream.average_rate or self._stream.guessed_rate
        base = self._stream.time_base
        start: int | None = None
        offset, last = 0.0, -math.inf
        waiting: dict[int, tuple[int, bool]] = {}
        for packet in self._packets():
            if packet is not None and packet.pts is not None:
                waiting[packet.pts] = (packet.size, packet.is_keyframe)
                if len(waiting) > _MAX_WAITING:
                    del waiting[next(iter(waiting))]
            for picture in self._decode(context, packet):
                pts = picture.pts
                start = pts if start is None else start
                size, key = waiting.pop(pts, (0, False)) if pts is not None else (0, False)
                if pts is not None and start is not None:
                    time = float((pts - start) * base)
                else:  # a stream without times: frames are taken to come at its nominal rate
                    time = self.n_frames / float(rate or 25)
                time = offset + time
                step = 1 / float(rate or 25)
                if (
                    time < last - 2 * step
                ):  # a recording put behind another one begins anew: its clock goes on from here
                    offset, time = offset + last + step - time, last + step
                time = max(time, last)
                last = time
                frame = Frame(picture, self._converter, self.n_frames, time, key or bool(picture.key_frame), size)
                self.n_frames += 1
                yield frame

    def _decode(self, context: Any, packet: av.Packet | None) -> list[av.VideoFrame]:
        av = import_av()
        try:
            return context.decode(packet)
        except av.error.EOFError:
            return []
        except av.error.FFmpegError:
            self.n_damaged += 1
            return []

    def _packets(self) -> Iterator[av.Packet | None]:
        """Packets from the first key frame on, then None, which empties the decoder."""
        av = import_av()
        assert self._container is not None  # `close` ends the iteration first
        packets = self._container.demux(self._stream)
        started, errors_in_a_row = False, 0
        broken: str | None = None
        while broken is None:
            try:
                packet = next(packets, None)
                errors_in_a_row = 0
            except av.error.InvalidDataError:
                self.n_damaged += 1
                errors_in_a_row += 1
                if errors_in_a_row < _MAX_ERRORS:
                    packets = self._container.demux(self._stream)
                    continue
                broken = f"{errors_in_a_row} unreadable packets in a row"
            except (av.error.ExitError, TimeoutError):  # nothing came for `timeout` seconds
                packet = None
                if not self._follow:
                    broken = f"no data for {self._timeout:g} s"
            except (av.error.FFmpegError, OSError) as error:
                broken = f"broke off ({error})"
            if broken is not None or packet is None or not packet.size:
                break
            started = started or packet.is_keyframe
            if started:  # what comes before needs pictures that were sent before we listened
                yield packet
        yield None  # what the decoder still holds comes out before the error
        if broken is not None:
            raise VideoError(f"{self.source}: {broken} after {self.n_frames} frames")


def open_live(
    source: str | os.PathLike[str] | int,
    *,
    format: str | None = None,
    options: Mapping[str, str] | None = None,
    threads: int = 1,
    timeout: float = 10.0,
    follow: bool = False,
    motion_vectors: bool = False,
) -> LiveSource:
    """Open a camera, network stream, pipe or file for reading frame by frame, in the order in which frames come.

    `source`: a number or "/dev/video0" (a camera, by V4L2), a URL ("rtsp://", "http://", "udp://", ...), "-" for
    standard input, or a path; of a file that is still written, `follow=True` waits for more and ends when nothing has
    come for `timeout` seconds. `format` and `options` go to FFmpeg (`{"video_size": "1280x720"}`,
    `{"rtsp_transport": "tcp"}`). Frames are numbered from 0 and keep their own size where the stream changes it. Times
    never decrease: where the stream's clock jumps back, as between recordings put end to end, they go on from the last
    frame by one frame's time.

    One thread decodes without delay; more of them each hold back one frame. Damaged packets are left out and counted.
    Raises FileNotFoundError, or VideoError where nothing opens or the stream breaks off; frames given stay valid.
    """
    if isinstance(threads, bool) or not isinstance(threads, int) or threads < 0:
        raise ValueError(f"threads must be an integer of 0 (one per core) or more, got {threads!r}")
    if not timeout > 0:
        raise ValueError(f"timeout must be more than 0 seconds, got {timeout}")
    name = f"/dev/video{source}" if isinstance(source, int) else os.fspath(source)
    if name != "-" and "://" not in name and ":" not in name and not os.path.exists(name):
        raise FileNotFoundError(f"no such camera, pipe or video file: {name!r}")
    if os.path.isdir(name):
        raise IsADirectoryError(f"expected a camera, URL, pipe or video file, got a directory: {name!r}")
    asked = dict(options or {})
    if name.startswith("/dev/video"):
        format = format or "v4l2"
    if follow:
        if not os.path.isfile(name):
            raise ValueError(f"follow waits for a file that grows, got {name!r}")
        asked["follow"] = "1"
    pipe = _Pipe(name, timeout) if name == "-" or _is_pipe(name) else None
    limit = None if pipe is not None or math.isinf(timeout) else timeout
    try:
        container = open_container(name, asked, pipe, format=format, timeout=limit)
    except BaseException:
        if pipe is not None:
            pipe.close()
        raise
    try:
        stream = video_stream(container, name)
        set_threads(stream, threads)
        if motion_vectors:
            stream.codec_context.options = {"flags2": "+export_mvs"}
    except BaseException:
        container.close()
        if pipe is not None:
            pipe.close()
        raise
    return LiveSource(name, container, stream, timeout, follow, pipe)


def _is_pipe(name: str) -> bool:
    return os.path.exists(name) and stat.S_ISFIFO(os.stat(name).st_mode)
