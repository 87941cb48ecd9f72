"""Multinomial logistic regression on embeddings: the head that is trained in seconds."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def logistic_regression(
    features: Tensor, target: Tensor, classes: int, regularization: float, max_steps: int = 500
) -> tuple[Tensor, Tensor]:
    """Weight [C, H] and bias [C], float32, of the least penalised cross-entropy; computed in float64.

    Args:
        features: [N, H].
        target: [N] int64, the class of each row.
        classes: C.
        regularization: weight λ of the penalty λ/2 ‖weight‖² beside the sum over all rows of the cross-entropy.
        max_steps: of L-BFGS.
    """
    x = features.double()
    weight = torch.zeros(classes, x.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(classes, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight, bias],
        max_iter=max_steps,
        tolerance_grad=1e-7,
        tolerance_change=1e-12,
        history_size=20,
        line_search_fn="strong_wolfe",
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        # Per text, so that steps and tolerance do not depend on their number.
        entropy = torch.nn.functional.cross_entropy(x @ weight.T + bias, target)
        value = entropy + regularization / (2 * len(x)) * weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    return weight.detach().float(), bias.detach().float()


def class_name(i: int, label: object) -> str:
    """The name of the class that `labels[i]` gives, as str or int.

    Raises:
        TypeError: a label of another type.
    """
    if isinstance(label, (str, int, np.integer)) and not isinstance(label, bool):
        return str(label)
    raise TypeError(f"labels[{i}] must be a str or an int, got {type(label).__name__}")
