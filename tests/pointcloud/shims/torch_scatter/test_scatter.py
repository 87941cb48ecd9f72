"""scatter against loops over the elements."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from pointcloud.shims import torch_scatter as ts

REDUCE = {"sum": sum, "mul": math.prod, "min": min, "max": max, "mean": lambda values: sum(values) / len(values)}


def loop(src: Tensor, index: Tensor, size: int, reduce: str) -> Tensor:
    """The reduction along axis 1 of src [A, M] with index [A, M]."""
    out = torch.full((src.shape[0], size), 1.0 if reduce == "mul" else 0.0, dtype=torch.float64)
    for a in range(src.shape[0]):
        for s in range(size):
            values = [float(v) for v, i in zip(src[a], index[a]) if i == s]
            if values:
                out[a, s] = REDUCE[reduce](values)
    return out


@pytest.mark.parametrize("reduce", sorted(REDUCE))
@pytest.mark.parametrize("one_index", [False, True])
def test_values_and_gradient(reduce: str, one_index: bool) -> None:
    torch.manual_seed(0)
    src = torch.randn(3, 20, dtype=torch.float64, requires_grad=True)
    index = torch.randint(0, 6, (3, 20))
    index[index == 4] = 2
    if one_index:
        index = index[0]
    out = ts.scatter(src, index, dim=1, dim_size=7, reduce=reduce)
    torch.testing.assert_close(out.detach(), loop(src.detach(), index.expand(3, 20), 7, reduce))
    assert torch.autograd.gradcheck(lambda x: ts.scatter(x, index, 1, dim_size=7, reduce=reduce), src)
    other = ts.scatter(src.T, index.T if index.dim() > 1 else index, dim=0, dim_size=7, reduce=reduce)
    torch.testing.assert_close(other, out.T)


def test_index_broadcasts_from_the_first_axis() -> None:
    src = torch.arange(24.0).view(2, 3, 4)
    index = torch.tensor([[0, 1, 0], [1, 1, 0]])
    out = ts.scatter_sum(src, index, dim=1)
    assert torch.equal(out[0, 0], src[0, 0] + src[0, 2]) and torch.equal(out[1, 1], src[1, 0] + src[1, 1])
    assert torch.equal(ts.scatter_add(src, torch.tensor([0, 0, 1]), dim=1), ts.scatter(src, torch.tensor([0, 0, 1]), 1))


def test_extremes_give_first_position_and_size_for_none() -> None:
    src = torch.tensor([3.0, 1.0, 3.0, math.nan, 1.0])
    out, place = ts.scatter_max(src, torch.tensor([0, 0, 0, 2, 3]), dim_size=5)
    assert out.tolist() == [3.0, 0.0, 0.0, 1.0, 0.0] and place.tolist() == [0, 5, 5, 4, 5]
    out, place = ts.scatter_min(torch.tensor([3, 1, 1]), torch.tensor([0, 0, 0]), dim_size=2)
    assert out.tolist() == [1, 0] and place.tolist() == [1, 3]


def test_out_is_combined_in_place() -> None:
    src, index = torch.tensor([1.0, 5.0, 2.0]), torch.tensor([0, 0, 1])
    out = torch.tensor([10.0, 10.0, 10.0])
    assert ts.scatter_sum(src, index, out=out) is out and out.tolist() == [16.0, 12.0, 10.0]
    out = torch.tensor([3.0, 3.0, 3.0])
    assert ts.scatter_max(src, index, out=out)[1].tolist() == [1, 3, 3] and out.tolist() == [5.0, 3.0, 3.0]
    out = torch.tensor([2.0, 2.0, 2.0])
    assert ts.scatter_mean(src, index, out=out).tolist() == [4.0, 4.0, 2.0]
    out = torch.tensor([2.0, 2.0, 2.0])
    assert ts.scatter_mul(src, index, out=out).tolist() == [10.0, 4.0, 2.0]


def test_integers_and_nothing() -> None:
    assert ts.scatter_mean(torch.tensor([1, 2, -3]), torch.tensor([0, 0, 1])).tolist() == [1, -3]
    for reduce in REDUCE:
        assert ts.scatter(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64), 0, reduce=reduce).shape == (0, 3)
    assert ts.scatter_max(torch.zeros(0), torch.zeros(0, dtype=torch.int64), dim_size=2)[1].tolist() == [0, 0]


def test_errors() -> None:
    with pytest.raises(ValueError, match="reduce must be one of sum, add, mul, mean, min, max, got 'median'"):
        ts.scatter(torch.zeros(3), torch.zeros(3, dtype=torch.int64), reduce="median")
    with pytest.raises(ValueError, match=r"index must be int64 \[3\].*got int64 \[4\]"):
        ts.scatter_sum(torch.zeros(3), torch.zeros(4, dtype=torch.int64))
    with pytest.raises(ValueError, match="index must be int64, got float32"):
        ts.scatter_sum(torch.zeros(3), torch.zeros(3))
    with pytest.raises(ValueError, match="dim must be an axis"):
        ts.scatter_sum(torch.zeros(3), torch.zeros(3, dtype=torch.int64), dim=1)
