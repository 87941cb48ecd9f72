"""Clouds of which some voxels appear, vanish or change from frame to frame."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

import pointcloud
from pointcloud import SparseConvTensor
from pointcloud.simulate import simulate_frames

GRID = (20, 24, 16)
CHANNELS = 3


def changing(frames: int, seed: int = 0, voxels: int = 700, batch_size: int = 2) -> Iterator[SparseConvTensor]:
    """Frames in which a box of the grid changes; rows in another order each time; one frame repeats the one before."""
    generator = torch.Generator().manual_seed(seed)
    cells = batch_size * GRID[0] * GRID[1] * GRID[2]
    alive = torch.zeros(cells, dtype=torch.bool)
    alive[torch.randperm(cells, generator=generator)[:voxels]] = True
    features = torch.randn(cells, CHANNELS, generator=generator)
    alive = alive.view(batch_size, *GRID)
    features = features.view(batch_size, *GRID, CHANNELS)
    for frame in range(frames):
        index = alive.nonzero().int()
        index = index[torch.randperm(len(index), generator=generator)]
        yield SparseConvTensor(features[index.long().unbind(1)], index, GRID, batch_size)
        if frame == 2:
            continue
        x, y, z = (int(torch.randint(0, n - 4, (), generator=generator)) for n in GRID)
        box = (slice(None), slice(x, x + 5), slice(y, y + 5), slice(z, z + 5))
        # Now few, now many: rows are filled, appended and moved.
        share = float(torch.rand((), generator=generator)) * 0.3
        alive[box] = torch.rand(alive[box].shape, generator=generator) < share
        features[box] += (torch.rand(alive[box].shape, generator=generator) < 0.3)[..., None].float()


def sensor_frames(
    frames: int, seed: int = 3, voxel_size: float = 0.5, *, occupancy: bool = False, jitter: bool = False
) -> Iterator[SparseConvTensor]:
    """Voxels of a sensor that stands still; features are the mean intensity, or 1."""
    for sweep in simulate_frames(seed, "hdl32", frames=frames, jitter=jitter):
        xyz = torch.from_numpy(sweep.xyz)
        value = torch.ones(len(xyz), 1) if occupancy else torch.from_numpy(sweep.intensity)[:, None]
        yield pointcloud.voxelize(xyz, voxel_size, [-48, -48, -4, 48, 48, 12], features=value)[0]


def settled(model: nn.Module, seed: int = 0) -> nn.Module:
    """The model in evaluation mode, with statistics of batch norms that do something."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            for x, low, high in ((module.running_mean, -0.1, 0.1), (module.running_var, 0.05, 0.2)):
                assert isinstance(x, Tensor)
                x.copy_(torch.rand(x.shape, generator=generator) * (high - low) + low)
    return model.eval()
