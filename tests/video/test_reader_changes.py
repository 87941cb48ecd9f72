"""A file that another one takes the place of, damage on every path to a frame, sizes beyond what can be scaled."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from tests.video.clips import texture, write_clip
from video.reader import VideoError, VideoReader, open_live


@pytest.mark.parametrize("backend", ["pyav", "torchcodec", "decord"])
def test_a_file_that_another_replaced(tmp_path: Path, backend: str, open_with: Callable[..., VideoReader]) -> None:
    """The same frames' times and another content: an old index would not notice."""
    path = write_clip(tmp_path / "a.mp4", [texture(i) for i in range(12)])
    reader = open_with(path, backend)
    first, pickled = reader[3], pickle.dumps(reader)
    reader.close()
    assert torch.equal(reader[3], first)
    reader.close()
    write_clip(path, [texture(i + 90) for i in range(12)])
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))
    with pytest.raises(VideoError, match=r"a.mp4: the file changed since it was indexed"):
        reader[3]
    with pytest.raises(VideoError, match="the file changed"):
        pickle.loads(pickled)[3]
    assert not torch.equal(VideoReader(path, backend)[3], first)


@pytest.mark.parametrize("backend", ["torchcodec", "decord"])
@pytest.mark.parametrize("name", ["pipe:0", "http:a.mp4", "concat:a|b.mp4"])
@pytest.mark.skipif(os.name == "nt", reason="names that Windows does not allow")
def test_names_are_only_names_to_other_backends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: str, name: str, open_with: Callable[..., VideoReader]
) -> None:
    write_clip(tmp_path / "plain.mp4", [texture(i) for i in range(5)]).rename(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    assert open_with(name, backend)[:].shape == (5, 48, 64, 3)


def test_a_cut_tail_is_the_same_on_every_path(tmp_path: Path) -> None:
    """What a cut picture lacks is made up from the pictures before it: none of them may be missing."""
    images = [texture(5 * i, 120, 160) for i in range(30)]
    whole = write_clip(tmp_path / "whole.ts", images, gop=100).read_bytes()
    path, n_differing = tmp_path / "cut.ts", 0
    for share in range(55, 95, 2):
        path.write_bytes(whole[: len(whole) * share // 100])
        with VideoReader(path) as reader:
            expected = [frame.rgb() for frame in reader.frames()]
            count = len(expected)
            assert count == len(reader)
            for order in _orders(count):
                for i in order:
                    n_differing += not torch.equal(reader[i], expected[i])
    assert n_differing == 0


def _orders(count: int) -> Sequence[list[int]]:
    return [list(range(count - 1, count - 4, -1)), [2, count - 2], [count - 3, count - 1]]


@pytest.mark.parametrize("size", [100000, (1, 70000), (12000, 12000)])
def test_sizes_beyond_the_limit(tmp_path: Path, size: int | tuple[int, int]) -> None:
    with VideoReader(write_clip(tmp_path / "a.mp4", [texture(0)])) as reader:
        with pytest.raises(
            ValueError, match=r"size must give sides of at most 65536 and at most 134217728 pixels, got"
        ):
            reader.get_batch([0], size=size)
        with pytest.raises(ValueError, match="size must give sides"):
            next(reader.frames()).rgb(size)
        assert reader.get_batch([0], size=(2, 65536)).shape == (1, 2, 65536, 3)


def test_times_of_joined_streams_never_decrease(tmp_path: Path) -> None:
    part = write_clip(tmp_path / "part.ts", [texture(i) for i in range(12)]).read_bytes()
    (tmp_path / "joined.ts").write_bytes(part * 3)
    with open_live(tmp_path / "joined.ts") as live:
        times = [frame.time for frame in live]
    assert len(times) == 36
    steps = [b - a for a, b in pairwise(times)]
    assert steps == pytest.approx([0.04] * 35, abs=1e-3)
