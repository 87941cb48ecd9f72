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


class _Stack(nn.Sequential):
    def forward(self, x: SparseTensor) -> SparseTensor:
        outputs = [module(x) for module in self]
        if not all(same_cells(outputs[0], other) for other in outputs[1:]):
            raise ValueError(f"the parts of {type(self).__name__} must give the same coordinates in the same order")
        return outputs[0].at(self.combine([each.F for each in outputs]))

    def combine(self, features: list[Tensor]) -> Tensor:
        raise NotImplementedError


class MinkowskiStackCat(_Stack):
    """The outputs of all parts side by side."""

    def combine(self, features: list[Tensor]) -> Tensor:
        return torch.cat(features, 1)


class MinkowskiStackSum(_Stack):
    """The sum of the outputs of all parts."""

    def combine(self, features: list[Tensor]) -> Tensor:
        return torch.stack(features).sum(0)


class MinkowskiStackMean(_Stack):
    """The mean of the outputs of all parts."""

    def combine(self, features: list[Tensor]) -> Tensor:
        return torch.stack(features).mean(0)


class MinkowskiToFeature(nn.Module):
    """The features alone, [N, C]."""

    def forward(self, x: SparseTensor) -> Tensor:
        return x.F


class MinkowskiToDenseTensor(nn.Module):
    """A dense tensor of a shape [B, C, *cells] from cell 0 on; by default the smallest that holds all rows."""

    def __init__(self, shape: Any = None) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, input: SparseTensor) -> Tensor:
        return input.dense(self.shape, input.C.new_zeros(input.D))[0]


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
