"""Keys of cells, and where they are."""

from __future__ import annotations

import torch
from torch import Tensor

from common_kernels.coordinate_table import CoordinateTable

_BASIS = 14695981039346656037 - 2**64
_PRIME = 1099511628211


def sphash(coords: Tensor, offsets: Tensor | None = None) -> Tensor:
    """60-bit FNV keys of int32 cells [N, 4], int64 [N]; with offsets int32 [K, 3], added to the first three columns,
    [K, N]."""
    for name, tensor, width in (("coords", coords, 4), ("offsets", offsets, 3)):
        if tensor is not None and (tensor.dtype != torch.int32 or tensor.ndim != 2 or tensor.shape[1] != width):
            raise ValueError(f"{name} must be int32 [N, {width}], got {tensor.dtype} {list(tensor.shape)}")
    if offsets is not None:
        moved = coords[None] + torch.nn.functional.pad(offsets, (0, 1))[:, None]
        return sphash(moved.flatten(0, 1)).view(len(offsets), len(coords))
    key = torch.full((len(coords),), _BASIS, dtype=torch.int64, device=coords.device)
    for column in coords.unbind(1):
        key = (key ^ (column.long() & 0xFFFFFFFF)) * _PRIME  # wraps around, as unsigned numbers do
    return ((key >> 60) & 0xF) ^ (key & 0xFFFFFFFFFFFFFFF)


def sphashquery(queries: Tensor, references: Tensor) -> Tensor:
    """The position of each key in references [M], in the shape of queries; -1 for none."""
    return CoordinateTable(references.flatten()).lookup(queries.flatten()).long().view(queries.shape)


def spcount(coords: Tensor, num: Tensor | int) -> Tensor:
    """How often each number below `num` stands in coords, int32; negative numbers are left out."""
    rows = coords.flatten().long()
    return torch.bincount(rows[rows >= 0], minlength=int(num)).int()
