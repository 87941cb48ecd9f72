"""The meaning of a coordinate table, in plain torch, on any device: a stable sort and a binary search."""

import torch
from torch import Tensor


def build(keys: Tensor) -> Tensor:
    """The rows in ascending order of their keys, equal keys in ascending order of their rows; padded to [2N]."""
    order = torch.argsort(keys, stable=True).to(torch.int32)
    return torch.cat([order, torch.full_like(order, -1)])


def lookup(slots: Tensor, keys: Tensor, queries: Tensor) -> Tensor:
    """The first row of each queried key, -1 for none."""
    if len(keys) == 0:
        return torch.full_like(queries, -1, dtype=torch.int32)
    order = slots[: len(keys)].long()
    ordered = keys[order]
    place = torch.searchsorted(ordered, queries).clamp(max=len(keys) - 1)
    return torch.where(ordered[place] == queries, order[place], -1).to(torch.int32)
