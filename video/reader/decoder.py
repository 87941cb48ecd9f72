"""Exact decoding of single frames with PyAV: seek to a key frame, decode to the very presentation time, or fail."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

from video.reader.container import import_av, open_file, release, set_threads, video_stream
from video.reader.errors import VideoError
from video.reader.index import FrameIndex

if TYPE_CHECKING:
    import av

# Pictures that these codecs mark as unreferenced influence no other picture, so what lies between the key frame and the
# wanted frame can leave them out. HEVC's mark speaks of one temporal layer only: others may still need the picture.
_EXACT_NONREF = {"h264", "mpeg2video", "mpeg1video"}
_PROGRESSIVE = 1
# A key frame this close ahead is reached by decoding on: a seek would empty the decoder's pipeline.
_SEEK_BEYOND = 3
SKIP = {"none": "DEFAULT", "nonref": "NONREF", "nonkey": "NONKEY"}


class Decoder:
    """One open file that gives frames by number.

    Reading on from the last frame does not seek. After `close`, and in a forked child, the file is opened again at the
    next read. One thread at a time may use it. `container`: the file, where it is open already; the decoder closes it.
    """

    def __init__(
        self,
        index: FrameIndex,
        threads: int = 1,
        motion_vectors: bool = False,
        skip: str = "none",
        container: av.container.InputContainer | None = None,
    ) -> None:
        self.index = index
        self._threads = threads
        self._motion_vectors = motion_vectors
        self._only_keys = skip == "nonkey"
        self._skip = "none" if index.by_count else skip  # what is found by counting has to be decoded
        self._container = container
        self._stream: Any = None
        self._pid = os.getpid() if container is not None else -1
        self._leaving_out = False
        self._wanted: set[int] = set()
        self._wanted_until: int | None = None  # unreferenced pictures before this time may be left out
        self._failure: Exception | None = None
        self._forget_position()

    def _forget_position(self) -> None:
        self._position = -1  # number of the last frame that came out
        self._last: av.VideoFrame | None = None
        self._ready: deque[av.VideoFrame] = deque()
        self._packets: Iterator[av.Packet] | None = None
        self._same_time = 0  # how many frames of the last frame's time came out
        self._left_out = False  # whether pictures were left out since decoding started
        self._concealed = False  # whether a damaged picture came out since, its gaps filled from its neighbours

    def close(self) -> None:
        """Give back the file and the decoder's memory."""
        container, self._container, self._stream = self._container, None, None
        self._forget_position()
        if container is not None:
            release(container, self._pid)

    def __del__(self) -> None:
        # PyAV's objects form a cycle: left to the collector, it might run in a forked child.
        self.close()

    def read(self, indices: Sequence[int]) -> Iterator[tuple[int, av.VideoFrame]]:
        """(number, frame) for every one of `indices`, in their order.

        Raises VideoError at the first frame that cannot be decoded; those before it have been given.
        """
        for run in _ascending_runs(indices):
            if self._wanted_until is not None:
                self._forget_position()  # an earlier plan stopped halfway: pictures that it left out are missing now
            pts = self.index.pts
            self._wanted, self._wanted_until = {int(pts[i]) for i in run}, int(pts[run[-1]])
            for i in run:
                yield i, self._frame(i)
            self._wanted_until = None

    def read_all(self, start: int, stop: int) -> Iterator[tuple[int, av.VideoFrame]]:
        """(number, frame) of every frame that comes out from `start` to before `stop`, in order, honouring `skip`."""
        if self._skip == "none" and not self.index.by_count:
            yield from self._read_on(start, stop)
            return
        if self.index.by_count:
            for number, frame in self.read(range(start, stop)):
                if not self._only_keys or self.index.is_keyframe[number]:
                    yield number, frame
            return
        wanted = range(start, stop)
        if self._skip == "nonkey":
            wanted = [i for i in wanted if self.index.is_keyframe[i]]  # type: ignore[assignment]
        if not len(wanted):
            return
        first, last = int(self.index.pts[wanted[0]]), int(self.index.pts[wanted[-1]])
        self._seek(self.index.key_before(first))
        number = -1
        for frame in self._frames():
            if frame.pts is None or frame.pts < first:
                continue
            if frame.pts > last:
                return
            found = self.index.find(frame.pts)
            if found >= 0 and (self._skip != "nonkey" or self.index.is_keyframe[found]):
                number = found if found > number else number + 1  # the second of two that share a time
                yield number, frame

    def _read_on(self, start: int, stop: int) -> Iterator[tuple[int, av.VideoFrame]]:
        """Every frame from `start` to before `stop`; one that does not come next as it should is searched for."""
        pts, number = self.index.pts.tolist(), start
        while number < stop:
            yield number, self._frame(number)
            number += 1
            for frame in self._frames() if number < stop else ():
                if frame.pts != pts[number] or frame.pts == pts[number - 1] or self._pid != os.getpid():
                    self._ready.appendleft(frame)
                    break
                self._position, self._last, self._same_time = number, frame, 1
                yield number, frame
                number += 1
                if number == stop:
                    return

    def _frame(self, i: int) -> av.VideoFrame:
        if self._pid != os.getpid():
            self.close()
        if i == self._position and self._last is not None:
            return self._last
        if self.index.by_count:
            return self._frame_by_count(i)
        for attempt in self._attempts(i):
            if attempt is not None:
                key, exact = attempt
                if exact:
                    self._wanted_until = None
                if not self._seek(key):
                    continue
            frame = self._decode_to(i)
            if frame is not None:
                return frame
        raise self._no_frame(i)

    def _attempts(self, i: int) -> Iterator[tuple[int, bool] | None]:
        """Where to start, the cheapest first: None goes on from here, else (key frame or -1, decode every picture)."""
        index, t = self.index, int(self.index.pts[i])
        key = index.key_before(t)
        repeated = i > 0 and int(index.pts[i - 1]) == t
        if repeated:  # frames that share a time are told apart by counting from before the first of them
            key = index.key_before(t - 1)
        if (self._packets is not None or self._ready) and 0 <= self._position < i:
            near = i - self._position <= _SEEK_BEYOND
            if near or key < 0 or int(index.key_pts[key]) <= int(index.pts[self._position]):
                yield None
        if key >= 0:
            yield key, False
            for back in (0, 1, 2, 4, 8):
                if key - back >= 0:
                    yield key - back, True
        yield -1, True

    def _seek(self, key: int) -> bool:
        """Start decoding at that key frame, -1 at the start of the file; False where the container lands behind it."""
        if key < 0:
            self.close()
            container, stream = self._open()
            self._packets = container.demux(stream)
            return True
        av = import_av()
        container, stream = self._open()
        self._forget_position()
        pts, dts = int(self.index.key_pts[key]), int(self.index.key_dts[key])
        # MP4 seeks by presentation time and would land a group too early for the decoding time, MPEG-TS the reverse.
        for target in (pts, dts) if dts < pts else (pts,):
            try:
                container.seek(target, stream=stream)
                packets = container.demux(stream)
                # What lies before a key frame would decode into broken pictures.
                packet = next((packet for packet in packets if packet.is_keyframe and packet.size), None)
            except (av.error.FFmpegError, OSError) as error:
                self._failure = error
                continue
            if packet is not None and packet.pts is not None and packet.pts <= pts:
                self._packets = chain([packet], packets)
                return True
        return False

    def _decode_to(self, i: int) -> av.VideoFrame | None:
        """The frame with exactly the time of frame `i`, None where decoding passes it or ends."""
        t = int(self.index.pts[i])
        # Frames that share a time come out in the order of their numbers.
        rank = i - int(self.index.pts.searchsorted(t, side="left"))
        last_time = int(self.index.pts[self._position]) if self._position >= 0 else None
        for frame in self._frames():
            if frame.pts is None:
                continue
            self._same_time = self._same_time + 1 if frame.pts == last_time else 1
            last_time = frame.pts
            self._concealed |= frame.is_corrupt
            if frame.pts > t or (self._concealed and self._left_out):
                break  # what fills a gap depends on the pictures before: without any left out it is always the same
            if frame.pts == t and self._same_time > rank:
                self._position, self._last = i, frame
                return frame
        self._forget_position()
        return None

    def _frame_by_count(self, i: int) -> av.VideoFrame:
        if self._packets is None or i <= self._position:
            self._seek(-1)
        for frame in self._frames():
            self._position += 1
            if self._position == i:
                self._last = frame
                return frame
        self._forget_position()
        raise self._no_frame(i)

    def _frames(self) -> Iterator[av.VideoFrame]:
        """Frames as they come out of the decoder; packets that do not decode are left out."""
        av = import_av()
        context = self._open()[1].codec_context
        leave_out = self._may_leave_out(context)
        while True:
            while self._ready:
                yield self._ready.popleft()
            if self._packets is None:
                return
            try:
                packet = next(self._packets, None)
            except (av.error.FFmpegError, OSError) as error:  # the file ends inside a packet
                self._failure, packet = error, None
            if packet is None or not packet.size:
                self._packets = None
            elif self._skip == "nonkey" and not packet.is_keyframe:
                continue
            elif leave_out and (self._wanted_until is not None or self._leaving_out):
                skippable = (
                    self._wanted_until is not None
                    and packet.pts is not None
                    and packet.pts < self._wanted_until
                    and packet.pts not in self._wanted
                )
                context.skip_frame = "NONREF" if skippable else "DEFAULT"
                self._leaving_out = skippable
                self._left_out |= skippable
            try:
                self._ready.extend(context.decode(packet))
                if self._skip == "nonkey" and self._packets is not None:
                    # Each by itself: H.264 would take the gap before the next key frame for a reason to reorder.
                    self._ready.extend(context.decode(None))
                    context.flush_buffers()
            except av.error.EOFError:  # the decoder was emptied before
                return
            except av.error.FFmpegError as error:
                self._failure = error

    def _may_leave_out(self, context: av.VideoCodecContext) -> bool:
        return (
            self._skip == "none"
            and not self.index.by_count
            and context.codec.canonical_name in _EXACT_NONREF
            and int(context.field_order) == _PROGRESSIVE
        )

    def _open(self) -> tuple[av.container.InputContainer, av.video.stream.VideoStream]:
        if self._container is None or self._pid != os.getpid():
            self.close()
            self.index.check_file()
            self._container = open_file(self.index.path)
            self._pid = os.getpid()
        if self._stream is None:
            self._stream = video_stream(self._container, self.index.path)
            set_threads(self._stream, self._threads)
            self._stream.codec_context.skip_frame = SKIP[self._skip]
            self._leaving_out = False
            if self._motion_vectors:
                self._stream.codec_context.options = {"flags2": "+export_mvs"}
        return self._container, self._stream

    def _no_frame(self, i: int) -> VideoError:
        where = f"frame {i} of {len(self.index)} at {self.index.seconds(int(self.index.pts[i])):.3f} s"
        why = f": {self._failure}" if self._failure is not None else ""
        return VideoError(f"{self.index.path}: {where} does not decode, the file is damaged there{why}")


def _ascending_runs(indices: Sequence[int]) -> Iterator[list[int]]:
    run: list[int] = []
    for i in indices:
        if run and i < run[-1]:
            yield run
            run = []
        run.append(i)
    if run:
        yield run
