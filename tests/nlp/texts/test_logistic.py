"""Logistic regression against its own optimality, and the names of classes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from nlp.texts.logistic import class_name, logistic_regression


def test_the_gradient_of_the_penalised_cross_entropy_vanishes() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(60, 5, generator=generator)
    target = (x[:, 0] + 0.5 * torch.randn(60, generator=generator) > 0).long() + (x[:, 1] > 1).long()
    for penalty in (0.1, 3.0):
        weight, bias = logistic_regression(x, target, 3, penalty)
        assert weight.shape == (3, 5) and bias.shape == (3,) and weight.dtype == torch.float32
        # Of the sum over all rows: (p - onehot)ᵀ x + λ weight, and for the free bias the sum of p - onehot.
        miss = (x @ weight.T + bias).softmax(1) - torch.nn.functional.one_hot(target, 3)
        torch.testing.assert_close(miss.T @ x + penalty * weight, torch.zeros(3, 5), rtol=0, atol=1e-3)
        torch.testing.assert_close(miss.sum(0), torch.zeros(3), rtol=0, atol=1e-3)


def test_names_of_classes() -> None:
    assert [class_name(0, label) for label in ("a", 3, np.int64(4))] == ["a", "3", "4"]
    for wrong in (None, 0.5, True):
        with pytest.raises(TypeError, match=rf"labels\[7\] must be a str or an int, got {type(wrong).__name__}"):
            class_name(7, wrong)
