"""Video files that make readers return wrong frames, written here by PyAV from frames that carry their own number.

Every frame shows its number as ten blocks, black or white, over a texture that moves, so that a decoded picture tells
which frame it is whatever the codec did to it.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

av = pytest.importorskip("av", reason="hard files are written by PyAV")

WIDTH, HEIGHT, FPS = 160, 96, 25
_BLOCK, _BITS = 16, 10
# Frames carry multiples of this, so that neighbours differ in many bits and a mixture of two reads as neither.
_SCRAMBLE = 389


@dataclass(frozen=True)
class HardFile:
    """A written file and what is in it.

    Attributes:
        numbers: the numbers that the frames show, in the order in which the file presents them; None for a file that
            was cut off: frame i shows i as far as there are frames, and the last ones may be damaged.
        rotation: degrees clockwise by which the frames are to be turned before they are shown.
        times: seconds of each frame, where the file's own clock is known.
        tolerance: largest error of a time, in seconds: half a tick of the container's clock.
    """

    path: Path
    numbers: tuple[int, ...] | None
    rotation: int = 0
    times: tuple[float, ...] | None = None
    tolerance: float = 1e-6


def picture(number: int) -> NDArray[np.uint8]:
    """Frame `number` as RGB [HEIGHT, WIDTH, 3]."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    x, y = x + 3 * number, y + 2 * number
    red = 128 + 60 * np.sin(x / 7) + 40 * np.sin(y / 11)
    green = 128 + 60 * np.cos((x + y) / 13) + 30 * np.sin(x * 2 / 9)
    blue = 128 + 70 * np.sin((x - 2 * y) / 17)
    image = np.stack([red, green, blue], axis=-1).clip(0, 255).astype(np.uint8)
    code = (number + 1) * _SCRAMBLE % 2**_BITS
    for bit in range(_BITS):
        top, left = 8 + bit // 5 * 2 * _BLOCK, 24 + bit % 5 * (_BLOCK + 8)
        image[top : top + 2 * _BLOCK, left : left + _BLOCK] = 255 * (code >> bit & 1)
    return image


def number_in(image: NDArray[np.uint8]) -> int:
    """The number that a decoded frame [HEIGHT, WIDTH, 3], not turned, shows.

    Raises:
        ValueError: a block is neither black nor white.
    """
    code = 0
    for bit in range(_BITS):
        top, left = 8 + bit // 5 * 2 * _BLOCK + 8, 24 + bit % 5 * (_BLOCK + 8) + 4
        level = float(image[top : top + _BLOCK, left : left + 8].mean())
        if 90 < level < 165:
            raise ValueError(f"bit {bit} of the frame's number must be black or white, got level {level:.0f}")
        code |= int(level > 128) << bit
    return code * pow(_SCRAMBLE, -1, 2**_BITS) % 2**_BITS - 1


# --- writing ----------------------------------------------------------------------------------------------------------


def _encode(
    path: Path,
    codec: str,
    count: int,
    *,
    pix_fmt: str = "yuv420p",
    options: dict[str, str] | None = None,
    format: str | None = None,
    format_options: dict[str, str] | None = None,
    ticks: Sequence[int] | None = None,
    time_base: Fraction = Fraction(1, FPS),
    gop: int = 30,
    b_frames: int | None = None,
    key_at: Callable[[int], bool] | None = None,
    audio: bool = False,
) -> Path:
    """Frames 0 to `count` of `picture`, frame i shown at ticks[i] (default i) of `time_base`."""
    with av.open(str(path), "w", format=format, options=format_options or {}) as out:
        sound = out.add_stream("aac", rate=16000, layout="mono") if audio else None
        stream = out.add_stream(codec, rate=FPS, options=options or {})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, pix_fmt
        stream.codec_context.time_base = time_base
        stream.codec_context.gop_size = gop
        stream.codec_context.thread_count = 1
        if b_frames is not None:
            stream.codec_context.max_b_frames = b_frames
        for i in range(count):
            frame = av.VideoFrame.from_ndarray(picture(i), format="rgb24").reformat(format=pix_fmt)
            frame.pts, frame.time_base = (i if ticks is None else ticks[i]), time_base
            if key_at is not None and key_at(i):
                frame.pict_type = av.video.frame.PictureType.I
            out.mux(stream.encode(frame))
            if sound is not None:
                out.mux(sound.encode(_silence(i)))
        out.mux(stream.encode(None))
        if sound is not None:
            out.mux(sound.encode(None))
    return path


