"""Concatenation, union and pruning, and the base class of networks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from pointcloud.shims.MinkowskiEngine.tensor import SparseTensor, same_cells, union


def cat(*inputs: Any) -> SparseTensor:
    """Features side by side; raises ValueError for tensors at other coordinates."""
    tensors = list(inputs[0]) if len(inputs) == 1 and isinstance(inputs[0], (list, tuple)) else list(inputs)
    if not all(same_cells(tensors[0], other) for other in tensors[1:]):
        raise ValueError("inputs of cat must have the same coordinates in the same order")
    return tensors[0].at(torch.cat([each.F for each in tensors], 1))


class MinkowskiUnion(nn.Module):
    """The sum over the union of the cells of all inputs."""

    def forward(self, *inputs: SparseTensor) -> SparseTensor:
        if len(inputs) < 2:
            raise ValueError(f"MinkowskiUnion needs two tensors or more, got {len(inputs)}")
        return union(list(inputs))


class MinkowskiPruning(nn.Module):
    """The rows where the mask, bool [N], is set."""

    def forward(self, input: SparseTensor, mask: Tensor) -> SparseTensor:
        if mask.dtype != torch.bool or mask.shape != (len(input),):
            raise ValueError(f"mask must be bool [{len(input)}], got {mask.dtype} {list(mask.shape)}")
        key = input.coordinate_manager.add(input.C[mask], input.coordinate_map_key[0], "pruned")
        return input.at(input.F[mask], key)


class MinkowskiNetwork(nn.Module, ABC):
    """A network of `D` axes."""

    def __init__(self, D: int) -> None:
        super().__init__()
        self.D = D

    @abstractmethod
    def forward(self, x: SparseTensor) -> SparseTensor:
        """The network's answer."""
