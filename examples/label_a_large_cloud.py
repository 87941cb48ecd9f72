"""A cloud that need not fit into memory: labels tile by tile, and a check against the network on the whole."""

import tempfile
from pathlib import Path

import numpy as np
import torch

import pointcloud
from pointcloud.simulate import simulate_sweep

VOXEL = 0.4  # metres


def intensity(points: torch.Tensor) -> torch.Tensor:
    """The features of points [N, 4]: what a voxel has the mean of."""
    return points[:, 3:]


model = pointcloud.models.MinkUNet(1, num_classes=7, width=0.25, depth=14).eval()  # yours, trained
# Three streets in a row. In earnest: the path of a .npy, .bin, .las or .laz file.
sweeps = [simulate_sweep(seed) for seed in range(3)]
points = np.concatenate([np.column_stack([s.xyz + [120 * i, 0, 0], s.intensity]) for i, s in enumerate(sweeps)])
points = points.astype(np.float32)

with tempfile.TemporaryDirectory() as folder:
    output = Path(folder) / "labels.npy"
    # max_points: of a tile and its halo, as many as fit into memory.
    done = pointcloud.chunked(model, points, output, voxel_size=VOXEL, features=intensity, max_points=60_000)
    labels = np.load(output)
print(f"{done.points:,} points in {done.tiles} tiles, a halo of {done.halo[0]} voxels, {done.read_share:.1f} x read")

rows = torch.from_numpy(points)
voxels, point_to_voxel = pointcloud.voxelize(rows, VOXEL, features=intensity(rows))
with torch.no_grad():
    whole = model(voxels).argmax(1)[point_to_voxel].numpy()
print(f"{(labels == whole).mean():.2%} of the labels are those of the whole cloud")
