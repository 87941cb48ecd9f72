"""Preprocess against Pillow's resize, crop tables and the whole frame resized by torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from video.preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocess


def picture(height: int, width: int, count: int = 1) -> torch.Tensor:
    """Smooth waves with noise: uint8 [count, height, width, 3]."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    waves = torch.stack([torch.sin(x / 9), torch.cos(y / 7), torch.sin((x + y) / 13)], -1) * 90 + 128
    return (waves + torch.randn(count, height, width, 3) * 10).clamp(0, 255).to(torch.uint8)


def raw(crops: torch.Tensor) -> torch.Tensor:
    """The 8-bit values [..., h, w, 3] that were normalised."""
    values = crops.movedim(-3, -1) * torch.tensor(IMAGENET_STD) + torch.tensor(IMAGENET_MEAN)
    return (values * 255).round().to(torch.uint8)


@pytest.mark.parametrize("shape", [(270, 480), (480, 270), (144, 176), (331, 441), (300, 300)])
def test_equals_pillow_within_one_level(shape: tuple[int, int]) -> None:
    image = pytest.importorskip("PIL.Image")
    frame = picture(*shape)[0]
    height, width = (
        (256, int(256 * shape[1] / shape[0])) if shape[0] <= shape[1] else (int(256 * shape[0] / shape[1]), 256)
    )
    whole = np.asarray(image.fromarray(frame.numpy()).resize((width, height), image.BILINEAR)).astype(int)
    top, left = round((height - 224) / 2), round((width - 224) / 2)
    ours = raw(Preprocess()(frame[None]))[0, 0].numpy().astype(int)
    assert np.abs(ours - whole[top : top + 224, left : left + 224]).max() <= 1


@pytest.mark.parametrize("crops", [1, 3, 5, 10])
@pytest.mark.parametrize(
    "shape", [(1080, 1920), (270, 480), (272, 640), (640, 271), (144, 176), (1079, 1921), (224, 300)]
)
def test_only_what_is_needed_equals_the_whole(shape: tuple[int, int], crops: int) -> None:
    frames = picture(*shape)
    preprocess = Preprocess(crops=crops)
    height, width = preprocess.resized(*shape)
    whole = F.interpolate(frames.permute(0, 3, 1, 2), (height, width), mode="bilinear", antialias=True)
    ours = raw(preprocess(frames))
    step = 2 if crops == 10 else 1
    for i, (y, x) in enumerate(preprocess.corners(height, width)):
        assert torch.equal(ours[i * step, 0], whole[0, :, y : y + 224, x : x + 224].permute(1, 2, 0))


def test_normalises() -> None:
    frames = torch.zeros(1, 256, 256, 3, dtype=torch.uint8)
    frames[..., 1] = 255
    out = Preprocess()(frames)
    expected = [(value - m) / s for value, m, s in zip((0, 1, 0), IMAGENET_MEAN, IMAGENET_STD)]
    torch.testing.assert_close(out[0, 0, :, 100, 100], torch.tensor(expected))


def test_crops_are_where_the_published_code_cuts_them() -> None:
    # 455 x 256: quarters of 455 - 224 and of 256 - 224, rounded down, are 57 and 8.
    assert Preprocess(crops=1).corners(256, 455) == [(16, 116)]
    assert Preprocess(crops=3, size=256).corners(256, 455) == [(0, 0), (0, 196), (0, 98)]
    assert Preprocess(crops=3, size=256).corners(455, 256) == [(0, 0), (196, 0), (98, 0)]
    corners = [(0, 0), (0, 228), (32, 0), (32, 228), (16, 114)]
    assert Preprocess(crops=5).corners(256, 455) == Preprocess(crops=10).corners(256, 455) == corners


def test_every_second_of_ten_crops_is_mirrored() -> None:
    out = Preprocess(crops=10)(picture(270, 480, 2))
    assert out.shape == (10, 2, 3, 224, 224)
    assert torch.equal(out[1::2], out[::2].flip(-1))
    assert torch.equal(out[::2], Preprocess(crops=5)(picture_again(270, 480, 2)))


def picture_again(height: int, width: int, count: int) -> torch.Tensor:
    torch.manual_seed(0)
    return picture(height, width, count)


def test_each_frame_is_treated_alone_and_channels_last() -> None:
    frames = picture(100, 140, 5)
    preprocess = Preprocess(size=32, resize=40, crops=3)
    out = preprocess(frames)
    assert out.shape == (3, 5, 3, 32, 32)
    assert out.flatten(0, 1).is_contiguous(memory_format=torch.channels_last)
    for i in range(5):
        assert torch.equal(out[:, i : i + 1], preprocess(frames[i : i + 1]))


def test_no_frames() -> None:
    assert Preprocess(crops=5)(torch.empty(0, 10, 10, 3, dtype=torch.uint8)).shape == (5, 0, 3, 224, 224)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"size": 300}, "size must be from 1 to resize=256, got 300"),
        ({"size": 0}, "size must be from 1"),
        ({"crops": 2}, "crops must be one of 1, 3, 5, 10, got 2"),
        ({"mean": (0.5,)}, "mean must be three numbers"),
        ({"std": (1, float("nan"), 1)}, "std must be three numbers"),
        ({"std": (1, 0, 1)}, "std must be positive"),
    ],
)
def test_refuses_settings(keywords: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Preprocess(**keywords)


@pytest.mark.parametrize("frames", [torch.zeros(1, 8, 8, 3), torch.zeros(8, 8, 3, dtype=torch.uint8)])
def test_refuses_frames(frames: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"frames must be uint8 \[T, H, W, 3\], got"):
        Preprocess()(frames)


def test_refuses_frames_without_pixels() -> None:
    with pytest.raises(ValueError, match="must have pixels"):
        Preprocess()(torch.zeros(1, 0, 8, 3, dtype=torch.uint8))
