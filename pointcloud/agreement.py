"""How far an accelerated network's outputs agree with those of the network that it was made from."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from common_models.agreement import Agreement, compare_rows
from pointcloud.tensor import SparseConvTensor


def compare(model: nn.Module, faster: nn.Module, data: Any) -> Agreement:
    """Run both networks on the same inputs.

    Args:
        data: one input (a SparseConvTensor or a Tensor), or an iterable of inputs; a tuple is one input of several
            arguments. Each output must be a floating tensor or a SparseConvTensor with one row per item, [N, C].

    Raises:
        ValueError: an output of another kind, or outputs of different shapes.
    """
    return compare_rows(model, faster, data, _rows, (SparseConvTensor, Tensor))


def _rows(output: Any) -> Tensor:
    """An output as [N, C]."""
    features = output.features if isinstance(output, SparseConvTensor) else output
    if not isinstance(features, Tensor) or features.ndim < 2 or not features.is_floating_point():
        got = f"{features.dtype} {list(features.shape)}" if isinstance(features, Tensor) else type(features).__name__
        raise ValueError(f"a model's output must be a floating tensor or a SparseConvTensor of [N, C], got {got}")
    return features.flatten(1)
