"""Files that are no videos, damaged ones, and streams that change: clear errors, and nothing that was good is lost."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.video.clips import av, texture, write_clip
from video.reader import VideoError, VideoReader


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bad") / "clip.mp4"
    return write_clip(path, [texture(i, 96, 128) for i in range(30)], b_frames=0)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such video file: .*absent.mp4"):
        VideoReader(tmp_path / "absent.mp4")
    with pytest.raises(IsADirectoryError, match="expected a video file, got a directory"):
        VideoReader(tmp_path)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_no_permission(clip: Path, tmp_path: Path) -> None:
    path = tmp_path / "locked.mp4"
    path.write_bytes(clip.read_bytes())
    path.chmod(0)
    with pytest.raises(PermissionError, match="locked.mp4"):
        VideoReader(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "got an empty file"),
        (b"not a video at all " * 500, "FFmpeg cannot read"),
        (b"\0" * 4096, "locked|read|open"),
    ],
    ids=["empty", "text", "zeros"],
)
def test_not_a_video(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "strange.mp4"
    path.write_bytes(content)
    with pytest.raises(VideoError, match=message) as caught:
        VideoReader(path)
    assert "strange.mp4" in str(caught.value) and isinstance(caught.value, ValueError)


def test_only_sound(tmp_path: Path) -> None:
    path = tmp_path / "sound.wav"
    with av.open(str(path), "w") as out:
        stream = out.add_stream("pcm_s16le", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        frame.sample_rate = 8000
        out.mux(stream.encode(frame))
    with pytest.raises(VideoError, match=r"sound.wav: expected a file with a video stream, got streams of type: audio"):
        VideoReader(path)


def test_no_frames(tmp_path: Path) -> None:
    path = tmp_path / "none.avi"
    with av.open(str(path), "w") as out:
        stream = out.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        out.start_encoding()
    with VideoReader(path) as reader:
        assert len(reader) == 0 and list(reader) == [] and reader.keyframes == [] and list(reader.frames()) == []
        assert reader.fps == 0 and reader.duration == 0 and reader.timestamps.shape == (0,)
        assert reader.get_batch([]).shape[0] == 0 and reader[:].shape[0] == 0
        with pytest.raises(IndexError, match="0 frames"):
            reader[0]
        with pytest.raises(ValueError, match="has no frames"):
            reader.index_at(0)


def test_one_frame(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "one.mp4", [texture(0)])
    with VideoReader(path) as reader:
        assert len(reader) == 1 and reader.fps == 0 and reader.index_at(0) == 0 and reader.keyframes == [0]
        assert torch.equal(reader[0], reader[-1]) and reader.timestamps.tolist() == [0]


@pytest.mark.parametrize("share", [0.95, 0.6, 0.3])
@pytest.mark.parametrize("suffix", [".mkv", ".ts", ".avi"])
def test_cut_off(tmp_path: Path, share: float, suffix: str) -> None:
    """What is left decodes, every frame of it; nothing else is counted."""
    codec = "mpeg4" if suffix == ".avi" else "libx264"
    path = write_clip(tmp_path / f"whole{suffix}", [texture(i, 96, 128) for i in range(40)], codec=codec)
    with VideoReader(path) as reader:
        whole = reader[:]
    short = tmp_path / f"short{suffix}"
    short.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with VideoReader(short) as reader:
        assert 0 < len(reader) < 40
        got = reader[:]
        for i in range(len(reader) - 3):  # the decoder makes up what the last packets lack
            assert torch.equal(got[i], whole[i]), i
        assert torch.equal(reader[len(reader) // 2], got[len(reader) // 2])


def test_damage_in_the_middle(clip: Path, tmp_path: Path) -> None:
    """Packets whose bytes are gone: frames before and far behind them stay right, the error names the frame."""
    with VideoReader(clip) as reader:
        whole = reader[:]
    data = bytearray(clip.read_bytes())
    with av.open(str(clip)) as container:
        spans = [(p.pos, p.size) for p in container.demux(video=0) if p.size]
    for at, size in spans[14:16]:
        data[at : at + size] = b"\xff" * size
    path = tmp_path / "damaged.mp4"
    path.write_bytes(data)
    with VideoReader(path) as reader:
        good = [*range(14), *range(20, 30)]
        assert torch.equal(reader.get_batch(good), whole[good])
        with pytest.raises(VideoError, match=r"damaged.mp4: frame 14 of 30 at 0\.560 s does not decode"):
            reader[14]
        frames = reader.frames()
        assert torch.equal(torch.stack([next(frames).rgb() for _ in range(14)]), whole[:14])
        with pytest.raises(VideoError, match="frame 14"):
            next(frames)
        assert torch.equal(reader[25], whole[25])  # goes on after the error


def test_size_that_changes(tmp_path: Path) -> None:
    small = write_clip(tmp_path / "small.h264", [texture(i) for i in range(5)], format="h264", b_frames=0)
    large = write_clip(tmp_path / "large.h264", [texture(i, 96, 128) for i in range(5)], format="h264", b_frames=0)
    path = tmp_path / "both.h264"
    path.write_bytes(small.read_bytes() + large.read_bytes())
    with VideoReader(path) as reader:
        assert len(reader) == 10
        assert [tuple(frame.luma.shape) for frame in reader.frames()] == [(48, 64)] * 5 + [(96, 128)] * 5
        assert reader[2].shape == (48, 64, 3) and reader[7].shape == (96, 128, 3)
        with pytest.raises(VideoError, match="frame 5 is 96x128, frame 4 48x64: ask for size=\\(height, width\\)"):
            reader.get_batch([5, 4])
        assert reader.get_batch([5, 4], size=(24, 32)).shape == (2, 24, 32, 3)
