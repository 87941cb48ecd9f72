"""Concatenation and the sum over a union."""

import pytest
import torch

from pointcloud.shims.torchsparse import SparseTensor, cat, generative_add

A = torch.tensor([[0, 1, 1, 1], [0, 2, 0, 0]], dtype=torch.int32)
B = torch.tensor([[0, 2, 0, 0], [1, 0, 0, 0]], dtype=torch.int32)


def test_union() -> None:
    a, b = SparseTensor(torch.tensor([[1.0], [2.0]]), A), SparseTensor(torch.tensor([[10.0], [20.0]]), B)
    out = generative_add(a, b)
    assert dict(zip(map(tuple, out.C.tolist()), out.F.flatten().tolist())) == {
        (0, 1, 1, 1): 1.0, (0, 2, 0, 0): 12.0, (1, 0, 0, 0): 20.0,
    }  # fmt: skip
    assert cat([a, SparseTensor(b.F, A.clone())]).F.tolist() == [[1.0, 10.0], [2.0, 20.0]]
    for operator in (lambda: cat([a, b]), lambda: a + b):
        with pytest.raises(ValueError, match="same coordinates"):
            operator()
