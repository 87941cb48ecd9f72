"""torchcodec and decord behind `VideoReader`: the right frame or a refusal, on every hard file."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.video.hard_files import WRITERS, HardFile, number_in, sequential
from video.reader import VideoError, VideoReader

HardFiles = Callable[[str], HardFile]
BACKENDS = ["torchcodec", "decord"]
# Files that a backend has to be refused for, with a word of the reason; all others must be read.
_BOTH = {
    "edit_list": "edit list", "edit_list_over_key": "edit list", "cut_open_gop_h264": "no table",
    "cut_open_gop_hevc": "no table", "transport_stream": "no table", "transport_mpeg2": "no table",
    "truncated_ts": "no table", "avi_b_frames": "AVI", "vp8": "show no frame", "intra_refresh": "intra refresh",
    "elementary": "counting", "truncated": "damaged",
}  # fmt: skip
REFUSED = {
    "torchcodec": _BOTH,
    "decord": _BOTH
    | {
        "open_gop_h264": "open groups",
        "open_gop_hevc": "open groups",
        "open_gop_hevc_mkv": "open groups",
        "av1": "cannot",
    },
}


def _open(path: Path, backend: str) -> VideoReader:
    try:
        return VideoReader(path, backend=backend)
    except ImportError as missing:
        pytest.skip(str(missing))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", WRITERS)
def test_right_frame_or_refusal(name: str, backend: str, hard_file: HardFiles) -> None:
    file = hard_file(name)
    if name in REFUSED[backend]:
        with pytest.raises(ValueError, match=REFUSED[backend][name]) as refused:
            _open(file.path, backend)
        text = str(refused.value)
        assert str(file.path) in text and f'"{backend}"' in text and 'use backend="pyav"' in text
        return
    right = np.stack([image for _, image in sequential(file.path)])
    right = np.rot90(right, -file.rotation // 90, axes=(1, 2))
    assert file.numbers is not None
    with _open(file.path, backend) as reader:
        picks = np.random.default_rng(7).integers(0, len(right), 60).tolist()
        read = list(zip(picks, reader.get_batch(picks).numpy()))
        read += [(i, reader[i].numpy()) for i in picks[:4]]
        wrong = [i for i, image in read if number_in(np.rot90(image, file.rotation // 90)) != file.numbers[i]]
        assert wrong == []
        assert max(np.abs(image.astype(np.int16) - right[i]).mean() for i, image in read) < 4


@pytest.mark.parametrize("backend", BACKENDS)
def test_iteration_and_sizes(backend: str, hard_file: HardFiles) -> None:
    with _open(hard_file("rotated_90").path, backend) as reader, VideoReader(reader.path) as ours:
        frames = list(reader)
        assert len(frames) == len(ours) == 90
        assert frames[0].shape == ours[0].shape == (160, 96, 3)
        assert reader.get_batch([3, 1], size=(40, 24)).shape == (2, 40, 24, 3)
        assert reader.get_batch([]).shape == (0, 160, 96, 3)


@pytest.mark.parametrize("backend", BACKENDS)
def test_long_reads_are_cut_into_pieces(backend: str, hard_file: HardFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("video.reader.backend_checks._CHUNK_BYTES", 7 * 96 * 160 * 3)
    with _open(hard_file("b_frames_mp4").path, backend) as reader:
        assert [number_in(image.numpy()) for image in reader.get_batch(range(5, 60))] == list(range(5, 60))


def test_a_frame_with_another_time_is_refused(hard_file: HardFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    """What torchcodec gives for an edit list, had the look at the packets not refused the file before."""
    monkeypatch.setattr("video.reader.torchcodec_backend.refuse_common", lambda *_: None)
    with _open(hard_file("edit_list").path, "torchcodec") as reader:
        with pytest.raises(VideoError, match=r"frame \d+ is at .* s, it gave the one at"):
            for i in range(0, 80, 3):
                assert number_in(reader[i].numpy()) == 34 + i


def test_decord_with_other_times_is_refused(hard_file: HardFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("video.reader.decord_backend.refuse_common", lambda *_: None)
    with pytest.raises(VideoError, match="105 frames where there are 96"):
        _open(hard_file("edit_list").path, "decord")
    with _open(hard_file("b_frames_mp4").path, "decord") as reader:
        pts = reader.index.pts.copy()
        pts[7] += 3
        index = replace(reader.index, pts=pts)
    from video.reader.decord_backend import open_backend

    with pytest.raises(VideoError, match="it puts frame 7 at"):
        open_backend(index, 1)


def test_nothing_is_imported_before_it_is_used() -> None:
    code = "import sys, video.reader; print(sorted({'av', 'decord', 'torchcodec', 'cv2'} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True)
    assert run.stdout.strip() == "[]"


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_missing_backend_says_what_to_install(
    backend: str, hard_file: HardFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, backend, None)
    monkeypatch.setitem(sys.modules, f"{backend}.decoders", None)
    with pytest.raises(ImportError, match=f"pip install {backend}"):
        VideoReader(hard_file("b_frames_mp4").path, backend=backend)
