"""Ranges against slices."""

from __future__ import annotations

import pytest
import torch

from pointcloud.shims import torch_scatter as ts

REDUCE = {
    "sum": lambda x: x.sum(0), "add": lambda x: x.sum(0), "mean": lambda x: x.mean(0),
    "min": lambda x: x.min(0).values, "max": lambda x: x.max(0).values,
}  # fmt: skip


@pytest.mark.parametrize("reduce", sorted(REDUCE))
@pytest.mark.parametrize("dtype", [torch.float64, torch.int64])
def test_ranges(reduce: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    src = torch.randn(12, 3, dtype=torch.float64)
    src = src if dtype.is_floating_point else (src * 10).long()
    indptr = torch.tensor([1, 4, 4, 10])  # neither from the first element nor to the last one
    parts = [src[1:4], src[4:10]]
    means = [(part.double().mean(0).floor() if reduce == "mean" else REDUCE[reduce](part)).to(dtype) for part in parts]
    if dtype.is_floating_point:
        means = [REDUCE[reduce](part) for part in parts]
    out = ts.segment_csr(src, indptr, reduce=reduce)
    torch.testing.assert_close(out, torch.stack([means[0], torch.zeros_like(means[0]), means[1]]))
    buffer = torch.empty_like(out)
    assert ts.segment_csr(src, indptr, out=buffer, reduce=reduce) is buffer and torch.equal(buffer, out)
    if dtype.is_floating_point:
        src.requires_grad_()
        assert torch.autograd.gradcheck(lambda x: ts.segment_csr(x, indptr, reduce=reduce), src)


def test_positions() -> None:
    src = torch.tensor([9.0, 1.0, 5.0, 2.0, 0.0])
    out, place = ts.segment_max_csr(src, torch.tensor([1, 3, 3, 5]))
    assert out.tolist() == [5.0, 0.0, 2.0] and place.tolist() == [2, 5, 3]
    assert ts.segment_min_csr(src, torch.tensor([1, 3, 3, 5]))[1].tolist() == [1, 5, 4]


def test_bounds_of_several_axes() -> None:
    src = torch.arange(24.0).view(2, 4, 3)
    indptr = torch.tensor([[0, 1, 4], [0, 2, 4]])
    out = ts.segment_csr(src, indptr)
    assert torch.equal(out[0, 1], src[0, 1:].sum(0)) and torch.equal(out[1, 0], src[1, :2].sum(0))
    back = ts.gather_csr(out, indptr)
    assert torch.equal(back[0, 1:], out[0, 1].expand(3, 3)) and torch.equal(back[1, :2], out[1, 0].expand(2, 3))


def test_gather() -> None:
    assert ts.gather_csr(torch.tensor([1, 2, 3]), torch.tensor([0, 2, 2, 3])).tolist() == [1, 1, 3]


def test_errors() -> None:
    with pytest.raises(ValueError, match="indptr must rise from at least 0 to at most 3, got 0 to 4"):
        ts.segment_csr(torch.zeros(3), torch.tensor([0, 4]))
    with pytest.raises(ValueError, match="reduce must be sum, add, mean, min or max, got 'mul'"):
        ts.segment_csr(torch.zeros(3), torch.tensor([0, 3]), reduce="mul")
