"""Labels tile by tile against the network on the whole cloud."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import pointcloud
from pointcloud import SparseConv3d, SparseInverseConv3d, SparseSequential, SubMConv3d, chunked
from pointcloud.models import MinkUNet
from tests.pointcloud.stream.changing_clouds import settled

VOXEL = 0.25


def street(points: int, seed: int = 0, extent: tuple[float, float] = (40.0, 20.0)) -> np.ndarray:
    """A bumpy ground with walls, x y z intensity float32, in no order."""
    rng = np.random.default_rng(seed)
    x, y = rng.random((2, points)) * np.array(extent)[:, None]
    wall = rng.random(points) < 0.3
    y = np.where(wall, np.round(y / 7) * 7, y)
    z = np.where(wall, rng.random(points) * 3, np.sin(x) * 0.3)
    return np.stack([x - 5, y - 3, z, rng.random(points)], 1).astype(np.float32)


def small() -> nn.Module:
    """Two levels; looks 1 + 1 + 2 * 2 + 1 + 1 = 8 voxels far."""
    return settled(
        SparseSequential(
            SubMConv3d(1, 8, 3, bias=False),
            nn.BatchNorm1d(8),
            nn.ReLU(),
            SparseConv3d(8, 8, 2, 2, indice_key="down"),
            nn.ReLU(),
            SubMConv3d(8, 8, 3, dilation=2),
            nn.ReLU(),
            SparseInverseConv3d(8, 8, 2, "down"),
            SubMConv3d(8, 7, 3),
        )
    )


def intensity(points: Tensor) -> Tensor:
    return points[:, 3:]


def whole(model: nn.Module, points: np.ndarray, features: Any = intensity) -> np.ndarray:
    rows = torch.from_numpy(points)
    voxels, point_to_voxel = pointcloud.voxelize(rows, VOXEL, features=rows if features is None else features(rows))
    with torch.no_grad():
        out = model(voxels)
    logits = out if isinstance(out, Tensor) else out.features
    return logits.argmax(1)[point_to_voxel].numpy()


def test_labels_are_those_of_the_whole_cloud(tmp_path: Path) -> None:
    points, model = street(20_000), small()
    done = chunked(model, points, tmp_path / "labels.npy", voxel_size=VOXEL, features=intensity, max_points=5000)
    labels = np.load(tmp_path / "labels.npy")
    expected = whole(model, points)
    assert len(np.unique(expected)) > 3
    assert labels.dtype == np.uint8 and np.array_equal(labels, expected)
    assert done.points == 20_000 and done.tiles > 4 and done.resumed == 0 and done.halo == (8, 8, 8)
    assert 1 < done.read_share < 4 and not (tmp_path / "labels.npy.tiles").exists()


def test_a_narrower_halo_would_be_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pointcloud.tiles import run
    from pointcloud.tiles.reach import Reach

    points, model = street(20_000), small()
    monkeypatch.setattr(run, "find_reach", lambda *_: Reach((2, 2, 2), (2, 2, 2)))
    chunked(model, points, tmp_path / "labels.npy", voxel_size=VOXEL, features=intensity, max_points=5000)
    assert not np.array_equal(np.load(tmp_path / "labels.npy"), whole(model, points))


def test_u_net_and_all_columns(tmp_path: Path) -> None:
    points = street(30_000, extent=(150.0, 10.0)).astype(np.float64) + [4e5, 5e6, 0, 0]
    model = settled(MinkUNet(4, 6, width=0.25, depth=14)).double()

    def local(rows: Tensor) -> Tensor:
        return torch.cat([rows[:, :2] * 0 + 1, rows[:, 2:]], 1)

    done = chunked(
        pointcloud.accelerate(model), points, tmp_path / "a.npy", voxel_size=VOXEL, features=local, max_points=12_000
    )
    assert done.tiles > 2 and done.halo == (122, 122, 122)
    assert np.array_equal(np.load(tmp_path / "a.npy"), whole(model, points, local))


@pytest.mark.parametrize("form", ["npy", "bin", "las", "memmap"])
def test_sources(tmp_path: Path, form: str) -> None:
    points, model = street(3000), small()
    options: dict[str, Any] = {}
    source: Any = tmp_path / f"cloud.{form}"
    if form == "npy":
        np.save(source, points)
    elif form == "bin":
        points.tofile(source)
        options["columns"] = "kitti"
    elif form == "memmap":
        points.tofile(source)
        source = np.memmap(source, np.float32, "r", shape=points.shape)
    else:
        laspy = pytest.importorskip("laspy")
        header = laspy.LasHeader(point_format=3, version="1.2")
        header.scales = [0.001] * 3
        las = laspy.LasData(header)
        las.x, las.y, las.z = points[:, :3].T
        las.intensity = (points[:, 3] * 1000).astype(np.uint16)
        las.write(str(source))
        points = np.stack([las.x, las.y, las.z, np.asarray(las.intensity, np.float64)], 1)
        options["extra"], model = ["intensity"], small().double()
    output = tmp_path / "labels.npy"
    chunked(model, source, output, voxel_size=VOXEL, features=intensity, max_points=900, block=700, **options)
    assert np.array_equal(np.load(output), whole(model, points))


def test_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.calls = small(), 0

        def forward(self, x: Any) -> Any:
            self.calls += 1
            return self.net(x)

    class Stop(BaseException):
        pass

    def stop(done: int, _: int) -> None:
        if done == 3:
            raise Stop

    points, model, output = street(20_000), Counting().eval(), tmp_path / "labels.npy"
    options: dict[str, Any] = {"voxel_size": VOXEL, "features": intensity, "max_points": 5000}
    with pytest.raises(Stop):
        chunked(model, points, output, progress=stop, **options)
    assert not output.exists()
    first, seen = model.calls, []
    with pytest.raises(ValueError, match="holds the unfinished tiles of another model, source or option"):
        chunked(model, points, output, **{**options, "max_points": 4000})
    for given, other in ((points + 1, {}), (points, {"features": lambda rows: rows[:, 3:] * 2})):
        with pytest.raises(ValueError, match="holds the unfinished tiles of another"):
            chunked(model, given, output, **{**options, **other})
    done = chunked(model, points, output, progress=lambda *numbers: seen.append(numbers), **options)
    looks = first - 3
    assert done.resumed == 3 and model.calls - first == looks + done.tiles - 3
    assert seen == [(n + 1, done.tiles) for n in range(done.tiles)]
    assert np.array_equal(np.load(output), whole(model, points))


def test_a_killed_process_leaves_what_the_next_call_goes_on_with(tmp_path: Path) -> None:
    code = """
