"""Keys, look-ups and counts."""

import torch

from pointcloud.shims.torchsparse.nn import functional as F


def fnv(row: list[int]) -> int:
    key = 14695981039346656037
    for number in row:
        key = ((key ^ (number % 2**32)) * 1099511628211) % 2**64
    return (key >> 60) ^ (key & 0xFFFFFFFFFFFFFFF)


def test_keys_are_fnv() -> None:
    coords = torch.tensor([[1, 2, 3, 0], [-4, 5, 70000, 1]], dtype=torch.int32)
    assert F.sphash(coords).tolist() == [fnv(row) for row in coords.tolist()]
    offsets = torch.tensor([[0, 0, 0], [1, -1, 2]], dtype=torch.int32)
    assert F.sphash(coords, offsets)[1].tolist() == [fnv([2, 1, 5, 0]), fnv([-3, 4, 70002, 1])]


def test_query_and_count() -> None:
    found = F.sphashquery(torch.tensor([[7, 9], [5, 7]]), torch.tensor([5, 7]))
    assert found.tolist() == [[1, -1], [0, 1]]
    assert F.spcount(torch.tensor([0, 2, 2, -1], dtype=torch.int32), 4).tolist() == [1, 0, 2, 0]
