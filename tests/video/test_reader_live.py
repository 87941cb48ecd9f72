"""Streams without an index: files, pipes, files that grow, streams that break off."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest
import torch

from tests.video.clips import texture, write_clip
from video.reader import VideoError, VideoReader, open_live

posix = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("live") / "clip.ts"
    return write_clip(path, [texture(i, 96, 128) for i in range(60)])


def test_a_file_as_a_stream(clip: Path) -> None:
    with VideoReader(clip) as reader, open_live(clip) as live:
        frames = list(live)
        assert [frame.index for frame in frames] == list(range(60)) and live.n_frames == 60 and live.n_damaged == 0
        assert [frame.time for frame in frames] == pytest.approx(reader.timestamps.tolist())
        assert torch.equal(torch.stack([frame.rgb() for frame in frames]), reader[:])
        assert [frame.index for frame in frames if frame.is_keyframe] == reader.keyframes
        assert [frame.packet_size for frame in frames] == reader.packets.size.tolist()


def test_motion_vectors(clip: Path) -> None:
    with open_live(clip, motion_vectors=True) as live:
        assert sum(frame.motion_vectors is not None for frame in live) > 30


def test_begun_in_the_middle(clip: Path, tmp_path: Path) -> None:
    """Nothing is shown before the first key frame, and frames after it are right."""
    data = clip.read_bytes()
    path = tmp_path / "tail.ts"
    path.write_bytes(data[len(data) // 3 // 188 * 188 :])
    with VideoReader(clip) as reader, open_live(path) as live:
        frames = list(live)
        whole = reader[:]
        assert 20 < len(frames) < 60 and frames[0].is_keyframe
        start = 60 - len(frames)
        assert start in reader.keyframes
        assert all(torch.equal(frame.rgb(), whole[start + i]) for i, frame in enumerate(frames))


def test_a_file_that_grows(clip: Path, tmp_path: Path) -> None:
    path, data = tmp_path / "growing.ts", clip.read_bytes()
    path.write_bytes(data[: len(data) // 3])

    def write() -> None:
        with open(path, "ab") as file:
            for at in range(len(data) // 3, len(data), 20000):
                time.sleep(0.03)
                file.write(data[at : at + 20000])
                file.flush()

    writer = threading.Thread(target=write)
    writer.start()
    with open_live(path, follow=True, timeout=1.5) as live:
        assert sum(1 for _ in live) == 60
    writer.join()


@posix
def test_a_pipe(clip: Path, tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    writer = threading.Thread(target=lambda: path.write_bytes(clip.read_bytes()))
    writer.start()
    with open_live(path) as live:
        assert sum(1 for _ in live) == 60
    writer.join()


@posix
def test_a_pipe_that_falls_silent(clip: Path, tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    held = os.open(path, os.O_RDWR)  # keeps the pipe open, so that silence is not its end

    def write() -> None:
        os.write(held, clip.read_bytes()[: clip.stat().st_size // 2])

    writer = threading.Thread(target=write)
    writer.start()
    frames = []
    with open_live(path, timeout=1.0) as live, pytest.raises(VideoError, match=r"no data for 1 s after \d+ frames"):
        for frame in live:
            frames.append(frame)
    writer.join()
    os.close(held)
    assert 15 < len(frames) < 60 and frames[-1].rgb().shape == (96, 128, 3)


def test_nothing_to_open(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such camera, pipe or video file: .*absent"):
        open_live(tmp_path / "absent")
    with pytest.raises(FileNotFoundError, match="/dev/video987"):
        open_live(987)
    with pytest.raises(IsADirectoryError):
        open_live(tmp_path)
    with pytest.raises(VideoError, match="could not be opened"):
        open_live("http://127.0.0.1:9/none.ts", timeout=5)
    for wrong in (0, -1, float("nan")):
        with pytest.raises(ValueError, match="timeout must be more than 0 seconds"):
            open_live(tmp_path, timeout=wrong)


def test_closing_ends_it(clip: Path) -> None:
    live = open_live(clip)
    first = next(live)
    live.close()
    live.close()
    assert list(live) == [] and first.rgb().shape == (96, 128, 3)