import os, signal, sys, torch
from pointcloud import chunked
from tests.pointcloud.tiles.test_run import VOXEL, intensity, small, street
torch.manual_seed(0)
kill = lambda done, _: os.kill(os.getpid(), signal.SIGKILL) if done == 2 else None
chunked(small(), street(9000), sys.argv[1], voxel_size=VOXEL, features=intensity, max_points=3000, progress=kill)
"""
    output, root = tmp_path / "labels.npy", Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", code, str(output)], cwd=root, capture_output=True, check=False)
    assert done.returncode == -9 and not output.exists(), done.stderr
    torch.manual_seed(0)
    points, model = street(9000), small()
    went_on = chunked(model, points, output, voxel_size=VOXEL, features=intensity, max_points=3000)
    assert went_on.resumed == 2 and np.array_equal(np.load(output), whole(model, points))


def test_empty_cloud_and_single_point(tmp_path: Path) -> None:
    output = tmp_path / "labels.npy"
    done = chunked(small(), np.zeros((0, 4), np.float32), output, voxel_size=VOXEL, features=intensity)
    assert done.tiles == 0 and np.load(output).shape == (0,)
    points, model = street(1), SubMConv3d(1, 4, 3).eval()
    assert chunked(model, points, output, voxel_size=VOXEL, features=intensity).tiles == 1
    assert np.array_equal(np.load(output), whole(model, points))


def test_errors(tmp_path: Path) -> None:
    points, output = street(100), tmp_path / "labels.npy"
    for options, message in (
        ({"max_points": 0}, "max_points must be at least 1, got 0"),
        ({"block": 0}, "block must be at least 1"),
        ({"features": lambda p: p[:5, 3:]}, r"features must return \[100, C\] for as many points, got \[5, 1\]"),
    ):
        given: dict[str, Any] = {"features": intensity, **options}
        with pytest.raises(ValueError, match=message):
            chunked(small(), points, output, voxel_size=VOXEL, folder=tmp_path / "work", **given)
    with pytest.raises(ValueError, match="output must be a .npy file"):
        chunked(small(), points, tmp_path / "labels.txt", voxel_size=VOXEL)
    with pytest.raises(ValueError, match="training mode"):
        chunked(small().train(), points, output, voxel_size=VOXEL)
    broken = points.copy()
    broken[5, 1] = np.nan
    with pytest.raises(ValueError, match="points must have finite coordinates"):
        chunked(small(), broken, output, voxel_size=VOXEL)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("no")
    with pytest.raises(ValueError, match="not a folder of unfinished tiles"):
        chunked(small(), points, output, voxel_size=VOXEL, folder=tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").exists() and not output.exists()


@pytest.mark.slow
def test_memory_of_ten_million_points(tmp_path: Path) -> None:
    code = """
import resource, sys, numpy as np, pointcloud
from tests.pointcloud.tiles.test_run import intensity, small, street
path, out = sys.argv[1:]
points = np.lib.format.open_memmap(path, "w+", np.float32, (10_000_000, 4))
for part in range(20):
    points[part::20] = street(500_000, part, (800.0, 400.0))
points.flush()
del points
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
done = pointcloud.chunked(small(), path, out, voxel_size=0.25, features=intensity)
print(done.tiles, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "cloud.npy"), str(tmp_path / "labels.npy")],
        capture_output=True, text=True, cwd=Path(__file__).parents[3], check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    tiles, peak = (int(number) for number in done.stdout.split())
    assert tiles > 20 and peak / 1e6 < 2  # GB; the mapped file that the test itself writes is part of it
    assert np.load(tmp_path / "labels.npy", mmap_mode="r").shape == (10_000_000,)
