"""Samples to batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from pointcloud.shims.torchsparse.tensor import SparseTensor


def sparse_collate(inputs: Sequence[SparseTensor]) -> SparseTensor:
    """Tensors with cells [N, 3] as one with cells [N, 4], whose first column is the number of the sample."""
    stride = inputs[0].stride
    coords, feats = [], []
    for k, each in enumerate(inputs):
        if each.stride != stride:
            raise ValueError(f"inputs must have the same stride, got {stride} and {each.stride}")
        cells = torch.as_tensor(each.coords)
        coords.append(torch.cat([cells.new_full((len(cells), 1), k).int(), cells.int()], dim=1))
        feats.append(torch.as_tensor(each.feats))
    return SparseTensor(torch.cat(feats), torch.cat(coords), stride)


def sparse_collate_fn(inputs: Sequence[Any]) -> Any:
    """Dictionaries of samples as one of batches: arrays stacked, sparse tensors collated, other values as lists."""
    first = inputs[0]
    if not isinstance(first, dict):
        return inputs
    return {name: _batch([each[name] for each in inputs]) for name in first}


def _batch(values: list[Any]) -> Any:
    if isinstance(values[0], dict):
        return sparse_collate_fn(values)
    if isinstance(values[0], (np.ndarray, torch.Tensor)):
        return torch.stack([torch.as_tensor(value) for value in values])
    return sparse_collate(values) if isinstance(values[0], SparseTensor) else values
