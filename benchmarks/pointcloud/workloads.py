"""Real and simulated clouds as voxels, the same rows for every competitor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.data import data_file


@dataclass(frozen=True)
class Workload:
    """One cloud of voxels in a grid whose axes are multiples of 16, so that four halvings lose no border cell.

    Attributes:
        coords: [N, 4] int32 unique rows (batch, x, y, z), sorted.
        features: [N, 4] fp32, the mean offset of the points from the middle of their voxel, and the mean intensity.
        shape: cells on each axis.
    """

    name: str
    coords: Tensor
    features: Tensor
    shape: tuple[int, int, int]

    @property
    def n_rows(self) -> int:
        return self.coords.shape[0]

    @property
    def summary(self) -> str:
        return f"{self.n_rows} voxels in {' x '.join(map(str, self.shape))}"


def voxelize(
    name: str, points: NDArray[np.float32], voxel_size: float, low: Sequence[float], high: Sequence[float]
) -> Workload:
    """Voxels of `points` [P, 3 or more] (x, y, z, intensity in 0 to 1) in the box from `low` to `high`, in metres.

    Written on its own: what is measured does not prepare its own input.
    """
    shape = np.round((np.asarray(high) - np.asarray(low)) / voxel_size).astype(np.int64)
    if (shape % 16).any():
        raise ValueError(f"the box of {name} must have multiples of 16 cells on each axis, got {shape.tolist()}")
    scaled = (points[:, :3].astype(np.float64) - np.asarray(low)) / voxel_size
    cell = np.floor(scaled).astype(np.int64)
    inside = ((cell >= 0) & (cell < shape)).all(1)
    scaled, cell, points = scaled[inside], cell[inside], points[inside]
    keys, voxel = np.unique(np.ravel_multi_index(tuple(cell.T), tuple(shape)), return_inverse=True)
    intensity = points[:, 3:4] if points.shape[1] > 3 else np.zeros((len(points), 1), np.float32)
    values = np.concatenate([scaled - cell - 0.5, intensity], axis=1)
    count = np.bincount(voxel, minlength=len(keys))
    mean = np.stack([np.bincount(voxel, values[:, c], len(keys)) / count for c in range(4)], axis=1)
    xyz = np.stack(np.unravel_index(keys, tuple(shape)), axis=1)
    coords = np.concatenate([np.zeros((len(keys), 1), np.int64), xyz], axis=1)
    return Workload(
        name,
        torch.from_numpy(coords.astype(np.int32)),
        torch.from_numpy(mean.astype(np.float32)),
        (int(shape[0]), int(shape[1]), int(shape[2])),
    )


def benchmark_pc() -> Workload:
    """The cloud of spconv's own benchmark at 0.1 m."""
    with np.load(data_file("pointcloud/benchmark-pc.npz")) as file:
        points = file["pc"]
    made = voxelize("benchmark-pc 0.1 m", points, 0.1, (-80, -80, -2), (80, 80, 6))
    if made.n_rows != 125_565:
        raise ValueError(f"benchmark-pc at 0.1 m must have 125565 voxels, got {made.n_rows}")
    return made


def nuscenes() -> Workload:
    """One real 32-beam sweep at 0.1 m."""
    points = np.fromfile(data_file("pointcloud/nuscenes_lidar_top.pcd.bin"), np.float32).reshape(-1, 5)[:, :4].copy()
    points[:, 3] /= 255
    return voxelize("nuScenes sweep 0.1 m", points, 0.1, (-102.4, -102.4, -4.8), (102.4, 102.4, 20.8))


def simulated() -> Workload:
    """A simulated 64-beam sweep at 0.05 m."""
    from pointcloud.simulate import simulate_sweep

    sweep = simulate_sweep(0, sensor="hdl64")
    points = np.asarray(sweep.xyz, dtype=np.float32)
    return voxelize("simulated 64-beam sweep 0.05 m", points, 0.05, (-76.8, -76.8, -4), (76.8, 76.8, 4))


WORKLOADS: dict[str, Callable[[], Workload]] = {
    "benchmark-pc": benchmark_pc,
    "nuscenes": nuscenes,
    "simulated": simulated,
}
