"""How much an accelerated model's results differ from those of the model it came from."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pointcloud.tensor import SparseConvTensor


@dataclass(frozen=True)
class Agreement:
    """Outputs of two models on the same inputs.

    Attributes:
        max_difference: largest absolute difference of any element.
        relative_difference: the same, in units of the largest absolute element of the first model's outputs.
        top1: share of rows in which both have their maximum in the same channel, 1.0 where there are no rows.
        rows: number of rows compared.
    """

    max_difference: float
    relative_difference: float
    top1: float
    rows: int

    def __str__(self) -> str:
        return (
            f"{self.top1:.2%} of {self.rows} rows agree in their largest channel; largest difference "
            f"{self.max_difference:.3g} ({self.relative_difference:.2e} of the largest value)"
        )


@torch.no_grad()
def compare(model: nn.Module, accelerated: nn.Module, data: Any) -> Agreement:
    """Run both models on the same inputs.

    Args:
        data: one input (a SparseConvTensor or a Tensor), or an iterable of inputs; a tuple is one input of several
            arguments. Each output must be a floating tensor or a SparseConvTensor with one row per item, [N, C].

    Raises:
        ValueError: an output of another kind, or outputs of different shapes.
    """
    inputs: Iterable[Any] = [data] if isinstance(data, (SparseConvTensor, Tensor, tuple)) else data
    difference = largest = 0.0
    same = rows = 0
    for item in inputs:
        arguments = item if isinstance(item, tuple) else (item,)
        expected, got = _rows(model(*arguments)), _rows(accelerated(*arguments))
        if expected.shape != got.shape:
            raise ValueError(f"the outputs must have one shape, got {list(expected.shape)} and {list(got.shape)}")
        if expected.numel() == 0:
            continue
        # NaN compares as unequal to anything: it must not hide behind a maximum.
        gap = (expected - got).abs().nan_to_num(nan=torch.inf, posinf=torch.inf)
        difference = max(difference, float(gap.max()))
        largest = max(largest, float(expected.abs().max()))
        same += int((expected.argmax(1) == got.argmax(1)).sum())
        rows += expected.shape[0]
    relative = difference / largest if largest > 0 else difference
    return Agreement(difference, relative, same / rows if rows else 1.0, rows)


def _rows(output: Any) -> Tensor:
    """Output as fp64 [N, C]."""
    features = output.features if isinstance(output, SparseConvTensor) else output
    if not isinstance(features, Tensor) or features.ndim < 2 or not features.is_floating_point():
        got = f"{features.dtype} {list(features.shape)}" if isinstance(features, Tensor) else type(features).__name__
        raise ValueError(f"a model's output must be a floating tensor or a SparseConvTensor of [N, C], got {got}")
    return features.double().flatten(1)
