"""PointToVoxel against spconv's own, point for point."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from pointcloud.voxels.point_to_voxel import PointToVoxel

VSIZE = [0.1, 0.1, 0.2]
RANGE = [-51.2, -51.2, -5.0, 51.2, 51.2, 3.0]


def surface(n: int, seed: int = 0) -> Tensor:
    """Points on a wavy ground with intensity, some outside of RANGE, float32 [n, 4]."""
    rng = np.random.default_rng(seed)
    radius, angle = 60 * rng.random(n) ** 2, 2 * np.pi * rng.random(n)
    x, y = radius * np.cos(angle), radius * np.sin(angle)
    return torch.from_numpy(np.stack([x, y, np.sin(x / 7) - 1, rng.random(n)], 1).astype(np.float32))


def peer(points: Tensor, max_voxels: int, max_points: int) -> list[Tensor]:
    utils = pytest.importorskip("spconv.pytorch.utils")
    generator = utils.PointToVoxel(VSIZE, RANGE, points.shape[1], max_voxels, max_points, torch.device("cpu"))
    return list(generator.generate_voxel_with_id(points))


def assert_same(ours: tuple[Tensor, ...], theirs: list[Tensor]) -> None:
    for name, a, b in zip(("voxels", "indices", "num_per_voxel", "pc_voxel_id"), ours, theirs):
        assert a.dtype == b.dtype, name
        torch.testing.assert_close(a, b, rtol=2e-6, atol=1e-6, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize(("max_voxels", "max_points"), [(60000, 10), (60000, 1), (700, 3)])
def test_equals_spconv(one_thread: None, max_voxels: int, max_points: int) -> None:
    points = surface(20000)
    ours = PointToVoxel(VSIZE, RANGE, 4, max_voxels, max_points)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        got = ours.generate_voxel_with_id(points)
    assert_same(got, peer(points, max_voxels, max_points))


def test_empty_mean() -> None:
    """Not compared with spconv 2.3.8: on the CPU its mean carries over from one voxel to the next."""
    points = surface(3000)
    generator = PointToVoxel(VSIZE, RANGE, 4, 60000, 5)
    plain, _, counts, _ = generator.generate_voxel_with_id(points)
    filled, _, same_counts, _ = generator.generate_voxel_with_id(points, empty_mean=True)
    assert torch.equal(counts, same_counts) and int(counts.max()) == 5
    for before, after, n in zip(plain, filled, counts.tolist()):
        assert torch.equal(before[:n], after[:n])
        torch.testing.assert_close(after[n:], before[:n].mean(0).expand(5 - n, 4))


def test_equals_spconv_on_a_real_sweep(one_thread: None, data_dir: Path) -> None:
    points = torch.from_numpy(
        np.fromfile(data_dir / "pointcloud/nuscenes_lidar_top.pcd.bin", dtype=np.float32).reshape(-1, 5)
    )
    got = PointToVoxel(VSIZE, RANGE, 5, 60000, 10).generate_voxel_with_id(points)
    assert got[0].shape[0] > 10000
    assert_same(got, peer(points, 60000, 10))


def test_call_returns_three_of_the_four(device: str) -> None:
    points = surface(500).to(device)
    generator = PointToVoxel(VSIZE, RANGE, 4, 60000, 5, device=device)
    full, short = generator.generate_voxel_with_id(points), generator(points)
    assert len(short) == 3 and all(torch.equal(a, b) for a, b in zip(full, short))


def test_says_what_it_drops() -> None:
    points = surface(2000)
    generator = PointToVoxel(VSIZE, RANGE, 4, 100, 2)
    with pytest.warns(UserWarning, match="max_num_voxels=100 dropped"):
        voxels, _, counts, of_point = generator.generate_voxel_with_id(points)
    found = PointToVoxel(VSIZE, RANGE, 4, 100000, 2).generate_voxel_with_id(points)
    assert generator.n_voxels_dropped == found[0].shape[0] - 100
    assert generator.n_points_dropped == int((found[3] >= 0).sum()) - int(counts.sum())
    assert voxels.shape == (100, 2, 4) and int(of_point.max()) == 99
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # once only
        generator(points)
        generator(points[:10])
    assert generator.n_voxels_dropped == 0


def test_two_dimensions_and_double_precision() -> None:
    points = torch.tensor([[0.5, 2.5, 7.0], [0.6, 2.1, 8.0], [3.5, 0.5, 9.0], [4.0, 0.0, 1.0]], dtype=torch.float64)
    voxels, indices, counts, of_point = PointToVoxel([1, 1], [0, 0, 4, 3], 3, 10, 2).generate_voxel_with_id(points)
    assert indices.tolist() == [[2, 0], [0, 3]] and counts.tolist() == [2, 1] and of_point.tolist() == [0, 0, 1, -1]
    assert voxels.dtype == torch.float64 and voxels[:, :, 2].tolist() == [[7.0, 8.0], [9.0, 0.0]]


@pytest.mark.parametrize("points", [torch.empty(0, 4), torch.full((3, 4), 1e30)], ids=["empty", "all-outside"])
def test_nothing_in_gives_nothing_out(points: Tensor) -> None:
    voxels, indices, counts, of_point = PointToVoxel(VSIZE, RANGE, 4, 10, 2).generate_voxel_with_id(points)
    assert voxels.shape == (0, 2, 4) and indices.shape == (0, 3) and counts.shape == (0,)
    assert of_point.tolist() == [-1] * len(points)


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="vsize_xyz"):
        PointToVoxel([0.1, 0, 0.1], RANGE, 4, 10, 2)
    with pytest.raises(ValueError, match="coors_range_xyz must be 6"):
        PointToVoxel(VSIZE, RANGE[:5], 4, 10, 2)
    with pytest.raises(ValueError, match="at least one voxel"):
        PointToVoxel(VSIZE, [0, 0, 0, 1, 1, 0.01], 4, 10, 2)
    with pytest.raises(ValueError, match="max_num_voxels must be at least 1"):
        PointToVoxel(VSIZE, RANGE, 4, 0, 2)
    generator = PointToVoxel(VSIZE, RANGE, 4, 10, 2)
    with pytest.raises(ValueError, match=r"pc must be floating \[N, 4\], got float32 \[2, 3\]"):
        generator(torch.zeros(2, 3))
    with pytest.raises(TypeError, match=r"pc must be a floating tensor \[N, 4\], got list"):
        generator([[0.0] * 4])  # type: ignore[arg-type]
    points = torch.zeros(5, 4)
    points[3, 1] = float("nan")
    with pytest.raises(ValueError, match=r"row 3 \(1 of 5 rows"):
        generator(points)
