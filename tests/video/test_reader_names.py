"""The file that was named and no other, whatever FFmpeg could read into its name; recordings put end to end."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.video.clips import av, texture, write_clip
from video.reader import VideoError, VideoReader


@pytest.mark.skipif(os.name == "nt", reason="names that Windows does not allow")
@pytest.mark.parametrize("name", ["pipe:0", "http:a.mp4", "file:a.mp4", "concat:a|b.mp4", "a%03d.mp4", "-i.mp4"])
def test_names_are_only_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    write_clip(tmp_path / "plain.mp4", [texture(i, 48, 64) for i in range(5)])
    (tmp_path / "plain.mp4").rename(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    with VideoReader(name) as reader:
        assert len(reader) == 5 and reader.path == name
        reader.close()
        assert reader[3].shape == (48, 64, 3)
        reader.close()
        os.remove(name)
        with pytest.raises(FileNotFoundError) as error:
            reader[3]
        assert error.value.filename == name


def test_a_picture_is_no_pattern_for_others(tmp_path: Path) -> None:
    for name, value in (("a%02d.png", 0), ("a01.png", 200), ("a02.png", 200)):
        with av.open(str(tmp_path / "one.png"), "w", format="image2") as container:
            stream = container.add_stream("png", rate=1)
            stream.width, stream.height, stream.pix_fmt = 16, 16, "rgb24"
            frame = av.VideoFrame.from_ndarray(np.full((16, 16, 3), value, np.uint8), "rgb24")
            container.mux([*stream.encode(frame), *stream.encode()])
        (tmp_path / "one.png").rename(tmp_path / name)
    with VideoReader(tmp_path / "a%02d.png") as reader:
        assert len(reader) == 1 and int(reader[0].max()) == 0


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    with pytest.raises(VideoError, match=r"pipe.mp4: expected a video file, got a pipe.*open_live"):
        VideoReader(tmp_path / "pipe.mp4")


def test_bytes_are_no_path(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="path must be a str"):
        VideoReader(os.fsencode(tmp_path / "a.mp4"))  # type: ignore[arg-type]


@pytest.mark.parametrize("twice", [True, False])
def test_recordings_end_to_end(tmp_path: Path, twice: bool) -> None:
    """Their times begin anew: every frame of both counts, in the order in which they were sent."""
    parts = [write_clip(tmp_path / f"{i}.ts", [texture(i * 50 + j, 48, 64) for j in range(12)]) for i in range(2)]
    expected = torch.cat([VideoReader(part)[:] for part in ([parts[0]] * 2 if twice else parts)])
    whole = tmp_path / "whole.ts"
    whole.write_bytes(b"".join(part.read_bytes() for part in ([parts[0]] * 2 if twice else parts)))
    with VideoReader(whole) as reader:
        assert len(reader) == 24 and bool((reader.timestamps.diff() > 0).all())
        for i in (23, 0, 12, 11, 13, 5):
            assert torch.equal(reader[i], expected[i]), i