def _silence(i: int) -> object:
    frame = av.AudioFrame.from_ndarray(np.zeros((1, 640), np.float32), format="fltp", layout="mono")
    frame.sample_rate, frame.pts, frame.time_base = 16000, 640 * i, Fraction(1, 16000)
    return frame


def _copy(source: Path, target: Path, format: str | None, options: dict[str, str], start: int, zero: int) -> Path:
    """The packets of `source` from packet `start` on, unchanged, with the clock set to 0 at tick `zero`."""
    with av.open(str(source)) as src, av.open(str(target), "w", format=format, options=options) as out:
        stream = src.streams.video[0]
        copied = out.add_stream_from_template(stream)
        for packet in list(src.demux(stream))[start:]:
            if packet.dts is None:
                continue
            packet.pts, packet.dts, packet.stream = packet.pts - zero, packet.dts - zero, copied
            out.mux(packet)
    return target


def packets(path: Path) -> list[tuple[int | None, int | None, bool, bool]]:
    """(pts, dts, is a key frame, is discarded) of each packet of the video stream, in file order."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        return [(p.pts, p.dts, p.is_keyframe, p.is_discard) for p in container.demux(stream) if p.size]


def _boxes(data: bytes | bytearray, names: Sequence[bytes]) -> int:
    """Offset of the last of nested MP4 boxes `names`, found by their types one after the other."""
    at = 0
    for name in names:
        at = data.index(name, at)
    return at


_X264 = {"preset": "veryfast", "crf": "22"}
_PLAIN = {**_X264, "x264-params": "keyint=25:min-keyint=25:scenecut=0:bframes=3:b-pyramid=normal:open-gop=0"}

_OPEN_X264 = {**_X264, "x264-params": "keyint=24:min-keyint=24:scenecut=0:bframes=3:b-adapt=0:open-gop=1"}


def _uniform(count: int, first: float = 0.0) -> tuple[float, ...]:
    return tuple(first + i / FPS for i in range(count))


def _b_frames_mp4(folder: Path) -> HardFile:
    path = _encode(folder / "b_frames.mp4", "libx264", 120, options=_PLAIN)
    return HardFile(path, tuple(range(120)), times=_uniform(120))


def _b_frames_mkv(folder: Path) -> HardFile:
    """Millisecond clock, and a sound stream before the video."""
    path = _encode(folder / "b_frames.mkv", "libx264", 120, options=_PLAIN, audio=True)
    return HardFile(path, tuple(range(120)))


def _edit_list(folder: Path, name: str = "edit_list", cut: int = 9) -> HardFile:
    """Packets copied from the second key frame on, of which the edit list leaves out the first `cut` frames."""
    source = _encode(folder / f"{name}_source.mp4", "libx264", 130, options=_PLAIN)
    table = packets(source)
    start = [i for i, packet in enumerate(table) if packet[2]][1]
    assert table[start][0] is not None
    tick = table[-1][1] - table[-2][1]  # type: ignore[operator]
    zero = table[start][0] + cut * tick  # type: ignore[operator]
    path = _copy(source, folder / f"{name}.mp4", "mp4", {"avoid_negative_ts": "disabled"}, start, zero)
    return HardFile(path, tuple(range(25 + cut, 130)), times=_uniform(105 - cut))


def _edit_list_over_key(folder: Path) -> HardFile:
    """The edit list leaves out a whole group of pictures and a part of the next one."""
    return _edit_list(folder, "edit_list_over_key", 29)


def _open_gop_h264(folder: Path) -> HardFile:
    return HardFile(_encode(folder / "open_gop_h264.mp4", "libx264", 120, options=_OPEN_X264), tuple(range(120)))


def _hevc_options(extra: str) -> dict[str, str]:
    return {
        "preset": "ultrafast",
        "x265-params": f"log-level=none:crf=22:scenecut=0:pools=none:frame-threads=1:{extra}",
    }


def _open_gop_hevc(folder: Path) -> HardFile:
    options = _hevc_options("keyint=24:min-keyint=24:bframes=4:b-adapt=0:open-gop=1")
    return HardFile(_encode(folder / "open_gop_hevc.mp4", "libx265", 120, options=options), tuple(range(120)))


def _open_gop_hevc_mkv(folder: Path) -> HardFile:
    options = _hevc_options("keyint=20:min-keyint=20:bframes=3:b-adapt=0:open-gop=1")
    return HardFile(_encode(folder / "open_gop_hevc.mkv", "libx265", 100, options=options), tuple(range(100)))


def _cut_open_gop(folder: Path, name: str, codec: str, options: dict[str, str]) -> HardFile:
    """An open GOP stream that starts at its second key frame: the pictures before it in display order have no source.

    MPEG-TS has no edit lists: nothing but the decoder tells that these pictures are not there.
    """
    source = _encode(folder / f"{name}_source.ts", codec, 120, options=options, format="mpegts")
    table = packets(source)
    start = [i for i, packet in enumerate(table) if packet[2]][1]
    path = _copy(source, folder / f"{name}.ts", "mpegts", {}, start, table[start][1] or 0)
    return HardFile(path, tuple(range(sorted(packet[0] or 0 for packet in table).index(table[start][0] or 0), 120)))


def _cut_open_gop_h264(folder: Path) -> HardFile:
    return _cut_open_gop(folder, "cut_open_gop_h264", "libx264", _OPEN_X264)


def _cut_open_gop_hevc(folder: Path) -> HardFile:
    options = _hevc_options("keyint=24:min-keyint=24:bframes=4:b-adapt=0:open-gop=1:repeat-headers=1")
    return _cut_open_gop(folder, "cut_open_gop_hevc", "libx265", options)


def _variable_rate(folder: Path) -> HardFile:
    gaps = np.random.default_rng(5).integers(300, 9000, 110)
    ticks = [0, *np.cumsum(gaps)[:-1].tolist()]
    path = _encode(
        folder / "variable_rate.mp4", "libx264", 110, options=_PLAIN, ticks=ticks, time_base=Fraction(1, 90000)
    )
    return HardFile(path, tuple(range(110)), times=tuple(tick / 90000 for tick in ticks), tolerance=1e-4)


def _variable_rate_mkv(folder: Path) -> HardFile:
    gaps = np.random.default_rng(6).integers(3, 120, 100)
    ticks = [0, *np.cumsum(gaps)[:-1].tolist()]
    path = _encode(
        folder / "variable_rate.mkv", "libx264", 100, options=_PLAIN, ticks=ticks, time_base=Fraction(1, 1000)
    )
    return HardFile(path, tuple(range(100)), times=tuple(tick / 1000 for tick in ticks), tolerance=1e-3)


def _avi_b_frames(folder: Path) -> HardFile:
    """MPEG-4 ASP with B-frames in a container that stores no presentation times."""
    path = _encode(
        folder / "b_frames.avi", "mpeg4", 130, options={"qscale": "3", "flags": "+qscale"}, gop=24, b_frames=2
    )
    return HardFile(path, tuple(range(130)))


def _transport_stream(folder: Path) -> HardFile:
    """Starts at 37 s and more, as recordings do."""
    path = _encode(
        folder / "offset.ts",
        "libx264",
        110,
        options=_PLAIN,
        format="mpegts",
        audio=True,
        format_options={"output_ts_offset": "37.5"},
    )
    return HardFile(path, tuple(range(110)))


def _transport_mpeg2(folder: Path) -> HardFile:
    path = _encode(
        folder / "mpeg2.ts", "mpeg2video", 100, format="mpegts", options={"b": "1500000"}, gop=15, b_frames=2
    )
    return HardFile(path, tuple(range(100)))


def _fragmented(folder: Path) -> HardFile:
    flags = {"movflags": "frag_keyframe+empty_moov+default_base_moof"}
    path = _encode(folder / "fragmented.mp4", "libx264", 110, options=_PLAIN, format_options=flags)
    return HardFile(path, tuple(range(110)))


def _av1(folder: Path) -> HardFile:
    options = {"preset": "10", "crf": "12", "b": "0", "svtav1-params": "lp=1"}
    path = _encode(folder / "av1.mp4", "libsvtav1", 90, options=options, gop=32)
    return HardFile(path, tuple(range(90)), times=_uniform(90), tolerance=1e-3)


def _vp9(folder: Path) -> HardFile:
    """Alternate reference frames travel within the packet of a frame that is shown."""
    options = {"deadline": "good", "cpu-used": "5", "crf": "25", "b": "0", "auto-alt-ref": "1", "lag-in-frames": "16"}
    path = _encode(folder / "vp9.webm", "libvpx-vp9", 90, options=options, gop=40)
    return HardFile(path, tuple(range(90)), times=_uniform(90), tolerance=1e-3)


def _vp8(folder: Path) -> HardFile:
    """Packets that show nothing, as those of alternate reference frames: here frames 17 and 63 are made so."""
    options = {"deadline": "realtime", "cpu-used": "8", "crf": "10", "b": "900k"}
    source = _encode(folder / "vp8_source.webm", "libvpx", 100, options=options, gop=40)
    path = folder / "vp8.webm"
    with av.open(str(source)) as src, av.open(str(path), "w") as out:
        copied = out.add_stream_from_template(src.streams.video[0])
        for i, packet in enumerate(p for p in src.demux(src.streams.video[0]) if p.size):
            data = bytearray(bytes(packet))
            if i in (17, 63):
                data[0] &= ~0x10  # show_frame, RFC 6386 section 9.1
            changed = av.Packet(bytes(data))
            changed.pts, changed.dts, changed.time_base = packet.pts, packet.dts, packet.time_base
            changed.is_keyframe, changed.stream = packet.is_keyframe, copied
            out.mux(changed)
    numbers = [i for i in range(100) if i not in (17, 63)]
    return HardFile(path, tuple(numbers), times=tuple(i / FPS for i in numbers), tolerance=1e-3)


def _one_key_frame(folder: Path) -> HardFile:
    options = {**_X264, "x264-params": "keyint=infinite:scenecut=0:bframes=2"}
    return HardFile(_encode(folder / "one_key_frame.mp4", "libx264", 150, options=options), tuple(range(150)))


def _intra_refresh(folder: Path) -> HardFile:
    """A moving column of intra blocks in place of key frames: seek points that need frames before they are whole."""
    options = {**_X264, "x264-params": "keyint=24:intra-refresh=1:bframes=0"}
    return HardFile(_encode(folder / "intra_refresh.mp4", "libx264", 110, options=options), tuple(range(110)))


def _ten_bit_hevc(folder: Path) -> HardFile:
    options = _hevc_options("keyint=24:min-keyint=24:bframes=2:open-gop=0")
    return HardFile(
        _encode(folder / "ten_bit_hevc.mp4", "libx265", 90, pix_fmt="yuv420p10le", options=options), tuple(range(90))
    )


def _ten_bit_h264(folder: Path) -> HardFile:
    path = _encode(folder / "ten_bit_h264.mkv", "libx264", 90, pix_fmt="yuv422p10le", options=_PLAIN)
    return HardFile(path, tuple(range(90)))


def _rotated(folder: Path, degrees: int) -> HardFile:
    path = _encode(folder / f"rotated_{degrees}.mp4", "libx264", 90, options=_PLAIN)
    data = bytearray(path.read_bytes())
    at = _boxes(data, (b"moov", b"trak", b"tkhd")) + 4 + 40
    one = 1 << 16
    turn = {90: (0, one, -one, 0), 180: (-one, 0, 0, -one), 270: (0, -one, one, 0)}[degrees]
    data[at : at + 36] = struct.pack(">9i", turn[0], turn[1], 0, turn[2], turn[3], 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    return HardFile(path, tuple(range(90)), rotation=degrees)


def _over_reported(folder: Path) -> HardFile:
    """An AVI whose headers promise 40 frames more than there are."""
    path = _encode(folder / "over_reported.avi", "mpeg4", 100, options={"qscale": "3", "flags": "+qscale"}, gop=20)
    data = bytearray(path.read_bytes())
    main, stream = data.index(b"avih") + 8 + 16, data.index(b"strh") + 8 + 32
    for at in (main, stream):
        if struct.unpack_from("<I", data, at)[0] != 100:
            raise ValueError(f"the AVI header must count 100 frames, got {struct.unpack_from('<I', data, at)[0]}")
        struct.pack_into("<I", data, at, 140)
    path.write_bytes(data)
    return HardFile(path, tuple(range(100)))


def _dropped(folder: Path) -> HardFile:
    """An AVI with empty packets, as capture programs write for frames that they dropped: they show nothing new."""
    source = _encode(folder / "dropped_source.avi", "mpeg4", 100, options={"qscale": "3", "flags": "+qscale"}, gop=20)
    path = folder / "dropped.avi"
    with av.open(str(source)) as src, av.open(str(path), "w") as out:
        stream = src.streams.video[0]
        copied = out.add_stream_from_template(stream)
        gap = 0
        for packet in src.demux(stream):
            if packet.dts is None:
                continue
            # The muxer fills a gap of the clock with empty packets.
            gap += packet.dts in (31, 57, 58)
            packet.dts, packet.pts, packet.stream = packet.dts + gap, None, copied
            out.mux(packet)
    return HardFile(path, tuple(range(100)))


def _truncated(folder: Path) -> HardFile:
    """The index of the whole file in front, and the last third of the pictures gone."""
    source = _encode(folder / "truncated.mp4", "libx264", 120, options=_PLAIN, format_options={"movflags": "faststart"})
    size = source.stat().st_size
    with source.open("r+b") as file:
        file.truncate(size * 2 // 3)
    return HardFile(source, None)


def _truncated_ts(folder: Path) -> HardFile:
    source = _encode(folder / "truncated.ts", "libx264", 100, options=_PLAIN, format="mpegts")
    with source.open("r+b") as file:
        file.truncate(source.stat().st_size * 3 // 5)
    return HardFile(source, None)


def _mjpeg(folder: Path) -> HardFile:
    path = _encode(folder / "mjpeg.avi", "mjpeg", 90, pix_fmt="yuvj420p", options={"qscale": "3", "flags": "+qscale"})
    return HardFile(path, tuple(range(90)))


def _ffv1(folder: Path) -> HardFile:
    return HardFile(
        _encode(folder / "ffv1.mkv", "ffv1", 90, gop=12), tuple(range(90)), times=_uniform(90), tolerance=1e-3
    )


def _elementary(folder: Path) -> HardFile:
    """H.264 without a container: no clock at all."""
    return HardFile(
        _encode(folder / "elementary.h264", "libx264", 100, options=_PLAIN, format="h264"), tuple(range(100))
    )


WRITERS: dict[str, Callable[[Path], HardFile]] = {
    function.__name__.removeprefix("_"): function
    for function in (
        _b_frames_mp4, _b_frames_mkv, _edit_list, _edit_list_over_key, _open_gop_h264, _open_gop_hevc,
        _open_gop_hevc_mkv, _cut_open_gop_h264, _cut_open_gop_hevc, _variable_rate, _variable_rate_mkv,
        _avi_b_frames, _transport_stream, _transport_mpeg2, _fragmented, _av1, _vp9, _vp8, _one_key_frame,
        _intra_refresh, _ten_bit_hevc, _ten_bit_h264, _over_reported, _dropped, _truncated, _truncated_ts, _mjpeg,
        _ffv1, _elementary,
    )
}  # fmt: skip
WRITERS |= {f"rotated_{d}": lambda folder, d=d: _rotated(folder, d) for d in (90, 180, 270)}  # type: ignore[misc]


# --- the oracle -------------------------------------------------------------------------------------------------------


def sequential(path: Path) -> Iterator[tuple[float | None, NDArray[np.uint8]]]:
    """(seconds, RGB [H, W, 3]) of each frame, decoded from the first to the last by plain PyAV, not turned."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_type, stream.codec_context.thread_count = "NONE", 1
        for packet in container.demux(stream):
            try:
                decoded = packet.decode()
            except av.error.InvalidDataError:
                continue  # as a player does with a damaged packet
            for frame in decoded:
                yield frame.time, frame.to_ndarray(format="rgb24")
