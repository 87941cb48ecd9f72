"""Agreement of two networks, against the definition written out."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from common_models.agreement import Agreement, Comparison, compare_rows


class Plus(nn.Module):
    def __init__(self, value: Tensor | float) -> None:
        super().__init__()
        self.value = value

    def forward(self, x: Tensor, y: Tensor | float = 0.0) -> Tensor:
        return x + self.value + y


def test_the_definition() -> None:
    x = torch.tensor([[1.0, 2.0], [4.0, 3.0], [0.0, -5.0]])
    move = torch.tensor([[0.0, 0.0], [0.0, 1.5], [0.25, 0.0]])
    found = compare_rows(Plus(0.0), Plus(move), x, lambda out: out, (Tensor,))
    assert found == Agreement(
        rows=3, top1=2 / 3, max_difference=1.5, mean_difference=1.75 / 6, relative_difference=1.5 / 5
    )


def test_batches_are_one_whole() -> None:
    x, move = torch.randn(6, 3), 0.25
    whole = compare_rows(Plus(0.0), Plus(move), x, lambda out: out, (Tensor,))
    parts = compare_rows(Plus(0.0), Plus(move), iter(x.split(2)), lambda out: out, (Tensor,))
    assert vars(whole) == pytest.approx(vars(parts))
    several = compare_rows(Plus(0.0), Plus(move), (x, 1.0), lambda out: out, (Tensor,))
    assert several.max_difference == pytest.approx(0.25)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_is_infinitely_far(value: float) -> None:
    found = compare_rows(Plus(0.0), Plus(value), torch.ones(2, 2), lambda out: out, (Tensor,))
    assert found.max_difference == math.inf


def test_nothing() -> None:
    found = compare_rows(Plus(0.0), Plus(1.0), torch.empty(0, 4), lambda out: out, (Tensor,))
    assert found == Agreement() and str(found) == "nothing compared"


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match=r"outputs of one shape, got \[1, 2\] and \[1, 3\]"):
        Comparison().add(torch.ones(1, 2), torch.ones(1, 3))


def test_no_gradients() -> None:
    seen: list[bool] = []

    class Sees(nn.Module):
        def forward(self, x: Tensor) -> Any:
            seen.append(torch.is_grad_enabled())
            return x

    compare_rows(Sees(), Sees(), torch.ones(1, 1), lambda out: out, (Tensor,))
    assert seen == [False, False]


def test_the_text_has_the_figures() -> None:
    text = str(Agreement(rows=8, top1=0.875, max_difference=0.5, mean_difference=0.125, relative_difference=0.1))
    assert text.startswith("87.50% of 8 rows agree") and "0.5 (1.00e-01 of the largest value), mean 0.125" in text
