"""How far a faster network's outputs agree with the original's."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Outputs of two networks on the same inputs, row by row.

    Attributes:
        rows: number of rows compared.
        top1: share of rows whose largest element is the same one, 1.0 where there are no rows.
        max_difference: largest absolute difference of any element; infinite where only one of the two is finite.
        mean_difference: mean absolute difference.
        relative_difference: the largest one in units of the original's largest absolute element.
    """

    rows: int = 0
    top1: float = 1.0
    max_difference: float = 0.0
    mean_difference: float = 0.0
    relative_difference: float = 0.0

    def __str__(self) -> str:
        if not self.rows:
            return "nothing compared"
        return (
            f"{self.top1:.2%} of {self.rows} rows agree in their largest element; largest difference "
            f"{self.max_difference:.3g} ({self.relative_difference:.2e} of the largest value), mean "
            f"{self.mean_difference:.3g}"
        )


class Comparison:
    """Gathers an Agreement, batch by batch."""

    def __init__(self) -> None:
        self._rows = self._same = self._elements = 0
        self._largest = self._difference = self._total = 0.0

    def add(self, expected: Tensor, got: Tensor) -> None:
        """Take in rows [N, C] of the original and of the faster network.

        Raises:
            ValueError: two shapes.
        """
        if expected.shape != got.shape:
            raise ValueError(
                f"both networks must give outputs of one shape, got {list(expected.shape)} and {list(got.shape)}"
            )
        if expected.numel() == 0:
            return
        expected, got = expected.double(), got.double()
        # NaN compares as unequal to anything: it must not hide behind a maximum.
        gap = (expected - got).abs().nan_to_num(nan=math.inf, posinf=math.inf)
        self._difference = max(self._difference, float(gap.max()))
        self._total += float(gap.sum())
        self._largest = max(self._largest, float(expected.abs().max()))
        self._same += int((expected.argmax(1) == got.argmax(1)).sum())
        self._rows += len(expected)
        self._elements += expected.numel()

    def fields(self) -> dict[str, Any]:
        """The fields of an Agreement."""
        relative = self._difference / self._largest if self._largest > 0 else self._difference
        return {
            "rows": self._rows,
            "top1": self._same / self._rows if self._rows else 1.0,
            "max_difference": self._difference,
            "mean_difference": self._total / self._elements if self._elements else 0.0,
            "relative_difference": relative,
        }


def compare_rows(
    model: nn.Module, faster: nn.Module, data: Any, rows_of: Callable[[Any], Tensor], one_input: tuple[type, ...]
) -> Agreement:
    """Run both networks on the same inputs, without gradients.

    Args:
        data: one input (of a type of `one_input`, or a tuple of several arguments), or an iterable of inputs.
        rows_of: the rows [N, C] of an output that are compared.

    Raises:
        ValueError: outputs of different shapes, or what `rows_of` refuses.
    """
    inputs: Iterable[Any] = [data] if isinstance(data, (*one_input, tuple)) else data
    comparison = Comparison()
    with torch.no_grad():
        for item in inputs:
            arguments = item if isinstance(item, tuple) else (item,)
            comparison.add(rows_of(model(*arguments)), rows_of(faster(*arguments)))
    return Agreement(**comparison.fields())
