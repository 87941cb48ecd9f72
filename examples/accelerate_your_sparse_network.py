"""A network written for spconv, as it is, then accelerated, compared and restored."""

import torch
from torch import nn

import pointcloud as spconv
from pointcloud.simulate import simulate_sweep


class Network(nn.Module):
    """Three sparse convolutions: two that keep the resolution, and one that halves it."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = spconv.SparseSequential(
            spconv.SubMConv3d(4, 32, 3, bias=False, indice_key="fine"), nn.BatchNorm1d(32), nn.ReLU(),
            spconv.SubMConv3d(32, 32, 3, bias=False, indice_key="fine"), nn.BatchNorm1d(32), nn.ReLU(),
            spconv.SparseConv3d(32, 64, 2, stride=2, bias=False), nn.BatchNorm1d(64), nn.ReLU(),
        )  # fmt: skip

    def forward(self, x: spconv.SparseConvTensor) -> spconv.SparseConvTensor:
        return self.layers(x)


def main() -> None:
    torch.manual_seed(0)
    model = Network().eval()  # load_state_dict takes a checkpoint of spconv unchanged
    voxels, point_to_voxel = spconv.voxelize(simulate_sweep(seed=1, sensor="hdl32").to_cloud(), 0.1)
    print(f"{len(point_to_voxel):,} points in {len(voxels.features):,} voxels")

    faster = spconv.accelerate(model, dtype="auto")
    print(faster.acceleration)
    print(spconv.compare(model, faster, voxels))
    assert spconv.restore(faster) is model


if __name__ == "__main__":
    main()
