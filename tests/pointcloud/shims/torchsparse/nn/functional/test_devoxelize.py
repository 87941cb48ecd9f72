"""Trilinear interpolation against torch's grid_sample."""

import torch

from pointcloud.shims import torchsparse
from pointcloud.shims.torchsparse.nn import functional as F


def lookup(query: torch.Tensor, target: torch.Tensor, kernel_size: int) -> torch.Tensor:
    table = torchsparse.backend.GPUHashTable(len(target) * 2)
    table.insert_coords(target[:, [1, 2, 3, 0]])
    kernel = torch.full((3,), kernel_size, dtype=torch.int32)
    return table.lookup_coords(query[:, [1, 2, 3, 0]], kernel, torch.ones(3, dtype=torch.int32), kernel_size**3) - 1


def test_full_grid_is_grid_sample() -> None:
    torch.manual_seed(0)
    grid = torch.randn(4, 5, 6, 3)
    coords = torch.ones(4, 5, 6).nonzero().int()
    cells = torch.nn.functional.pad(coords, (1, 0))
    points = torch.rand(50, 3) * torch.tensor([3.0, 4.0, 5.0])
    rows = lookup(torch.nn.functional.pad(points.floor().int(), (1, 0)), cells, 2)
    feats = grid.view(-1, 3).requires_grad_()
    out = F.spdevoxelize(feats, rows, F.calc_ti_weights(points, rows))
    place = (points / torch.tensor([3.0, 4.0, 5.0]) * 2 - 1).flip(1).view(1, 50, 1, 1, 3)
    expected = torch.nn.functional.grid_sample(grid.permute(3, 0, 1, 2)[None], place, align_corners=True)
    torch.testing.assert_close(out, expected[0, :, :, 0, 0].T, atol=1e-5, rtol=1e-5)
    out.sum().backward()
    assert abs(float(feats.grad.sum()) - 150) < 1e-3  # type: ignore[union-attr]


def test_missing_corners_weigh_nothing() -> None:
    cells = torch.tensor([[0, 0, 0, 0], [0, 1, 0, 0]], dtype=torch.int32)
    point = torch.tensor([[0.25, 0.5, 0.5]])
    rows = lookup(torch.tensor([[0, 0, 0, 0]], dtype=torch.int32), cells, 2)
    assert rows.tolist() == [[0, -1, -1, -1, 1, -1, -1, -1]]
    out = F.spdevoxelize(torch.tensor([[1.0], [3.0]]), rows, F.calc_ti_weights(point, rows))
    torch.testing.assert_close(out, torch.tensor([[1.5]]), atol=1e-5, rtol=1e-5)
