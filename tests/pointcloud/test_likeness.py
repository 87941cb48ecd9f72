"""Clouds that are sweeps give no reason to doubt their labels; each defect gives its own."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pointcloud import PointCloud, read_points
from pointcloud.likeness import unlike_a_sweep
from pointcloud.segment import brightness
from pointcloud.simulate import simulate_sweep


@functools.cache
def sweep(seed: int = 1, sensor: str = "hdl32") -> PointCloud:
    return simulate_sweep(seed, sensor).to_cloud()


@pytest.mark.parametrize("name", ["nuscenes_lidar_top.pcd.bin", "kitti_000008.bin"])
def test_real_sweeps(data_dir: Path, name: str) -> None:
    assert unlike_a_sweep(read_points(data_dir / "pointcloud" / name)) == []


@pytest.mark.parametrize(("seed", "sensor"), [(1, "hdl32"), (2, "hdl32"), (7, "hdl32"), (2, "hdl64")])
def test_simulated_sweeps(seed: int, sensor: str) -> None:
    cloud = sweep(seed, sensor)
    assert unlike_a_sweep(cloud, voxels=len(cloud) // 2) == []
    # Direction of travel, order of points and scale of intensities do not matter.
    turned = cloud.xyz[:, [1, 0, 2]] * torch.tensor([-1.0, 1.0, 1.0])
    order = torch.randperm(len(cloud), generator=torch.Generator().manual_seed(0))
    assert unlike_a_sweep(replace(cloud, xyz=turned).select(order)) == []
    louder = replace(cloud, intensity=cloud.intensity * 1024)
    assert unlike_a_sweep(louder) == [] and torch.equal(brightness(louder.intensity), brightness(cloud.intensity))


def test_a_room(data_dir: Path) -> None:
    reasons = unlike_a_sweep(read_points(data_dir / "pointcloud" / "scannet_scene0000_00.bin"))
    assert reasons[0].startswith("it is 8.") and "wide, as a room" in reasons[0]
    assert reasons[1].startswith("the ground is at z = 0.2 m") and reasons[2].startswith("it has no intensity")


PLACES: list[tuple[str, Callable[[Tensor], Tensor], str]] = [
    ("millimetres", lambda xyz: xyz * 1000, "coordinates must be in metres"),
    ("centimetres", lambda xyz: xyz * 100, "coordinates must be in metres"),
    ("kilometres", lambda xyz: xyz / 1000, "100 % of the points lie within 1.2 m of the origin"),
    ("upside down", lambda xyz: xyz * torch.tensor([1.0, -1, -1]), "1.8 m above the sensor: z must point up"),
    ("y up", lambda xyz: xyz[:, [0, 2, 1]], "flattest along y, at -1.8 m: z must point up"),
    ("camera", lambda xyz: xyz[:, [1, 2, 0]] * torch.tensor([-1.0, -1, 1]), "flattest along y, at 1.8 m"),
    ("x up", lambda xyz: xyz[:, [2, 0, 1]], "flattest along x, at -1.8 m: z must point up"),
    ("on the ground", lambda xyz: xyz + torch.tensor([0.0, 0, 1.8]), "the ground is at z = 0.0 m"),
    ("aircraft", lambda xyz: xyz - torch.tensor([0.0, 0, 60]), "0 % of the points lie within 15 m of the origin"),
    ("aside", lambda xyz: xyz + torch.tensor([20.0, 20, 0]), "within 15 m of the origin, where the sensor must stand"),
    ("map", lambda xyz: xyz + torch.tensor([4000.0, -7000, 0]), "it lies around x, y = "),
]


@pytest.mark.parametrize(("change", "words"), [case[1:] for case in PLACES], ids=[case[0] for case in PLACES])
def test_coordinates_of_another_kind(change: Callable[[Tensor], Tensor], words: str) -> None:
    reasons = unlike_a_sweep(replace(sweep(), xyz=change(sweep().xyz).contiguous()))
    assert len(reasons) == 1 and words in reasons[0], reasons


def test_map_coordinates_that_the_reader_has_moved() -> None:
    cloud = replace(sweep(), origin=torch.tensor([5e5, 4e6, 100], dtype=torch.float64))
    (reason,) = unlike_a_sweep(cloud)
    assert "it lies around x, y = 49" in reason or "it lies around x, y = 500," in reason


def test_a_sensor_that_looks_twice() -> None:
    """Two sweeps in one, the second from elsewhere and seen through the first one's walls."""
    first, second = sweep(2, "hdl64"), sweep(3, "hdl64")
    both = PointCloud(torch.cat([first.xyz, second.xyz]), torch.cat([first.intensity, second.intensity]))
    (reason,) = unlike_a_sweep(both)
    assert "several depths" in reason


def test_numbers_of_points() -> None:
    few = sweep().select(torch.arange(0, len(sweep()), 10))
    (reason,) = unlike_a_sweep(few)
    assert f"it has {len(few):,} points beyond 1.2 m" in reason
    (reason,) = unlike_a_sweep(sweep(), voxels=len(sweep()) // 20)
    assert reason.startswith("it has 20.0 points per voxel")


def test_intensities() -> None:
    n, bare = len(sweep()), replace(sweep(), intensity=None)
    for intensity, words in (
        (None, "it has no intensity"),
        (torch.zeros(n), "intensity of every point is the same"),
        ((torch.arange(n) % 3).float(), "intensity of every point is one of 3 values"),
        (torch.full((n,), torch.nan), "some intensities are not finite"),
    ):
        (reason,) = unlike_a_sweep(replace(bare, intensity=intensity))
        assert words in reason


@pytest.mark.parametrize("n", [0, 1, 2, 7])
def test_hardly_any_points(n: int) -> None:
    reasons = unlike_a_sweep(PointCloud(torch.full((n, 3), 5.0)))
    assert bool(reasons) == bool(n)


def test_no_point_but_the_sensor_own() -> None:
    (reason,) = unlike_a_sweep(PointCloud(torch.zeros(9, 3)))
    assert "100 % of the points lie within 1.2 m" in reason
    assert unlike_a_sweep(sweep(), min_range=0.0) == []
