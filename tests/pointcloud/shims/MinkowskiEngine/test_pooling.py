"""Pools by loops over cells."""

from __future__ import annotations

import pytest
import torch

from pointcloud.shims import MinkowskiEngine as ME


@pytest.mark.parametrize("name", ["Sum", "Avg", "Max"])
def test_pools(name: str) -> None:
    torch.manual_seed(0)
    coords = torch.unique(torch.randint(-4, 4, (40, 4)).abs_() * torch.tensor([0, 1, 1, -1]), dim=0)
    x = ME.SparseTensor(torch.randn(len(coords), 3, dtype=torch.float64), coords)
    reduce = {"Sum": lambda p: p.sum(0), "Avg": lambda p: p.mean(0), "Max": lambda p: p.amax(0)}[name]
    y = getattr(ME, f"Minkowski{name}Pooling")(2, 2, dimension=3)(x)
    parent = torch.div(x.C, torch.tensor([1, 2, 2, 2]), rounding_mode="floor") * torch.tensor([1, 2, 2, 2])
    for m, cell in enumerate(y.C):
        torch.testing.assert_close(y.F[m], reduce(x.F[(parent == cell).all(1)]))
    whole = getattr(ME, f"MinkowskiGlobal{name}Pooling")()(x)
    torch.testing.assert_close(whole.F[0], reduce(x.F))
