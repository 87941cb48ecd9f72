"""voxelize and devoxelize against dictionaries of cells and sums written out in float64."""

from __future__ import annotations

import math
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from pointcloud.conv import SparseConv3d, SparseInverseConv3d
from pointcloud.points import PointCloud
from pointcloud.tensor import SparseConvTensor
from pointcloud.voxels.grid import VoxelGrid
from pointcloud.voxels.voxelize import devoxelize, grid_of, voxelize
from tests.pointcloud.voxel_oracle import REDUCE, brute


def cloud(n: int, seed: int = 0, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Tensor:
    """Points on a sphere and a plane with one more column, [n, 4]; many share a voxel."""
    generator = torch.Generator().manual_seed(seed)
    direction = torch.nn.functional.normalize(torch.randn(n, 3, generator=generator, dtype=torch.float64), dim=1)
    plane = torch.rand(n, 3, generator=generator, dtype=torch.float64) * torch.tensor([4.0, 4.0, 0.0]) - 2
    xyz = torch.where((torch.arange(n) % 2 == 0)[:, None], direction, plane)
    return torch.cat([xyz, torch.rand(n, 1, generator=generator, dtype=torch.float64)], 1).to(device, dtype)


@pytest.mark.parametrize("reduce", sorted(REDUCE))
@pytest.mark.parametrize("axes", ["xyz", "zyx"])
@pytest.mark.parametrize("cropped", [False, True], ids=["bounding-box", "range"])
def test_equals_brute_force(reduce: str, axes: str, cropped: bool, device: str) -> None:
    points = cloud(700)
    point_range = [-1.2, -1.0, -1.5, 1.25, 1.1, 0.9] if cropped else None
    low = point_range[:3] if point_range else points[:, :3].double().amin(0).tolist()
    size = (0.2, 0.25, 0.3)
    voxels, of_point = voxelize(points.to(device), size, point_range, reduce=reduce, axes=axes)
    high = point_range[3:] if point_range else None
    cells, features, expected = brute(points, points, size, low, high, [0] * 700, axes, reduce)
    assert voxels.indices.tolist() == cells and of_point.tolist() == expected
    assert voxels.indices.dtype == torch.int32 and of_point.dtype == torch.int64 and voxels.batch_size == 1
    torch.testing.assert_close(voxels.features.cpu().double(), features, rtol=1e-5, atol=1e-5)
    if cropped:
        assert voxels.spatial_shape == ([13, 9, 8] if axes == "xyz" else [8, 9, 13])
        assert -1 in expected


@pytest.mark.parametrize("size", [0.1, 0.05, 1 / 3, 1e-3])
def test_largest_point_stays_in_the_grid(size: float, device: str) -> None:
    """Points a rounding error below the upper bound, and the maximum of a bounding box, belong to the last cell."""
    top = torch.tensor([[51.2, 0.7, 1.1], [0.0, 0.0, 0.0]], device=device)
    voxels, _ = voxelize(top, size)
    assert voxels.indices[-1, 1:].tolist() == [n - 1 for n in voxels.spatial_shape]
    bounds = [0.0, 0.0, 0.0, *top[0].tolist()]
    below = torch.nextafter(top[:1], torch.zeros(1, device=device))
    voxels, of_point = voxelize(torch.cat([below, top[:1]]), size, bounds)
    assert of_point.tolist() == [0, -1]  # half-open
    assert all(i < n for i, n in zip(voxels.indices[0, 1:].tolist(), voxels.spatial_shape))


def test_point_that_rounds_up_to_the_upper_bound(device: str) -> None:
    """The double next below a bound may divide to the very number of cells, one beyond the last."""
    sizes = [size for size in (0.1, 0.2, 0.3, 0.05, 0.15, 0.7) if np.nextafter(10 * size, 0) / size == 10]
    assert sizes
    for size in sizes:
        point = torch.full((1, 3), float(np.nextafter(10 * size, 0)), dtype=torch.float64, device=device)
        voxels, of_point = voxelize(point, size, [0, 0, 0, *[10 * size] * 3])
        assert voxels.spatial_shape == [10, 10, 10]
        assert voxels.indices.tolist() == [[0, 9, 9, 9]] and of_point.tolist() == [0]


def test_grid_of_the_usual_ranges() -> None:
    empty = torch.empty(0, 4)
    shape = voxelize(empty, [0.1, 0.1, 0.2], [-51.2, -51.2, -5, 51.2, 51.2, 3])[0].spatial_shape
    assert shape == [1024, 1024, 40]
    assert voxelize(empty, 0.1, [0, 0, 0, 10.05, 10, 0.01])[0].spatial_shape == [101, 100, 1]


def test_keys_beyond_the_packed_sort(device: str) -> None:
    """A grid so fine that key and row do not fit one word takes the other sort, with the same result."""
    points = cloud(300, dtype=torch.float64, device=device)
    features = torch.arange(300.0, device=device)[:, None]
    fine, of_fine = voxelize(torch.cat([points, points]), 4e-6, features=torch.cat([features, features]), reduce="sum")
    assert math.prod(fine.spatial_shape) > 2**55
    assert torch.equal(of_fine[:300], of_fine[300:])
    torch.testing.assert_close(fine.features[of_fine[:300]], 2 * features)
    order = fine.indices.tolist()
    assert order == sorted(order)


def test_point_cloud_columns(device: str) -> None:
    points = cloud(50, device=device)
    rgb = (torch.rand(50, 3) * 255).to(device, torch.uint8)
    full = PointCloud(xyz=points[:, :3].contiguous(), intensity=points[:, 3].contiguous(), rgb=rgb)
    expected = torch.cat([points, rgb.float()], 1)
    voxels, of_point = voxelize(full, 0.5)
    same, same_of_point = voxelize(points, 0.5, features=expected)
    assert torch.equal(voxels.features, same.features) and torch.equal(of_point, same_of_point)
    assert voxelize(PointCloud(xyz=full.xyz), 0.5)[0].features.shape[1] == 3


@pytest.mark.parametrize("reduce", sorted(REDUCE))
def test_gradient_of_voxelize(reduce: str, device: str) -> None:
    points = cloud(40, dtype=torch.float64, device=device)
    features = torch.randn(40, 3, dtype=torch.float64, device=device, requires_grad=True)
    torch.autograd.gradcheck(lambda f: voxelize(points, 0.7, features=f, reduce=reduce)[0].features, [features])


@pytest.mark.parametrize("points", [torch.empty(0, 4), torch.full((3, 4), 99.0)], ids=["empty", "all-outside"])
def test_nothing_in_gives_nothing_out(points: Tensor, device: str) -> None:
    points = points.to(device)
    voxels, of_point = voxelize(points, 0.1, [0, 0, 0, 1, 1, 1], batch_size=2)
    assert voxels.features.shape == (0, 4) and voxels.indices.shape == (0, 4) and voxels.batch_size == 2
    assert of_point.tolist() == [-1] * len(points)
    for mode in ("nearest", "trilinear"):
        assert devoxelize(voxels, points, mode).shape == (len(points), 4)
        assert not devoxelize(voxels, points, mode).any()


def test_bad_arguments(device: str) -> None:
    points = cloud(10, device=device)
    for value in (float("nan"), float("inf"), -float("inf")):
        bad = points.clone()
        bad[4, 1] = bad[7, 2] = value
        with pytest.raises(ValueError, match=r"finite coordinates, got \[.*\] in row 4 \(2 of 10 rows"):
            voxelize(bad, 0.1, [0, 0, 0, 1, 1, 1])
    with pytest.raises(ValueError, match="without stray points"):
        voxelize(torch.tensor([[0.0, 0, 0], [1e30, 0, 0]]), 0.1)
    with pytest.raises(ValueError, match="voxel_size must be positive"):
        voxelize(points, 0)
    with pytest.raises(ValueError, match="voxel_size must be 3"):
        voxelize(points, [0.1, 0.1])
    with pytest.raises(ValueError, match="each min below its max"):
        voxelize(points, 0.1, [0, 0, 0, 1, 1, 0])
    with pytest.raises(ValueError, match="reduce must be one of"):
        voxelize(points, 0.1, reduce="median")
    with pytest.raises(ValueError, match="axes must be one of"):
        voxelize(points, 0.1, axes="yxz")
    with pytest.raises(ValueError, match="batch_index must be at least 0 and below batch_size 2, got 0 to 2"):
        voxelize(points, 0.1, batch_index=torch.arange(10, device=device) % 3, batch_size=2)
    with pytest.raises(ValueError, match=r"features must be floating \[N, C\] with N = 10, got float32 \[9, 1\]"):
        voxelize(points, 0.1, features=torch.zeros(9, 1))
    with pytest.raises(ValueError, match=r"points must be floating \[N, >= 3\] or a PointCloud, got int64"):
        voxelize(points.long(), 0.1)


def test_nearest(device: str) -> None:
    points = cloud(400, device=device)
    voxels, of_point = voxelize(points, 0.4, [-1, -1, -1, 1, 1, 1])
    by_index = devoxelize(voxels, of_point)
    assert torch.equal(by_index, devoxelize(voxels.features, of_point))
    assert torch.equal(by_index, devoxelize(voxels, points))  # found by coordinates
    assert not by_index[of_point < 0].any() and bool((of_point < 0).any())
    assert torch.equal(by_index[of_point >= 0], voxels.features[of_point[of_point >= 0]])


def brute_trilinear(
    voxels: SparseConvTensor, grid: VoxelGrid, points: Tensor, batch: list[int], shift: float
) -> Tensor:
    rows = {tuple(index): row for row, index in enumerate(voxels.indices.tolist())}
    out = torch.zeros(len(points), voxels.features.shape[1], dtype=torch.float64)
    for i, p in enumerate(points[:, :3].double().tolist()):
        u = [(v - a) / s - shift for v, a, s in zip(p, grid.origin, grid.voxel_size)]
        u = u if grid.axes == "xyz" else u[::-1]
        total = 0.0
        for corner in product((0, 1), repeat=3):
            cell = [math.floor(x) + c for x, c in zip(u, corner)]
            weight = math.prod(1 - abs(x - c) for x, c in zip(u, cell))
            if (batch[i], *cell) in rows:
                out[i] += weight * voxels.features[rows[(batch[i], *cell)]].double()
                total += weight
        if total > 0:
            out[i] /= total
    return out


@pytest.mark.parametrize("axes", ["xyz", "zyx"])
@pytest.mark.parametrize("align", ["center", "corner"])
def test_trilinear(axes: str, align: str, device: str) -> None:
    points = cloud(300, dtype=torch.float64)
    batch = torch.arange(300) % 2
    voxels, _ = voxelize(points, (0.4, 0.5, 0.3), batch_index=batch, axes=axes)
    asked = torch.cat([points, cloud(100, seed=1, dtype=torch.float64) * 1.5, torch.full((1, 4), 1e12)])
    batches = torch.cat([batch, torch.arange(101) % 2])
    got = devoxelize(voxels.to(device), asked.to(device), "trilinear", batch_index=batches.to(device), align=align)
    grid = grid_of(voxels)
    expected = brute_trilinear(voxels, grid, asked, batches.tolist(), 0.5 if align == "center" else 0.0)
    torch.testing.assert_close(got.cpu(), expected, rtol=1e-9, atol=1e-9)
    assert not got[-1].any() and bool(got[:300].any(1).all())


def test_trilinear_at_voxel_centres_and_of_a_linear_field(device: str) -> None:
    """At a centre it returns the voxel itself; where all eight neighbours exist it reproduces a linear function."""
    cells = torch.tensor(list(product(range(5), repeat=3)), device=device)
    grid = VoxelGrid((-1.0, 2.0, 0.5), (0.2, 0.3, 0.25), (5, 5, 5))
    centers = grid.centers(cells)
    field = torch.tensor([[1.5, -2.0, 0.7]], dtype=torch.float64, device=device)
    indices = torch.nn.functional.pad(cells, (1, 0)).int()
    voxels = SparseConvTensor(centers @ field.T, indices, [5, 5, 5], 1)
    torch.testing.assert_close(devoxelize(voxels, centers, "trilinear", grid=grid), voxels.features)
    inner = centers.amin(0) + torch.rand(200, 3, dtype=torch.float64).to(device) * (centers.amax(0) - centers.amin(0))
    torch.testing.assert_close(devoxelize(voxels, inner, "trilinear", grid=grid), inner @ field.T)


def test_gradient_of_devoxelize(device: str) -> None:
    points = cloud(30, dtype=torch.float64, device=device)
    voxels, of_point = voxelize(points, 0.8)
    features = torch.randn_like(voxels.features, requires_grad=True)
    torch.autograd.gradcheck(lambda f: devoxelize(f, of_point), [features])
    xyz = points[:, :3].clone().requires_grad_()
    torch.autograd.gradcheck(lambda f, p: devoxelize(voxels.replace_feature(f), p, "trilinear"), [features, xyz])


def test_grid_goes_with_the_coordinates(device: str) -> None:
    points = cloud(100, device=device)
    voxels, _ = voxelize(points, 0.5)
    later = voxels.replace_feature(voxels.features * 2)
    torch.testing.assert_close(devoxelize(later, points, "trilinear"), 2 * devoxelize(voxels, points, "trilinear"))
    down = SparseConv3d(4, 4, 2, 2, indice_key="d").to(device)(voxels)
    assert grid_of(SparseInverseConv3d(4, 4, 2, "d").to(device)(down)) == grid_of(voxels) == grid_of(later)
    with pytest.raises(ValueError, match="grid must be given"):
        grid_of(down)
    bare = SparseConvTensor(voxels.features, voxels.indices, voxels.spatial_shape, 1)
    with pytest.raises(ValueError, match="grid must be given"):
        devoxelize(bare, points, "trilinear")
    with pytest.raises(ValueError, match="grid must have the voxels' shape"):
        devoxelize(bare, points, "trilinear", grid=VoxelGrid((0, 0, 0), (1, 1, 1), (2, 2, 2)))
    with pytest.raises(ValueError, match="trilinear"):
        devoxelize(voxels, torch.zeros(3, dtype=torch.int64, device=device), "trilinear")
    with pytest.raises(ValueError, match="mode must be one of"):
        devoxelize(voxels, points, "cubic")


def test_number_of_voxels_of_the_benchmark_cloud(data_dir: Path, device: str) -> None:
    """spconv's own benchmark states 125,565 voxels for this cloud, range and size."""
    points = torch.from_numpy(np.load(data_dir / "pointcloud/benchmark-pc.npz")["pc"]).to(device, torch.float32)
    voxels, _ = voxelize(points, 0.1, [-80, -80, -2, 80, 80, 6])
    assert voxels.features.shape[0] == 125565 and voxels.spatial_shape == [1600, 1600, 80]
