"""A tiny network in a file, clouds and clips in files, and the command line in this process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pointcloud.models import MinkUNet

NAMES = ("ground", "wall", "thing")


def save_tiny(path: Path, names: tuple[str, ...] = NAMES) -> Path:
    """A network of random numbers that labels voxels of 0.4 m."""
    pytest.importorskip("safetensors")
    from pointcloud.pretrained import ModelCard, save_pretrained

    torch.manual_seed(0)
    arguments = {"in_channels": 6, "num_classes": len(names), "width": 0.125, "depth": 14}
    card = ModelCard(
        description="A network of random numbers.",
        architecture="MinkUNet",
        arguments=arguments,
        class_names=names,
        voxel_size=0.4,
        results={"mean_iou": 0.25},
    )
    model = MinkUNet(**arguments)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm1d):
            module.running_var.uniform_(0.01, 0.03)  # values keep their size, so that points differ in their labels
    save_pretrained(model, path, card)
    return path


def street(n: int = 400, seed: int = 0) -> np.ndarray:
    """[2n + 20, 4] float32, x y z intensity: ground, a wall, and 20 points closer than the sensor's own car."""
    generator = np.random.default_rng(seed)
    u = generator.random((n, 2))
    ground = np.stack([20 * u[:, 0] - 10, 20 * u[:, 1] - 10, np.full(n, -1.8)], 1)
    wall = np.stack([np.full(n, 8.0), 20 * u[:, 0] - 10, 5 * u[:, 1] - 1.8], 1)
    xyz = np.concatenate([ground, wall, generator.random((20, 3)) * 0.5])
    return np.concatenate([xyz, generator.random((len(xyz), 1))], 1).astype(np.float32)


def write_clip(path: Path, frames: int = 20, still_from: int = 1000, size: tuple[int, int] = (64, 48)) -> Path:
    """A bright square that moves to the right, and stands still from one frame on."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = *size, "yuv420p", 4_000_000
        for i in range(frames):
            picture = np.full((size[1], size[0], 3), 40, np.uint8)
            left = 2 * min(i, still_from) % (size[0] - 16)
            picture[12:28, left : left + 16] = (250, 200, 90)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The weights file of a tiny network."""
    return save_tiny(tmp_path_factory.mktemp("models") / "tiny.safetensors")


@pytest.fixture
def cloud(tmp_path: Path) -> Path:
    """A .bin file of 820 points."""
    path = tmp_path / "street.bin"
    street().tofile(path)
    return path


@pytest.fixture
def trisparse() -> Callable[..., Any]:
    """`trisparse("segment", path, ...)`: the result of the command, with .exit_code, .stdout and .stderr."""
    testing = pytest.importorskip("typer.testing")
    from trisparse.cli import app

    def run(*arguments: object) -> Any:
        return testing.CliRunner().invoke(app, [str(argument) for argument in arguments])

    return run


@pytest.fixture(autouse=True)
def alone(one_thread: None) -> None:
    """Clouds this small gain nothing from a second thread, and lose much where another process has its core."""
