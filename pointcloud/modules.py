"""Containers, and modules of torch that take sparse tensors."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Proxy

from pointcloud.coordinates import check_same_coordinates
from pointcloud.graphs import leaf_of_graphs, trace_on_features
from pointcloud.tensor import SparseConvTensor


class SparseModule(nn.Module):
    """Base of the modules that take a sparse tensor whole; `SparseSequential` gives all others its features."""

    def __init__(self, name: str | None = None) -> None:
        super().__init__()
        self.name = name
        self._sparse_unique_name = ""  # spconv's assign_name_for_sparse_modules sets it


class SparseSequential(SparseModule):
    """Modules in a row, given one by one, as an OrderedDict or by keyword.

    A `SparseModule` gets the sparse tensor, any other module its features [N, C]. Batch norm in training mode passes
    over a tensor without rows, as there is nothing to measure.
    """

    def __init__(self, *args: Any, **kwargs: nn.Module) -> None:
        super().__init__()
        if len(args) == 1 and isinstance(args[0], OrderedDict):
            named = list(args[0].items())
        else:
            named = [(str(index), module) for index, module in enumerate(args)]
        for key, module in [*named, *kwargs.items()]:
            self.add(module, key)

    def add(self, module: nn.Module, name: str | None = None) -> None:
        """Append a module, named by its position if no name is given. Raises ValueError for a name that exists."""
        key = str(len(self)) if name is None else name
        if key in self._modules:
            raise ValueError(f"name {key!r} exists already in this SparseSequential")
        self.add_module(key, module)

    def __len__(self) -> int:
        return len(self._modules)

    def __iter__(self) -> Iterator[nn.Module]:
        return (module for module in self._modules.values() if module is not None)

    def __getitem__(self, index: int) -> nn.Module:
        return list(self)[index]

    def forward(self, input: Any) -> Any:
        for module in self:
            if isinstance(input, Proxy) and not is_spconv_module(module):
                input = trace_on_features(module, input)
            elif isinstance(input, SparseConvTensor) and not is_spconv_module(module):
                input = input.replace_feature(_apply(module, input.features))
            else:
                input = module(input)
        return input


def _apply(module: nn.Module, features: Tensor) -> Tensor:
    if len(features) == 0 and module.training and isinstance(module, nn.modules.batchnorm._BatchNorm):
        return features
    return module(features)


class _OnFeatures:
    """Mixin for a module of torch: given a sparse tensor, the module acts on the features."""

    @leaf_of_graphs
    def forward(self, input: Any) -> Any:
        act = super().forward  # type: ignore[misc]
        if not isinstance(input, SparseConvTensor):
            return act(input)
        if len(input.features) == 0 and isinstance(self, nn.modules.batchnorm._BatchNorm) and self.training:
            return input
        return input.replace_feature(act(input.features))


class SparseBatchNorm(_OnFeatures, nn.BatchNorm1d):
    """Batch norm of the features of a sparse tensor."""


class SparseSyncBatchNorm(_OnFeatures, nn.SyncBatchNorm):
    """Batch norm of the features of a sparse tensor, with statistics over all processes."""

    @classmethod
    def convert_sync_batchnorm(cls, module: nn.Module, process_group: Any = None) -> nn.Module:
        """The module with every batch norm inside of it synchronised, those of sparse tensors by this class."""
        if isinstance(module, SparseBatchNorm):
            converted = nn.SyncBatchNorm.convert_sync_batchnorm(module, process_group)
            converted.__class__ = cls
            return converted
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            return nn.SyncBatchNorm.convert_sync_batchnorm(module, process_group)
        for name, child in module.named_children():
            module.add_module(name, cls.convert_sync_batchnorm(child, process_group))
        return module


class SparseReLU(_OnFeatures, nn.ReLU):
    """ReLU of the features of a sparse tensor."""


class SparseIdentity(_OnFeatures, nn.Identity):
    """The sparse tensor itself."""


class Identity(nn.Identity):
    """The input itself, whatever it is."""


class ToDense(SparseModule):
    """The dense grid [B, C, *spatial_shape]."""

    @leaf_of_graphs
    def forward(self, x: SparseConvTensor) -> Tensor:
        return x.dense()


class RemoveGrid(SparseModule):
    """The sparse tensor itself: there is no preallocated grid to remove. For spconv's code."""

    def forward(self, x: SparseConvTensor) -> SparseConvTensor:
        return x


class ConcatTable(SparseModule):
    """The outputs of all its modules for the same input, as a list."""

    def add(self, module: nn.Module) -> ConcatTable:
        """Append a module."""
        self.add_module(str(len(self._modules)), module)
        return self

    def forward(self, input: Any) -> list[Any]:
        return [module(input) for module in self._modules.values() if module is not None]


class JoinTable(SparseModule):
    """Concatenate the channels of sparse tensors with the same coordinates."""

    @leaf_of_graphs
    def forward(self, input: list[SparseConvTensor]) -> SparseConvTensor:
        for x in input[1:]:
            check_same_coordinates(input[0].coordinates, x.coordinates)
        return input[0].replace_feature(torch.cat([x.features for x in input], 1))


class AddTable(SparseModule):
    """Add sparse tensors with the same coordinates."""

    @leaf_of_graphs
    def forward(self, input: list[SparseConvTensor]) -> SparseConvTensor:
        total = input[0]
        for x in input[1:]:
            total = total + x
        return total


def is_spconv_module(module: nn.Module) -> bool:
    """Whether the module takes a sparse tensor rather than features."""
    return isinstance(module, (SparseModule, _OnFeatures, Identity))
