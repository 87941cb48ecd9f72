"""A small surface for the benchmark's own tests."""

import torch

from benchmarks.pointcloud.workloads import Workload


def shell(size: int = 48, radius: float = 18.0) -> Workload:
    """The cells of a hollow ball in a grid of `size` cells per axis, in sorted order."""
    axis = torch.arange(size)
    cells = torch.cartesian_prod(axis, axis, axis)
    distance = (cells - size / 2 + 0.5).double().norm(dim=1)
    cells = cells[(distance - radius).abs() < 0.7]
    coords = torch.cat([torch.zeros(len(cells), 1, dtype=torch.int64), cells], 1).int()
    features = torch.randn(len(cells), 4, generator=torch.Generator().manual_seed(0))
    return Workload("shell", coords, features, (size, size, size))
