"""Batch norm over the rows of several processes; the sums themselves are tested where two processes train."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pointcloud.tensor import SparseConvTensor
from pointcloud.training.processes import SharedBatchNorm, joined, rank_and_world, shared_norms, sum_gradients, total


@pytest.mark.parametrize("affine", [True, False], ids=["affine", "plain"])
@pytest.mark.parametrize("momentum", [0.1, None], ids=["moving", "cumulative"])
@pytest.mark.parametrize("tracked", [True, False], ids=["tracked", "untracked"])
def test_it_is_batch_norm(affine: bool, momentum: float | None, tracked: bool) -> None:
    torch.manual_seed(0)
    norm, other = (
        nn.BatchNorm1d(5, momentum=momentum, affine=affine, track_running_stats=tracked, dtype=torch.float64)
        for _ in range(2)
    )
    shared = SharedBatchNorm(other)
    for _ in range(3):
        x = torch.randn(40, 5, dtype=torch.float64, requires_grad=True)
        y = x.detach().clone().requires_grad_()
        a, b = norm(x), shared(y)
        torch.testing.assert_close(b, a)
        (a**3).sum().backward()
        (b**3).sum().backward()
        torch.testing.assert_close(y.grad, x.grad)
    for one, two in zip(norm.state_dict().values(), shared.state_dict().values(), strict=True):
        torch.testing.assert_close(two, one)
    assert list(shared.state_dict()) == list(norm.state_dict())
    torch.testing.assert_close(shared.eval()(x), norm.eval()(x))


def test_sparse_tensors_and_no_rows() -> None:
    shared = SharedBatchNorm(nn.BatchNorm1d(3))
    indices = torch.tensor([[0, 0, 0, 0], [0, 1, 1, 1]], dtype=torch.int32)
    x = SparseConvTensor(torch.randn(2, 3), indices, [2, 2, 2], 1)
    assert torch.equal(shared(x).features, shared(x.features))
    empty = torch.empty(0, 3, requires_grad=True)
    shared(empty).sum().backward()
    assert empty.grad is not None and all(torch.isfinite(buffer).all() for buffer in shared.buffers())


def test_one_process_is_left_alone() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    with joined(), shared_norms(model):
        assert rank_and_world() == (0, 1) and type(model[1]) is nn.BatchNorm1d
        x = torch.randn(3)
        assert total(x) is x
        sum_gradients(list(model.parameters()))
        assert model[0].weight.grad is None
