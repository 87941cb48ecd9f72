"""A sparse network on a LiDAR that stands still: frame by frame, only what changed is computed."""

import torch
from torch import nn

import pointcloud
from pointcloud.simulate import simulate_frames

model = pointcloud.SparseSequential(  # yours, trained
    pointcloud.SubMConv3d(1, 64, 3, bias=False),
    nn.BatchNorm1d(64),
    nn.ReLU(),
    pointcloud.SubMConv3d(64, 64, 3),
    nn.ReLU(),
    nn.Linear(64, 7),
).eval()
whole, stream, state = pointcloud.accelerate(model), pointcloud.Stream(model), None

for sweep in simulate_frames(seed=7, frames=5):
    xyz = torch.from_numpy(sweep.xyz)
    # One grid for all frames. Occupancy is a feature that small moves of points within their voxels leave as it is.
    voxels, _ = pointcloud.voxelize(xyz, 0.3, [-50, -50, -4, 50, 50, 8], features=torch.ones(len(xyz), 1))
    output, state = stream.step(voxels, state)
    work = stream.last_work
    with torch.no_grad():
        difference = (output.features - whole(voxels).features).abs().max()
    print(
        f"frame {work.frame}: {work.input_share:.1%} of {work.voxels} voxels changed, {work.share:.1%} of the work, "
        f"difference to the whole network {difference:.0e}"
    )
