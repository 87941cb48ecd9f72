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
relu6 = _on_features(functional.relu6)
hardtanh = _on_features(functional.hardtanh)
hardswish = _on_features(functional.hardswish)
hardsigmoid = _on_features(functional.hardsigmoid)
selu = _on_features(functional.selu)
celu = _on_features(functional.celu)
prelu = _on_features(functional.prelu)
rrelu = _on_features(functional.rrelu)
glu = _on_features(functional.glu)
logsigmoid = _on_features(functional.logsigmoid)
hardshrink = _on_features(functional.hardshrink)
tanhshrink = _on_features(functional.tanhshrink)
softsign = _on_features(functional.softsign)
softplus = _on_features(functional.softplus)
softmin = _on_features(functional.softmin)
softshrink = _on_features(functional.softshrink)
alpha_dropout = _on_features(functional.alpha_dropout)
normalize = _on_features(functional.normalize)
