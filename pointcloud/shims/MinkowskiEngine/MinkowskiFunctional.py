"""Activations as functions of sparse tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.nn import functional

from pointcloud.shims.MinkowskiEngine.tensor import SparseTensor


def _on_features(function: Callable[..., Tensor]) -> Callable[..., SparseTensor]:
    def call(input: SparseTensor, *args: Any, **kwargs: Any) -> SparseTensor:
        return input.at(function(input.F, *args, **kwargs))

    return call


relu = _on_features(functional.relu)
leaky_relu = _on_features(functional.leaky_relu)
elu = _on_features(functional.elu)
gelu = _on_features(functional.gelu)
dropout = _on_features(functional.dropout)
sigmoid = _on_features(functional.sigmoid)
tanh = _on_features(functional.tanh)
softmax = _on_features(functional.softmax)
log_softmax = _on_features(functional.log_softmax)
