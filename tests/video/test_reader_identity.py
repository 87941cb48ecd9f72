"""Frame i is frame i: random access against decoding in order, on files that make readers return wrong frames."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tests.video.hard_files import HEIGHT, WIDTH, WRITERS, HardFile, number_in, sequential
from video.reader import VideoReader

HardFiles = Callable[[str], HardFile]
Images = NDArray[np.uint8]  # [T, H, W, 3]
PICKS = 60


@pytest.fixture(scope="module")
def in_order(hard_file: HardFiles) -> Callable[[str], tuple[list[float | None], Images]]:
    """``in_order(name)``: times and RGB of all frames, decoded in order by plain PyAV and turned as the file asks."""
    known: dict[str, tuple[list[float | None], Images]] = {}

    def get(name: str) -> tuple[list[float | None], Images]:
        if name not in known:
            file = hard_file(name)
            times, images = zip(*sequential(file.path))
            known[name] = list(times), np.rot90(np.stack(images), -file.rotation // 90, axes=(1, 2))
        return known[name]

    return get


def _picks(count: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(0, count, PICKS).tolist()


def _wrong(read: dict[int, Images] | list[tuple[int, Images]], right: Images, file: HardFile) -> list[int]:
    """Those of (frame number, image read) that show another frame's number, or differ from that frame's picture."""
    wrong = []
    for i, image in read.items() if isinstance(read, dict) else read:
        if image.shape != right[i].shape:
            wrong.append(i)
        elif file.numbers is None and i >= len(right) - 2:
            continue  # what the cut damaged is made up by the decoder
        elif np.abs(image.astype(np.int16) - right[i]).mean() > 2:
            wrong.append(i)
        else:
            number = number_in(np.rot90(image, file.rotation // 90))
            wrong += [i] * (number != (i if file.numbers is None else file.numbers[i]))
    return wrong


@pytest.mark.parametrize("name", WRITERS)
def test_frames_by_number(name: str, hard_file: HardFiles, in_order: Callable) -> None:
    file, (times, right) = hard_file(name), in_order(name)
    with VideoReader(file.path) as reader:
        assert len(reader) == len(right)
        assert (reader.rotation, reader.height, reader.width) == (file.rotation, *right.shape[1:3])
        if None not in times:
            assert reader.timestamps.tolist() == pytest.approx([t - times[0] for t in times], abs=1e-6)
        picks = _picks(len(right))
        assert _wrong([(i, reader[i].numpy()) for i in picks], right, file) == []


@pytest.mark.parametrize("name", WRITERS)
def test_batches_in_any_order(name: str, hard_file: HardFiles, in_order: Callable) -> None:
    file, (_, right) = hard_file(name), in_order(name)
    with VideoReader(file.path) as reader:
        picks = _picks(len(right), 1)
        for chunk in (picks, picks[:10], sorted(picks)):
            assert _wrong(list(zip(chunk, reader.get_batch(chunk).numpy())), right, file) == []
        steps = range(3, len(right), 7)
        assert _wrong(list(zip(steps, reader[3::7].numpy())), right, file) == []


@pytest.mark.parametrize("name", WRITERS)
def test_frames_in_order_after_a_seek(name: str, hard_file: HardFiles, in_order: Callable) -> None:
    file, (_, right) = hard_file(name), in_order(name)
    with VideoReader(file.path) as reader:
        assert len(list(reader)) == len(right)
        start = len(right) // 2
        frames = [(frame.index, frame.rgb().numpy()) for frame in reader.frames(start)]
        assert [i for i, _ in frames] == list(range(start, len(right)))
        assert _wrong(frames, right, file) == []
        shuffled = _picks(len(right), 2)[:20]
        frames = [(frame.index, frame.rgb().numpy()) for frame in reader.decode(shuffled)]
        assert [i for i, _ in frames] == shuffled
        assert _wrong(frames, right, file) == []


@pytest.mark.parametrize("name", [name for name in WRITERS if "truncated" not in name])
def test_key_frames_only(name: str, hard_file: HardFiles, in_order: Callable) -> None:
    file, (_, right) = hard_file(name), in_order(name)
    with VideoReader(file.path) as reader:
        frames = [(frame.index, frame.rgb().numpy()) for frame in reader.frames(skip="nonkey")]
        assert [i for i, _ in frames] == reader.keyframes
        assert _wrong(frames, right, file) == []
        half = len(right) // 2
        assert [f.index for f in reader.frames(half, skip="nonkey")] == [i for i in reader.keyframes if i >= half]
        assert _wrong([(f.index, f.rgb().numpy()) for f in reader.frames(7, skip="nonref")], right, file) == []


@pytest.mark.parametrize("name", WRITERS)
def test_ffmpeg_shows_the_same_frames(name: str, hard_file: HardFiles, tmp_path: Path) -> None:
    if shutil.which("ffmpeg") is None:
        pytest.skip("no ffmpeg command")
    file = hard_file(name)
    command = ["ffmpeg", "-v", "quiet", "-threads", "1", "-i", str(file.path), "-map", "0:v:0", "-vsync", "passthrough"]
    raw = subprocess.run([*command, "-f", "rawvideo", "-pix_fmt", "rgb24", "-"], stdout=subprocess.PIPE, check=False)
    height, width = (WIDTH, HEIGHT) if file.rotation in (90, 270) else (HEIGHT, WIDTH)
    right = np.frombuffer(raw.stdout, np.uint8).reshape(-1, height, width, 3)
    with VideoReader(file.path) as reader:
        assert len(reader) == len(right)
        picks = _picks(len(right), 3)
        assert _wrong(list(zip(picks, reader.get_batch(picks).numpy())), right, file) == []


def _lumas(path: Path) -> list[torch.Tensor]:
    """Every frame's luma [H, W], decoded in order by plain PyAV."""
    import av

    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_type = "NONE"
        planes = []
        for frame in container.decode(stream):
            plane = frame.planes[0]
            rows = torch.frombuffer(bytearray(bytes(plane)), dtype=torch.uint8).view(-1, plane.line_size)
            planes.append(rows[: frame.height, : frame.width].clone())
        return planes


def _check_luma(path: Path, picks: int) -> None:
    right = _lumas(path)
    with VideoReader(path) as reader:
        assert len(reader) == len(right)
        chosen = np.random.default_rng(4).integers(0, len(right), picks).tolist()
        assert [frame.index for frame in reader.decode(chosen) if not torch.equal(frame.luma, right[frame.index])] == []


@pytest.mark.parametrize("name", ["bikes", "carphone_pristine", "carphone_distorted", "bigbuckbunny"])
def test_real_clips_to_the_bit(name: str, real_clips: dict[str, Path]) -> None:
    _check_luma(real_clips[name], 10 if name == "bigbuckbunny" else PICKS)


def test_action_clip_to_the_bit(data_dir: Path) -> None:
    path = data_dir / "video" / "demo.mp4"
    if not path.is_file():
        pytest.skip(f"no {path}")
    _check_luma(path, 20)
