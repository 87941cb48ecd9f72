"""Which videos and cameras are read, and what is said of places that cannot be."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from trisparse.videos.sources import Source, plan


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "inner").mkdir()
    for name in ("b.mp4", "a.MKV", "inner/c.webm", "notes.txt"):
        (tmp_path / name).touch()
    return tmp_path


def test_a_folder_stands_for_its_videos(folder: Path) -> None:
    found = plan([str(folder)])
    assert [source.name for source in found] == ["a.MKV", "b.mp4", "c.webm"]
    assert found == [Source(str(folder / name), False) for name in ("a.MKV", "b.mp4", "inner/c.webm")]
    assert found[1].path == folder / "b.mp4"


@pytest.mark.parametrize("place", ["-", "rtsp://somewhere/stream", os.devnull])
def test_cameras(place: str, folder: Path) -> None:
    (source,) = plan([place])
    assert source.is_camera and source.place == place
    with pytest.raises(ValueError, match="has no end of its own: give it alone, got 4 sources"):
        plan([str(folder), place])


def test_whether_it_is_a_camera_is_found_out_once(folder: Path) -> None:
    (source,) = plan([str(folder / "b.mp4")])
    (folder / "b.mp4").unlink()
    os.mkfifo(folder / "b.mp4")
    assert not source.is_camera and Source.of(source.place).is_camera


def test_places_that_cannot_be(folder: Path) -> None:
    empty = folder / "empty"
    empty.mkdir()
    for places, error, words in (
        ([empty], ValueError, "no videos in this folder; expected files with a suffix of .mp4"),
        ([folder / "none.mp4"], FileNotFoundError, "none.mp4: no such video"),
        ([folder, folder / "b.mp4"], ValueError, "b.mp4 was named twice"),
    ):
        with pytest.raises(error, match=words):
            plan([str(place) for place in places])
