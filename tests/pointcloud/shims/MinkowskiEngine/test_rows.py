"""Pruned rows."""

import pytest
import torch

from pointcloud.shims import MinkowskiEngine as ME
from tests.pointcloud.shims.MinkowskiEngine.test_convolution import cloud


def test_pruning() -> None:
    x = ME.SparseTensor(torch.arange(3.0)[:, None], torch.tensor([[0, 1, 0], [0, 2, 0], [0, 5, 5]]))
    y = ME.MinkowskiPruning()(x, torch.tensor([True, False, True]))
    assert y.C.tolist() == [[0, 1, 0], [0, 5, 5]] and y.F.flatten().tolist() == [0.0, 2.0]
    layer = ME.MinkowskiConvolution(1, 1, 2, 2, dimension=2)
    assert len(layer(x)) == len(layer(y)) + 1  # the coarse cells are those of the rows that stayed
    with pytest.raises(ValueError, match=r"mask must be bool \[3\]"):
        ME.MinkowskiPruning()(x, torch.tensor([1, 0, 1]))


def test_stacks_and_dense_tensors() -> None:
    x = cloud()
    a, b = (ME.MinkowskiConvolution(4, 4, 3, dimension=3).double() for _ in range(2))
    fa, fb = a(x).F, b(x).F
    torch.testing.assert_close(ME.MinkowskiStackCat(a, b)(x).F, torch.cat([fa, fb], 1))
    torch.testing.assert_close(ME.MinkowskiStackSum(a, b)(x).F, fa + fb)
    torch.testing.assert_close(ME.MinkowskiStackMean(a, b)(x).F, (fa + fb) / 2)
    with pytest.raises(ValueError, match="same coordinates"):
        ME.MinkowskiStackCat(a, ME.MinkowskiConvolution(4, 4, 2, 2, dimension=3).double())(x)
    assert ME.MinkowskiToFeature()(x) is x.F
    coarse = ME.MinkowskiConvolution(4, 4, 2, 2, dimension=3).double()(x)
    for each in (x, coarse):
        values, first, stride = each.dense()
        assert first.tolist() == each.C[:, 1:].amin(0).tolist() and stride.tolist() == each.tensor_stride
        batch, *place = torch.cat([each.C[:, :1], (each.C[:, 1:] - first) // stride], 1).long().unbind(1)
        torch.testing.assert_close(values[batch, :, place[0], place[1], place[2]], each.F)
        assert int((values != 0).any(1).sum()) == len(each)
    with pytest.raises(ValueError, match="shape must be"):
        x.dense([2, 4, 2, 2, 2])
    with pytest.raises(ValueError, match="shape must be"):
        ME.MinkowskiToDenseTensor()(x)  # it has negative cells
    moved = ME.SparseTensor(x.F, x.C + torch.tensor([0, 5, 5, 5]))
    assert ME.MinkowskiToDenseTensor([2, 4, 12, 12, 12])(moved).shape == (2, 4, 12, 12, 12)
