"""Union, intersection and pruning against sets of Python; grids for negative coordinates."""

from __future__ import annotations

import pytest
import torch

import pointcloud as pc


def tensor(cells: list[list[int]], channels: int = 2) -> pc.SparseConvTensor:
    indices = torch.tensor(cells, dtype=torch.int32).reshape(-1, 3)
    values = torch.arange(len(indices) * channels, dtype=torch.float64).reshape(-1, channels) + 1
    return pc.SparseConvTensor(values, indices, [5, 5], 2)


A = [[0, 1, 1], [0, 4, 2], [1, 0, 0]]
B = [[1, 0, 0], [0, 3, 3], [0, 1, 1], [1, 4, 4]]


def test_union_and_intersection_are_the_dense_ones() -> None:
    a, b = tensor(A), tensor(B, 3)
    x, y = pc.unite(a, b)
    assert x.coordinates is y.coordinates
    assert {tuple(c) for c in x.indices.tolist()} == {tuple(c) for c in A + B}
    assert torch.equal(x.dense(), a.dense()) and torch.equal(y.dense(), b.dense())
    u, v = pc.intersect(a, b)
    assert u.coordinates is v.coordinates and u.indices.tolist() == [[0, 1, 1], [1, 0, 0]]
    both = ((a.dense() != 0).any(1) & (b.dense() != 0).any(1))[:, None]
    assert torch.equal(u.dense(), a.dense() * both) and torch.equal(v.dense(), b.dense() * both)


def test_gradients_reach_both() -> None:
    a, b = tensor(A), tensor(B)
    features = [each.features.clone().requires_grad_() for each in (a, b)]
    x, y = pc.unite(a.replace_feature(features[0]), b.replace_feature(features[1]))
    (x.features * y.features).sum().backward()
    assert features[0].grad.tolist() == [[5.0, 6.0], [0.0, 0.0], [1.0, 2.0]]
    assert features[1].grad.tolist() == [[5.0, 6.0], [0.0, 0.0], [1.0, 2.0], [0.0, 0.0]]


def test_empty_and_single() -> None:
    a, none = tensor(A), tensor([])
    assert [len(x.coordinates) for x in pc.unite(a, none)] == [3, 3]
    assert [x.features.shape for x in pc.intersect(a, none)] == [(0, 2)] * 2
    assert torch.equal(pc.unite(a)[0].dense(), a.dense()) and torch.equal(pc.intersect(a)[0].dense(), a.dense())


def test_prune() -> None:
    a = tensor(A)
    kept = pc.prune(a, torch.tensor([True, False, True]))
    assert kept.indices.tolist() == [A[0], A[2]] and torch.equal(kept.features, a.features[[0, 2]])
    for wrong in (torch.tensor([0, 2]), torch.tensor([True]), [True, False, True]):
        with pytest.raises(ValueError, match=r"keep must be a bool tensor \[3\]"):
            pc.prune(a, wrong)


@pytest.mark.parametrize("act", [pc.unite, pc.intersect])
def test_wrong_operands_are_named(act: object) -> None:
    with pytest.raises(ValueError, match="at least one"):
        act()
    with pytest.raises(TypeError, match="SparseConvTensors, got Tensor"):
        act(tensor(A), torch.ones(3, 2))
    other = pc.SparseConvTensor(torch.ones(1, 2), torch.zeros(1, 3, dtype=torch.int32), [5, 6], 2)
    with pytest.raises(ValueError, match="one grid"):
        act(tensor(A), other)
    with pytest.raises(ValueError, match="unique"):
        act(tensor(A), tensor([A[0], A[0]]))


def test_negative_coordinates_group_as_their_floor() -> None:
    cells = torch.tensor([[0, -1, 3], [0, -2, 2], [0, 0, 0], [1, 5, -7]])
    grid = pc.grid_of(cells, multiple=2)
    assert (grid.origin, grid.spatial_shape, grid.batch_size) == ([-2, -8], [8, 12], 2)
    x = grid.tensor(torch.ones(4, 1))
    assert torch.equal(grid.coordinates(x), cells)
    y = pc.SparseOffsetConv(1, 1, pc.kernel_offsets(2, 2), 2)(x)
    expected = {(b, u // 2 * 2, v // 2 * 2) for b, u, v in cells.tolist()}
    assert {tuple(c) for c in grid.coordinates(y, 2).tolist()} == expected


def test_grids_at_their_limits() -> None:
    empty = pc.grid_of(torch.empty(0, 4, dtype=torch.int32), 8)
    assert empty.spatial_shape == [8, 8, 8] and empty.tensor(torch.empty(0, 1)).batch_size == 1
    assert pc.grid_of(torch.tensor([[0, -(2**31)]]), batch_size=3).origin == [-(2**31)]
    for cells, options, message in (
        (torch.tensor([[-1, 0]]), {}, "batch indices"),
        (torch.tensor([[3, 0]]), {"batch_size": 2}, "from 0 to 1"),
        (torch.tensor([[0, -(2**31)], [0, 2**31 - 1]]), {}, "fewer than 2\\*\\*31"),
        (torch.ones(1, 4), {}, "int32 or int64"),
        (torch.ones(4, dtype=torch.int64), {}, "D from 1 to 4"),
        (torch.zeros(1, 4, dtype=torch.int64), {"multiple": 0}, "multiple must be"),
    ):
        with pytest.raises(ValueError, match=message):
            pc.grid_of(cells, **options)
