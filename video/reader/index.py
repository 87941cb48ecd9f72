"""The frame index: what one pass over the packets of a file, without decoding, says about every frame."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from itertools import chain, pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from video.reader.container import (
    FileMark,
    check_file,
    check_unchanged,
    file_mark,
    import_av,
    open_file,
    set_threads,
    video_stream,
)
from video.reader.entry_points import HEADER_BYTES, starts_clean

if TYPE_CHECKING:
    import av


@dataclass(frozen=True)
class FrameIndex:
    """Every shown frame of one file, in display order, and the key frames where decoding can start.

    Packets that an edit list discards are no frames, but a discarded key frame stays a place to start. Frame counts
    that a container claims are never used. Where `by_count` is set the packets carry no usable times: the frames are
    those that decoding the whole file gave, and a frame is found only by counting from the start.

    Attributes:
        path: the file.
        pts: presentation times in units of `time_base`, ascending, int64 [N].
        size: bytes of each frame's packet, int64 [N].
        is_keyframe: bool [N].
        key_pts: presentation times of the frames where decoding can start, ascending, int64 [K].
        key_dts: their decoding times, which seeking wants, int64 [K].
        time_base: seconds per unit of time.
        width, height: of the stored picture, before rotation.
        by_count: frames have no usable times of their own.
        mark: size and time of change of the file when it was indexed, None for an index made by hand.
    """

    path: str
    pts: np.ndarray
    size: np.ndarray
    is_keyframe: np.ndarray
    key_pts: np.ndarray
    key_dts: np.ndarray
    time_base: Fraction
    width: int
    height: int
    by_count: bool = False
    mark: FileMark | None = None

    def __len__(self) -> int:
        return len(self.pts)

    @property
    def start(self) -> int:
        """Presentation time of frame 0, 0 for a file without frames: seconds count from here."""
        return int(self.pts[0]) if len(self.pts) else 0

    @cached_property
    def times(self) -> np.ndarray:
        """Seconds of every frame since frame 0, float64 [N]."""
        return (self.pts - self.start) * self.time_base.numerator / self.time_base.denominator

    def seconds(self, pts: int) -> float:
        """Seconds since frame 0 of a presentation time."""
        return float((pts - self.start) * self.time_base)

    def check_file(self) -> None:
        """VideoError where the file at `path` is not the one that was indexed any more."""
        if self.mark is not None:
            check_unchanged(self.path, self.mark)

    def key_before(self, pts: int) -> int:
        """Row of `key_pts` of the last key frame at or before `pts`, -1 where there is none."""
        return int(np.searchsorted(self.key_pts, pts, side="right")) - 1

    def find(self, pts: int) -> int:
        """Number of the first frame with exactly this presentation time, -1 where there is none."""
        row = int(np.searchsorted(self.pts, pts, side="left"))
        return row if row < len(self.pts) and int(self.pts[row]) == pts else -1

    def index_at(self, seconds: float) -> int:
        """The frame on screen at `seconds` since frame 0: the last one that starts no later; ValueError outside."""
        if not math.isfinite(seconds):
            raise ValueError(f"seconds must be finite, got {seconds}")
        if not len(self.pts):
            raise ValueError(f"{self.path}: no frame at {seconds} s, the file has no frames")
        # A timestamp that went through float64 must find its own frame again.
        target = self.start + Fraction(seconds) / self.time_base + Fraction(1, 1000)
        found = int(np.searchsorted(self.pts, math.floor(target), side="right")) - 1
        last = self.seconds(int(self.pts[-1]))
        step = last / (len(self.pts) - 1) if len(self.pts) > 1 else math.inf
        if found < 0 or seconds > last + step:
            raise ValueError(f"{self.path}: seconds must be within 0 and {last:.6f}, got {seconds}")
        return found

    @classmethod
    def build(cls, path: str) -> FrameIndex:
        """The index of the file at `path`, by one pass over its packets.

        Damaged ends and beginnings cut off from their key frame are decoded, and only there, so that the index holds
        no frame that never comes out. A file whose packets carry no times is decoded whole.

        Raises FileNotFoundError, IsADirectoryError, PermissionError, or VideoError (no video, empty, unreadable).
        """
        return cls.build_open(path)[0]

    @classmethod
    def build_open(cls, path: str) -> tuple[FrameIndex, av.container.InputContainer]:
        """As `build`, with the file that it opened, read to its end: opening costs as much as some frames."""
        check_file(path)
        mark = file_mark(path)
        container = open_file(path)
        try:
            return replace(cls._of(container, path), mark=mark), container
        except BaseException:
            container.close()
            raise

    @classmethod
    def _of(cls, container: av.container.InputContainer, path: str) -> FrameIndex:
        stream = video_stream(container, path)
        packets, damaged = _read_packets(container, stream)
        base = stream.time_base or Fraction(1, 1000)
        size = (stream.codec_context.width, stream.codec_context.height)
        if not _has_times(packets, stream.codec_context.codec.canonical_name):
            return _decoded_index(path, packets, base, size)
        index = _packet_index(path, packets, base, size)
        if damaged is not None and len(index):
            # Pictures sent shortly before the damage may wait for what it took away.
            suspects = [p.pts for p in packets[max(0, damaged - 64) :] if p.pts is not None]
            index = _keep_decodable(index, min(suspects), None)
        if len(index) and not len(index.key_pts):
            index = _keep_decodable(index, index.start, None)
        elif len(index) and index.pts[0] < index.key_pts[0]:
            index = _keep_decodable(index, index.start, int(index.key_pts[0]))
        return index


_INTRA, _PREDICTED = 1, 2  # FFmpeg's picture types; 3 is bidirectional
# The bit of a VP8 packet's first byte that says whether it is shown (RFC 6386, 9.1): reference frames may be hidden.
_VP8_SHOWN = 0x10


class _Packet(NamedTuple):
    pts: int | None
    dts: int | None
    size: int
    is_keyframe: bool
    is_discard: bool


def _read_packets(
    container: av.container.InputContainer, stream: av.video.stream.VideoStream
) -> tuple[list[_Packet], int | None]:
    """Every packet of the stream in file order, and the first damaged one (their number if the file ends badly)."""
    av = import_av()
    packets: list[_Packet] = []
    damaged = None
    codec, extradata = stream.codec_context.codec.canonical_name, stream.codec_context.extradata
    try:
        for packet in container.demux(stream):
            if not packet.size:
                continue
            if packet.is_corrupt and damaged is None:
                damaged = len(packets)
            hidden = packet.is_discard or (codec == "vp8" and not memoryview(packet)[0] & _VP8_SHOWN)
            key = packet.is_keyframe
            if key and codec == "h264":
                key = starts_clean(bytes(memoryview(packet)[:HEADER_BYTES]), extradata)
            packets.append(_Packet(packet.pts, packet.dts, packet.size, key, hidden))
    except (av.error.FFmpegError, OSError):
        damaged = len(packets) if damaged is None else damaged
    return packets, damaged


def _has_times(packets: list[_Packet], codec: str) -> bool:
    """Whether presentation times tell the frames apart."""
    if any(packet.pts is None for packet in packets):
        return False
    # Recordings that were put end to end begin anew: a time may stand for several frames.
    sent = [packet.dts for packet in packets if packet.dts is not None]
    if any(later < earlier for earlier, later in pairwise(sent)):
        return False
    # A "not coded" picture of MPEG-4 part 2 fills a packet of a few bytes and never comes out as a frame.
    return not (codec == "mpeg4" and any(packet.size <= 8 for packet in packets))


def _packet_index(path: str, packets: list[_Packet], base: Fraction, size: tuple[int, int]) -> FrameIndex:
    by_time = sorted(packets, key=lambda p: p.pts or 0)  # stable: equal times stay in file order
    shown = [p for p in by_time if not p.is_discard]
    keys = [p for p in by_time if p.is_keyframe]
    return FrameIndex(
        path=path,
        pts=np.array([p.pts for p in shown], np.int64),
        size=np.array([p.size for p in shown], np.int64),
        is_keyframe=np.array([p.is_keyframe for p in shown], bool),
        key_pts=np.array([p.pts for p in keys], np.int64),
        key_dts=np.array([p.pts if p.dts is None else p.dts for p in keys], np.int64),
        time_base=base,
        width=size[0],
        height=size[1],
    )


def decode_from(path: str, key: tuple[int, int] | None = None) -> Iterator[av.VideoFrame]:
    """Every frame that decoding gives, from the key frame (pts, dts) or from the start of the file.

    Packets that do not decode are left out. Starts at the beginning where the container does not find the key frame.
    """
    av = import_av()
    with open_file(path) as container:
        stream = video_stream(container, path)
        set_threads(stream, 1)
        packets = container.demux(stream)
        if key is not None:
            for target in key:
                container.seek(target, stream=stream)
                packets = container.demux(stream)
                first = next(packets, None)
                if first is not None and first.pts == key[0]:
                    packets = chain([first], packets)
                    break
            else:
                yield from decode_from(path)
                return
        while True:
            try:
                packet = next(packets, None)
            except (av.error.FFmpegError, OSError):  # the file ends inside a packet: what was read so far comes out
                packet = None
            try:
                yield from stream.codec_context.decode(packet)
            except av.error.EOFError:
                return
            except av.error.FFmpegError:
                pass
            if packet is None or not packet.size:
                return


def _keep_decodable(index: FrameIndex, low: int, high: int | None) -> FrameIndex:
    """The index without those frames from time `low` to before time `high` that decoding does not give."""
    row = index.key_before(low)
    key = (int(index.key_pts[row]), int(index.key_dts[row])) if row >= 0 else None
    seen = set()
    for frame in decode_from(index.path, key):
        if high is not None and frame.pts is not None and frame.pts >= high:
            break
        seen.add(frame.pts)
    kept = [pts < low or (high is not None and pts >= high) or pts in seen for pts in index.pts.tolist()]
    keep = np.array(kept, bool)
    return replace(index, pts=index.pts[keep], size=index.size[keep], is_keyframe=index.is_keyframe[keep])


def _decoded_index(path: str, packets: list[_Packet], base: Fraction, size: tuple[int, int]) -> FrameIndex:
    """The index of a file whose packets do not tell the times of its frames: those that decoding it all gives."""
    frames = [(frame.pts, bool(frame.key_frame), frame.pict_type) for frame in decode_from(path)]
    times = [pts for pts, _, _ in frames]
    if any(pts is None for pts in times) or any(b <= a for a, b in pairwise(times)):
        with open_file(path) as container:
            stream = video_stream(container, path)
            rate = stream.average_rate or stream.guessed_rate or Fraction(25)
        times, base = list(range(len(frames))), 1 / Fraction(rate)
    # Without times, packets and frames are matched only where each gives one and no picture waits for a later one.
    matched = len(packets) == len(frames) and all(kind in (_INTRA, _PREDICTED) for _, _, kind in frames)
    sizes = [p.size for p in packets] if matched else [0] * len(frames)
    return FrameIndex(
        path=path,
        pts=np.array(times, np.int64),
        size=np.array(sizes, np.int64),
        is_keyframe=np.array([key for _, key, _ in frames], bool),
        key_pts=np.zeros(0, np.int64),
        key_dts=np.zeros(0, np.int64),
        time_base=base,
        width=size[0],
        height=size[1],
        by_count=True,
    )
