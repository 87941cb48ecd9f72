"""Rows that share a cell, and arithmetic over unions."""

from __future__ import annotations

import pytest
import torch

from pointcloud.shims import MinkowskiEngine as ME

COORDS = torch.tensor([[0, 1, 1], [0, -2, 0], [0, 1, 1], [1, 1, 1]])
MODE = ME.SparseTensorQuantizationMode


@pytest.mark.parametrize(
    ("mode", "first"), [(MODE.RANDOM_SUBSAMPLE, 1.0), (MODE.UNWEIGHTED_AVERAGE, 2.0), (MODE.UNWEIGHTED_SUM, 4.0)]
)
def test_quantization(mode: ME.SparseTensorQuantizationMode, first: float) -> None:
    x = ME.SparseTensor(torch.tensor([[1.0], [2.0], [3.0], [4.0]]), COORDS + 0.4, quantization_mode=mode)
    assert x.C.tolist() == [[0, 1, 1], [0, -2, 0], [1, 1, 1]] and x.F.flatten().tolist() == [first, 2.0, 4.0]
    assert [len(part) for part in x.decomposed_features] == [2, 1] == [len(part) for part in x.decomposed_coordinates]


def test_duplicates_are_refused_when_asked() -> None:
    with pytest.raises(ValueError, match="coordinates must be unique with NO_QUANTIZATION, got 3 cells of 4 rows"):
        ME.SparseTensor(torch.zeros(4, 1), COORDS, quantization_mode=MODE.NO_QUANTIZATION)


def test_arithmetic() -> None:
    x = ME.SparseTensor(torch.tensor([[1.0], [2.0]]), COORDS[:2])
    y = ME.SparseTensor(torch.tensor([[10.0], [20.0]]), COORDS[2:], coordinate_manager=x.coordinate_manager)
    total = x + y
    assert dict(zip(map(tuple, total.C.tolist()), total.F.flatten().tolist())) == {
        (0, 1, 1): 11.0, (0, -2, 0): 2.0, (1, 1, 1): 20.0,
    }  # fmt: skip
    assert torch.equal(ME.MinkowskiUnion()(x, y).F, total.F)
    assert (x + x).F.tolist() == [[2.0], [4.0]] and (x - 1).F.tolist() == [[0.0], [1.0]]
    assert (x * x).F.tolist() == [[1.0], [4.0]] and (x - x).F.tolist() == [[0.0], [0.0]]
    assert ME.cat(x, x).F.shape == (2, 2) and ME.cat([x, x]).C is x.C
    with pytest.raises(ValueError, match="same coordinates"):
        ME.cat(x, y)


def test_field_to_cells_and_back() -> None:
    points = torch.tensor([[0, 0.2, -0.3], [0, 0.9, -0.9], [0, 2.5, 0.0]])
    field = ME.TensorField(torch.tensor([[1.0], [3.0], [5.0]]), points)
    x = ME.MinkowskiToSparseTensor()(field)
    assert x.C.tolist() == [[0, 0, -1], [0, 2, 0]] and x.F.tolist() == [[2.0], [5.0]]
    assert x.slice(field).F.tolist() == [[2.0], [2.0], [5.0]]
    assert x.cat_slice(field).F.tolist() == [[2.0, 1.0], [2.0, 3.0], [5.0, 5.0]]
    coarse = ME.MinkowskiSumPooling(2, 2, dimension=2)(x)
    assert coarse.slice(field).F.tolist() == [[2.0], [2.0], [5.0]]
