"""What makes other decoders return wrong frames, looked for before they are used."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from video.reader.container import import_av, open_file, video_stream
from video.reader.entry_points import HEADER_BYTES, starts_clean
from video.reader.errors import VideoError
from video.reader.index import FrameIndex

# Containers with a table of key frames: a seek lands on one, in the others near a time, between key frames too.
_WITH_TABLE = {"mov", "mp4", "matroska", "webm", "avi"}
_CHUNK_BYTES = 128 * 2**20


@dataclass(frozen=True)
class Hazards:
    """What one pass over the packets of a file tells.

    Attributes:
        container: FFmpeg's name of the format.
        seekable: the container has a table of key frames.
        discarded: packets that an edit list leaves out.
        hidden: packets that show no frame.
        leading: pictures behind a key frame in the file that are shown before it.
        reordered: pictures are not sent in the order in which they are shown.
        unclean: key frames after which pictures are not whole at once.
    """

    container: str
    seekable: bool
    discarded: int
    hidden: int
    leading: int
    reordered: bool
    unclean: int


def hazards(index: FrameIndex) -> Hazards:
    """The hazards of the file behind `index`."""
    av = import_av()
    discarded = leading = unclean = count = 0
    key: int | None = None
    times: list[int] = []
    with open_file(index.path) as container:
        stream = video_stream(container, index.path)
        names = container.format.name.split(",")
        h264, extradata = stream.codec_context.codec.canonical_name == "h264", stream.codec_context.extradata
        try:
            for packet in container.demux(stream):
                if not packet.size:
                    continue
                count += 1
                discarded += packet.is_discard
                if packet.pts is not None:
                    times.append(packet.pts)
                if packet.is_keyframe:
                    key = packet.pts
                    unclean += h264 and not starts_clean(bytes(memoryview(packet)[:HEADER_BYTES]), extradata)
                elif key is not None and packet.pts is not None:
                    leading += packet.pts < key
        except (av.error.FFmpegError, OSError):  # cut off: the index knows which frames are left
            pass
    reordered = any(later < earlier for earlier, later in pairwise(times))
    hidden = count - discarded - len(index)
    return Hazards(names[0], not _WITH_TABLE.isdisjoint(names), discarded, hidden, leading, reordered, unclean)


def refuse_common(backend: str, index: FrameIndex, found: Hazards) -> None:
    """VideoError for what both torchcodec and decord get wrong."""
    if index.by_count:
        raise refusal(backend, index, "the file has no usable times, frames are found by counting only")
    if not found.seekable:
        raise refusal(backend, index, f"{found.container} has no table of key frames, its seeks miss them")
    if found.discarded:
        raise refusal(backend, index, f"an edit list leaves out {found.discarded} pictures, which it counts or shows")
    if found.hidden:
        raise refusal(backend, index, f"{found.hidden} packets show no frame or are damaged, but it counts them")
    if found.unclean:
        raise refusal(
            backend, index, f"{found.unclean} key frames are the start of an intra refresh, not whole pictures"
        )
    if found.container == "avi" and found.reordered:
        raise refusal(backend, index, "AVI stores no presentation times, which its B-frames would need")


def refusal(backend: str, index: FrameIndex, reason: str) -> VideoError:
    """The error that refuses a backend for a file."""
    text = f'{index.path}: backend "{backend}" would return wrong frames: {reason}; use backend="pyav"'
    return VideoError(text)


def failure(backend: str, index: FrameIndex, error: Exception) -> VideoError:
    """The error of a backend that cannot read a file at all; some put the file's bytes into their message."""
    text = " ".join(str(error).split())[:200]
    return VideoError(f'{index.path}: backend "{backend}" cannot read it ({text}); use backend="pyav"')


def file_url(path: str) -> str:
    """A name of the file in which FFmpeg sees no other protocol (`pipe:0`), whatever its own name is."""
    return os.path.abspath(path)


def chunks(index: FrameIndex, indices: list[int]) -> Iterator[list[int]]:
    """`indices` in pieces whose frames fill a bounded memory."""
    step = max(1, _CHUNK_BYTES // max(1, index.width * index.height * 3))
    for start in range(0, len(indices), step):
        yield indices[start : start + step]
