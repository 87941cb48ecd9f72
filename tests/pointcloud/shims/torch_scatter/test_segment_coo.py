"""Runs of a sorted index against scatter of the same index."""

import pytest
import torch

from pointcloud.shims import torch_scatter as ts


@pytest.mark.parametrize("reduce", ["sum", "mean", "min", "max"])
def test_runs(reduce: str) -> None:
    torch.manual_seed(0)
    src, index = torch.randn(2, 6, 3), torch.tensor([[0, 0, 1, 1, 1, 3], [0, 2, 2, 2, 3, 3]])
    out = ts.segment_coo(src, index, dim_size=5, reduce=reduce)
    assert torch.equal(out, ts.scatter(src, index, 1, dim_size=5, reduce=reduce))
    named = getattr(ts, f"segment_{reduce}_coo")(src, index, dim_size=5)
    assert torch.equal(named[0] if reduce in ("min", "max") else named, out)
    assert torch.equal(ts.gather_coo(out, index)[1, 2], out[1, 2])


def test_gather_of_rows() -> None:
    src = torch.randn(3, 2)
    assert torch.equal(ts.gather_coo(src, torch.tensor([0, 0, 2])), src[[0, 0, 2]])


def test_unsorted_index_is_refused() -> None:
    with pytest.raises(ValueError, match="index must be sorted"):
        ts.segment_coo(torch.zeros(3), torch.tensor([1, 0, 2]))
