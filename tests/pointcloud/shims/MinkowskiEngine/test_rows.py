"""Pruned rows."""

import pytest
import torch

from pointcloud.shims import MinkowskiEngine as ME


def test_pruning() -> None:
    x = ME.SparseTensor(torch.arange(3.0)[:, None], torch.tensor([[0, 1, 0], [0, 2, 0], [0, 5, 5]]))
    y = ME.MinkowskiPruning()(x, torch.tensor([True, False, True]))
    assert y.C.tolist() == [[0, 1, 0], [0, 5, 5]] and y.F.flatten().tolist() == [0.0, 2.0]
    layer = ME.MinkowskiConvolution(1, 1, 2, 2, dimension=2)
    assert len(layer(x)) == len(layer(y)) + 1  # the coarse cells are those of the rows that stayed
    with pytest.raises(ValueError, match=r"mask must be bool \[3\]"):
        ME.MinkowskiPruning()(x, torch.tensor([1, 0, 1]))
