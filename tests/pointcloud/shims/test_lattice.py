"""Cells are found wherever they lie."""

import pytest
import torch

from pointcloud.shims.lattice import Cells, find_map, floor_to, taps


def test_rows_and_floor() -> None:
    coords = torch.tensor([[0, -3, 5], [1, 0, 0], [0, 4, -7]], dtype=torch.int32)
    cells = Cells(coords)
    assert cells.rows(torch.tensor([[0, 4, -7], [0, 0, 0], [1, 0, 0], [9, 9, 9]])).tolist() == [2, -1, 1, -1]
    assert floor_to(coords, [2, 4]).tolist() == [[0, -4, 4], [0, 4, -8], [1, 0, 0]]
    assert Cells(coords[:0]).rows(coords).tolist() == [-1, -1, -1]
    found = find_map(cells, coords, [[0, 0], [7, -12]])
    assert found.table.tolist() == [[0, 1, 2], [2, -1, -1]]
    with pytest.raises(ValueError, match="fewer than"):
        Cells(torch.tensor([[0] * 5, [2**31 - 1] * 5]))


def test_order_of_taps() -> None:
    assert taps((2, 1, 3), False)[1] == (0, 0, 1) and taps((2, 1, 3), True)[1] == (1, 0, 0)
