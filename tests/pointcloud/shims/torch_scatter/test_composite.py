"""Softmax and its kin against torch on each index's elements."""

import pytest
import torch

from pointcloud.shims import torch_scatter as ts

INDEX = torch.tensor([0, 2, 0, 2, 2, 5])


def test_softmax() -> None:
    torch.manual_seed(0)
    src = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    soft, log = ts.scatter_softmax(src, INDEX, 0), ts.scatter_log_softmax(src, INDEX, 0)
    for group in (0, 2, 5):
        torch.testing.assert_close(soft[INDEX == group], src[INDEX == group].softmax(0))
        torch.testing.assert_close(log[INDEX == group], src[INDEX == group].log_softmax(0))
    assert torch.autograd.gradcheck(lambda x: ts.scatter_softmax(x, INDEX, 0), src)


def test_logsumexp() -> None:
    src = torch.randn(6, 4, dtype=torch.float64)
    out = ts.scatter_logsumexp(src, INDEX, 0)
    torch.testing.assert_close(out[2], src[INDEX == 2].logsumexp(0))
    assert torch.equal(out[1], torch.zeros(4, dtype=torch.float64))


@pytest.mark.parametrize("unbiased", [True, False])
def test_std(unbiased: bool) -> None:
    src = torch.randn(6, 4, dtype=torch.float64)
    out = ts.scatter_std(src, INDEX, 0, unbiased=unbiased)
    expected = src[INDEX == 2].std(0, unbiased=unbiased)
    torch.testing.assert_close(out[2], expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(out[1], torch.zeros(4, dtype=torch.float64))


def test_integers_are_refused() -> None:
    with pytest.raises(ValueError, match="src must be floating for scatter_softmax"):
        ts.scatter_softmax(torch.tensor([1, 2]), torch.tensor([0, 0]))
