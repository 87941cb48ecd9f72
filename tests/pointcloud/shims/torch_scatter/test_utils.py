"""The index in the shape of what it sorts."""

import torch

from pointcloud.shims.torch_scatter.utils import broadcast


def test_broadcast() -> None:
    other = torch.zeros(2, 3, 4)
    assert broadcast(torch.tensor([5, 6, 7]), other, -2)[1, :, 3].tolist() == [5, 6, 7]
    assert broadcast(torch.tensor([[5], [6]]), other, 1)[:, 2, 3].tolist() == [5, 6]
