"""What a frame gives: luma, motion vectors, RGB with the right matrix, orientation and size."""

from __future__ import annotations

import itertools
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.video.clips import av, texture, write_clip
from video.reader import VideoReader
from video.reader.picture import Converter, Orientation, luma, shown_size

SHARES = {1: (0.2126, 0.0722), 2: (0.299, 0.114), 5: (0.299, 0.114), 9: (0.2627, 0.0593)}  # of red and blue, by matrix


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("frames") / "clip.mp4"
    return write_clip(path, [texture(i) for i in range(12)])


def stored_frame(form: str, seed: int = 0, side: int = 64) -> tuple[object, list[np.ndarray]]:
    """A frame of 8x8 flat blocks in 8-bit planar YUV, and its planes at full size."""
    frame, planes = av.VideoFrame(side, side, form), []
    rng = np.random.default_rng(seed)
    for plane in frame.planes:
        blocks = rng.integers(16, 236, (8, 8)).astype(np.uint8)
        image = np.kron(blocks, np.ones((plane.height // 8, plane.width // 8), np.uint8))
        padded = np.zeros((plane.height, plane.line_size), np.uint8)
        padded[:, : plane.width] = image
        plane.update(padded.tobytes())
        planes.append(np.kron(blocks, np.ones((side // 8, side // 8), np.uint8)).astype(np.float64))
    return frame, planes


@pytest.mark.parametrize("form", ["yuv420p", "yuv444p"])
@pytest.mark.parametrize("full_range", [False, True], ids=["limited", "full"])
@pytest.mark.parametrize("matrix", SHARES)
def test_rgb_follows_the_formula(form: str, full_range: bool, matrix: int) -> None:
    frame, (y, u, v) = stored_frame(form)
    frame.colorspace, frame.color_range = matrix, 2 if full_range else 1  # type: ignore[attr-defined]
    u, v = u - 128, v - 128
    if not full_range:
        y, u, v = (y - 16) * 255 / 219, u * 255 / 224, v * 255 / 224
    red, blue = SHARES[matrix]
    r, b = y + 2 * (1 - red) * v, y + 2 * (1 - blue) * u
    g = (y - red * r - blue * b) / (1 - red - blue)
    right = np.stack([r, g, b], -1).clip(0, 255)
    got = Converter().rgb(frame, None, Orientation())
    assert np.abs(got.numpy() - right).max() <= 3.5


def test_rgb_is_what_ffmpeg_shows(clip: Path) -> None:
    if shutil.which("ffmpeg") is None:
        pytest.skip("no ffmpeg command")
    command = ["ffmpeg", "-v", "error", "-i", str(clip), "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    raw = subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout
    right = torch.frombuffer(bytearray(raw), dtype=torch.uint8).view(-1, 48, 64, 3)
    with VideoReader(clip) as reader:
        # Two versions of FFmpeg round differently.
        assert (reader[:].int() - right.int()).abs().max() <= 3


def test_rgb_is_the_same_on_every_path(clip: Path) -> None:
    with VideoReader(clip) as reader:
        for size in (None, 24, (17, 31), (96, 128)):
            batch = reader.get_batch(range(12), size)
            for frame in reader.frames():
                assert torch.equal(frame.rgb(size), batch[frame.index])
                assert frame.rgb(size) is frame.rgb(size)


def test_smaller_is_the_mean_of_the_area(clip: Path) -> None:
    with VideoReader(clip) as reader:
        whole, small = reader[:].float(), reader.get_batch(range(12), (12, 16)).float()
        means = whole.view(12, 12, 4, 16, 4, 3).mean((2, 4))
        # Averages of clipped colours are not the clipped averages; two pixels that shared one colour differ by 37.
        assert (small - means).abs().max() <= 12 and (small - means).abs().mean() < 2.2


def test_smaller_does_not_alias() -> None:
    """Stripes and checks finer than the small picture's pixels become their mean."""
    frame = av.VideoFrame(240, 240, "yuv444p")
    y, x = np.mgrid[:240, :240]
    for plane, values in zip(
        frame.planes, ((x + y) % 2 * 200 + 20, np.full((240, 240), 128), np.full((240, 240), 128))
    ):
        padded = np.zeros((240, plane.line_size), np.uint8)
        padded[:, :240] = values
        plane.update(padded.tobytes())
    frame.color_range = 2
    for size in (60, 56, 37):
        small = Converter().rgb(frame, size, Orientation())
        assert (small.float() - 120).abs().max() < 8, size


def test_sizes() -> None:
    assert shown_size(1080, 1920, None) == (1080, 1920)
    assert shown_size(1080, 1920, 256) == (256, 455) and shown_size(1920, 1080, 256) == (455, 256)
    assert shown_size(1080, 1920, (7, 9)) == (7, 9)
    for wrong in (0, -3, (0, 5)):
        with pytest.raises(ValueError, match="size must be at least 1"):
            shown_size(10, 10, wrong)
    for wrong in ("256", 2.5, (1, 2, 3), True):
        with pytest.raises(ValueError, match="size must be None, an integer"):
            shown_size(10, 10, wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("transpose, sign_x, sign_y", list(itertools.product((False, True), (1, -1), (1, -1))))
def test_every_orientation(transpose: bool, sign_x: int, sign_y: int) -> None:
    """The display matrix says where each stored pixel goes: (x, y) to (a x + c y, b x + d y), moved into view."""
    a, b, c, d = (0, sign_x, sign_y, 0) if transpose else (sign_x, 0, 0, sign_y)
    matrix = np.array([a, b, 0, c, d, 0, 0, 0, 1 << 14], np.int32)
    matrix[:5] <<= 16
    data = {av.sidedata.sidedata.Type.DISPLAYMATRIX: matrix.tobytes()}
    orientation = Orientation.of(SimpleNamespace(side_data=data))  # type: ignore[arg-type]
    height, width = 3, 5
    stored = torch.arange(height * width).view(height, width, 1).repeat(1, 1, 3)
    shown = orientation.apply(stored)
    assert shown.shape == ((width, height, 3) if transpose else (height, width, 3)) and shown.is_contiguous()
    for y, x in itertools.product(range(height), range(width)):
        to_x, to_y = a * x + c * y, b * x + d * y
        to_x += shown.shape[1] - 1 if a + c < 0 else 0
        to_y += shown.shape[0] - 1 if b + d < 0 else 0
        assert shown[to_y, to_x, 0] == stored[y, x, 0]
    if (transpose and sign_x != sign_y) or (not transpose and sign_x == sign_y):  # no mirror image
        right = {(False, 1): 0, (False, -1): 180, (True, 1): 90, (True, -1): 270}[transpose, sign_x]
        assert orientation.clockwise == right
        assert torch.equal(shown, torch.rot90(stored, -right // 90, (0, 1)))


def test_luma_is_the_decoders_own_memory(clip: Path) -> None:
    with VideoReader(clip) as reader:
        kept = []
        for frame in reader.frames():
            assert frame.luma.shape == (48, 64) and frame.luma.dtype == torch.uint8
            assert frame.luma.data_ptr() == frame._picture.planes[0].buffer_ptr
            kept.append((frame.luma, frame.luma.clone()))
        del frame
        reader[0]
        assert all(torch.equal(view, copy) for view, copy in kept)  # valid after its frame and decoder are gone


@pytest.mark.parametrize("form", ["yuv420p10le", "yuv422p12le", "gray16le"])
def test_deep_luma_is_scaled_to_eight_bits(tmp_path: Path, form: str) -> None:
    bits = {"yuv420p10le": 10, "yuv422p12le": 12, "gray16le": 16}[form]
    rng = np.random.default_rng(0)
    frame, stored = av.VideoFrame(64, 48, form), None
    for i, plane in enumerate(frame.planes):
        words = rng.integers(0, 2**bits, (plane.height, plane.line_size // 2)).astype("<u2")
        plane.update(words.tobytes())
        stored = words[:, :64] if i == 0 else stored
    path = write_clip(tmp_path / "deep.mkv", [], codec="ffv1", pix_fmt=form, raw=[frame])
    with VideoReader(path) as reader:
        (read,) = reader.frames()
        assert torch.equal(read.luma, torch.from_numpy((stored >> (bits - 8)).astype(np.uint8)))
        assert reader[0].shape == (48, 64, 3)


@pytest.mark.parametrize("form", ["yuyv422", "uyvy422", "nv12", "gray", "rgb24", "gbrp", "p010le"])
def test_luma_of_other_layouts(form: str) -> None:
    plain = av.VideoFrame.from_ndarray(texture(3), format="rgb24")
    right = luma(plain.reformat(format="yuv444p", dst_color_range=1)).float()
    frame = plain.reformat(format=form, dst_color_range=1)
    got = luma(frame).float()
    if form in ("rgb24", "gbrp", "gray"):  # their brightness uses the full range
        got = got * 219 / 255 + 16 if abs(float(got.max() - right.max())) > 8 else got
    assert got.shape == (48, 64) and (got - right).abs().mean() < 3


def test_motion_vectors(clip: Path) -> None:
    with VideoReader(clip) as reader:
        assert all(frame.motion_vectors is None for frame in reader.frames())
        frames = list(reader.frames(motion_vectors=True))
        assert frames[0].motion_vectors is None  # nothing to move from
        moved = np.concatenate([frame.motion_vectors for frame in frames if frame.motion_vectors is not None])
        assert {"source", "dst_x", "dst_y", "motion_x", "motion_y"} <= set(moved.dtype.names) and len(moved) > 50
        (again,) = reader.decode([5], motion_vectors=True)
        assert again.motion_vectors is not None and torch.equal(again.rgb(), reader[5])
